"""The certificate of the ports that clients see, HTTP and gRPC: TLS 1.2 or newer.

It knows nothing of what is served, and nothing of certificates between services (shared/mtls.py).
"""

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from shared.errors import StartupError


@dataclass(frozen=True, slots=True)
class Tls:
    """One certificate, as each of the two servers takes it."""

    http: ssl.SSLContext
    grpc: grpc.ServerCredentials


def read_tls(certificate: Path | None, key: Path | None) -> Tls | None:
    """None if neither is given. Raises StartupError for files that cannot be read or do not belong together."""
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise StartupError("--tls-cert-file and --tls-key-file belong together; give both")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # A password asked for on a terminal would stop the start.
        context.load_cert_chain(certificate, key, password=lambda: b"")
        credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
    except (OSError, ValueError) as error:
        cause = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
        raise StartupError(f"cannot use the certificate {certificate} with the key {key}: {cause}") from None
    return Tls(context, credentials)
