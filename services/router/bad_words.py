"""How bad words are spelled in tokens, as vLLM spells them: at the beginning of a text, and behind a space.

It knows nothing of what is done with the spellings.
"""

from collections.abc import Sequence

from shared.pb import tokenizer_pb2


def texts_of(words: Sequence[str]) -> list[tokenizer_pb2.Text]:
    """What to ask the tokenizer for: of each word both texts."""
    spelled = (space + word.lstrip() for word in words for space in ("", " "))
    return [tokenizer_pb2.Text(text=text, add_special_tokens=False) for text in spelled]


def spellings_of(token_ids: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """The ids that cannot come, from those of `texts_of`; the second of a word counts where its first token is another one."""
    found: list[tuple[int, ...]] = []
    for plain, spaced in zip(token_ids[::2], token_ids[1::2], strict=True):
        found.append(tuple(plain))
        if spaced[0] != plain[0] and len(spaced) == len(plain):
            found.append(tuple(spaced))
    return tuple(dict.fromkeys(found))
