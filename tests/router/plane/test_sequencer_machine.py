"""The sequencer against a plain model of protocol §4: any number of workers, epochs, connections and late messages.

Ids are made so that they name their author; an author's log begins with what Begin gave it. It knows nothing of sockets.
"""

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from services.router.sequencer import Fate, Held, Link, Sequencer, unpack
from shared.pb import delivery_pb2, types_pb2

RIDS = ("a", "b")
CHOICES = 2


@dataclass(eq=False)
class Author:
    """One assignment as its worker sees it."""

    rid: str
    epoch: int
    worker: str
    log: list[list[int]] = field(default_factory=lambda: [[] for _ in range(CHOICES)])

    def ids(self, choice: int, start: int, count: int) -> list[int]:
        """Its own ids from start on; its log grows as far as it must."""
        log = self.log[choice]
        while len(log) < start + count:
            log.append((self.epoch * 10 + ord(self.worker[0]) % 10) * 1000 + len(log))
        return log[start : start + count]


@dataclass
class Model:
    """What the router should know of one rid."""

    attach: int
    bound: Author | None = None
    accepted: list[list[int]] = field(default_factory=lambda: [[] for _ in range(CHOICES)])
    ended: list[bool] = field(default_factory=lambda: [False] * CHOICES)
    fate: Fate = Fate.OWED


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.sequencer = Sequencer()
        self.models: dict[str, Model] = {}
        self.epoch = 0
        self.authors: list[Author] = []
        self.links: list[Link] = []
        self.streams: dict[Link, dict[int, Author]] = {}
        self.given: dict[str, list[list[int]]] = {}
        self.epochs_accepted: dict[str, list[int]] = {}

    @initialize()
    def begin(self) -> None:
        """Two workers are dialled in and one request is held: most runs need nothing else to go wrong."""
        self.hold("a")
        self.dial("v")
        self.dial("w")

    # What the router's own side does.

    @rule(rid=st.sampled_from(RIDS))
    def hold(self, rid: str) -> None:
        if rid not in self.models:
            self.sequencer.hold(Held(rid, attach=len(self.given) + 1, num_choices=CHOICES, num_logprobs=None))
            self.models[rid] = Model(attach=len(self.given) + 1)
            self.given[rid] = [[] for _ in range(CHOICES)]
            self.epochs_accepted[rid] = []

    @rule(rid=st.sampled_from(RIDS), forget=st.booleans(), rarely=st.integers(0, 3))
    def leave(self, rid: str, forget: bool, rarely: int) -> None:
        model = self.models.get(rid)
        if model is None or rarely:
            return
        held = self.sequencer.held[rid]
        if forget:
            self.sequencer.forget(held)
            del self.models[rid]
        elif model.fate is Fate.OWED:
            self.sequencer.cancel(held)
            model.fate, model.bound = Fate.CANCELLED, None
        self.drain()

    @rule(rid=st.sampled_from(RIDS))
    def give_everything(self, rid: str) -> None:
        model = self.models.get(rid)
        if model is not None and model.fate is Fate.OWED and all(model.ended):
            self.sequencer.finish(self.sequencer.held[rid], types_pb2.Usage(num_output_tokens=7))
            model.fate, model.bound = Fate.FINISHED, None
            self.drain()

    @rule(rid=st.sampled_from(RIDS), choice=st.integers(0, CHOICES - 1), cut=st.integers(0, 2), rarely=st.integers(0, 2))
    def stop_string(self, rid: str, choice: int, cut: int, rarely: int) -> None:
        model = self.models.get(rid)
        if rarely or model is None or model.fate is not Fate.OWED or model.ended[choice]:
            return
        num_tokens = max(0, len(model.accepted[choice]) - cut)
        self.sequencer.stop(self.sequencer.held[rid].choices[choice], num_tokens)
        del model.accepted[choice][num_tokens:]
        del self.given[rid][choice][num_tokens:]
        model.ended[choice] = True
        self.drain()

    # What workers do, in any order and as often as they like.

    @rule(worker=st.sampled_from(("v", "w")), rid=st.sampled_from(RIDS), same_epoch=st.booleans())
    def claim(self, worker: str, rid: str, same_epoch: bool) -> None:
        """`same_epoch`: two owners of one epoch, which only a lying clock could issue."""
        if not same_epoch or not self.epoch:
            self.epoch += 1
        known = [each for each in self.authors if (each.rid, each.epoch, each.worker) == (rid, self.epoch, worker)]
        # One assignment is one log, however often it is claimed.
        author = known[0] if known else Author(rid, self.epoch, worker)
        if not known:
            self.authors.append(author)
        for link in [link for link in self.links if link.owner == worker][-1:]:
            self.claim_on(link, author)

    @rule(worker=st.sampled_from(("v", "w")))
    def dial(self, worker: str) -> None:
        link = Link(owner=worker, fingerprint=worker, wake=lambda: None)
        self.links.append(link)
        self.streams[link] = {}

    @precondition(lambda self: self.links)
    @rule(data=st.data(), rarely=st.integers(0, 2))
    def hang_up(self, data: st.DataObject, rarely: int) -> None:
        if rarely:
            return
        link = data.draw(st.sampled_from(self.links))
        self.links.remove(link)
        bound = {(binding.held.rid, binding.epoch) for binding in self.sequencer.close(link)}
        for rid, epoch in bound:
            author = self.models[rid].bound
            assert author is not None
            assert (author.epoch, author.worker) == (epoch, link.owner)

    @precondition(lambda self: self.links and self.authors)
    @rule(data=st.data())
    def say_claimed(self, data: st.DataObject) -> None:
        link = data.draw(st.sampled_from(self.links))
        mine = [author for author in self.authors if author.worker == link.owner]
        if not mine:
            return
        self.claim_on(link, data.draw(st.sampled_from(mine)))

    def claim_on(self, link: Link, author: Author) -> None:
        stream = len(self.streams[link]) + 1
        self.streams[link][stream] = author
        message = delivery_pb2.FromWorker(claimed=[delivery_pb2.Claimed(stream=stream, rid=author.rid, epoch=author.epoch)])
        self.sequencer.receive(link, message)
        self.check_claimed(author, stream, link.take())

    def check_claimed(self, author: Author, stream: int, out: delivery_pb2.FromRouter) -> None:
        model = self.models.get(author.rid)
        if model is None:
            assert list(out.unknown) == [stream]
        elif model.fate is Fate.CANCELLED:
            assert list(out.cancel) == [stream]
        elif model.fate is Fate.FINISHED:
            assert [(row.stream, row.usage.num_output_tokens) for row in out.finished] == [(stream, 7)]
        elif model.bound is not None and not self.wins(author, model.bound):
            assert [(row.stream, row.epoch) for row in out.fenced] == [(stream, model.bound.epoch)]
        else:
            model.bound = author
            (begin,) = out.begin
            log: list[list[int]] = [[] for _ in range(CHOICES)]
            for row in begin.accepted:
                log[row.choice] = unpack(row.token_ids)
                assert row.finished == model.ended[row.choice]
            assert log == model.accepted
            # Begin's ids win over the worker's own log where they differ or are longer (H12).
            for own, accepted in zip(author.log, log, strict=True):
                if own[: len(accepted)] != accepted:
                    own[:] = accepted

    @staticmethod
    def wins(author: Author, bound: Author) -> bool:
        same = (author.epoch, author.worker) == (bound.epoch, bound.worker)
        return author.epoch > bound.epoch or same

    @precondition(lambda self: any(self.streams[link] for link in self.links))
    @rule(
        data=st.data(), choice=st.integers(0, CHOICES - 1), shift=st.integers(-3, 2), count=st.integers(0, 3), end=st.booleans()
    )
    def say_frame(self, data: st.DataObject, choice: int, shift: int, count: int, end: bool) -> None:
        link = data.draw(st.sampled_from([link for link in self.links if self.streams[link]]))
        stream, author = data.draw(st.sampled_from(sorted(self.streams[link].items(), key=lambda item: item[0])))
        model = self.models.get(author.rid)
        idx = max(0, (len(model.accepted[choice]) if model else len(author.log[choice])) + shift)
        ids = author.ids(choice, idx, count)
        message = delivery_pb2.FromWorker(
            frames=delivery_pb2.Frames(stream=[stream], choice=[choice], idx=[idx], count=[count], token_ids=ids)
        )
        finished = idx + count
        if end and model is not None and finished >= len(model.accepted[choice]):
            message.finishes.add(stream=stream, choice=choice, num_tokens=finished, reason=types_pb2.FINISH_REASON_STOP)
        known = stream in link.streams
        self.sequencer.receive(link, message)
        self.check_frame(author, (stream, choice, idx, ids), bool(message.finishes), known, link.take())

    def check_frame(
        self, author: Author, row: tuple[int, int, int, list[int]], end: bool, known: bool, out: delivery_pb2.FromRouter
    ) -> None:
        stream, choice, idx, ids = row
        model = self.models.get(author.rid)
        if not known or model is None or model.fate is not Fate.OWED or model.bound is None:
            # The last word was said, or there never was one: nothing is taken, and the worker always hears it.
            assert list(out.unknown) or list(out.cancel)
            assert not out.acks.stream
            return
        if (author.epoch, author.worker) != (model.bound.epoch, model.bound.worker):
            assert [(fenced.stream, fenced.epoch) for fenced in out.fenced] == [(stream, model.bound.epoch)]
            assert not out.acks.stream
            return
        accepted = model.accepted[choice]
        if not model.ended[choice] and idx > len(accepted):
            assert (out.resend[0].stream, out.resend[0].choice, out.resend[0].idx) == (stream, choice, len(accepted))
            return
        if not model.ended[choice] and idx == len(accepted):
            accepted += ids
            self.given[author.rid][choice] += ids
            self.epochs_accepted[author.rid].append(author.epoch)
        assert (out.acks.stream[0], out.acks.choice[0], out.acks.num_tokens[0]) == (stream, choice, len(accepted))
        if end and not model.ended[choice] and idx + len(ids) == len(accepted):
            model.ended[choice] = True
        # I2: what is accepted is a prefix of its author's own log.
        if not model.ended[choice]:
            assert author.log[choice][: len(accepted)] == accepted

    def drain(self) -> None:
        for link in self.links:
            link.take()

    @invariant()
    def ids_are_given_once_and_in_order(self) -> None:
        """I1, and I9: what a sink could read is what the model gave, and a request that is over gives nothing."""
        for rid, model in self.models.items():
            held = self.sequencer.held[rid]
            assert held.fate is model.fate
            if model.fate is Fate.OWED:
                assert [log.token_ids for log in held.choices] == self.given[rid] == model.accepted
                assert [log.ended for log in held.choices] == model.ended
            else:
                assert held.choices == []

    @invariant()
    def epochs_never_fall(self) -> None:
        """I3."""
        for epochs in self.epochs_accepted.values():
            assert epochs == sorted(epochs)

    @invariant()
    def there_is_one_author(self) -> None:
        """I2 and I4: bound is who the model says, on a connection of its own."""
        for rid, model in self.models.items():
            bound = self.sequencer.held[rid].bound
            assert (bound is None) == (model.bound is None)
            if bound is not None and model.bound is not None:
                assert (bound.epoch, bound.link.owner) == (model.bound.epoch, model.bound.worker)


Machine.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestSequencerMachine = Machine.TestCase
