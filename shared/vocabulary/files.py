"""Finds and reads a model's text side: in a .gguf file, or in a Hugging Face directory.

It knows nothing of what is done with it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.errors import StartupError
from shared.gguf import read_gguf
from shared.vocabulary.gguf_source import read_gguf_source
from shared.vocabulary.hf_source import read_hf_source
from shared.vocabulary.source import Rules, TextSource
from shared.vocabulary.token_bytes import token_bytes

_CONTROL_SHAPE = re.compile(r"<\|.*\|>", re.DOTALL)


def read_source(path: Path) -> TextSource:
    """The text side of the model at `path`. Raises StartupError naming file and fault."""
    if path.is_dir():
        files = sorted(path.glob("*.gguf"))
        if (path / "tokenizer.json").exists() or not files:
            return read_hf_source(path)
        path = files[0]
    return read_gguf_source(read_gguf(path))


def is_guarded(token: Mapping[str, Any], eos_token_ids: tuple[int, ...]) -> bool:
    """Whether an added token stands for no text: flagged special, the end of a text, or of the shape <|...|>."""
    return bool(is_special(token, eos_token_ids) or _CONTROL_SHAPE.fullmatch(token["content"]))


def is_special(token: Mapping[str, Any], eos_token_ids: tuple[int, ...]) -> bool:
    """Whether an added token is left out of text shown to people."""
    return bool(token.get("special") or token["id"] in eos_token_ids)


@dataclass(frozen=True, slots=True)
class Tokens:
    """Every token's bytes, by id, and the ids of those that stand for no text."""

    token_bytes: tuple[bytes, ...] = field(repr=False)
    control_ids: frozenset[int]


def read_tokens(path: Path) -> Tokens:
    """The tokens of the model at `path`, read without a tokenizer. Raises StartupError naming file and fault."""
    source = read_source(path)
    try:
        added = source.rules.get("added_tokens") or ()
        control = {token["id"] for token in added if is_guarded(token, source.eos_token_ids)}
        return Tokens(token_bytes(source.path, source.rules, spellings(source.rules)), frozenset(control))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise StartupError(f"{source.path}: the tokenizer's rules are broken: {type(error).__name__} {error}") from error


def spellings(rules: Rules) -> list[str | None]:
    """How the rules spell each token, by id; None for an id without one."""
    vocab = (rules.get("model") or {}).get("vocab") or {}
    pieces = vocab.items() if isinstance(vocab, dict) else ((entry[0], index) for index, entry in enumerate(vocab))
    by_id = {index: piece for piece, index in pieces}
    by_id |= {token["id"]: token["content"] for token in rules.get("added_tokens") or ()}
    return [by_id.get(index) for index in range(1 + max(by_id, default=-1))]
