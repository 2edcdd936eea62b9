"""Each rule of the sequencer switched off on purpose: the machine that checks the protocol must notice."""

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from services.router.sequencer import Binding, ChoiceLog, Fate, Held, Link, ProtocolError, Sequencer
from shared.pb import delivery_pb2, types_pb2
from tests.router.plane.test_sequencer_machine import Machine


class NoFence(Sequencer):
    """Listens to any assignment it was ever told of."""

    def _listened_to(self, link: Link, stream: int) -> Binding | None:
        return link.streams.get(stream) or super()._listened_to(link, stream)


class EpochAlone(Sequencer):
    """Binds by epoch, whoever the owner is (H1)."""

    def _claimed(self, link: Link, claimed: delivery_pb2.Claimed) -> None:
        held = self.held.get(claimed.rid)
        if held is not None and held.bound is not None and claimed.epoch == held.bound.epoch:
            held.bound = None
        super()._claimed(link, claimed)


class NoTombstone(Sequencer):
    """Takes ids of a request that was cancelled (I9)."""

    def cancel(self, held: Held) -> None:
        bound = held.bound
        super().cancel(held)
        held.fate, held.bound, held.choices = Fate.OWED, bound, [ChoiceLog(held, 0), ChoiceLog(held, 1)]


class NoOrder(Sequencer):
    """Takes what was seen already once more (I1)."""

    def _accept(self, log: ChoiceLog, token_ids: list[int], link: Link, logprobs: types_pb2.Logprobs | None) -> None:
        super()._accept(log, token_ids, link, logprobs)
        super()._accept(log, token_ids[:1], link, logprobs)


@pytest.mark.parametrize("rule", [NoFence, EpochAlone, NoTombstone, NoOrder])
def test_a_missing_rule_is_noticed(rule: type[Sequencer]) -> None:
    class Broken(Machine):
        def __init__(self) -> None:
            super().__init__()
            self.sequencer = rule()

    with pytest.raises((AssertionError, ProtocolError)):
        run_state_machine_as_test(
            Broken,
            settings=settings(
                max_examples=300,
                stateful_step_count=40,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            ),
        )
