"""What bytes each token stands for, read off a tokenizer.json's decoder.

A text's bytes are its tokens' bytes in a row: true of byte-level and SentencePiece vocabularies, once the text is seen as
the continuation it is (a decoder that drops the first space of a text does so only at a beginning). Decoders for which it
is not true are refused. It knows nothing of characters or streams.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.errors import StartupError
from shared.vocabulary.gguf_source import byte_alphabet
from shared.vocabulary.source import Rules

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_BYTES = {letter: byte for byte, letter in enumerate(byte_alphabet())}

Spell = Callable[[str], bytes]


def token_bytes(path: Path, rules: Rules, tokens: Sequence[str | None]) -> tuple[bytes, ...]:
    """Each token's bytes; none for an id that has no token. Added tokens stand for the UTF-8 of their spelling."""
    steps = _flatten(rules.get("decoder"))
    if any(step.get("type") == "ByteLevel" for step in steps):
        spell: Spell = _byte_level
        spell_added: Spell = str.encode
    elif len(steps) == 1 and steps[0].get("type") == "WordPiece":
        spell, spell_added = _wordpiece(str(steps[0].get("prefix", "##"))), str.encode
    else:
        spell = spell_added = _sentencepiece(path, steps)
    added = {token["id"] for token in rules.get("added_tokens") or ()}
    return tuple(
        b"" if token is None else spell_added(token) if index in added else spell(token) for index, token in enumerate(tokens)
    )


def _flatten(decoder: Any) -> list[Mapping[str, Any]]:
    if not isinstance(decoder, Mapping):
        return []
    if decoder.get("type") != "Sequence":
        return [decoder]
    return [step for inner in decoder.get("decoders", ()) for step in _flatten(inner)]


def _byte_level(token: str) -> bytes:
    try:
        return bytes([_BYTES[letter] for letter in token])
    except KeyError:
        return token.encode()


def _wordpiece(prefix: str) -> Spell:
    """A token that begins with `prefix` goes on with the word before it, any other begins one.

    The decoder's clean-up, which takes away the spaces before punctuation, looks at more than one token and is left out:
    an encoder's tokens are read by people alone, never written by a model.
    """
    return lambda token: token.removeprefix(prefix).encode() if token.startswith(prefix) else f" {token}".encode()


def _sentencepiece(path: Path, steps: Sequence[Mapping[str, Any]]) -> Spell:
    """A spelling from the steps Replace, Metaspace, ByteFallback; Fuse and Strip concern only a text's beginning."""
    replacements: list[tuple[str, str]] = []
    byte_fallback = False
    for step in steps:
        kind = step.get("type")
        if kind == "Metaspace":
            replacements.append((step.get("replacement", "▁"), " "))
        elif kind == "Replace" and isinstance((step.get("pattern") or {}).get("String"), str):
            replacements.append((step["pattern"]["String"], step["content"]))
        elif kind == "ByteFallback":
            byte_fallback = True
        elif kind not in ("Fuse", "Strip"):
            raise StartupError(f"{path}: the tokenizer's decoder '{kind}' is not supported; ByteLevel and Metaspace kinds are")
    if not steps:
        raise StartupError(f"{path}: the tokenizer has no decoder, so its tokens cannot be turned into text")

    def spell(token: str) -> bytes:
        match = _BYTE_TOKEN.fullmatch(token) if byte_fallback else None
        if match:
            return bytes([int(match[1], 16)])
        for old, new in replacements:
            token = token.replace(old, new)
        return token.encode()

    return spell
