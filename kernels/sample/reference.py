"""Choosing tokens in plain PyTorch and Python integers. The truth the fast files must equal, token for token.

For each row, in this order (x is the row's float32 logits, every operation rounds to float32):

 1. penalties: for seen ids x = x / repetition where x > 0, else x * repetition; then for output ids
    x = (x - frequency * count) - presence;
 2. logit_bias: x = x + bias;
 3. min_tokens: banned ids get -inf;
 4. if temperature is 0: the largest x, the lowest id among equals. Else z = (x - max x) * (1 / temperature) in double;
 5. order: larger x first, the lower id among equals. Weights: w = exp(z) in units of 2^-44, a whole number (0 for
    z < -31); sums of whole numbers are exact, so the order of adding does not matter;
 6. top_k: the first k of the order stay;
 7. top_p: of these, the first stays, and every other while the weights before it sum to less than top_p of them all;
 8. min_p: of these, those with w >= min_p * 2^44 stay;
 9. draw: Philox4x32-10, key = the seed's 64 bits, counter = (position, choice, 0, 0), gives r = word0 + word1 * 2^32
    and u = r / 2^64; the token is the first in id order whose running sum of w exceeds floor(u * total).

exp is built from additions and products in double so that every device and library computes the same bits.
A row with NaN or +inf gives NOT_A_NUMBER, one with nothing but -inf NO_TOKEN_LEFT; -inf is a token that cannot come.
It knows nothing of sequences, stop conditions or of how the logits were made.
"""

import torch
from torch import Tensor

from kernels.sample.params import NO_TOKEN_LEFT, NOT_A_NUMBER, SampleParams

ONE = 1 << 44
_MASK = 0xFFFFFFFF
_LN2_HIGH, _LN2_LOW = 0.6931471803691238, 1.9082149292705877e-10
_COEFFICIENTS = tuple(1.0 / f for f in (39916800, 3628800, 362880, 40320, 5040, 720, 120, 24, 6, 2, 1, 1))


def sample(logits: Tensor, params: SampleParams) -> Tensor:
    """One token per row of logits [S, V] float32 (V at most 2^19): int64 [S], or a negative code for a bad row."""
    return torch.tensor([_sample_row(logits[row].clone(), params, row) for row in range(len(logits))], dtype=torch.int64)


def logprobs(logits: Tensor, token_ids: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities from raw logits [S, V]: of token_ids (int64 [S]), and the k most likely in falling order.

    Returns float32 [S], int64 [S, k] (ties: lower id first) and float32 [S, k].
    """
    highest = logits.amax(-1, keepdim=True).double()
    shifted = logits.double() - highest
    total = torch.stack([_weights(row).sum() for row in shifted]) if len(logits) else torch.zeros(0)
    normal = torch.log(total.double() * 2.0**-44)
    values = shifted - normal[:, None]
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
    if bool(x.isnan().any()) or bool((x == torch.inf).any()):
        return NOT_A_NUMBER
    _edit(x, params, row)
    highest = float(x.max())
    if highest == -torch.inf:
        return NO_TOKEN_LEFT
    order = torch.sort(x, descending=True, stable=True).indices
    temperature = float(params.temperature[row])
    if temperature == 0.0:
        return int(order[0])
    weights = _weights((x.double() - highest) * (1.0 / temperature))
    kept = order[: _num_kept(weights[order], params, row)].sort().values
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


def _entries(start: Tensor, row: int, values: Tensor) -> Tensor:
    return values[int(start[row]) : int(start[row + 1])]


def _num_kept(weights: Tensor, params: SampleParams, row: int) -> int:
    """How many of the weights, given in the order of step 5, stay after steps 6 to 8."""
    top_k = int(params.top_k[row])
    if top_k > 0:
        weights = weights[:top_k]
    sums = weights.cumsum(0)
    limit = max(int(float(params.top_p[row]) * float(sums[-1])), 1)
    by_top_p = int((sums - weights < limit).sum()) if float(params.top_p[row]) < 1.0 else len(weights)
    by_min_p = int((weights >= float(params.min_p[row]) * ONE).sum())
    return max(min(by_top_p, by_min_p), 1)


def _weights(z: Tensor) -> Tensor:
    """exp(z) in units of 2^-44 for z <= 0, double to int64: z = n ln 2 + r, a polynomial in r, its exponent raised by n."""
    magic = 6755399441055744.0  # 1.5 * 2^52: adding and subtracting it rounds to whole numbers
    alive = z >= -31.0
    z = torch.where(alive, z, 0.0)
    n = (z * 1.4426950408889634 + magic) - magic
    r = (z - n * _LN2_HIGH) - n * _LN2_LOW
    p = torch.full_like(r, _COEFFICIENTS[0])
    for coefficient in _COEFFICIENTS[1:]:
        p = p * r + coefficient
    power = (n.to(torch.int64) + 1023 << 52).view(torch.float64)
    return torch.where(alive, (p * power * float(ONE) + magic) - magic, 0.0).to(torch.int64)
