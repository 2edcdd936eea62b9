"""What stands in the queue for a worker: a protobuf Payload, versioned and signed.

Sealed bytes: one byte format version, 32 bytes HMAC-SHA256, then the message. The signature covers rid, version and message,
so a payload can be neither forged nor moved to another request by one who can write to Redis. It knows nothing of Redis and
does not judge sampling parameters: the worker validates those as the router did.
"""

import hashlib
import hmac
from collections.abc import Sequence

from google.protobuf.message import DecodeError

from shared.errors import InternalError
from shared.pb import types_pb2

FORMAT = 1
VERSION = 1
_SIGNATURE_BYTES = 32


class BadPayload(InternalError):
    """A payload that this installation did not write, or a newer one did; it must not be run."""

    default_code = "bad_payload"


def seal(payload: types_pb2.Payload, rid: str, keys: Sequence[bytes]) -> bytes:
    """Signs `payload` for `rid` with the first key; sets its version."""
    versioned = types_pb2.Payload()
    versioned.CopyFrom(payload)
    versioned.version = VERSION
    body = versioned.SerializeToString(deterministic=True)
    return bytes([FORMAT]) + _sign(body, rid, keys[0]) + body


def open_sealed(sealed: bytes, rid: str, keys: Sequence[bytes]) -> types_pb2.Payload:
    """The payload, if any of the keys signed it for `rid`. Raises BadPayload."""
    if len(sealed) <= 1 + _SIGNATURE_BYTES or sealed[0] != FORMAT:
        raise BadPayload(f"The payload of request {rid} has an unknown format; do all services run the same release?")
    signature, body = sealed[1 : 1 + _SIGNATURE_BYTES], sealed[1 + _SIGNATURE_BYTES :]
    if not any(hmac.compare_digest(signature, _sign(body, rid, key)) for key in keys):
        raise BadPayload(f"The payload of request {rid} is not signed with our key; do all services use the same secret file?")
    payload = types_pb2.Payload()
    try:
        payload.ParseFromString(body)
    except DecodeError as error:
        raise BadPayload(f"The payload of request {rid} cannot be read.") from error
    if payload.version != VERSION:
        raise BadPayload(f"The payload of request {rid} has version {payload.version}; this release reads {VERSION}.")
    return payload


def digest(payload: types_pb2.Payload) -> str:
    """SHA-256 in hex of what was asked: all but the trace, the version, and how it is answered.

    Two requests under one idempotency key must agree in it, so take it before drawing a seed nobody gave.
    """
    asked = types_pb2.Payload()
    asked.CopyFrom(payload)
    asked.ClearField("trace")
    asked.ClearField("version")
    asked.ClearField("shape")
    return hashlib.sha256(asked.SerializeToString(deterministic=True)).hexdigest()


def _sign(body: bytes, rid: str, key: bytes) -> bytes:
    return hmac.digest(key, b"roadtrain.payload\0" + bytes([FORMAT]) + rid.encode() + b"\0" + body, hashlib.sha256)
