"""What every answer of the page carries, under which names it answers, and whose requests may
change anything."""

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from logpipe.problems import Problem, respond
from logpipe.settings import Settings

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none';"
    " form-action 'self'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


PRIVATE_NAMES = (".localhost", ".local", ".internal", ".home.arpa", ".lan", ".test")
"""Names that nobody can own on the internet (RFC 6761, 6762, 8375, and ICANN's .internal)."""


def secured(app: ASGIApp, settings: Settings) -> ASGIApp:
    """The application with `HEADERS` on all it answers, its errors included, and under its own
    names alone."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        host = Headers(scope=scope).get("host", "")
        wanted = app if settings.read_tokens or is_own(host, settings.allowed_hosts) else strange
        await wanted(scope, receive, send_secured)

    strange = respond(
        Problem(
            421,
            "This page does not know the name that you have opened it by. If it is yours, add it to"
            " ALLOWED_HOSTS; or set READ_TOKENS.",
        )
    )
    return answer


def is_own(host: str, allowed: tuple[str, ...]) -> bool:
    """Whether a Host header may be this page's: an address, a name that nobody can own, or one of
    those that are allowed.

    A site of somebody else's that makes its own name point here (DNS rebinding) sends that name,
    and is one origin with this page to the browser. A token's cookie is not sent to it.
    """
    name = _hostname(host)
    if (
        "*" in allowed
        or name in map(_hostname, allowed)
        or name.endswith(PRIVATE_NAMES)
        or "." not in name
    ):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _hostname(host: str) -> str:
    """The name or the address in a Host header, without its port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().rstrip(".")


def require_same_origin(headers: Headers) -> None:
    """Refuses what a browser sends for another site; programs that are no browser say neither.

    Raises a 403 `Problem`.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        # "none": the user's own doing, such as a reload of the answer.
        allowed = site in ("same-origin", "none")
    else:
        # Browsers leave Sec-Fetch-Site out where the page came by plain HTTP from another machine.
        origin = headers.get("origin")
        allowed = origin is None or _netloc(origin) == headers.get("host", "").lower()
    if not allowed:
        raise Problem(403, "This request comes from another site.")


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None
