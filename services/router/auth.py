"""Who calls: the one function that every door asks before it does anything.

There are no keys yet, so every caller is one tenant; a door that is reached from other machines without them refuses
to start (launcher). It knows nothing of paths beyond those that anyone may see.
"""

# What load balancers and probes ask for. Everything else, known or not, needs a caller.
PUBLIC_PATHS = frozenset({b"/health", b"/livez", b"/readyz", b"/version"})

ANONYMOUS = "anonymous"


def authenticate(authorization: str | None) -> str:
    """The tenant that the value of an Authorization header belongs to. Raises Unauthenticated."""
    return ANONYMOUS
