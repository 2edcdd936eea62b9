"""How many tokens of prompts a step may compute beside its decodes, judged by what recent steps took.

All who decode wait for the longest step, so a step with prompts takes about 1 + SHARE times what its decodes alone would.
How many tokens that is depends on model and device, and on what stands before them. So three things are learned:

    what        from steps that                       by
    decodes     only decode                           their number, in powers of two
    a token     only compute prompts, or do both:     what stands before it, in spans of SPAN tokens
                what these take beyond their decodes

Which tokens a step computes changes nobody's tokens. It knows nothing of sequences, clocks or devices.
"""

from collections.abc import Sequence

SHARE = 1.25
LEAST = 64  # tokens beside decodes: fewer would read all the weights for little, and a prompt must get on
UNKNOWN = 3  # tokens for each that decodes, before anything was learned
SPAN = 1024
_RATE = 1 / 8  # of learning
_AHEAD = 4  # times as many tokens may be thought to take no longer than decodes do
_MOST = 0.5  # of a change taken from one step, as the machine may have been busy with something else

Chunk = tuple[int, int]
"""Tokens of one sequence: how many, and how many stand before them."""


class Pace:
    """Seconds that steps take."""

    def __init__(self) -> None:
        self._decodes: dict[int, tuple[float, float]] = {}  # by bits of the number: the number and seconds of typical steps
        self._token_s: list[float] = []  # by span

    def beside(self, num_decoding: int) -> int:
        """Tokens, with nothing before them, that may be computed in a step in which so many sequences decode."""
        if not self._decodes or not self._token_s:
            return max(LEAST, UNKNOWN * num_decoding)
        return max(LEAST, int(SHARE * self._decode_s(num_decoding) / self._token_s[0]))

    def weight(self, num_before: int) -> float:
        """What a token behind so many others costs, in tokens with nothing before them."""
        return max(1.0, self._seconds(num_before) / self._token_s[0]) if self._token_s else 1.0

    def learn(self, num_decoding: int, chunks: Sequence[Chunk], step_s: float) -> None:
        """Takes note of a step."""
        if not chunks:
            self._learn_decodes(num_decoding, step_s)
        elif num_decoding and self._decodes:
            decode_s = self._decode_s(num_decoding)
            self._learn_tokens(chunks, step_s - decode_s, decode_s)
        elif not num_decoding and sum(num for num, _ in chunks) >= LEAST:
            self._learn_tokens(chunks, step_s, 0.0)

    def _learn_decodes(self, num: int, step_s: float) -> None:
        known_num, known_s = self._decodes.get(num.bit_length(), (num, step_s))
        step_s = min(step_s, (1 + _MOST) * known_s * max(1.0, num / known_num))
        self._decodes[num.bit_length()] = known_num + _RATE * (num - known_num), known_s + _RATE * (step_s - known_s)

    def _learn_tokens(self, chunks: Sequence[Chunk], spent_s: float, beside_s: float) -> None:
        """The less of a step tokens are, the less it says about them; and that few cost nothing says little of many."""
        total = sum(num for num, _ in chunks)
        if not self._token_s:
            self._token_s = [max(spent_s, beside_s / _AHEAD) / total]
            return
        middles = [(num, before + num // 2) for num, before in chunks]
        expected_s = sum(num * self._seconds(middle) for num, middle in middles)
        off = max(-_MOST, min(_MOST, spent_s / expected_s - 1))
        change = 1 + _RATE * off * expected_s / (expected_s + beside_s)
        for span in {middle // SPAN for _, middle in middles}:
            while len(self._token_s) <= span:
                self._token_s.append(self._token_s[-1])
            known_s = self._token_s[span]
            now_s = max(known_s * change, min(known_s, beside_s / (_AHEAD * total)))
            # No token costs more than one with more before it.
            self._token_s[: span + 1] = [*(min(each_s, now_s) for each_s in self._token_s[:span]), now_s]

    def _seconds(self, num_before: int) -> float:
        """Of a token behind so many others: as in the last span known, if theirs is not."""
        return self._token_s[min(num_before // SPAN, len(self._token_s) - 1)]

    def _decode_s(self, num: int) -> float:
        """Of a step in which so many decode, from the nearest number known; one more costs no more than a token or a share."""
        nearest = min(self._decodes, key=lambda bits: abs(bits - num.bit_length()))
        known_num, known_s = self._decodes[nearest]
        one_s = known_s / known_num
        return known_s + (num - known_num) * (min(one_s, self._token_s[0]) if self._token_s else one_s)
