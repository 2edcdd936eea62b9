"""The oracles N1 to N7 (docs/reliability.md), applied to what clients saw and to what is left when all is quiet.

Each returns findings: sentences that name the request and the fault; no findings, no fault. They know the sim runner's
definition of a token, and nothing of how the system works.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from struct import pack
from zlib import crc32

from services.worker.sim import SimSpec, expected_tokens
from tests.chaos.history import Attempt, Quarantined, Seen


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Bytes of each token, to know what text must come."""

    token_bytes: Sequence[bytes]
    special: frozenset[int]

    def text(self, token_ids: Iterable[int]) -> str:
        """The text of an answer."""
        return b"".join(self.token_bytes[each] for each in token_ids if each not in self.special).decode("utf-8", "replace")


@dataclass(slots=True)
class Verdict:
    """Counts over a history, in Jepsen's words, and every finding.

    acknowledged: requests of which the client heard anything; ok: those that ended well, by their client's wish too;
    recovered: those that ended well though a first connection broke before anything was heard. gaps: silences of more than a
    quarter second, (from, to, request). suspended: requests ended as poison, of which nobody has said yet whether rightly.
    """

    asked: int = 0
    acknowledged: int = 0
    ok: int = 0
    recovered: int = 0
    tokens: int = 0
    lost: int = 0
    duplicated: int = 0
    unexpected: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    refusals: dict[str, int] = field(default_factory=dict)
    came_back: int = 0
    gaps: list[tuple[float, float, int]] = field(default_factory=list)
    suspended: list[Quarantined] = field(default_factory=list)
    quarantined_by_the_schedule: int = 0
    findings: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Nothing was found."""
        return not self.findings and not self.suspended and not (self.lost or self.duplicated or self.unexpected)


class Judge:
    """Judges histories against `spec`, one request after the other, so that none need be kept."""

    def __init__(self, spec: SimSpec, vocabulary: Vocabulary | None = None):
        self._spec = spec
        self._vocabulary = vocabulary

    def judge(self, history: Sequence[Seen]) -> Verdict:
        """Everything that can be said of what clients saw: N1 to N4, N6, and N7's Retry-After."""
        verdict = Verdict()
        for seen in history:
            self.add(seen, verdict)
        return verdict

    def add(self, seen: Seen, verdict: Verdict, record: Mapping[str, int] | None = None) -> None:
        """One more request. `record`: for one that was ended as poison, what Redis knew of its deaths."""
        verdict.asked += 1
        verdict.acknowledged += bool(seen.attempts)
        verdict.outcomes[seen.outcome] = verdict.outcomes.get(seen.outcome, 0) + 1
        verdict.came_back += len(seen.attempts) > 1
        verdict.gaps += [(start, end, seen.ask.number) for start, end in seen.gaps]
        if seen.outcome in ("done", "left", "cancelled"):
            verdict.ok += 1
            verdict.recovered += bool(seen.unheard)
        for code in seen.refusals:
            verdict.refusals[code] = verdict.refusals.get(code, 0) + 1
        self._one(seen, verdict, record or {})

    def _one(self, seen: Seen, verdict: Verdict, record: Mapping[str, int]) -> None:
        ask, name = seen.ask, f"request {seen.ask.number} ({seen.ask.door}, {seen.ask.manner})"
        wanted = [expected_tokens(self._spec, ask.prompt, ask.params, choice) for choice in range(ask.params.n)]
        rids = {attempt.rid for attempt in seen.attempts}
        if len(rids) > 1:
            verdict.findings.append(f"N3 {name}: one key, {len(rids)} requests")
        for attempt in seen.attempts:
            self._tokens(name, attempt, [ids for ids, _ in wanted], verdict)
            self._positions(name, attempt, [ids for ids, _ in wanted], verdict)
        if seen.quarantined:
            rid = seen.attempts[-1].rid if seen.attempts else ""
            verdict.suspended.append(Quarantined(ask.number, rid, record, f"{name}: {seen.error}; {_story(seen)}"))
        elif seen.outcome in ("failed", "given up", "open"):
            verdict.lost += 1
            verdict.findings.append(f"N3 {name}: {seen.outcome}: {seen.error}; {_story(seen)}")
        if seen.outcome == "done":
            self._whole(name, seen.attempts[-1], seen, wanted, verdict)
        if seen.unannounced:
            verdict.findings.append(f"N7 {name}: refused {seen.unannounced} times without Retry-After")

    def _tokens(self, name: str, attempt: Attempt, wanted: list[list[int]], verdict: Verdict) -> None:
        """N1, N2 and N6: the ids given are the next ones, once, in order, and no other request's."""
        for choice, got in attempt.tokens.items():
            start = attempt.start[choice]
            want = wanted[choice][start : start + len(got)]
            verdict.tokens += len(got)
            if got != want:
                at = next((i for i, pair in enumerate(zip(got, want, strict=False)) if pair[0] != pair[1]), len(want))
                kind = _kind(got, at, wanted[choice], start)
                setattr(verdict, kind, getattr(verdict, kind) + 1)
                verdict.findings.append(f"N1 {name} at {attempt.router}: choice {choice}, token {start + at} is {kind}")

    def _positions(self, name: str, attempt: Attempt, wanted: list[list[int]], verdict: Verdict) -> None:
        """N1 and N2 again, from the event ids alone: counts never fall, and the hash is that of the right tokens."""
        before = attempt.start
        crcs = [[0] for _ in wanted]
        for _, counts, digest in attempt.positions:
            if any(new < old for new, old in zip(counts, before, strict=True)):
                verdict.duplicated += 1
                verdict.findings.append(f"N1 {name} at {attempt.router}: position went from {before} back to {counts}")
                return
            before = counts
            if digest != _digest(counts, wanted, crcs):
                verdict.unexpected += 1
                verdict.findings.append(f"N2 {name} at {attempt.router}: the hash at {counts} is not that of its tokens")
                return

    def _whole(self, name: str, last: Attempt, seen: Seen, wanted: list[tuple[list[int], str]], verdict: Verdict) -> None:
        """N3 and N4: an answer that ended well is whole, ended for the right reason, and was counted once."""
        for choice, (ids, reason) in enumerate(wanted):
            if last.positions[-1][1][choice] != len(ids):
                verdict.lost += 1
                verdict.findings.append(
                    f"N1 {name}: choice {choice} ended at {last.positions[-1][1][choice]} of {len(ids)} tokens"
                )
            if last.ends.get(choice) != reason and last.start[choice] < len(ids):
                verdict.findings.append(f"N3 {name}: choice {choice} ended for {last.ends.get(choice)}, not {reason}")
            if self._vocabulary is not None and not last.start[choice]:
                shown = ids[:-1] if reason == "stop" else ids
                if last.text.get(choice, "") != self._vocabulary.text(shown):
                    verdict.unexpected += 1
                    verdict.findings.append(f"N2 {name}: the text of choice {choice} is not that of its tokens")
        usage = (len(seen.ask.prompt), sum(len(ids) for ids, _ in wanted))
        if last.usage != usage:
            verdict.findings.append(f"N4 {name}: usage says {last.usage}, not {usage}")


