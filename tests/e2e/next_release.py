"""A process of the next release, whose sim workers compute other numbers and say so. Run as a module, like the launcher.

It speaks the same protocol and sends fields that this release has not heard of. It knows nothing of what they carry.
"""

from services.launcher.__main__ import main
from services.worker import delivery, sim
from services.worker.outbound import Message
from shared.pb import delivery_pb2

FINGERPRINT = "sim-2"
# Field 1000, a string: no message of this release has it.
UNHEARD_OF = b"\xc2\x3e\x03new"


class _NextMessage(Message):
    """A message with one field more."""

    def whole(self) -> delivery_pb2.FromWorker | None:
        body = super().whole()
        return None if body is None else delivery_pb2.FromWorker.FromString(body.SerializeToString() + UNHEARD_OF)


if __name__ == "__main__":
    sim.FINGERPRINT = FINGERPRINT
    delivery.Message = _NextMessage  # type: ignore[misc]
    main()
