"""Refuses to open to other machines what would be open to everybody there: nothing is open by default.

Doors need keys and TLS, ports between services need certificates; `--insecure` says that all of that is meant to be
missing. It knows addresses and what protects them, and nothing of what is served.
"""

from shared.config import Settings
from shared.errors import StartupError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def check_exposure(settings: Settings, role: str) -> None:
    """Raises StartupError, one line with the cure, for an address of `role` that other machines reach unprotected."""
    if settings.insecure:
        return
    if role == "router":
        _check_doors(settings)
    inside = {
        "router": ("--router.deliver-address", settings.router.deliver_address),
        "tokenizer": ("--tokenizer.address", settings.tokenizer.address),
        "worker": ("--worker.admin-address", settings.worker.admin_address),
    }
    flag, address = inside[role]
    if not _is_private(address) and settings.certs_dir is None:
        raise StartupError(
            f"{flag} {address} would let anyone who reaches this machine act as a service of this system; "
            "make certificates with `roadtrain certs DIR` and give --certs-dir DIR, or say --insecure to allow it"
        )


def _check_doors(settings: Settings) -> None:
    router = settings.router
    if router.admin_host not in LOOPBACK and router.admin_socket is None:
        raise StartupError(
            f"--admin-host {router.admin_host} would show metrics to anyone who reaches this machine; "
            "stay on 127.0.0.1, or say --insecure to allow it"
        )
    if router.host in LOOPBACK:
        return
    missing = []
    if router.keys_file is None:
        missing.append("anyone use the model: make a key with `roadtrain keys FILE` and give --keys-file FILE")
    if router.tls_cert_file is None and not router.behind_proxy:
        cure = "give --tls-cert-file and --tls-key-file, or --behind-proxy where one ends TLS"
        missing.append(f"keys and prompts travel unencrypted: {cure}")
    if missing:
        raise StartupError(f"--host {router.host} would let {', and '.join(missing)}; or say --insecure to allow it")


def _is_private(address: str) -> bool:
    """Whether no other machine can dial it."""
    return address.startswith("unix:") or address.rpartition(":")[0].strip("[]") in LOOPBACK
