"""The oracles on made-up histories: each must find its own fault, and nothing in a sound one."""

from dataclasses import replace
from struct import pack
from zlib import crc32

import pytest

from services.worker.sim import SimSpec, expected_tokens
from shared.sampling import SamplingParams
from tests.chaos.checkers import Judge, Verdict, settle
from tests.chaos.coroner import Death, open_claim, unjustified
from tests.chaos.history import Ask, Attempt, Seen, Struck

SPEC = SimSpec(vocab_size=49152)
ASK = Ask(3, "grpc", (5, 6, 7), SamplingParams(seed=9, max_tokens=12, ignore_eos=True))
TOKENS, _ = expected_tokens(SPEC, ASK.prompt, ASK.params)


def positions(tokens: list[int], start: int = 0) -> list[tuple[str, tuple[int, ...], str]]:
    crc, found = 0, []
    for count, token in enumerate(tokens, 1):
        crc = crc32(pack("<I", token), crc)
        if count > start:
            found.append(("r1", (count,), f"{crc:08x}"))
    return found


def whole(tokens: list[int], start: int = 0) -> Attempt:
    given = tokens[start:]
    return Attempt(
        "router-0", (start,), "r1", {0: given}, {}, positions(tokens, start), {0: "length"}, (len(ASK.prompt), len(TOKENS))
    )


def judged(*attempts: Attempt, **other: object) -> Verdict:
    seen = Seen(ASK, 0.0, list(attempts), "done")
    for name, value in other.items():
        setattr(seen, name, value)
    return Judge(SPEC).judge([seen])


def test_a_sound_history_is_sound() -> None:
    assert judged(whole(TOKENS)).sound


def test_a_stream_taken_up_elsewhere_is_sound() -> None:
    first = Attempt("router-1", (0,), "r1", {0: TOKENS[:5]}, {}, positions(TOKENS[:5]), broke="gone")
    assert judged(first, whole(TOKENS, start=5)).sound


@pytest.mark.parametrize(
    ("tokens", "kind"),
    [
        ([*TOKENS[:4], TOKENS[3], *TOKENS[4:]], "duplicated"),
        ([*TOKENS[:4], *TOKENS[5:]], "lost"),
        ([*TOKENS[:4], 1, *TOKENS[5:]], "unexpected"),
        (TOKENS[:-1], "lost"),
    ],
)
def test_wrong_tokens_are_found(tokens: list[int], kind: str) -> None:
    verdict = judged(whole(tokens))
    assert getattr(verdict, kind) > 0
    assert any(finding.startswith("N1") for finding in verdict.findings)


def test_a_token_given_again_after_coming_back_is_found() -> None:
    first = Attempt("router-1", (0,), "r1", {0: TOKENS[:5]}, {}, positions(TOKENS[:5]), broke="gone")
    again = replace(whole(TOKENS, start=4), start=(5,))
    assert judged(first, again).duplicated > 0


def test_event_ids_alone_tell_wrong_tokens_and_steps_back() -> None:
    wrong = whole(TOKENS)
    wrong.tokens.clear()
    wrong.positions[6] = ("r1", (7,), "00000000")
    assert judged(wrong).unexpected == 1
    back = whole(TOKENS)
    back.positions.insert(6, back.positions[2])
    assert judged(back).duplicated == 1


@pytest.mark.parametrize("outcome", ["failed", "given up", "open"])
def test_a_request_without_a_good_end_is_lost(outcome: str) -> None:
    assert judged(whole(TOKENS), outcome=outcome).lost == 1


def test_one_key_must_be_one_request() -> None:
    assert not judged(whole(TOKENS), replace(whole(TOKENS), rid="r2")).sound


def test_usage_is_counted_once() -> None:
    assert not judged(replace(whole(TOKENS), usage=(len(ASK.prompt) + 5, len(TOKENS)))).sound


def test_the_reason_of_the_end_matters() -> None:
    assert not judged(replace(whole(TOKENS), ends={0: "stop"})).sound


def test_a_refusal_says_when_to_come_again() -> None:
    assert judged(whole(TOKENS), refusals=["overloaded"]).sound
    assert not judged(whole(TOKENS), refusals=["overloaded"], unannounced=1).sound


THREE = {"crashes": 3, "total_crashes": 3, "died_at": 5}
# Frozen and killed while frozen, then killed at once, then killed at once.
DEATHS = [Death("worker-0", 100.0, 108.0), Death("worker-1", 105.2, 108.5), Death("worker-2", 109.0, 110.1)]


def ended_as_poison(deaths: list[Death], record: dict[str, int], struck: list[Struck]) -> Verdict:
    """The verdict on a stream that was quarantined after five tokens. The monotonic clock began with the day's here."""
    last = Attempt("router-0", (0,), "r1", {0: TOKENS[:5]}, {}, positions(TOKENS[:5]))
    seen = Seen(ASK, 0.0, [last], "failed", error="INTERNAL request_quarantined: not again")
    verdict = Verdict()
    Judge(SPEC).add(seen, verdict, record)
    assert not verdict.sound
    settle(verdict, lambda ended: unjustified(ended, deaths, struck, 0.0))
    return verdict


def test_three_deaths_at_one_token_are_the_schedules() -> None:
    verdict = ended_as_poison(DEATHS, THREE, [])
    assert verdict.sound
    assert (verdict.lost, verdict.quarantined_by_the_schedule) == (0, 1)


@pytest.mark.parametrize(
    ("deaths", "record"),
    [
        (DEATHS[1:], THREE),
        ([], THREE),
        (DEATHS, {}),
        (DEATHS, {"crashes": 2, "total_crashes": 2, "died_at": 5}),
        # It told of tokens for ten seconds: the two deaths before are no longer counted.
        ([*DEATHS[:2], Death("worker-2", 109.0, 119.0)], THREE),
        (DEATHS, {"crashes": 1, "total_crashes": 8, "died_at": 5}),
    ],
)
def test_a_quarantine_with_fewer_deaths_is_found(deaths: list[Death], record: dict[str, int]) -> None:
    verdict = ended_as_poison(deaths, record, [])
    assert (verdict.lost, verdict.quarantined_by_the_schedule) == (1, 0)
    assert verdict.findings[0].startswith("N3")


def test_a_worker_that_could_not_tell_is_no_excuse_for_longer_than_that() -> None:
    deaths = [*DEATHS[:2], Death("worker-2", 109.0, 119.0)]
    assert ended_as_poison(deaths, THREE, [Struck("redis_down", 110.0, 118.0)]).sound
    assert not ended_as_poison(deaths, THREE, [Struck("redis_down", 110.0, 112.0)]).sound
    assert not ended_as_poison(deaths, THREE, [Struck("kill_router", 110.0, 118.0)]).sound


@pytest.mark.parametrize("end", ["ended rid=ab outcome=done", "dropped rid=ab verdict=lost", "handed back rid=ab"])
def test_a_worker_that_was_rid_of_a_request_did_not_die_of_it(end: str) -> None:
    claimed = "03:49:23 info    worker: claimed rid=ab epoch=1795664963580096 num_prompt_tokens=357\n"
    other = "03:49:23 info    worker: ended rid=cd outcome=done verdict=ok reason=\n"
    assert open_claim((claimed + other).encode(), "ab") == pytest.approx(1795664963.580096)
    assert open_claim(f"{claimed}03:49:24 info    worker: {end}\n".encode(), "ab") is None
    assert open_claim(f"{claimed}03:49:24 info    worker: {end}\n{claimed}".encode(), "ab") is not None
    assert open_claim(other.encode(), "ab") is None
