"""Ports of this machine, before anything is started. It knows nothing of who will listen there."""

import socket


def port_is_free(host: str, port: int) -> bool:
    """Whether nobody listens on host:port; for errors before anything is started."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
