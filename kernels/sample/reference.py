"""Choosing tokens in plain PyTorch and Python integers. The truth the fast files must equal, token for token.

For each row, in this order (x is the row's float32 logits, every operation rounds to float32):

 1. penalties: for seen ids x = x / repetition where x > 0, else x * repetition; then for output ids
    x = (x - frequency * count) - presence;
 2. logit_bias: x = x + bias;
 3. min_tokens and the like: banned ids get -inf, and so does what a mask (of a grammar, say) does not let come;
 4. if temperature is 0: the largest x, the lowest id among equals;
 5. order: larger x first, the lower id among equals. Weights: w = exp((x - max x) / temperature) in units of 2^-44, a
    whole number; sums of whole numbers are exact, so the order of adding does not matter;
 6. top_k: the first k of the order stay;
 7. top_p: of these, the first stays, and every other while the weights before it sum to less than top_p of them all;
 8. min_p: of these, those with w >= min_p * 2^44 stay (min_p above 1 counts as 1);
 9. draw: Philox4x32-10, key = the seed's 64 bits, counter = (position, choice, 0, 0), gives r = word0 + word1 * 2^32
    and u = r / 2^64; the token is the first in id order whose running sum of w exceeds floor(u * total).

exp is built from additions and products in float32, none fused, so that every device and library computes the same bits.
How precise that is: the likeliest token and all equal to it weigh exactly 2^44; one that is 2^n times less likely has the
right weight within half a unit plus (1 + n) * 1.3e-7 of it, of which what comes from rounding 1 / temperature is one
change of temperature for all. A token below 2^-45 of the likeliest cannot come; in a vocabulary of 262,144 all such
tokens together would have come once in 2^27 draws, or less often.
A row with NaN or +inf, before or after steps 1 to 3, gives NOT_A_NUMBER, one with nothing but -inf NO_TOKEN_LEFT; -inf is
a token that cannot come. It knows nothing of sequences, stop conditions or of how the logits were made.
"""

import torch
from torch import Tensor

from kernels.sample.params import NO_TOKEN_LEFT, NOT_A_NUMBER, SampleParams

ONE = 1 << 44
_MASK = 0xFFFFFFFF
_LOG2_E = 1.4426950408889634
# 2^f = 1 + C1 f + ... + C6 f^6 for f from -1/2 to 1/2: relative error below 2e-9 before rounding, none at 0.
_C1, _C2, _C3 = 0.6931471824645996, 0.24022647738456726, 0.055503323674201965
_C4, _C5, _C6 = 0.00961843691766262, 0.0013398875016719103, 0.00015353361959569156


def sample(logits: Tensor, params: SampleParams) -> Tensor:
    """One token per row of logits [S, V] float32 (V below 2^19): int64 [S], or a negative code for a bad row."""
    return torch.tensor([_sample_row(logits[row].clone(), params, row) for row in range(len(logits))], dtype=torch.int64)


