"""The Lua scripts: one file per transition, each behind a common prelude, run by their digest.

A server that has forgotten them (restart, failover, SCRIPT FLUSH) is taught them again in passing. It knows nothing of
what the scripts do.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

NAMES = (
    "put",
    "claim",
    "reserve",
    "renew",
    "revoke",
    "release",
    "finish",
    "cancel",
    "adopt",
    "reap",
    "seen",
    "read",
    "look",
    "pardon",
    "discard",
)
_FOLDER = Path(__file__).parent / "lua"


class Scripts:
    """All scripts for the queue whose keys start with `prefix`; the prefix is KEYS[1], which names the cluster slot."""

    def __init__(self, redis: Redis, prefix: str):
        prelude = (_FOLDER / "prelude.lua").read_text(encoding="utf-8")
        self._redis = redis
        self._prefix = prefix
        self._texts = {name: prelude + (_FOLDER / f"{name}.lua").read_text(encoding="utf-8") for name in NAMES}
        self._shas = {name: hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest() for name, text in self._texts.items()}

    async def load(self) -> None:
        """Teaches the server every script."""
        for text in self._texts.values():
            await self._redis.script_load(text)

    async def run(self, name: str, args: Sequence[object]) -> Any:
        """The script's reply: bytes and integers in lists."""
        argv = [arg if isinstance(arg, bytes) else str(arg).encode() for arg in args]
        try:
            return await self._evalsha(name, argv)
        except NoScriptError:
            await self._redis.script_load(self._texts[name])
            return await self._evalsha(name, argv)

    async def _evalsha(self, name: str, argv: list[bytes]) -> Any:
        return await cast(Any, self._redis.evalsha(self._shas[name], 1, self._prefix, *argv))
