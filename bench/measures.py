"""From answers to numbers: TTFT, TPOT, ITL, E2EL, throughput, goodput. Pure; it knows nothing of how answers came.

Times are in milliseconds here. Latencies are of the requests that began inside the window; throughput counts what came
inside it, a request's tokens (by usage) spread evenly over its events.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from bench.wire import Answer


def percentile(values: Sequence[float], share: float) -> float:
    """Between the two nearest values, linearly; 0.0 of nothing. share: 0 to 1."""
    if not values:
        return 0.0
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@dataclass(frozen=True, slots=True)
class Spread:
    """A latency over many requests, ms."""

    mean: float
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of these values; zeros of none."""
        mean = statistics.fmean(values) if values else 0.0
        return cls(mean, percentile(values, 0.5), percentile(values, 0.9), percentile(values, 0.99))


@dataclass(frozen=True, slots=True)
class Summary:
    """One load on one server. Token rates per second; client_cpu: cores this program used."""

    num_requests: int
    num_errors: int
    first_error: str
    seconds: float
    output_tok_s: float
    total_tok_s: float
    ttft: Spread
    tpot: Spread
    itl: Spread
    e2el: Spread
    goodput: float | None = None
    client_cpu: float = 0.0
    intruder_ttft: Spread | None = None
    extra: Mapping[str, float] = field(default_factory=dict)

    def numbers(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def ttft_ms(answer: Answer) -> float:
    """From the request to its first text."""
    return 1000 * (answer.token_at[0] - answer.started_at)


def tpot_ms(answer: Answer) -> float:
    """Between tokens after the first, on average; needs two tokens."""
    return 1000 * (answer.token_at[-1] - answer.token_at[0]) / (answer.num_output - 1)


def tokens_within(answer: Answer, start: float, end: float) -> float:
    """Its output tokens that came in the window."""
    if not answer.token_at:
        return 0.0
    inside = sum(start <= at < end for at in answer.token_at)
    return answer.num_output * inside / len(answer.token_at)


def meets(answer: Answer, limits: Mapping[str, float]) -> bool:
    """Whether it kept every limit: ttft, tpot, e2el in ms."""
    values = {"ttft": ttft_ms(answer), "e2el": 1000 * (answer.ended_at - answer.started_at)}
    values["tpot"] = tpot_ms(answer) if answer.num_output > 1 else 0.0
    return all(values[name] <= limit for name, limit in limits.items())


def summarize(
    answers: Sequence[Answer],
    start: float,
    end: float,
    *,
    limits: Mapping[str, float] | None = None,
    client_cpu: float = 0.0,
    intruders: Sequence[Answer] | None = None,
) -> Summary:
    """The numbers of a window from `start` to `end` (seconds of the answers' clock)."""
    failed = [answer for answer in answers if answer.error]
    good = [answer for answer in answers if not answer.error and answer.token_at]
    began = [answer for answer in good if start <= answer.started_at < end]
    many = [answer for answer in began if answer.num_output > 1]
    gaps = [1000 * (b - a) for answer in began for a, b in zip(answer.token_at, answer.token_at[1:], strict=False)]
    seconds = end - start
    output = sum(tokens_within(answer, start, end) for answer in good)
    # A prompt counts where its first token came.
    prompts = sum(answer.num_prompt for answer in good if start <= answer.token_at[0] < end)
    long_ones = [ttft_ms(answer) for answer in intruders or () if not answer.error and answer.token_at]
    return Summary(
        num_requests=len(began),
        num_errors=len(failed),
        first_error=failed[0].error if failed else "",
        seconds=seconds,
        output_tok_s=output / seconds,
        total_tok_s=(output + prompts) / seconds,
        ttft=Spread.of([ttft_ms(answer) for answer in began]),
        tpot=Spread.of([tpot_ms(answer) for answer in many]),
        itl=Spread.of(gaps),
        e2el=Spread.of([1000 * (answer.ended_at - answer.started_at) for answer in began]),
        goodput=None if limits is None else sum(meets(answer, limits) for answer in began) / seconds,
        client_cpu=client_cpu,
        intruder_ttft=None if intruders is None else Spread.of(long_ones),
    )


def ratios(ours: Sequence[Summary], theirs: Sequence[Summary]) -> dict[str, tuple[float, float, float]]:
    """How many times better, round by round: (median, least, most) for rates and for latencies."""
    found = {}
    for name, better in _COMPARED.items():
        per_round = [better(a, b) for a, b in zip(ours, theirs, strict=True)]
        found[name] = (statistics.median(per_round), min(per_round), max(per_round))
    return found


def _over(a: float, b: float) -> float:
    return a / b if b else 0.0


_COMPARED = {
    "output tok/s": lambda a, b: _over(a.output_tok_s, b.output_tok_s),
    "total tok/s": lambda a, b: _over(a.total_tok_s, b.total_tok_s),
    "TTFT p50": lambda a, b: _over(b.ttft.p50, a.ttft.p50),
    "TTFT p99": lambda a, b: _over(b.ttft.p99, a.ttft.p99),
    "TPOT p50": lambda a, b: _over(b.tpot.p50, a.tpot.p50),
    "TPOT p99": lambda a, b: _over(b.tpot.p99, a.tpot.p99),
    "E2EL mean": lambda a, b: _over(b.e2el.mean, a.e2el.mean),
}
