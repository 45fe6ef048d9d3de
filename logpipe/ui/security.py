"""What every answer of the page carries, under which names it answers, and whose requests may
change anything."""

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from logpipe.origins import is_own_host, strange_host
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


def secured(app: ASGIApp, settings: Settings) -> ASGIApp:
    """The application with `HEADERS` on all it answers, its errors included, and under its own
    names alone."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        host = Headers(scope=scope).get("host", "")
        own = settings.read_tokens or is_own_host(host, settings.allowed_hosts, private=True)
        wanted = app if own else strange
        await wanted(scope, receive, send_secured)

    strange = respond(strange_host("READ_TOKENS"))
    return answer


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
