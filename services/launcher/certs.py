"""`roadtrain certs DIR`: an authority and one certificate for each kind of service, for mTLS between them.

A second call renews the certificates and keeps the authority, so that services may be restarted one by one. It knows
nothing of where services run: a certificate says what its holder is, not where.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from shared.errors import StartupError
from shared.mtls import AUTHORITY, ROLES, Role, name_of

AUTHORITY_KEY = "ca-key.pem"
AUTHORITY_DAYS, SERVICE_DAYS = 3650, 397


def certs(arguments: Sequence[str]) -> int:
    """Makes or renews them; 0. Raises StartupError."""
    parser = argparse.ArgumentParser(prog="roadtrain certs", description="Makes certificates for calls between services.")
    parser.add_argument("folder", metavar="DIR", type=Path, help="where they go; services are given it as --certs-dir")
    folder: Path = parser.parse_args(list(arguments)).folder
    try:
        make(folder)
    except ImportError:
        raise StartupError("`roadtrain certs` needs the package cryptography: pip install 'roadtrain[serve]'") from None
    except OSError as error:
        raise StartupError(f"cannot write {error.filename}: {(error.strerror or 'refused').lower()}") from None
    lines = [
        f"made {AUTHORITY} and a certificate with its key for {', '.join(ROLES)} in {folder}, good for {SERVICE_DAYS} days",
        f"give each machine {AUTHORITY} and the two files of its own role, and --certs-dir; keep {AUTHORITY_KEY} off all of them",
    ]
    print("\n".join(f"roadtrain: {line}" for line in lines), file=sys.stderr)
    return 0


def make(folder: Path) -> None:
    """The files in `folder`, readable by their owner alone."""
    from cryptography.hazmat.primitives.asymmetric import ec

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (folder / AUTHORITY_KEY).exists():
        key = ec.generate_private_key(ec.SECP256R1())
        _write(folder / AUTHORITY, _pem(_sign("Roadtrain", key, key, None, AUTHORITY_DAYS)))
        _write(folder / AUTHORITY_KEY, _key_pem(key))
    authority_key, authority = _read_authority(folder)
    for role in ROLES:
        key = ec.generate_private_key(ec.SECP256R1())
        _write(folder / f"{role}-key.pem", _key_pem(key))
        _write(folder / f"{role}.pem", _pem(_sign(role, key, authority_key, authority, SERVICE_DAYS)))


def _read_authority(folder: Path) -> tuple[Any, Any]:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key((folder / AUTHORITY_KEY).read_bytes(), None)
        return key, x509.load_pem_x509_certificate((folder / AUTHORITY).read_bytes())
    except (ValueError, TypeError) as error:
        raise StartupError(f"{folder / AUTHORITY_KEY} or {AUTHORITY} is broken; delete both to begin anew") from error


def _sign(name: str, key: Any, authority_key: Any, authority: Any, days: int) -> Any:
    """A certificate for `key`; of the authority itself where `authority` is None."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    is_authority = authority is None
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if is_authority else authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # Clocks of other machines may be behind.
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=0 if is_authority else None), critical=True)
        .add_extension(_usage(is_authority), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
    )
    if not is_authority:
        role: Role = name  # type: ignore[assignment]
        both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name_of(role))]), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage(both), critical=False)
    return builder.sign(authority_key, hashes.SHA256())


def _usage(is_authority: bool) -> Any:
    from cryptography import x509

    wanted = {"key_cert_sign", "crl_sign"} if is_authority else {"digital_signature"}
    names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    more = ("key_cert_sign", "crl_sign", "encipher_only", "decipher_only")
    return x509.KeyUsage(**{name: name in wanted for name in (*names, *more)})


def _pem(certificate: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    data: bytes = certificate.public_bytes(Encoding.PEM)
    return data


def _key_pem(key: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    data: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return data


def _write(file: Path, data: bytes) -> None:
    """In one piece: a service that starts meanwhile reads the old or the new."""
    part = file.with_name(file.name + ".part")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
        out.write(data)
    part.replace(file)
