"""What is asked: prompts and lengths, drawn from a seed, the same for every server. It knows nothing of servers.

The words are ones that usual vocabularies hold whole, so that a word is about a token.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from bench.lengths import chat_lengths

_TEXT = """the of and to in is that for it as was with be by on not he his but at are this have from or had they which
one you were all her she there would their we him been has when who will no more if out so said what up its about into
than them can only other new some could time these two may then do first any my now such like our over man me even most
made after also did many before must through back years where much your way well down should because each just those
people how too little state good very make world still own see men work long get here between both life being under
never day same another know while last might us great old year off come since against go came right used take
three"""
WORDS = tuple(_TEXT.split())


@dataclass(frozen=True, slots=True)
class Ask:
    """One request."""

    prompt: str
    max_tokens: int


def words(rng: random.Random, count: int) -> str:
    """That many words."""
    return " ".join(rng.choices(WORDS, k=count))


def mixed(seed: int, prompt_words: tuple[int, int], new_tokens: tuple[int, int], prefix_words: int = 0) -> Iterator[Ask]:
    """Endless requests: lengths even between the bounds, every prompt behind one prefix of prefix_words words."""
    rng = random.Random(seed)
    prefix = words(rng, prefix_words) + " " if prefix_words else ""
    while True:
        yield Ask(prefix + words(rng, rng.randint(*prompt_words)), rng.randint(*new_tokens))


def chats(seed: int, most: int) -> Iterator[Ask]:
    """Endless requests with the lengths of chats (lengths.py), a word counted as a token, at most `most` together."""
    rng = random.Random(seed)
    for prompt, answer in chat_lengths(seed, most):
        yield Ask(words(rng, prompt), answer)


def long_prompts(seed: int, num_words: int) -> Iterator[Ask]:
    """Endless long prompts that begin differently; each ends with its first token."""
    rng = random.Random(seed)
    while True:
        yield Ask(words(rng, num_words), 1)
