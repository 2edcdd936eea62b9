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

from tokenizers import Encoding, Tokenizer

from shared.errors import InvalidRequest, StartupError
from shared.vocabulary.files import is_guarded, is_special, read_source
from shared.vocabulary.source import Rules, TextSource
from shared.vocabulary.token_bytes import token_bytes

_MARK = "\U0010fffd"
_SECRET = re.compile(f"{_MARK}[0-9a-f]{{38}}{_MARK}")
# A text of so many characters for each token that it may have is worth a look before all of it is encoded.
LIKELY_CHARS, LEAST_CHARS = 8, 2
SURE, SURE_MARGIN = 1.25, 128
# No text but runs of one character has so many to a token; pieces that say the whole is four times too long are believed.
ABSURD_CHARS, ABSURD = 32, 4
NUM_SAMPLES, SAMPLE_CHARS = 16, 256


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

    def encode_pair(self, text: str, pair: str | None, *, add_special_tokens: bool, max_tokens: int) -> "tuple[array[int], int]":
        """Token ids of a text and of one that it is judged with, as the model wants them to stand; and how many are the first's.

        Cut to max_tokens, special ones included, if that is not 0: the longer text loses its end. The number is 0 without pair.
        """
        tokenizer = self._tokenizer
        first = tokenizer.encode(text, add_special_tokens=False)
        second = None if pair is None else tokenizer.encode(pair, add_special_tokens=False)
        if max_tokens:
            special = tokenizer.num_special_tokens_to_add(second is not None) if add_special_tokens else 0
            _shorten(first, second, max(0, max_tokens - special))
        whole = tokenizer.post_process(first, second, add_special_tokens)
        return array("I", whole.ids), 0 if second is None else _num_first(whole)

    def check_length(self, text: str, max_tokens: int) -> None:
        """Raises InvalidRequest if `text` is sure to have more than max_tokens tokens (0: any number is fine).

        Encoding costs a second per megabyte, which everybody else would wait for. Of a text many times too long some pieces
        say enough; of others a beginning with a quarter more tokens than the whole may have, for where a text is cut changes
        the tokens next to the cut alone.
        """
        if len(text) <= LIKELY_CHARS * max_tokens or not max_tokens:
            return
        if len(text) > ABSURD_CHARS * max_tokens:
            places = range(0, len(text), len(text) // NUM_SAMPLES)
            num_tokens = self._count("\n".join(text[at : at + SAMPLE_CHARS] for at in places))
            if num_tokens * len(text) > ABSURD * max_tokens * len(places) * SAMPLE_CHARS:
                raise _too_long(f"the prompt's {len(text)} characters are many times as much", max_tokens)
        num_chars = LEAST_CHARS * max_tokens
        while num_chars < len(text):
            num_tokens = self._count(text[:num_chars])
            if num_tokens > SURE * max_tokens + SURE_MARGIN:
                raise _too_long(
                    f"the first {num_chars} of the prompt's {len(text)} characters are {num_tokens} tokens", max_tokens
                )
            num_chars *= 4

    def _count(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, token_ids: Sequence[int]) -> str:
        """The whole text that the ids are, special tokens spelled as the model's files spell them. Releases the GIL."""
        return self._plainly(self._tokenizer.decode(token_ids, skip_special_tokens=False))

    def token(self, token_id: int) -> str:
        """A token as the vocabulary spells it; empty for an id that has none."""
        return self._plainly(self._tokenizer.id_to_token(token_id) or "")

    def _plainly(self, text: str) -> str:
        """`text` with the files' spelling of what it spells secretly."""
        return _SECRET.sub(lambda match: self._tokens.get(match[0], match[0]), text) if _MARK in text else text


def _shorten(first: Encoding, second: Encoding | None, room: int) -> None:
    """Cuts the end of the longer one until both have `room`; an odd token stays with it."""
    if second is None:
        first.truncate(room)
        return
    shorter, longer = sorted((first, second), key=lambda each: len(each.ids))
    kept = min(len(shorter.ids), room // 2)
    shorter.truncate(kept)
    longer.truncate(room - kept)


def _num_first(whole: Encoding) -> int:
    """Tokens before the first of the second text, less the special ones that stand before it and begin it."""
    second = next((index for index, number in enumerate(whole.sequence_ids) if number == 1), len(whole.ids))
    types = whole.type_ids
    # Where types tell the texts apart they say it best; a model without them has nothing that depends on it.
    return types.index(1) if 1 in types else second


def _too_long(what: str, max_tokens: int) -> InvalidRequest:
    return InvalidRequest(
        f"This model's maximum context length is {max_tokens} tokens. However, {what}. Please shorten the prompt.",
        param="prompt",
        code="context_length_exceeded",
    )


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
