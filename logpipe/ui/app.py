"""The page: one document, the fragments of its form, and the live stream as rows of HTML."""

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import jinja2
import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from logpipe.event import LEVELS
from logpipe.filters import PARAMETERS, Filter
from logpipe.messages import Start, Subscription
from logpipe.metrics import Metrics
from logpipe.parameters import chosen_filter, chosen_start
from logpipe.problems import Problem
from logpipe.settings import Settings
from logpipe.streaming import StreamResponse
from logpipe.subapp import sub_app
from logpipe.ui.assets import Assets
from logpipe.ui.rows import ROWS
from logpipe.ui.security import require_same_origin, secured
from logpipe.ui.session import Session, refusal, sign_out
from logpipe.ui.status import Status
from logpipe.watch import Watch

Tail = Callable[[Start, Filter], Subscription]
"""Opens a subscription to the live stream, of this process or of a remote distributor."""
Submit = Callable[[bytes], Awaitable[str]]
"""Takes one event's JSON; returns the id of the stored event, or raises a `Problem`."""

MAX_ROWS = 2_000
"""Rows that the page keeps; the oldest leave it."""
FIRST_ROWS = 100
"""Rows that come before the live ones, where the URL names no position."""
SILENT_BEATS = 3
"""Heartbeats that the page misses before it takes its connection for dead."""

FILTERS = PARAMETERS
FIELDS = ("source", "level", "message")
LEVEL_CHOICES = (
    ("", "All levels"),
    *((f">={level}", f"{level} and above") for level in LEVELS[1:-1]),
    *((level, f"{level} only") for level in LEVELS),
)
SINCE_CHOICES = (
    ("", f"Last {FIRST_ROWS}"),
    ("10m", "Last 10 minutes"),
    ("1h", "Last hour"),
    ("1d", "Last day"),
    ("earliest", "All that is kept"),
)


def create(
    settings: Settings, tail: Tail, submit: Submit, metrics: Metrics, watch: Watch
) -> ASGIApp:
    """The page's sub-app."""
    page = _Page(settings, tail, submit, metrics, watch)
    routes = [
        Route("/", page.index),
        Route("/ui/stream", page.stream),
        Route("/ui/send", page.send, methods=["POST"]),
        Route("/status", page.status.page),
        Route("/ui/status", page.status.now),
        Route("/login", page.login),
        Route("/login", page.sign_in, methods=["POST"]),
        Route("/ui/logout", page.sign_out, methods=["POST"]),
        Mount("/static", page.assets),
    ]
    return secured(sub_app(routes))


