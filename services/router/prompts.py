"""The prompts of a completion: one or many, as text or as token ids.

It knows nothing of what the ids stand for, nor of how a request goes on.
"""

import struct
from array import array
from collections.abc import Sequence
from typing import Any

from shared.errors import InvalidRequest

MAX_PROMPTS = 128
LONG_PROMPT = 2**16


def unpack(packed: bytes, name: str = "token_ids") -> list[int]:
    """Token ids from little-endian uint32, of field `name`. Raises InvalidRequest if there are none or a part of one."""
    if not packed or len(packed) % 4:
        raise InvalidRequest(f"Invalid '{name}': must be one or more little-endian uint32.", param=name, code="invalid_value")
    return list(struct.unpack(f"<{len(packed) // 4}I", packed))


def prompts_of(
    prompt: str | Sequence[str | int | list[int]], name: str = "prompt", most: int = MAX_PROMPTS
) -> list[str | list[int]]:
    """The prompts of a body, one or many, at most `most`, in its field `name`. Raises InvalidRequest."""
    if isinstance(prompt, str):
        check_text(prompt, name)
        return [prompt]
    if not prompt:
        raise InvalidRequest(f"Invalid '{name}': must not be empty.", param=name, code="empty_array")
    if isinstance(prompt[0], int):
        return [_token_ids(prompt, name, name)]
    if len(prompt) > most:
        raise InvalidRequest(f"Invalid '{name}': at most {most} of them.", param=name, code="array_above_max_length")
    if len({type(entry) for entry in prompt}) > 1:
        raise _mixed(name)
    return [_one_prompt(entry, f"{name}[{index}]", name) for index, entry in enumerate(prompt)]


def _one_prompt(entry: Any, path: str, name: str) -> str | list[int]:
    if isinstance(entry, str):
        check_text(entry, path)
        return entry
    return _token_ids(entry, path, name)


def check_text(text: str, path: str) -> None:
    """Raises InvalidRequest for an empty text."""
    if not text:
        raise InvalidRequest(f"Invalid '{path}': must not be empty.", param=path, code="empty_string")


def _token_ids(entry: Sequence[Any], path: str, name: str) -> list[int]:
    if not entry:
        raise InvalidRequest(f"Invalid '{path}': must not be empty.", param=path, code="empty_array")
    if len(entry) > LONG_PROMPT:
        # Most models take less: that is looked at first (validate.py), and then at what such a list holds.
        return list(entry)
    try:
        array("I", entry)
    except OverflowError:
        raise InvalidRequest(f"Invalid '{path}': holds what is no token id.", param=path, code="invalid_token_id") from None
    except TypeError:
        raise _mixed(name) from None
    return list(entry)


def _mixed(name: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid type for '{name}': mixes texts and token ids.", param=name, code="invalid_type")
