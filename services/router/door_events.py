"""What happens to a generation as the gRPC door's events. It knows nothing of calls and connections."""

from collections.abc import Sequence

from services.router.generate import ChoiceEnd, Event
from services.router.parts import CallArguments, CallBegun, Done, Part, Said
from shared.pb import router_pb2, types_pb2

_REASONS = {
    "stop": types_pb2.FINISH_REASON_STOP,
    "length": types_pb2.FINISH_REASON_LENGTH,
    "tool_calls": types_pb2.FINISH_REASON_TOOL_CALLS,
}


def event_message(event: Event) -> router_pb2.Event:
    """Where all text is content."""
    if isinstance(event, ChoiceEnd):
        return router_pb2.Event(position=event.position, finished=_finished(event, event.reason))
    delta = router_pb2.Delta(choice=event.choice, text=event.text, token_ids=event.token_ids, logprobs=event.logprobs)
    return router_pb2.Event(position=event.position, delta=delta)


def part_message(event: Event, parts: Sequence[Part]) -> router_pb2.Event:
    """Where reasoning and calls are told from content: all parts of one event in one message, as its position stands for all."""
    if not isinstance(event, ChoiceEnd):
        delta = router_pb2.Delta(choice=event.choice, token_ids=event.token_ids, logprobs=event.logprobs)
        _add(delta, parts)
        return router_pb2.Event(position=event.position, delta=delta)
    done = parts[-1]
    finished = _finished(event, done.reason if isinstance(done, Done) else event.reason)
    if len(parts) > 1:
        finished.rest.choice = event.choice
        _add(finished.rest, parts)
    if isinstance(done, Done):
        finished.num_reasoning_tokens = done.num_reasoning_tokens
    return router_pb2.Event(position=event.position, finished=finished)


def _finished(event: ChoiceEnd, reason: str) -> router_pb2.ChoiceFinished:
    finished = router_pb2.ChoiceFinished(choice=event.choice, reason=_REASONS[reason])
    if event.stop_string is not None:
        finished.stop_string = event.stop_string
    elif event.stop_token_id is not None:
        finished.stop_token_id = event.stop_token_id
    return finished


def _add(delta: router_pb2.Delta, parts: Sequence[Part]) -> None:
    calls: dict[int, router_pb2.ToolCallDelta] = {}
    for part in parts:
        match part:
            case Said(kind="content"):
                delta.text += part.text
            case Said():
                delta.reasoning += part.text
            case CallBegun():
                calls[part.call] = delta.tool_calls.add(index=part.call, id=part.id, name=part.name)
            case CallArguments():
                if part.call not in calls:
                    calls[part.call] = delta.tool_calls.add(index=part.call)
                calls[part.call].arguments += part.text
