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


def unpack(packed: bytes) -> list[int]:
    """Token ids from little-endian uint32. Raises InvalidRequest if there are none or a part of one."""
    if not packed or len(packed) % 4:
        raise InvalidRequest(
            "Invalid 'token_ids': must be one or more little-endian uint32.", param="token_ids", code="invalid_value"
        )
    return list(struct.unpack(f"<{len(packed) // 4}I", packed))


def prompts_of(prompt: str | Sequence[str | int | list[int]]) -> list[str | list[int]]:
    """The prompts of a completions body, one or many. Raises InvalidRequest."""
    if isinstance(prompt, str):
        check_text(prompt, "prompt")
        return [prompt]
    if not prompt:
        raise InvalidRequest("Invalid 'prompt': must not be empty.", param="prompt", code="empty_array")
    if isinstance(prompt[0], int):
        return [_token_ids(prompt, "prompt")]
    if len(prompt) > MAX_PROMPTS:
        raise InvalidRequest(f"Invalid 'prompt': at most {MAX_PROMPTS} prompts.", param="prompt", code="array_above_max_length")
    if len({type(entry) for entry in prompt}) > 1:
        raise _mixed()
    return [_one_prompt(entry, f"prompt[{index}]") for index, entry in enumerate(prompt)]


def _one_prompt(entry: Any, path: str) -> str | list[int]:
    if isinstance(entry, str):
        check_text(entry, path)
        return entry
    return _token_ids(entry, path)


def check_text(text: str, path: str) -> None:
    """Raises InvalidRequest for an empty text."""
    if not text:
        raise InvalidRequest(f"Invalid '{path}': must not be empty.", param=path, code="empty_string")


def _token_ids(entry: Sequence[Any], path: str) -> list[int]:
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
        raise _mixed() from None
    return list(entry)


def _mixed() -> InvalidRequest:
    return InvalidRequest("Invalid type for 'prompt': mixes texts and token ids.", param="prompt", code="invalid_type")
