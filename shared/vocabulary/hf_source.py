"""Reads the text side of a Hugging Face directory: tokenizer.json and the small files beside it.

It knows nothing of what the rules in tokenizer.json mean.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.errors import StartupError
from shared.vocabulary.source import TextSource

_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


def read_hf_source(path: Path) -> TextSource:
    """The text side of the directory `path`. Raises StartupError naming file and fault."""
    rules = _read_json(path / "tokenizer.json")
    if rules is None:
        raise StartupError(f"{path / 'tokenizer.json'}: no such file; the model needs one (or a .gguf file)")
    config = _read_json(path / "tokenizer_config.json") or {}
    special = _read_json(path / "special_tokens_map.json") or {}
    model = _read_json(path / "config.json") or {}
    model = model.get("text_config") or model
    generation = _read_json(path / "generation_config.json") or {}
    tokens = {name: _spelling(config.get(name) or special.get(name)) for name in _TOKEN_NAMES}
    template_tokens = {name: spelling for name, spelling in tokens.items() if spelling}
    eos = generation.get("eos_token_id", model.get("eos_token_id"))
    if eos is None and "eos_token" in template_tokens:
        eos = _id_of(rules, template_tokens["eos_token"])
    positions = model.get("max_position_embeddings")
    return TextSource(
        path=path,
        rules=rules,
        templates=_templates(path, config),
        template_tokens=template_tokens,
        eos_token_ids=_ids(path, eos),
        context_len=positions if isinstance(positions, int) else 0,
    )


def _read_json(path: Path) -> dict[str, Any] | None:
    """The object in `path`, None if there is no such file."""
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise StartupError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise StartupError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise StartupError(f"{path}: must hold a JSON object")
    return value


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StartupError(f"{path}: cannot be read: {error}") from error


def _spelling(token: Any) -> str | None:
    """A special token as the configs write it: a string, or an object with its content."""
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) and content else None


def _id_of(rules: Mapping[str, Any], spelling: str) -> int | None:
    for token in rules.get("added_tokens") or ():
        if token.get("content") == spelling and isinstance(token.get("id"), int):
            return int(token["id"])
    return None


def _ids(path: Path, value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    ids = value if isinstance(value, list) else [value]
    if not all(isinstance(item, int) and item >= 0 for item in ids):
        raise StartupError(f"{path}: eos_token_id is {value!r}; it must be one token id or a list of them")
    return tuple(dict.fromkeys(ids))


def _templates(path: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates by name; a file beside the model wins over one inside a config."""
    found: dict[str, str] = {}
    stated = config.get("chat_template") or (_read_json(path / "chat_template.json") or {}).get("chat_template")
    if isinstance(stated, str):
        found["default"] = stated
    elif isinstance(stated, list):
        for entry in stated:
            if not (isinstance(entry, Mapping) and isinstance(entry.get("template"), str)):
                raise StartupError(f"{path / 'tokenizer_config.json'}: chat_template must be a string or a list of named ones")
            found[str(entry.get("name"))] = entry["template"]
    for file in sorted((path / "additional_chat_templates").glob("*.jinja")):
        found[file.stem] = _read_text(file)
    if (path / "chat_template.jinja").is_file():
        found["default"] = _read_text(path / "chat_template.jinja")
    return found