class _Page:
    def __init__(
        self, settings: Settings, tail: Tail, submit: Submit, metrics: Metrics, watch: Watch
    ) -> None:
        self.assets = Assets()
        self._settings = settings
        self._session = Session(settings)
        self.status = Status(settings, self._session, self._html, watch)
        self._tail = tail
        self._submit = submit
        self._metrics = metrics
        self._templates = _templates(
            asset=self.assets.url,
            guarded=self._session.guarded,
            levels=LEVELS,
            level_choices=LEVEL_CHOICES,
            since_choices=SINCE_CHOICES,
            max_rows=MAX_ROWS,
            silence_ms=round(SILENT_BEATS * settings.heartbeat_s * 1000),
        )

    def _html(self, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        html = self._templates.get_template(template).render(values)
        return HTMLResponse(html, status, {"Cache-Control": "no-store"})

    # -- reading ------------------------------------------------------------------------------

    async def index(self, request: Request) -> Response:
        """The whole page; its filters and its position are those of the URL."""
        access = self._session.access(request)
        query = request.query_params
        if not access.read:
            return RedirectResponse(_with_query("/login", query), 303)
        trouble = _trouble_with(query)
        chosen = {name: query.get(name, "").strip() for name in (*FILTERS, "since")}
        return self._html(
            "index.html",
            400 if trouble else 200,
            access=access,
            chosen=chosen,
            trouble=trouble,
            stream_url=_stream_url(query),
            login_url=_with_query("/login", query),
        )

    async def stream(self, request: Request) -> Response:
        """The live stream; takes what `/subscribe` takes."""
        if not self._session.access(request).read:
            raise refusal(request, "read")
        query = request.query_params
        start = chosen_start(query, request.headers.get("last-event-id"))
        return StreamResponse(self._tail(start, chosen_filter(query)), ROWS, self._metrics)

    # -- sending ------------------------------------------------------------------------------

    async def send(self, request: Request) -> Response:
        """Stores the form's event; the answer says so, or what is wrong with which field."""
        try:
            require_same_origin(request.headers)
            if not self._session.access(request).send:
                raise refusal(request, "send")
            event = _event(await self._form(request))
            return self._html("sent.html", id=await self._submit(event), problem="", errors={})
        except Problem as problem:
            errors = _errors_by_field(problem)
            told = "" if errors else problem.detail
            answer = self._html("sent.html", problem.status, id="", problem=told, errors=errors)
            answer.headers.update(problem.headers)
            return answer

    async def _form(self, request: Request) -> dict[str, str]:
        """The fields of a form. Raises a `Problem`."""
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/x-www-form-urlencoded":
            raise Problem(415, "This takes a form: application/x-www-form-urlencoded.")
        body = await _body(request, 3 * self._settings.max_message_bytes + 4096)
        try:
            return dict(parse_qsl(body.decode(), True, errors="strict", max_num_fields=32))
        except ValueError:  # UnicodeDecodeError included
            raise Problem(400, "The form is not UTF-8, or has too many fields.") from None

    # -- signing in ---------------------------------------------------------------------------

    async def login(self, request: Request) -> Response:
        """Asks for a token, where tokens are set."""
        if not self._session.guarded:
            return RedirectResponse("/", 303)
        return self._login(request, "")

    async def sign_in(self, request: Request) -> Response:
        """Takes a token, and goes on to the page with the filters that were asked for."""
        require_same_origin(request.headers)
        token = (await self._form(request)).get("token", "").strip()
        if not self._session.is_token(token):
            return self._login(request, "This token is not known here.", 403)
        onward = RedirectResponse(_with_query("/", request.query_params), 303)
        if self._session.sign_in(request, onward, token).read:
            return onward
        again = self._login(request, "This token may send. To read needs another.", 403)
        self._session.sign_in(request, again, token)
        return again

    def _login(self, request: Request, error: str, status: int = 200) -> Response:
        action = _with_query("/login", request.query_params)
        return self._html("login.html", status, error=error, action=action)

    async def sign_out(self, request: Request) -> Response:
        """Forgets the browser's tokens."""
        require_same_origin(request.headers)
        response = RedirectResponse("/", 303)
        sign_out(response)
        return response


def _templates(**shared: Any) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(shared)
    return environment


def _trouble_with(query: Mapping[str, str]) -> str:
    """What is wrong with the filters or the position of a URL; empty when nothing is."""
    try:
        chosen_filter(query)
        chosen_start(query, None)
    except Problem as problem:
        return problem.detail
    return ""


def _stream_url(query: Mapping[str, str]) -> str:
    """The stream of a page: what it shows first is bounded by what it keeps."""
    given = {name: query[name] for name in (*FILTERS, "since") if query.get(name)}
    given["tail"] = query.get("tail") or str(MAX_ROWS if "since" in given else FIRST_ROWS)
    return _with_query("/ui/stream", given)


def _with_query(path: str, query: Mapping[str, str]) -> str:
    return f"{path}?{urlencode(dict(query))}" if query else path


async def _body(request: Request, limit: int) -> bytes:
    """The body. A little more than allowed is read to its end, so that the answer is seen."""
    body = b""
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            body += chunk if size <= limit else b""
            if size > 16 * limit:
                break
    except ClientDisconnect:
        raise Problem(400, "The form was cut off.") from None
    if size > limit:
        raise Problem(413, "The event is too large.")
    return body


def _event(form: Mapping[str, str]) -> bytes:
    """The event of the form, as JSON for the collector to judge."""
    # Line ends are CRLF on the way from a form, whatever was typed. No level: the default.
    given = {name: form[name].replace("\r\n", "\n") for name in FIELDS if name in form}
    if not given.get("level"):
        given.pop("level", None)
    return msgspec.json.encode(given)


def _errors_by_field(problem: Problem) -> dict[str, str]:
    """What is wrong with which field of the form; empty when it is about none of them."""
    return {
        error["field"]: error["error"].removeprefix(f"{error['field']}: ")
        for error in problem.members.get("errors") or ()
        if error.get("field") in FIELDS
    }
