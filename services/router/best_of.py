"""The best of many: which of a prompt's choices are given where more were drawn than asked for.

The best are those with the highest mean log-probability per token, as OpenAI has it. It knows nothing of JSON.
"""

from services.router.answers import Choice


def best(choices: list[Choice], num_drawn: int, num_given: int) -> list[Choice]:
    """Of each prompt's num_drawn choices the best num_given, the best first, numbered anew."""
    if num_drawn == num_given:
        return choices
    kept: list[Choice] = []
    for first in range(0, len(choices), num_drawn):
        ranked = sorted(choices[first : first + num_drawn], key=lambda choice: choice.mean_logprob, reverse=True)
        kept += ranked[:num_given]
    for index, choice in enumerate(kept):
        choice.index = index
    return kept
