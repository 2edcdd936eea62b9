"""What stands in the queue for a worker: a protobuf Payload, versioned and signed.

Sealed bytes: one byte format version, 32 bytes HMAC-SHA256, then the message. The signature covers rid, version and message,
so a payload can be neither forged nor moved to another request by one who can write to Redis. It knows nothing of Redis and
does not judge sampling parameters: the worker validates those as the router did.
"""

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from pathlib import Path

from google.protobuf.message import DecodeError

from shared.errors import InternalError, StartupError
from shared.pb import types_pb2

FORMAT = 1
VERSION = 1
MIN_KEY_BYTES = 32
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


def new_key() -> str:
    """A line for a new secret file."""
    return secrets.token_hex(MIN_KEY_BYTES)


def read_keys(path: Path) -> tuple[bytes, ...]:
    """The keys in a secret file, one a line, the signing one first; a second is accepted while keys are rotated.

    Raises StartupError if there is none, more than two, or one of fewer than 32 characters.
    """
    try:
        keys = tuple(line.strip().encode() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except OSError as error:
        raise StartupError(f"cannot read the secret file {path}: {error.strerror}") from error
    if not 1 <= len(keys) <= 2:
        raise StartupError(f"the secret file {path} holds {len(keys)} keys; put one or two in it, one a line")
    if min(len(key) for key in keys) < MIN_KEY_BYTES:
        raise StartupError(f"the secret file {path} holds a key under {MIN_KEY_BYTES} characters; try `openssl rand -hex 32`")
    return keys


def _sign(body: bytes, rid: str, key: bytes) -> bytes:
    return hmac.digest(key, b"roadtrain.payload\0" + bytes([FORMAT]) + rid.encode() + b"\0" + body, hashlib.sha256)
