"""A router that fences nobody: it listens to every worker that speaks, whoever owns the request, and takes tokens as they come.

Only the chaos suite's negative test starts it, to show that the oracles would notice. It takes the arguments of the
`roadtrain` command and knows nothing else of a router.
"""

from collections.abc import Mapping

from services.launcher.__main__ import main
from services.router.sequencer import Binding, Link, Sequencer, _choice
from shared.pb import delivery_pb2, types_pb2


def _bind_anyone(self: Sequencer, link: Link, claimed: delivery_pb2.Claimed) -> None:
    held = self.held.get(claimed.rid)
    if held is None or held.usage is not None or not held.choices:
        link.out.unknown.append(claimed.stream)
        return
    held.bound = link.streams[claimed.stream] = Binding(held, claimed.epoch, link, claimed.stream)
    self._begin(held.bound)


def _listen_to_anyone(self: Sequencer, link: Link, stream: int) -> Binding | None:
    binding = link.streams.get(stream)
    if binding is None or not binding.held.choices:
        link.out.unknown.append(stream)
        return None
    return binding


def _take_as_they_come(
    self: Sequencer, link: Link, frames: delivery_pb2.Frames, logprobs: Mapping[tuple[int, int, int], types_pb2.Logprobs]
) -> None:
    at = 0
    for stream, choice, idx, count in zip(frames.stream, frames.choice, frames.idx, frames.count, strict=True):
        binding = self._listened_to(link, stream)
        if binding is not None and not _choice(binding, choice).ended:
            log = _choice(binding, choice)
            self._accept(log, list(frames.token_ids[at : at + count]), link, None)
            link.out.acks.stream.append(stream)
            link.out.acks.choice.append(choice)
            link.out.acks.num_tokens.append(idx + count)
        at += count


if __name__ == "__main__":
    Sequencer._claimed = _bind_anyone  # type: ignore[method-assign]
    Sequencer._listened_to = _listen_to_anyone  # type: ignore[method-assign]
    Sequencer._frames = _take_as_they_come  # type: ignore[method-assign]
    main()
