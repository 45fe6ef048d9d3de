"""What is measured: a server, as bytes on the wire."""

from collections.abc import Callable, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from logpipe.bench.http import Address

Wrap = Callable[[Sequence[bytes]], bytes]
"""Makes the whole request of some events' JSON."""


class Target(NamedTuple):
    """Where events go in and come out; None for what the server does not have."""

    name: str
    ingest: Address
    distributor: Address | None
    single: Wrap | None
    batch: Wrap | None
    subscribe: bytes = b""
    answers: bool = True
    http: bool = True
    admin_token: str = ""
    """What /metrics asks for, where it asks."""


def address_of(url: str) -> Address:
    """Where a URL leads. Raises ValueError."""
    parts = urlsplit(url)
    tls = parts.scheme == "https"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be a URL like http://127.0.0.1:8080")
    return Address(parts.hostname, parts.port or (443 if tls else 80), tls)


def logpipe_at(
    ingest_url: str, url: str, *, ingest_token: str = "", read_token: str = ""
) -> Target:
    """A logpipe whose collector and distributor are at these URLs. Raises ValueError."""
    ingest, distributor = address_of(ingest_url), address_of(url)
    return Target(
        "logpipe",
        ingest,
        distributor,
        posts(ingest, "application/json", b"", ingest_token),
        posts(ingest, "application/x-ndjson", b"\n", ingest_token),
        get(distributor, "/subscribe", read_token),
    )


def posts(
    address: Address, content_type: str, separator: bytes, token: str = "", path: str = "/ingest"
) -> Wrap:
    """POSTs of events, joined by a separator."""
    head = f"POST {path} HTTP/1.1\r\n{_host(address, token)}Content-Type: {content_type}\r\n"

    def wrap(events: Sequence[bytes]) -> bytes:
        body = separator.join(events)
        return b"%bContent-Length: %d\r\n\r\n%b" % (head.encode(), len(body), body)

    return wrap


def get(address: Address, path: str, token: str = "") -> bytes:
    """A GET."""
    return f"GET {path} HTTP/1.1\r\n{_host(address, token)}\r\n".encode()


def bearer(token: str) -> str:
    """The line of a request's head that shows a token; none where there is none."""
    return f"Authorization: Bearer {token}\r\n" if token else ""


def _host(address: Address, token: str) -> str:
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"Host: {host}:{address.port}\r\n{bearer(token)}"
