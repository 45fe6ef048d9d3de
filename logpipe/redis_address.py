"""The address of a Redis, as REDIS_ADDR has it."""

import os
import re
from typing import NamedTuple
from urllib.parse import unquote, unquote_to_bytes

import msgspec

_ADDRESSES = (
    "redis://, rediss://, unix://, redis+sentinel://, rediss+sentinel://, redis+cluster://,"
    " rediss+cluster:// or embedded://[PATH]"
)
_SEVERAL = ("redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
SCHEMES = ("redis", "rediss", "unix", "embedded", *_SEVERAL)
SENTINEL_PORT = 26379
_HOST = re.compile(r"(?P<host>\[[^\]]+\]|[^:\[\]]*)(?::(?P<port>[0-9]{1,5}))?")


class Node(NamedTuple):
    """A server of several."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class RedisAddress(msgspec.Struct, frozen=True):
    """Where Redis is. Exactly one of `host`, `socket`, `embedded`, `sentinels` and `cluster` is
    set; `tls` holds for all servers."""

    host: str = ""
    port: int = 6379
    socket: str = ""
    embedded: str | None = None
    """The folder of the embedded engine; empty for `DATA_DIR`."""
    disk: str = ""
    """A folder on the disk that the server writes to, where that is known."""
    tls: bool = False
    authority: str = ""
    """A file of certificates in PEM: who may have signed the server's; "": who usually may."""
    db: int = 0
    username: str | None = None
    password: str | None = None
    sentinels: tuple[Node, ...] = ()
    """Who knows where the primary of `service` is; they may want a login of their own."""
    service: str = ""
    sentinel_username: str | None = None
    sentinel_password: str | None = None
    cluster: tuple[Node, ...] = ()
    """Some nodes of a Cluster, which know the others."""

    def __str__(self) -> str:
        if self.embedded is not None:
            return "the embedded engine"
        if self.socket:
            return f"unix://{self.socket}"
        scheme = "rediss" if self.tls else "redis"
        if self.sentinels:
            return f"{scheme}+sentinel://{_listed(self.sentinels)}/{self.service}/{self.db}"
        if self.cluster:
            return f"{scheme}+cluster://{_listed(self.cluster)}"
        return f"{scheme}://{Node(self.host, self.port)}/{self.db}"

    def __repr__(self) -> str:
        return f"RedisAddress({self})"  # without the password, wherever it may be printed


def parse_redis_addr(text: str) -> RedisAddress:
    """An address of Redis. ValueError says what is wrong and never holds the password.

    Not urllib: a password may hold `/`, `#` or `@` as it is, and urllib puts it into its errors.
    """
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in SCHEMES:
        # Not repeated: without a scheme, what comes first may be the password.
        raise ValueError(f"must begin with {_ADDRESSES}")
    if scheme == "embedded":
        return RedisAddress(embedded=rest)
    credentials, at, place = rest.rpartition("@")
    username, _, password = credentials.partition(":") if at else ("", "", "")
    user, secret = unquote(username) or None, unquote(password) or None
    if scheme == "unix":
        path, _, query = place.partition("?")
        if not path:
            raise ValueError("the path of the socket is missing: unix:///PATH")
        given = dict(part.partition("=")[::2] for part in query.split("&") if part)
        if not given.keys() <= {"db", "disk"}:
            raise ValueError("only db=NUMBER and disk=FOLDER may follow the ?")
        return RedisAddress(
            socket=path,
            disk=os.fsdecode(unquote_to_bytes(given.get("disk", ""))),
            db=_db(given.get("db", "")),
            username=user,
            password=secret,
        )
    tls = scheme.startswith("rediss")
    if scheme.endswith("+sentinel"):
        return _sentinels(place, tls, user, secret)
    if scheme.endswith("+cluster"):
        nodes = _nodes(place.removesuffix("/"), 6379)
        return RedisAddress(cluster=nodes, tls=tls, username=user, password=secret)
    place, authority = _authority(place) if tls else (place, "")
    where, _, db = place.partition("/")
    (node,) = _nodes(where, 6379, "HOST[:PORT][/DB]", several=False)
    return RedisAddress(
        host=node.host,
        port=node.port,
        tls=tls,
        authority=authority,
        db=_db(db),
        username=user,
        password=secret,
    )


def _authority(place: str) -> tuple[str, str]:
    """What is before the `?`, and the path of `ssl_ca_certs` behind it."""
    place, _, query = place.partition("?")
    name, _, path = query.partition("=")
    if query and (name != "ssl_ca_certs" or not path):
        raise ValueError("only ssl_ca_certs=PATH may follow the ?")
    return place, unquote(path)


def _sentinels(place: str, tls: bool, user: str | None, secret: str | None) -> RedisAddress:
    """HOST[:PORT],…/MASTER[/DB], and after a `?` the login of the Sentinels themselves."""
    place, _, query = place.partition("?")
    where, _, rest = place.partition("/")
    service, _, db = rest.partition("/")
    if not re.fullmatch(r"[A-Za-z0-9._-]+", service):
        raise ValueError("the master's name is missing: redis+sentinel://HOST[:PORT],…/MASTER[/DB]")
    login = dict(part.partition("=")[::2] for part in query.split("&") if part)
    if not login.keys() <= {"sentinel_username", "sentinel_password"}:
        raise ValueError("only sentinel_username and sentinel_password may follow the ?")
    return RedisAddress(
        sentinels=_nodes(where, SENTINEL_PORT, "HOST[:PORT],…/MASTER[/DB]"),
        service=service,
        tls=tls,
        db=_db(db),
        username=user,
        password=secret,
        sentinel_username=unquote(login.get("sentinel_username", "")) or None,
        sentinel_password=unquote(login.get("sentinel_password", "")) or None,
    )


def _nodes(
    text: str, port: int, shape: str = "HOST[:PORT],…", *, several: bool = True
) -> tuple[Node, ...]:
    found = []
    for part in text.split(",") if several else [text]:
        match = _HOST.fullmatch(part)
        known = match is not None and 0 < int(match["port"] or port) <= 65535
        if match is None or not known or (several and not re.fullmatch(r"[^/?#\s]+", part)):
            raise ValueError(f"the part after :// (and after the last @) must be {shape}")
        host = match["host"].strip("[]") or "localhost"
        found.append(Node(host, int(match["port"] or port)))
    return tuple(found)


def _listed(nodes: tuple[Node, ...]) -> str:
    return ",".join(map(str, nodes))


def _db(text: str) -> int:
    if text and not re.fullmatch(r"[0-9]{1,5}", text):
        raise ValueError("the database at its end must be a number")
    return int(text or 0)