def settle(verdict: Verdict, wrong: Callable[[Quarantined], str]) -> None:
    """Judges what was ended as poison: `wrong` says why that was not right, "" if it was; what ended wrongly is lost."""
    for each in verdict.suspended:
        if reason := wrong(each):
            verdict.lost += 1
            verdict.findings.append(f"N3 {each.story}; quarantined without cause: {reason}")
        else:
            verdict.quarantined_by_the_schedule += 1
    verdict.suspended.clear()


def _kind(got: list[int], at: int, whole: list[int], start: int) -> str:
    """duplicated: a token came again; lost: one was left out; unexpected: not this request's at all."""
    if at >= len(got):
        return "lost"
    earlier, later = whole[: start + at], whole[start + at :]
    if got[at] in earlier:
        return "duplicated"
    return "lost" if got[at] in later else "unexpected"


def _digest(counts: tuple[int, ...], wanted: list[list[int]], crcs: list[list[int]]) -> str:
    """The event id's hash after `counts` tokens; `crcs` keeps the running ones."""
    for count, ids, known in zip(counts, wanted, crcs, strict=True):
        while len(known) <= count and len(known) <= len(ids):
            known.append(crc32(pack("<I", ids[len(known) - 1]), known[-1]))
        if count >= len(known):
            return "more tokens than there are"
    if len(counts) == 1:
        return f"{crcs[0][counts[0]]:08x}"
    return f"{crc32(pack(f'<{len(counts)}I', *(known[count] for count, known in zip(counts, crcs, strict=True)))):08x}"


def _story(seen: Seen) -> str:
    tries = [
        f"{attempt.router} {attempt.start}->{attempt.positions[-1][1] if attempt.positions else '?'} {attempt.broke}"
        for attempt in seen.attempts
    ]
    rid = seen.attempts[-1].rid if seen.attempts else "no rid"
    told = f"rid {rid}, began at {seen.began_at:.1f}, refused {len(seen.refusals)} times"
    return f"{told}, tries: {'; '.join(tries)}, unheard: {'; '.join(seen.unheard)}"
