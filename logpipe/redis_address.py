"""The address of a Redis, as REDIS_ADDR has it."""

import re
from urllib.parse import unquote

import msgspec

_ADDRESSES = "redis://, rediss://, unix:// or embedded://[PATH]"
_SCHEMES = ("redis", "rediss", "unix", "embedded", "redis+sentinel", "redis+cluster")
_HOST = re.compile(r"(?P<host>\[[^\]]+\]|[^:\[\]]*)(?::(?P<port>[0-9]{1,5}))?")


class RedisAddress(msgspec.Struct, frozen=True):
    """Where Redis is. Exactly one of `host`, `socket` and `embedded` is set."""

    host: str = ""
    port: int = 6379
    socket: str = ""
    embedded: str | None = None
    """The folder of the embedded engine; empty for `DATA_DIR`."""
    tls: bool = False
    db: int = 0
    username: str | None = None
    password: str | None = None

    def __str__(self) -> str:
        if self.embedded is not None:
            return "the embedded engine"
        if self.socket:
            return f"unix://{self.socket}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}/{self.db}"

    def __repr__(self) -> str:
        return f"RedisAddress({self})"  # without the password, wherever it may be printed


def parse_redis_addr(text: str) -> RedisAddress:
    """An address of Redis. ValueError says what is wrong and never holds the password.

    Not urllib: a password may hold `/`, `#` or `@` as it is, and urllib puts it into its errors.
    """
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in _SCHEMES:
        # Not repeated: without a scheme, what comes first may be the password.
        raise ValueError(f"must begin with {_ADDRESSES}")
    if scheme in ("redis+sentinel", "redis+cluster"):
        raise ValueError(f"{scheme}:// is not served by this version: use {_ADDRESSES}")
    if scheme == "embedded":
        return RedisAddress(embedded=rest)
    credentials, at, place = rest.rpartition("@")
    username, _, password = credentials.partition(":") if at else ("", "", "")
    user, secret = unquote(username) or None, unquote(password) or None
    if scheme == "unix":
        path, _, query = place.partition("?")
        if not path:
            raise ValueError("the path of the socket is missing: unix:///PATH")
        return RedisAddress(
            socket=path, db=_db(query.removeprefix("db=")), username=user, password=secret
        )
    where, _, db = place.partition("/")
    match = _HOST.fullmatch(where)
    if match is None or not 0 < int(match["port"] or 6379) <= 65535:
        raise ValueError("the part after :// (and after the last @) must be HOST[:PORT][/DB]")
    return RedisAddress(
        host=match["host"].strip("[]") or "localhost",
        port=int(match["port"] or 6379),
        tls=scheme == "rediss",
        db=_db(db),
        username=user,
        password=secret,
    )


def _db(text: str) -> int:
    if text and not re.fullmatch(r"[0-9]{1,5}", text):
        raise ValueError("the database at its end must be a number")
    return int(text or 0)
