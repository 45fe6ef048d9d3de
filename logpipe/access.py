"""What is around every request: its id, its line in the log at level debug, the answer to a fault.

An event that was taken in is answered past ASGI's messages (`wire.py`) and so without the id: a
million times a second nobody asks for it. At level debug it goes by the messages like all others.
"""

import logging
import re
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from logpipe import request_ids
from logpipe.problems import FAULT, respond

log = logging.getLogger("logpipe.access")

MAX_PATH_SHOWN = 200
"""Characters of a path that the log repeats. Of the query nothing: tokens may be in it."""

_TOKEN = re.compile(r"(?<=/v1/input/).+", re.DOTALL)
"""The one path that ends with a token: Datadog's older one."""

_FIELD = request_ids.HEADER.lower().encode()


class Access:
    """An ASGI application around the one that answers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        request_ids.serve(scope)
        if log.isEnabledFor(logging.DEBUG):
            await self._logged(scope, receive, send)
        else:
            await self._answered(scope, receive, _Identified(send))

    async def _answered(self, scope: Scope, receive: Receive, send: "_Identified") -> None:
        try:
            await self._app(scope, receive, send)
        except Exception:
            # To be logged by the server, which closes the connection where an answer has begun.
            if not send.status:
                await respond(FAULT)(scope, receive, send)
            raise

    async def _logged(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST":
            scope["extensions"] = {}  # what goes by the wire would not be seen here
        started = time.perf_counter()
        identified = _Identified(send)
        try:
            await self._answered(scope, receive, identified)
        finally:
            took_ms = (time.perf_counter() - started) * 1000
            status = identified.status or "unanswered"
            path = shown(scope["path"])
            log.debug("%s %s %s in %.1f ms", scope["method"], path, status, took_ms)


def shown(path: str) -> str:
    """A path as the log may repeat it."""
    return _TOKEN.sub("(hidden)", path)[:MAX_PATH_SHOWN]


class _Identified:
    """Sends with the id of the request in the head; `status` is that of an answer begun, or 0."""

    __slots__ = ("_send", "status")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            id_ = request_ids.current().encode()
            message["headers"] = [*message.get("headers", ()), (_FIELD, id_)]
        await self._send(message)
