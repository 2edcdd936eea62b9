"""Lengths of prompts and answers as chats have them, drawn from a printed seed. It knows nothing of their content.

Log-normal, with the means and spreads published for ShareGPT conversations in the PagedAttention paper
(Kwon et al. 2023, figure 11: mean prompt about 160 tokens, mean answer about 340), clipped.
"""

import math
import random
from collections.abc import Iterator

PROMPT_MEAN, ANSWER_MEAN = 161.0, 338.0
SIGMA = 1.0


def chat_lengths(seed: int, most: int) -> Iterator[tuple[int, int]]:
    """Endless (prompt, answer) lengths in tokens, each at least 4, together at most `most`."""
    rng = random.Random(seed)
    while True:
        prompt = _draw(rng, PROMPT_MEAN, most // 2)
        yield prompt, _draw(rng, ANSWER_MEAN, most - prompt)


def _draw(rng: random.Random, mean: float, most: int) -> int:
    return max(4, min(most, round(rng.lognormvariate(math.log(mean) - SIGMA**2 / 2, SIGMA))))
