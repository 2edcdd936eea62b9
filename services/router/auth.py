"""Who calls: the one place that turns a key into a caller, for every door.

Keys are compared as digests, in constant time, with every key visited. The file they come from is read again when it
changes, so keys come and go without a restart. Without a file there is one caller, and the doors open to this machine
only (launcher). It knows nothing of paths beyond those that anyone may see, and nothing of how limits are kept.
"""

import asyncio
import hmac
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.api_keys import ApiKey, digest_of, read_api_keys
from shared.errors import NoApiKey, PermissionDenied, StartupError, Unauthenticated

# What load balancers and probes ask for. Everything else, known or not, needs a caller.
PUBLIC_PATHS = frozenset({b"/health", b"/livez", b"/readyz", b"/version"})
LOOK_AGAIN_S = 1.0

_SECRET = re.compile(rb"[!-~]{1,512}")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller, from a key: the tenant it acts for, the model names it may use (None: all), its limits and its weight.

    What one tenant has cached or under way is another's in no way; two keys of one tenant share all of it but their limits.
    """

    tenant: str
    key_id: str = ""
    models: frozenset[str] | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    weight: float = 1.0

    @property
    def is_limited(self) -> bool:
        """It has a limit of requests or of tokens."""
        return self.requests_per_minute is not None or self.tokens_per_minute is not None

    def may_use(self, model: str) -> bool:
        """Whether it may ask for a model by this name."""
        return self.models is None or model in self.models

    def check_model(self, model: str) -> None:
        """Raises PermissionDenied for a model that is there, but not for this key."""
        if not self.may_use(model):
            message = f"Your API key may not use the model '{model[:200]}'."
            raise PermissionDenied(message, param="model", code="model_not_allowed")


ANONYMOUS = Identity("anonymous")


class KeyRing:
    """The keys of one file. Without a file everybody is ANONYMOUS."""

    def __init__(self, file: Path | None):
        """Raises StartupError for a file that cannot be read or holds no keys."""
        self._file = file
        self._stamp: tuple[int, int, int] | None = None
        self._keys: tuple[tuple[bytes, Identity], ...] = ()
        self._by_id: dict[str, Identity] = {}
        if file is not None:
            self._stamp = _stamp(file)
            self._take(read_api_keys(file))

    def authenticate(self, authorization: Sequence[bytes], api_keys: Sequence[bytes] = ()) -> Identity:
        """The caller, from every value of its Authorization and its x-api-key header. Raises Unauthenticated."""
        if self._file is None:
            return ANONYMOUS
        if not authorization and not api_keys:
            raise NoApiKey("You didn't provide an API key: send the header 'Authorization: Bearer KEY'.")
        secrets = {*map(_bearer, authorization), *api_keys}
        if len(authorization) > 1 or len(api_keys) > 1 or len(secrets) > 1:
            raise Unauthenticated("More than one API key was sent; send one.")
        secret = secrets.pop()
        found = self._find(secret) if _SECRET.fullmatch(secret) else None
        if found is None:
            raise Unauthenticated("Incorrect API key provided.")
        return found

    def known(self, tenant: str, key_id: str) -> Identity:
        """What is done for a key after its call, as the key is now. Raises Unauthenticated if it is gone, or another's."""
        if self._file is None:
            return Identity(tenant)
        found = self._by_id.get(key_id)
        if found is None or found.tenant != tenant:
            raise Unauthenticated("The API key that asked for this is no longer good.")
        return found

    def _find(self, secret: bytes) -> Identity | None:
        digest = digest_of(secret)
        found = None
        # To the end, whatever was found: how long it takes must not say where.
        for known, identity in self._keys:
            if hmac.compare_digest(digest, known):
                found = identity
        return found

    def look_again(self) -> None:
        """Takes the file's keys if it has changed; one that is broken changes nothing."""
        if self._file is None or (stamp := _stamp(self._file)) == self._stamp:
            return
        self._stamp = stamp
        try:
            keys = read_api_keys(self._file)
        except StartupError as error:
            logger.error("the keys file was not taken; the keys from before are still good", extra={"cause": str(error)})
            return
        self._take(keys)
        logger.info("the keys file was read again", extra={"num_keys": len(keys)})

    def _take(self, keys: Sequence[ApiKey]) -> None:
        self._keys = tuple((bytes.fromhex(key.sha256), _identity(key)) for key in keys)
        self._by_id = {key.id: _identity(key) for key in keys}

    async def watch(self) -> None:
        """Looks again every second."""
        while self._file is not None:
            await asyncio.sleep(LOOK_AGAIN_S)
            self.look_again()


def _bearer(value: bytes) -> bytes:
    """The secret in an Authorization header; b"" if it is of another kind."""
    scheme, _, secret = value.partition(b" ")
    return secret.strip(b" ") if scheme.lower() == b"bearer" else b""


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _identity(key: ApiKey) -> Identity:
    return Identity(
        tenant=key.tenant,
        key_id=key.id,
        models=None if key.models is None else frozenset(key.models),
        requests_per_minute=key.requests_per_minute,
        tokens_per_minute=key.tokens_per_minute,
        weight=key.weight,
    )
