"""How far one model's predictions lie from another's, token by token: KL divergence, perplexity, agreement.

Letters: T positions, V vocabulary. It knows nothing of models or of where predictions come from.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def divergence(log_p: Tensor, log_q: Tensor, kept: Tensor | None = None) -> Tensor:
    """KL(p || q) [T] in nats, from log-probabilities [T, V]; `kept` [T, V] leaves tokens out.

    The sum is of p log(p / q) - p + q. For whole distributions that is the usual sum, as both sum to 1; but here each term is at
    least 0, so that leaving tokens out makes the sum smaller, never negative, and q need not sum to 1 to the last digit.
    """
    p, difference = log_p.exp(), log_p - log_q
    terms = p * (difference - 1) + log_q.exp()
    return (terms if kept is None else terms.where(kept, 0)).sum(-1)


class Score:
    """Predictions at `size` positions held against those of a baseline, piece by piece.

    Its room is taken at once: small results made between large passing arrays would keep those from being used again.
    """

    def __init__(self, size: int):
        self._divergences = torch.zeros(size, dtype=torch.float64)
        self._losses = torch.zeros(size, dtype=torch.float64)
        self._agreements = torch.zeros(size, dtype=torch.bool)
        self._num = 0

    def add(self, base: Tensor, other: Tensor, targets: Tensor, kept: Tensor | None = None) -> None:
        """Log-probabilities [T, V] of the baseline and of the other, and the tokens [T] that came; kept: see divergence."""
        place = slice(self._num, self._num + len(targets))
        self._divergences[place] = divergence(base, other, kept)
        self._losses[place] = -other.gather(-1, targets[:, None])[:, 0]
        self._agreements[place] = base.argmax(-1) == other.argmax(-1)
        self._num += len(targets)

    @property
    def divergences(self) -> Tensor:
        """KL(baseline || other) of each position so far, nats."""
        return self._divergences[: self._num]

    def summary(self) -> "Summary":
        """The numbers of all positions so far."""
        kl = self.divergences
        return Summary(
            num_tokens=self._num,
            perplexity=math.exp(self._losses[: self._num].mean().item()),
            kl_mean=kl.mean().item(),
            kl_error=standard_error(kl),
            kl_p99=kl.quantile(0.99).item(),
            kl_max=kl.max().item(),
            same_top=self._agreements[: self._num].double().mean().item(),
        )


@dataclass(frozen=True, slots=True)
class Summary:
    """KL in nats per token; kl_error: the standard error of kl_mean; same_top: share with the baseline's likeliest token."""

    num_tokens: int
    perplexity: float
    kl_mean: float
    kl_error: float
    kl_p99: float
    kl_max: float
    same_top: float


def standard_error(values: Tensor) -> float:
    """Of the mean of independent values [T], T > 1."""
    return values.std().item() / math.sqrt(len(values))
