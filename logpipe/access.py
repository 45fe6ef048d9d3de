"""What is around every request: its id, its line in the log at level debug, the answer to a fault.

An event that was taken in is answered past ASGI's messages (`wire.py`) and so without the id, which
nobody asks for then. At level debug it goes by the messages like all others.
"""

import logging
import re
import time
from collections.abc import Awaitable

from starlette.types import ASGIApp, Receive, Scope, Send

from logpipe import request_ids
from logpipe.answers import Answers, PacedSend
from logpipe.collector.app import PATH as INGEST
from logpipe.problems import FAULT, respond
from logpipe.request_ids import Identified
from logpipe.wire import LATER, Rest, wire_of

log = logging.getLogger("logpipe.access")

MAX_PATH_SHOWN = 200
"""Characters of a path that the log repeats. Of the query nothing: tokens may be in it."""

_TOKEN = re.compile(r"(?<=/v1/input/).+", re.DOTALL)
"""The one path that ends with a token: Datadog's older one."""


class Access:
    """An ASGI application around the one that answers."""

    def __init__(self, app: ASGIApp, answers: Answers | None = None) -> None:
        self._app = app
        self._answers = answers or Answers()
        self._logs = log.isEnabledFor(logging.DEBUG)

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Answers one request. No coroutine of its own: each costs as much as all of the rest."""
        request_ids.serve(scope)
        if self._logs:
            return self._logged(scope, receive, send)
        if scope["path"] == INGEST and scope["method"] == "POST":
            return self._app(scope, receive, send)
        return self._answered(scope, receive, Identified(send))

    async def _answered(self, scope: Scope, receive: Receive, send: Identified) -> None:
        paced = PacedSend(send, scope, self._answers)
        later: list[Rest] = []
        scope[LATER] = later
        try:
            await self._app(scope, receive, paced)
            while later:
                rest = later.pop()  # it refers to the scope, which refers to the list
                if wire := wire_of(scope):
                    wire.shed()
                await rest(receive, paced)
        except Exception:
            # To be logged by the server, which closes the connection where an answer has begun.
            if not send.status:
                await respond(FAULT)(scope, receive, send)
            raise

    async def _logged(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST":
            scope["extensions"] = {}  # what goes by the wire would not be seen here
        path = shown(scope["path"])
        started = time.perf_counter()
        identified = Identified(send)
        try:
            await self._answered(scope, receive, identified)
        finally:
            took_ms = (time.perf_counter() - started) * 1000
            status = identified.status or "unanswered"
            log.debug("%s %s %s in %.1f ms", scope["method"], path, status, took_ms)


def shown(path: str) -> str:
    """A path as the log may repeat it."""
    return _TOKEN.sub("(hidden)", path)[:MAX_PATH_SHOWN]
