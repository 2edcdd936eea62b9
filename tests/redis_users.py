"""A redis-server that lets in nobody but the users of deploy/redis.acl, each with a password. It knows no services."""

import contextlib
import hashlib
import secrets
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.redis_server import RedisServer, launch
from tests.stack import ROOT

NOBODY = "#" + "0" * 64
ADMIN = "tester"


@dataclass(frozen=True)
class Guarded:
    """The server, its users' passwords, and a user of the test's own who may do everything."""

    server: RedisServer
    passwords: dict[str, str]
    folder: Path

    def password_file(self, user: str) -> Path:
        file = self.folder / f"{user}.password"
        file.write_text(self.passwords[user] + "\n")
        return file


@contextlib.contextmanager
def guarded_redis() -> Iterator[Guarded]:
    """deploy/redis.acl as it stands, but for the passwords that an operator is to choose."""
    passwords, lines = {ADMIN: secrets.token_hex(16)}, []
    for line in (ROOT / "deploy" / "redis.acl").read_text().splitlines():
        user = line.split()[1]
        if NOBODY in line:
            passwords[user] = secrets.token_hex(16)
            line = line.replace(NOBODY, "#" + hashlib.sha256(passwords[user].encode()).hexdigest())
        lines.append(line)
    lines.append(f"user {ADMIN} on >{passwords[ADMIN]} ~* &* +@all")
    with tempfile.TemporaryDirectory(prefix="rt-") as name:
        folder = Path(name)
        (folder / "users.acl").write_text("\n".join(lines) + "\n")
        server = launch(folder / "redis.sock", "--aclfile", str(folder / "users.acl"))
        try:
            yield Guarded(server, passwords, folder)
        finally:
            server.stop()
