"""The Lua scripts: one file per transition, each behind the prelude of its kind, run by their digest.

A server that has forgotten them (restart, failover, SCRIPT FLUSH) is taught them again in passing. It knows nothing of
what the scripts do.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from redis.exceptions import NoScriptError

from shared.queue.connection import Client

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
    """All scripts of one kind, by default the queue's: they take the prefix of their keys as KEYS[1], which names the slot."""

    def __init__(self, redis: Client, *, prelude: str = "prelude", names: Sequence[str] = NAMES):
        beginning = (_FOLDER / f"{prelude}.lua").read_text(encoding="utf-8")
        self._redis = redis
        self._texts = {name: beginning + (_FOLDER / f"{name}.lua").read_text(encoding="utf-8") for name in names}
        self._shas = {name: hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest() for name, text in self._texts.items()}

    async def load(self) -> None:
        """Teaches the server every script; of a cluster every primary."""
        for text in self._texts.values():
            await self._redis.script_load(text)

    async def run(self, prefix: str, name: str, args: Sequence[object]) -> Any:
        """The script's reply: bytes and integers in lists."""
        argv = [arg if isinstance(arg, bytes) else str(arg).encode() for arg in args]
        redis = cast(Any, self._redis)
        try:
            return await redis.evalsha(self._shas[name], 1, prefix, *argv)
        except NoScriptError:
            # By its text it runs, and is learnt, where the keys are: of a cluster only that server has to answer.
            return await redis.eval(self._texts[name], 1, prefix, *argv)
