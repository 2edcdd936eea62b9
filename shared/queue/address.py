"""What the address of a Redis says: one server, the primary that sentinels name, or a cluster.

    redis://user:password@host:6379/0, rediss://..., unix:///path/to/socket
    redis+sentinel://user:password@host:26379,host:26379/master/0?sentinel_username=...&sentinel_password=...
    redis+cluster://user:password@host:6379,host:6379

User and password are those of the data servers. With rediss all connections are encrypted, and options say with what:
ssl_ca_certs (whom to believe; else what the system believes), ssl_certfile and ssl_keyfile (who we are), each a file.
It knows nothing of connections.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

from shared.errors import StartupError

DEFAULT_PORT = {"cluster": 6379, "sentinel": 26379}
_TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_OPTIONS = {"cluster": _TLS_OPTIONS, "sentinel": ("sentinel_username", "sentinel_password", *_TLS_OPTIONS)}
_WRITE = "write redis://host:6379/0, unix:///path, redis+sentinel://host,host/master/0 or redis+cluster://host,host"


@dataclass(frozen=True, slots=True)
class Address:
    """One address. `url` is all that matters of a "server", `nodes` are sentinels or servers of a cluster.

    tls: "ssl" and the options of encryption, as redis-py names them; empty where connections are not encrypted.
    """

    kind: Literal["server", "sentinel", "cluster"]
    url: str
    nodes: tuple[tuple[str, int], ...] = ()
    username: str | None = None
    password: str | None = None
    tls: Mapping[str, str | bool] = field(default_factory=dict)
    master: str = ""
    db: int = 0
    sentinel_username: str | None = None
    sentinel_password: str | None = None


def parse(url: str) -> Address:
    """The address that `url` is. Raises StartupError, which never quotes a password."""
    scheme, _, kind = url.partition("://")[0].partition("+")
    if not kind:
        return Address("server", url)
    if scheme not in ("redis", "rediss") or kind not in DEFAULT_PORT:
        raise _bad(f"there is no scheme {scheme}+{kind}")
    parts = urlsplit(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    username, _, password = credentials.partition(":")
    options = dict(parse_qsl(parts.query))
    if unknown := set(options) - set(_OPTIONS[kind]):
        raise _bad(f"unknown option {sorted(unknown)[0]}")
    tls = {name: options[name] for name in _TLS_OPTIONS if name in options}
    if tls and scheme != "rediss":
        raise _bad(f"{next(iter(tls))} needs rediss+{kind}, or nothing is encrypted")
    master, _, db = parts.path.strip("/").partition("/")
    if kind == "cluster" and master:
        raise _bad("a cluster has one database only, which is not named")
    if kind == "sentinel" and (not master or (db and not db.isdigit())):
        raise _bad("after the sentinels comes the name of what they watch, and then perhaps the number of a database")
    return Address(
        kind="sentinel" if kind == "sentinel" else "cluster",
        url=url,
        nodes=tuple(_node(host, DEFAULT_PORT[kind]) for host in hosts.split(",")),
        username=unquote(username) or None,
        password=unquote(password) or None,
        tls={"ssl": True, **tls} if scheme == "rediss" else {},
        master=unquote(master),
        db=int(db or 0),
        sentinel_username=options.get("sentinel_username"),
        sentinel_password=options.get("sentinel_password"),
    )


def without_password(url: str) -> str:
    """`url` as it may be shown: without user, password and options."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _node(text: str, default_port: int) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, str(default_port)
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise _bad(f"{text!r} is no host:port")
    return host.strip("[]"), int(port)


def _bad(what: str) -> StartupError:
    return StartupError(f"bad Redis address: {what}; {_WRITE}")
