"""The log of an assignment under any order of engine output, breaks, adoptions, gaps and stops: the router gets each token once.

A second, simple router keeps what it accepts; what it has must always be a prefix of the truth, and in the end all of it.
"""

from array import array
from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.worker import outbound as module
from services.worker.engine.engine import Delta, Finish, Work
from services.worker.engine.step import TokenLogprobs
from services.worker.outbound import Message, Outbound
from shared.pb import delivery_pb2
from shared.sampling import SamplingParams

pytestmark = pytest.mark.optimized

NUM_TOKENS = 30
WINDOW, MESSAGE = 7, 9


def token(choice: int, idx: int) -> int:
    return 1000 * choice + idx


def truth(choice: int) -> list[int]:
    return [token(choice, idx) for idx in range(NUM_TOKENS)]


class OutboundMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(module, "WINDOW_TOKENS", WINDOW)
        self.patch.setattr(module, "MESSAGE_TOKENS", MESSAGE)
        params = SamplingParams(n=2, seed=1, max_tokens=NUM_TOKENS, num_logprobs=0, num_prompt_logprobs=0)
        self.outbound = Outbound.of(Work(("rid", 1), (1, 2, 3), params), router="r", attach=1)
        self.made = {0: 0, 1: 0}  # the engine's tokens of the present work
        self.over: set[int] = set()
        self.accepted: dict[int, list[int]] = {0: [], 1: []}
        self.prompt_seen = False
        self.settled: set[int] = set()
        self.stopped: set[int] = set()
        self.down: deque[delivery_pb2.FromWorker] = deque()
        self.num_streams = 0
        self.dial()

    def teardown(self) -> None:
        for _ in range(200):
            self.engine(0, 5)
            self.engine(1, 5)
            self.send()
            self.hear()
        assert self.settled == {0, 1}
        assert self.prompt_seen
        self.patch.undo()

    @rule(choice=st.integers(0, 1), count=st.integers(1, 5))
    def engine(self, choice: int, count: int) -> None:
        """A step gave tokens of a choice, perhaps its end."""
        if choice in self.over:
            return
        start = self.made[choice]
        ids = truth(choice)[start : start + count]
        delta = Delta(self.outbound.work, choice, start, ids, [TokenLogprobs((each,), (-1.0,)) for each in ids])
        if not self.made[0] and not self.made[1] and not any(self.outbound.work.outputs.values()):
            delta.prompt_logprobs = [TokenLogprobs((2,), (-1.0,)), TokenLogprobs((3,), (-1.0,))]
        self.made[choice] += len(ids)
        if self.made[choice] == NUM_TOKENS:
            self.over.add(choice)
            delta.finish = Finish("length", NUM_TOKENS)
        self.outbound.extend(delta)

    @rule()
    def send(self) -> None:
        message = Message()
        self.outbound.fill(message)
        body = message.whole()
        assert body is None or len(body.frames.token_ids) <= MESSAGE
        assert body is None or not self.stopped & {*body.frames.choice, *(finish.choice for finish in body.finishes)}
        if body is not None:
            self.down.append(body)

    @precondition(lambda self: self.down)
    @rule()
    def hear(self) -> None:
        """The router takes one message and answers at once."""
        if not self.down:
            return
        body = self.down.popleft()
        assert not body.prompt_logprobs or not any(self.accepted.values())
        self.prompt_seen |= bool(body.prompt_logprobs)
        frames, at = body.frames, 0
        assert [len(row.logprobs.token_ids) for row in body.logprobs] == list(frames.count)
        for choice, idx, count in zip(frames.choice, frames.idx, frames.count, strict=True):
            ids, log = list(frames.token_ids[at : at + count]), self.accepted[choice]
            at += count
            if idx > len(log):
                self.outbound.resend(choice, len(log))
            elif choice not in self.settled:
                if idx == len(log):
                    assert self.prompt_seen
                    log += ids
                self.outbound.ack(choice, len(log))
        for finish in body.finishes:
            if finish.num_tokens == len(self.accepted[finish.choice]):
                self.settled.add(finish.choice)
            elif finish.choice not in self.settled:
                self.outbound.resend(finish.choice, len(self.accepted[finish.choice]))

    @rule(chance=st.integers(0, 7))
    def break_off(self, chance: int) -> None:
        """Now and then only: a new dial heals much that should be found first."""
        if chance == 7:
            self.dial()

    def dial(self) -> None:
        """The stream broke and is dialled again: what was in flight is lost, Begin tells what was accepted."""
        self.down.clear()
        self.outbound.detach()
        self.num_streams += 1
        self.outbound.stream = self.num_streams
        told = {
            choice: (array("I", ids), choice in self.settled)
            for choice, ids in self.accepted.items()
            if ids or choice in self.settled
        }
        if self.outbound.begin(told):
            work = self.outbound.restart()
            self.made = {choice: len(work.outputs.get(choice, ())) for choice in (0, 1)}
            self.over = set(work.ended)
            for choice in (0, 1):
                if self.made[choice] == NUM_TOKENS and choice not in self.over:
                    self.over.add(choice)
                    self.outbound.extend(Delta(work, choice, NUM_TOKENS, [], finish=Finish("length", NUM_TOKENS)))

    @rule(chance=st.integers(0, 7))
    def adopt(self, chance: int) -> None:
        """The client is at another router, which has nothing."""
        if chance < 7:
            return
        self.accepted, self.settled, self.prompt_seen = {0: [], 1: []}, set(), False
        self.stopped = set()
        self.dial()

    @rule(choice=st.integers(0, 1), count=st.integers(1, 10), chance=st.integers(0, 7))
    def another_author(self, choice: int, count: int, chance: int) -> None:
        """Another worker delivered some in between."""
        if chance == 7 and self.prompt_seen and choice not in self.settled:
            log = self.accepted[choice]
            log += truth(choice)[len(log) : len(log) + count]
            self.dial()

    @precondition(lambda self: self.prompt_seen)
    @rule()
    def lose(self) -> None:
        """The router finds a gap, and no older frame is on its way."""
        self.down.clear()
        for number in (0, 1):
            if number not in self.settled:
                self.outbound.resend(number, len(self.accepted[number]))

    @rule(choice=st.integers(0, 1), back=st.integers(0, 3))
    def stop(self, choice: int, back: int) -> None:
        """A stop string ended the choice a few tokens ago."""
        log = self.accepted[choice]
        if log and choice not in self.settled:
            del log[max(1, len(log) - back) :]
            self.settled.add(choice)
            self.stopped.add(choice)
            self.over.add(choice)
            self.outbound.stop(choice, len(log))

    @invariant()
    def what_was_accepted_is_true(self) -> None:
        for choice, ids in self.accepted.items():
            assert ids == truth(choice)[: len(ids)]
            log = self.outbound.choices[choice]
            assert log.sent - log.acked <= WINDOW


TestOutbound = OutboundMachine.TestCase
TestOutbound.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
