"""Request ids: the one word under which an answer, its problem and records of the log are found.

The id of a request is that of its `X-Request-ID` where that is sane, else it is made; and it is
made when it is asked for, since most requests end without anyone asking.
"""

import re
import secrets
from collections.abc import MutableMapping
from contextvars import ContextVar
from typing import Any

from starlette.types import Message, Send

HEADER = "X-Request-ID"
MAX_LENGTH = 64
"""Characters of an id that is taken over; another is replaced, not cut: half an id is none."""

_SANE = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_LENGTH}}}", re.ASCII)
_NAME = HEADER.lower().encode()
_KEY = "logpipe.request_id"
_served: ContextVar[MutableMapping[str, Any] | None] = ContextVar("served", default=None)

serve = _served.set
"""From now on, what runs in this context is for the request with this ASGI scope."""


def current() -> str:
    """The id of the request that is served in this context; empty where none is."""
    scope = _served.get()
    if scope is None:
        return ""
    id_: str | None = scope.get(_KEY)
    if id_ is None:
        given = next((value for name, value in scope["headers"] if name == _NAME), b"")
        id_ = scope[_KEY] = chosen(given.decode("latin-1"))
    return id_


def chosen(given: str) -> str:
    """The id that a client gave, where it is sane, else one of its own."""
    return given if _SANE.fullmatch(given) else secrets.token_hex(8)


INERT = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
"""For a browser that opens what is no page: log text is no markup, whatever it looks like."""


class Identified:
    """Sends with what every head carries: the id of the request, and `INERT` unless the answer says
    otherwise, as a page does. `status` is that of an answer begun, or 0."""

    __slots__ = ("_send", "status")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            others = [field for field in message.get("headers", ()) if field[0] != _NAME]
            said = {name for name, _ in others}
            inert = [field for field in INERT if field[0] not in said]
            message["headers"] = [*others, *inert, (_NAME, current().encode())]
        await self._send(message)
