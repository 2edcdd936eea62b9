"""The model's vocabulary: text to token ids, where only the model's own template can write a special token.

Every special token is given a secret spelling in the encoder (`respell`), drawn anew by each process. Text from outside
cannot spell it, so what looks like `<|im_end|>` in it is encoded as the plain text it is; the chat renderer writes the
secret spelling where the template, and not the user, wrote the special token. Guarded so are the tokens a file calls
special, those that end a text, and every added token of the shape `<|...|>`, since files are careless about the flag;
other added tokens (`<think>`) are vocabulary that anyone may write. It knows nothing of templates or streams.
"""

import copy
import hashlib
import json
import re
import secrets
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from shared.errors import StartupError
from shared.vocabulary.files import is_guarded, is_special, read_source
from shared.vocabulary.source import Rules, TextSource
from shared.vocabulary.token_bytes import token_bytes

_MARK = "\U0010fffd"
_SECRET = re.compile(f"{_MARK}[0-9a-f]{{38}}{_MARK}")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A model's tokens. `token_bytes` is indexed by id; `secret` gives the secret spelling of each guarded token.

    special_ids: the tokens that are left out of text shown to people. control_ids: all that are guarded.
    """

    source: TextSource = field(repr=False)
    token_bytes: tuple[bytes, ...] = field(repr=False)
    special_ids: frozenset[int] = field(repr=False)
    control_ids: frozenset[int] = field(repr=False)
    secret: Mapping[str, str] = field(repr=False)
    digest: bytes
    _tokenizer: Tokenizer = field(repr=False)
    _tokens: Mapping[str, str] = field(repr=False)  # by secret spelling

    @property
    def size(self) -> int:
        """Ids run from 0 to this less one."""
        return len(self.token_bytes)

    def encode(self, text: str, *, add_special_tokens: bool) -> "array[int]":
        """Token ids; special tokens only where `text` holds secret spellings, and at the ends if asked. Releases the GIL."""
        return array("I", self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The whole text that the ids are, special tokens spelled as the model's files spell them. Releases the GIL."""
        return self._plainly(self._tokenizer.decode(token_ids, skip_special_tokens=False))

    def token(self, token_id: int) -> str:
        """A token as the vocabulary spells it; empty for an id that has none."""
        return self._plainly(self._tokenizer.id_to_token(token_id) or "")

    def _plainly(self, text: str) -> str:
        """`text` with the files' spelling of what it spells secretly."""
        return _SECRET.sub(lambda match: self._tokens.get(match[0], match[0]), text) if _MARK in text else text


def load(path: Path) -> Vocabulary:
    """The vocabulary of a .gguf file or a Hugging Face directory. Raises StartupError naming file and fault."""
    source = read_source(path)
    try:
        return _load(source)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise StartupError(f"{source.path}: the tokenizer's rules are broken: {type(error).__name__} {error}") from error


def _load(source: TextSource) -> Vocabulary:
    rules = {**source.rules, "truncation": None, "padding": None}
    added = rules.get("added_tokens") or ()
    special_ids = {token["id"] for token in added if is_special(token, source.eos_token_ids)}
    guarded = [token for token in added if is_guarded(token, source.eos_token_ids)]
    nonce = secrets.token_hex(16)
    secret = {token["content"]: f"{_MARK}{nonce}{index:06x}{_MARK}" for index, token in enumerate(guarded)}
    tokenizer = _build(source.path, respell(rules, secret))
    spellings = {spelling: token for token, spelling in secret.items()}
    num_tokens = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    tokens = [tokenizer.id_to_token(index) for index in range(num_tokens)]
    tokens = [spellings.get(token, token) if token is not None else None for token in tokens]
    for token in guarded:
        if token["id"] >= num_tokens or tokens[token["id"]] != token["content"]:
            raise StartupError(f"{source.path}: broken vocabulary: {token['content']!r} does not have id {token['id']}")
    wrong = [index for index in source.eos_token_ids if index >= num_tokens]
    if wrong:
        raise StartupError(f"{source.path}: end-of-text id {wrong[0]} is no token: ids end at {num_tokens - 1}")
    return Vocabulary(
        source=replace(source, rules={}),  # the tokenizer holds them now; as Python objects they take 20 MB
        token_bytes=token_bytes(source.path, rules, tokens),
        special_ids=frozenset(special_ids),
        control_ids=frozenset(token["id"] for token in guarded),
        secret=secret,
        digest=_digest(source),
        _tokenizer=tokenizer,
        _tokens=spellings,
    )


def _build(path: Path, rules: Rules) -> Tokenizer:
    try:
        return Tokenizer.from_str(json.dumps(rules))
    except Exception as error:  # The library raises bare Exceptions.
        cause = " ".join(str(error).split())
        raise StartupError(f"{path}: the tokenizer's rules are broken: {cause[:300]}") from error


def _digest(source: TextSource) -> bytes:
    facts = [source.rules, dict(source.templates), dict(source.template_tokens), source.eos_token_ids, source.context_len]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).digest()


def respell(rules: Rules, spelling: Mapping[str, str]) -> Rules:
    """`rules` in which the tokens of `spelling` are spelled so, and in no other way: merges that made one are gone."""
    renamed = dict(rules)
    renamed["added_tokens"] = [
        {**token, "content": spelling[token["content"]], "normalized": False} if token["content"] in spelling else token
        for token in rules.get("added_tokens") or ()
    ]
    model: dict[str, Any] = copy.copy(rules.get("model") or {})
    vocab = model.get("vocab")
    if isinstance(vocab, dict):
        model["vocab"] = {spelling.get(token, token): index for token, index in vocab.items()}
    elif isinstance(vocab, list):
        model["vocab"] = [[spelling.get(entry[0], entry[0]), *entry[1:]] for entry in vocab]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = spelling.get(model["unk_token"], model["unk_token"])
    if isinstance(model.get("merges"), list):
        model["merges"] = [merge for merge in model["merges"] if spelling.keys().isdisjoint(_parts(merge))]
    renamed["model"] = model
    return renamed


def _parts(merge: Any) -> tuple[str, ...]:
    """The two pieces of a merge, written as a pair or as one string, and what they make."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right, left + right


def pattern_of(strings: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern for the longest of `strings` at the leftmost place, in time linear in the text; None for no strings."""
    trie: dict[str, Any] = {}
    for string in filter(None, strings):
        node = trie
        for letter in string:
            node = node.setdefault(letter, {})
        node[""] = {}
    return re.compile(_trie_pattern(trie)) if trie else None


def _trie_pattern(node: Mapping[str, Any]) -> str:
    branches = [re.escape(letter) + _trie_pattern(child) for letter, child in node.items() if letter]
    if not branches:
        return ""
    body = branches[0] if len(branches) == 1 else "(?:" + "|".join(branches) + ")"
    return f"(?:{body})?" if "" in node else body