def logprobs(logits: Tensor, token_ids: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities from raw logits [S, V]: of token_ids (int64 [S]), and the k most likely in falling order.

    Returns float32 [S], int64 [S, k] (ties: lower id first) and float32 [S, k].
    """
    total = torch.tensor([int(_weights(row, 1.0).sum()) for row in logits], dtype=torch.float64)
    values = logits.double() - (logits.amax(-1).double() + torch.log(total / ONE))[:, None]
    top = torch.sort(logits, dim=-1, descending=True, stable=True).indices[:, :k]
    chosen = values.gather(1, token_ids[:, None])[:, 0]
    return chosen.float(), top, values.gather(1, top).float()


def philox(seed: int, position: int, choice: int) -> tuple[int, int, int, int]:
    """Philox4x32-10 (Salmon et al., SC 2011): four 32-bit words for the 64-bit key and counter (position, choice, 0, 0)."""
    key0, key1 = seed & _MASK, seed >> 32 & _MASK
    c0, c1, c2, c3 = position & _MASK, choice & _MASK, 0, 0
    for _ in range(10):
        product0, product1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = product1 >> 32 ^ c1 ^ key0, product1 & _MASK, product0 >> 32 ^ c3 ^ key1, product0 & _MASK
        key0, key1 = key0 + 0x9E3779B9 & _MASK, key1 + 0xBB67AE85 & _MASK
    return c0, c1, c2, c3


def _sample_row(x: Tensor, params: SampleParams, row: int) -> int:
    raw = x.clone()
    _edit(x, params, row)
    if bool(((raw < torch.inf) & (x < torch.inf)).logical_not().any()):
        return NOT_A_NUMBER
    if float(x.max()) == -torch.inf:
        return NO_TOKEN_LEFT
    order = torch.sort(x, descending=True, stable=True).indices
    temperature = float(params.temperature[row])
    if temperature == 0.0:
        return int(order[0])
    weights = _weights(x, temperature)
    kept = order[_stay(weights[order], params, row)].sort().values
    running = weights[kept].cumsum(0)
    word0, word1, _, _ = philox(int(params.seed[row]), int(params.position[row]), int(params.choice[row]))
    target = (word0 | word1 << 32) * int(running[-1]) >> 64
    return int(kept[int((running <= target).sum())])


def _edit(x: Tensor, params: SampleParams, row: int) -> None:
    seen = _entries(params.seen_start, row, params.seen_ids).long()
    repetition = params.repetition_penalty[row]
    x[seen] = torch.where(x[seen] > 0, x[seen] / repetition, x[seen] * repetition)
    output = _entries(params.output_start, row, params.output_ids).long()
    counts = _entries(params.output_start, row, params.output_counts).float()
    x[output] = x[output] - params.frequency_penalty[row] * counts - params.presence_penalty[row]
    x[_entries(params.bias_start, row, params.bias_ids).long()] += _entries(params.bias_start, row, params.bias_values)
    x[_entries(params.banned_start, row, params.banned_ids).long()] = -torch.inf
    if (mask_row := int(params.mask_row[row])) >= 0:
        bits = params.mask[mask_row][:, None] >> torch.arange(32, dtype=torch.int32) & 1
        x[bits.flatten()[: len(x)] == 0] = -torch.inf


def _entries(start: Tensor, row: int, values: Tensor) -> Tensor:
    return values[int(start[row]) : int(start[row + 1])]


def _stay(weights: Tensor, params: SampleParams, row: int) -> Tensor:
    """Which of the weights, given in the order of step 5, stay after steps 6 to 8: bool [V]."""
    top_k, top_p, min_p = int(params.top_k[row]), float(params.top_p[row]), float(params.min_p[row])
    stay = torch.arange(len(weights)) < (top_k if top_k > 0 else len(weights))
    if top_p < 1.0:
        before = (weights * stay).cumsum(0) - weights
        limit = max(int(top_p * float((weights * stay).sum())), 1)
        stay &= before < limit
    return stay & (weights >= min(min_p, 1.0) * ONE)


def _weights(x: Tensor, temperature: float) -> Tensor:
    """exp((x - max x) / temperature) in units of 2^-44, float32 to int64.

    y = (x - max x) * (log2 e / temperature) = n + f, and 2^y is a polynomial in f whose exponent is raised by n.
    """
    magic = 12582912.0  # 1.5 * 2^23: adding and subtracting it rounds to whole numbers
    y = (x - x.max()) * torch.tensor(min(1e30, _LOG2_E / temperature), dtype=torch.float32)
    y = torch.where(y > -46.0, y, -46.0)  # also what is not a number: -inf times 0
    n = (y + magic) - magic
    f = y - n
    square = f * f
    p = ((_C6 * square + (_C5 * f + _C4)) * square + (_C3 * f + _C2)) * square + (_C1 * f + 1.0)
    power = (p.view(torch.int32) + (n.to(torch.int32) << 23)).view(torch.float32)
    return torch.round(power.double() * ONE).to(torch.int64)
