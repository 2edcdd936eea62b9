"""Who services are to each other: certificates of one authority, each of which says what its holder is.

Both ends check: who dials wants a server of the right role, who answers looks up here what the caller's role may call.
Without a folder of certificates there are none, and services meet in the clear (unix sockets, loopback).
It knows nothing of what is called, nor of how certificates are made.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import grpc

from shared.errors import PermissionDenied, StartupError

Role = Literal["router", "tokenizer", "worker", "admin"]
"""`admin` is a person or a probe: asks for health, and workers for their status."""

ROLES: tuple[Role, ...] = ("router", "tokenizer", "worker", "admin")
AUTHORITY = "ca.pem"

# A service's whole name, or one of its calls -> who may call it. What is not here, nobody may.
CALLERS: Mapping[str, frozenset[Role]] = {
    "/roadtrain.Tokenizer": frozenset({"router"}),
    "/roadtrain.Delivery/Deliver": frozenset({"worker"}),
    "/roadtrain.Delivery/Follow": frozenset({"router"}),
    "/roadtrain.Worker": frozenset({"admin"}),
    "/grpc.health.v1.Health": frozenset(ROLES),
}

logger = logging.getLogger(__name__)


def name_of(role: Role) -> str:
    """The DNS name that a certificate of this role bears; it is looked up nowhere."""
    return f"{role}.roadtrain.internal"


@dataclass(frozen=True, slots=True)
class Peer:
    """A server that is to be dialled: what to show it, and the name that its certificate must bear."""

    credentials: grpc.ChannelCredentials
    name: str


@dataclass(slots=True)
class Papers:
    """The certificates of one process. num_refused: calls of others that were not theirs to make."""

    authority: bytes
    certificate: bytes
    key: bytes = field(repr=False)
    num_refused: int = 0

    @property
    def credentials(self) -> grpc.ServerCredentials:
        """For a port that only holders of a certificate of the same authority can talk to."""
        return grpc.ssl_server_credentials([(self.key, self.certificate)], self.authority, require_client_auth=True)

    def peer(self, role: Role) -> Peer:
        """For dialling a server of that role."""
        return Peer(grpc.ssl_channel_credentials(self.authority, self.key, self.certificate), name_of(role))

    def admit(self, method: str, context: Any) -> None:
        """Raises PermissionDenied unless the caller's role may call `method` ("/package.Service/Call")."""
        allowed = CALLERS.get(method) or CALLERS.get(method.rpartition("/")[0], frozenset())
        names = {name.decode(errors="replace") for name in context.auth_context().get("x509_subject_alternative_name", ())}
        if names.isdisjoint(map(name_of, allowed)):
            self.num_refused += 1
            logger.warning("a call was refused: the caller's certificate is not for it", extra={"method": method, "names": names})
            raise PermissionDenied("Your certificate is not for this call.")


def read_papers(folder: Path | None, role: Role) -> Papers | None:
    """The certificates of `role` in `folder`, as `roadtrain certs` makes them; None without a folder. Raises StartupError."""
    if folder is None:
        return None
    try:
        authority, certificate, key = ((folder / name).read_bytes() for name in (AUTHORITY, f"{role}.pem", f"{role}-key.pem"))
    except OSError as error:
        cause = f"cannot read {error.filename}: {(error.strerror or 'refused').lower()}"
        raise StartupError(f"{cause}; `roadtrain certs {folder}` makes certificates") from None
    return Papers(authority, certificate, key)
