"""Output of a model for part readers, one character per token, without a plane. It knows nothing of what the text says."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from services.router.generate import ChoiceEnd, EndReason, TextDelta
from services.router.parts import Part, PartReader
from shared.pb import types_pb2


class Letters:
    """Token ids are code points."""

    special: frozenset[int] = frozenset()

    def bytes_of(self, token_id: int) -> bytes:
        return chr(token_id).encode()


@dataclass
class Spoken:
    """As much of a Generation as a reader looks at; `begun` is what the client has."""

    rid: str = "00" * 17
    begun: str = ""
    skips_special: bool = True
    reading: types_pb2.Reading | None = None
    vocabulary: Letters = field(default_factory=Letters)

    def begun_token_ids(self, index: int) -> list[int]:
        return [ord(letter) for letter in self.begun]

    def reader(self, reading: types_pb2.Reading | None) -> PartReader:
        self.reading = reading
        return PartReader(self, self.vocabulary)  # type: ignore[arg-type]


def delta(text: str) -> TextDelta:
    return TextDelta(0, text, [ord(letter) for letter in text], 0, None, "")


def end(reason: EndReason = "stop") -> ChoiceEnd:
    return ChoiceEnd(0, reason, 0, None, None, "")


def parts_of(
    reading: types_pb2.Reading | None, chunks: Iterable[str], *, begun: str = "", reason: EndReason = "stop"
) -> list[Part]:
    """All parts of an answer in chunks, its end too."""
    reader = Spoken(begun=begun).reader(reading)
    return [part for chunk in chunks for part in reader.read(delta(chunk))] + reader.read(end())
