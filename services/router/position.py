"""Event ids: where in its answer a client is, as it sends it back to go on. `rid:i0.i1…:h`.

i are the tokens given of each choice, h is a running hash of them: what is made again is compared with it before a
client that has the beginning is given the rest. It knows nothing of who keeps or makes the tokens.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from struct import pack as pack_struct
from zlib import crc32

from services.router.sequencer import pack
from shared.errors import InvalidRequest

_POSITION = re.compile(r"([0-9a-f]{34}):(\d{1,9}(?:\.\d{1,9}){0,127}):([0-9a-f]{8})")


@dataclass(frozen=True, slots=True)
class Position:
    """Tokens given by choice, and their hash."""

    rid: str
    counts: tuple[int, ...]
    crc: int

    def agrees(self, logs: Sequence[Sequence[int]]) -> bool:
        """Whether these ids, by choice, begin with those that were given."""
        if len(logs) != len(self.counts) or any(len(ids) < count for ids, count in zip(logs, self.counts, strict=True)):
            return False
        return combined([crc32(pack(ids[:count])) for ids, count in zip(logs, self.counts, strict=True)]) == self.crc


def combined(crcs: Sequence[int]) -> int:
    """One hash for the hashes of all choices."""
    return crcs[0] if len(crcs) == 1 else crc32(pack_struct(f"<{len(crcs)}I", *crcs))


def write(rid: str, counts: Sequence[int], crcs: Sequence[int]) -> str:
    """As a client sees it."""
    return f"{rid}:{'.'.join(map(str, counts))}:{combined(crcs):08x}"


def read(text: str, rid: str) -> Position:
    """Raises InvalidRequest if `text` is no position in rid's answer."""
    found = _POSITION.fullmatch(text)
    if found is None or found[1] != rid:
        raise InvalidRequest(
            "This is not the id of an event of this stream: send back the last 'id' as it was given.",
            param="last-event-id",
            code="invalid_event_id",
        )
    return Position(rid, tuple(map(int, found[2].split("."))), int(found[3], 16))
