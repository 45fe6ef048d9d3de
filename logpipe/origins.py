"""Which web pages may make a browser send requests here, and under which names this process
answers: a browser sends `Origin`, `Sec-Fetch-Site` and `Host`, and a page cannot set them.
"""

import ipaddress
import socket
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from starlette.types import Scope

from logpipe.problems import Problem
from logpipe.settings import Settings, Words

ANY = "*"

PRIVATE_NAMES = (".localhost", ".internal", ".home.arpa", ".test")
"""Names that no party can own on the internet, and that no other computer of a local network can
give itself (RFC 6761, 8375, and ICANN's .internal)."""

MAX_HOST = 255
"""Characters of a host name (RFC 1035, 2.3.4); of a Host header twice as many are looked at."""

_HEADERS = frozenset({b"host", b"origin", b"sec-fetch-site", b"sec-fetch-mode"})

_PORTS = {"http": 80, "https": 443}

Right = Literal["send", "read", "operate", "metrics"]
"""What a route lets a request do. Each has tokens of its own; without them it is open to all."""


def is_open(settings: Settings, right: Right) -> bool:
    """Whether no token is needed."""
    tokens: Mapping[Right, Words] = {
        "send": settings.ingest_tokens,
        "read": settings.read_tokens,
        "operate": settings.admin_tokens or settings.read_tokens,
        "metrics": settings.admin_tokens,
    }
    return not tokens[right]


def allowed_origins(settings: Settings, right: Right) -> Words:
    """The origins whose pages may send or read besides the request's own: those of
    CORS_ALLOW_ORIGINS; where it is not given all of them (`ANY`), or none where only this machine
    can connect and no token is needed."""
    if settings.cors_allow_origins:
        return settings.cors_allow_origins
    return (ANY,) if settings.exposed or not is_open(settings, right) else ()


# -- origins ----------------------------------------------------------------------------------


def require_known_origin(scope: Scope, allowed: Sequence[str]) -> None:
    """Refuses what a browser sends for a page of another origin than the request's own and those
    `allowed` by CORS_ALLOW_ORIGINS (none: it was not given; `ANY`: all are).

    For `delivery=shared` and its acknowledgements, whatever address the process listens on: they
    take events from the other members of a group. Raises a 403 `Problem`.
    """
    given = _given(scope)
    if ANY not in allowed and _is_foreign(scope, given, _keys(tuple(allowed)), links=False):
        raise _foreign("delivery=shared takes events from the other members of its group")


def _foreign(because: str) -> Problem:
    return Problem(
        403,
        f"This request comes from a web page of another origin, and {because}. If that page may"
        " do this, name its origin in CORS_ALLOW_ORIGINS.",
    )


def _given(scope: Scope) -> dict[bytes, bytes]:
    """The headers that count here; of one that comes twice, the first."""
    return {name: value for name, value in reversed(scope["headers"]) if name in _HEADERS}


def _is_foreign(
    scope: Scope, given: Mapping[bytes, bytes], named: frozenset[str], *, links: bool
) -> bool:
    """Whether a page of another origin than the request's own makes a browser send it. `links`:
    following a link of another page does not count."""
    site = given.get(b"sec-fetch-site", b"").lower()
    if site in (b"same-origin", b"none"):  # none: the user's own doing, such as an address typed in
        return False
    origin = given.get(b"origin")
    if origin is None:
        followed = given.get(b"sec-fetch-mode") == b"navigate"
        return not (links and followed) and site in (b"cross-site", b"same-site")
    key = _key(origin.decode("latin-1"))
    if key in named:
        return False
    host = given.get(b"host", b"").decode("latin-1")
    return site == b"cross-site" or key != _key(f"{scope['scheme']}://{host}")


@lru_cache(maxsize=8)
def _keys(origins: Words) -> frozenset[str]:
    return frozenset(map(_key, origins))


def _key(origin: str) -> str:
    """An origin as it is compared: in lower case, always with its port."""
    try:
        parts = urlsplit(origin)
        port = parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError:
        return origin.lower()
    if not parts.hostname or parts.path or parts.query or parts.fragment:
        return origin.lower()
    return f"{parts.scheme}://{parts.hostname}:{port}"


# -- hosts ------------------------------------------------------------------------------------


def is_own_host(host: str, allowed: Sequence[str], *, private: bool = False) -> bool:
    """Whether a Host header names this machine: by an address, by `localhost`, by its own name, by
    one of those `allowed`, or by a name of `PRIVATE_NAMES` where `private`.

    A site of somebody else's that has its own name lead here (DNS rebinding) sends that name, and
    is one origin with this process to the browser. A program may send none.
    """
    name = _hostname(host)
    if name in ("", "localhost", machine_name()) or ANY in allowed:
        return True
    if name in map(_hostname, allowed) or (private and name.endswith(PRIVATE_NAMES)):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


@lru_cache(maxsize=1)
def machine_name() -> str:
    """The name of this machine, in lower case."""
    return socket.gethostname().lower()


def _hostname(host: str) -> str:
    """The name or the address in a Host header, without its port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().rstrip(".")


def strange_host(tokens: str) -> Problem:
    """The refusal of a Host header; `tokens` is the setting that would make it needless."""
    return Problem(
        421,
        "This process does not know the host name of this request. If the name is yours, add it to"
        f" ALLOWED_HOSTS; or set {tokens}.",
    )


# -- what is around every route ---------------------------------------------------------------


class Route(NamedTuple):
    """What a route lets a request do; whether it is part of the page, which has a rule of its own;
    whether links of other pages may lead to it."""

    right: Right
    page: bool = False
    links: bool = False


_TOKENS: Mapping[Right, str] = {
    "send": "INGEST_TOKENS",
    "read": "READ_TOKENS",
    "operate": "ADMIN_TOKENS or READ_TOKENS",
    "metrics": "ADMIN_TOKENS",
}


class Guard(NamedTuple):
    """What the requests to a route are held against before anything else is looked at."""

    named: frozenset[str] | None
    """The origins that may besides a request's own; None: any."""
    hosts: Words | None
    """ALLOWED_HOSTS where the Host is looked at; None: any."""
    links: bool
    tokens: str

    def refusal(self, scope: Scope) -> Problem | None:
        """Why a request is refused: 421 for its Host, 403 for its origin; None where it is not."""
        given = _given(scope)
        host = given.get(b"host", b"")[: 2 * MAX_HOST].decode("latin-1")
        if self.hosts is not None and not _is_own_host(host, self.hosts):
            return strange_host(self.tokens)
        if self.named is not None and _is_foreign(scope, given, self.named, links=self.links):
            return _foreign(
                f"without {self.tokens} that would be open to every page"
                if self.hosts is not None
                else "CORS_ALLOW_ORIGINS names others"
            )
        return None


_is_own_host = lru_cache(maxsize=64)(is_own_host)


def guard_of(settings: Settings, route: Route) -> Guard | None:
    """The guard of a route; None where any request may come.

    A process that listens on loopback alone and needs no token believes only its own origin and
    Host. Where CORS_ALLOW_ORIGINS names origins, requests of others are refused everywhere but at
    the page, which is no interface for other origins and has its own rule (`ui.security`).
    """
    alone = not settings.exposed and is_open(settings, route.right)
    allowed = allowed_origins(settings, route.right)
    if not alone and (ANY in allowed or route.page):
        return None
    return Guard(
        named=None if ANY in allowed else _keys(allowed),
        hosts=settings.allowed_hosts if alone else None,
        links=route.links or not alone,
        tokens=_TOKENS[route.right],
    )
