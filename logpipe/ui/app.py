"""The page: one document, the fragments of its parts, and the live stream as rows of HTML."""

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import jinja2
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from logpipe.answers import Answers, while_connected
from logpipe.event import LEVELS, Stored
from logpipe.filters import PARAMETERS, Filter, FilterError
from logpipe.limits import Seats
from logpipe.metrics import Metrics
from logpipe.parameters import chosen_filter, chosen_start, last_event_id, parsed_filter, span
from logpipe.problems import Problem
from logpipe.settings import Settings
from logpipe.signed_out import SignedOut
from logpipe.subapp import sub_app
from logpipe.tokens import Tokens
from logpipe.ui import reading
from logpipe.ui.assets import Assets
from logpipe.ui.download import download
from logpipe.ui.feed import FeedResponse
from logpipe.ui.log import Log
from logpipe.ui.security import require_same_origin, secured
from logpipe.ui.sending import COUNTS, errors_by_field, events_of, form_of
from logpipe.ui.session import LIFE_S, Session, refusal, with_cookies
from logpipe.ui.status import Status
from logpipe.watch import Watch

Submit = Callable[[bytes], Awaitable[Stored]]
"""Takes the JSON of events; returns what was stored, or raises a `Problem`."""

MAX_ROWS = 1_000
"""Rows that the page keeps; the others leave it, and come back when they are scrolled to."""
SILENT_BEATS = 3
"""Heartbeats that the page misses before it takes its connection for dead."""

SHARED = (*PARAMETERS, "cols")
"""Parameters of the page that its stream and its older rows take, too."""
SINCE_CHOICES = (
    ("", "all kept"),
    ("5m", "5 minutes"),
    ("1h", "1 hour"),
    ("1d", "1 day"),
)


def create(page: "Page") -> ASGIApp:
    """The page's sub-app."""
    routes = [
        Route("/", page.index),
        Route("/ui/stream", page.stream),
        Route("/ui/rows", page.rows),
        Route("/ui/filter", page.filter),
        Route("/ui/volume", page.volume),
        Route("/ui/details", page.details, methods=["POST"]),
        Route("/ui/download", page.download),
        Route("/ui/send", page.send, methods=["POST"]),
        Route("/status", page.status.page),
        Route("/ui/status", page.status.now),
        Route("/login", page.login),
        Route("/login", page.sign_in, methods=["POST"]),
        Route("/ui/logout", page.sign_out, methods=["POST"]),
        Mount("/static", page.assets),
    ]
    return secured(with_cookies(sub_app(routes)), page.settings)


class Said(NamedTuple):
    """What the page says of its filter: that it takes something, or the error and its place."""

    takes: str = ""
    error: str = ""
    hint: str = ""
    before: str = ""
    after: str = ""


class Page:
    """The page's endpoints, and what they stand on."""

    def __init__(
        self,
        settings: Settings,
        tokens: Tokens,
        log: Log,
        submit: Submit,
        metrics: Metrics,
        watch: Watch,
        seats: Seats,
        answers: Answers,
        signed_out: SignedOut,
        session_s: float = LIFE_S,
    ) -> None:
        self.assets = Assets()
        self.settings = settings
        self._session = Session(tokens, signed_out, session_s)
        self.status = Status(settings, self._session, self._html, watch)
        self._log = log
        self._submit = submit
        self._metrics = metrics
        self._seats = seats
        self._answers = answers
        self._templates = _templates(
            asset=self.assets.url,
            guarded=self._session.guarded,
            levels=LEVELS,
            since_choices=SINCE_CHOICES,
            counts=COUNTS,
            max_rows=MAX_ROWS,
            from_name=log.name,
            silence_ms=round(SILENT_BEATS * settings.heartbeat_s * 1000),
        )

    def _html(self, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        html = self._templates.get_template(template).render(values)
        return _fragment(html, status)

    def _require_reader(self, request: Request) -> None:
        if not self._session.access(request).read:
            raise refusal(request, "read")

    # -- reading ------------------------------------------------------------------------------

    async def index(self, request: Request) -> Response:
        """The whole page; its filters and its position are those of the URL."""
        access = self._session.access(request)
        query = request.query_params
        if not access.read:
            return RedirectResponse(_with_query("/login", query), 303)
        trouble = _trouble_with_position(query)
        said = await self._said_of_filter(request)
        chosen = {name: query.get(name, "").strip() for name in (*PARAMETERS, "since")}
        return self._html(
            "index.html",
            400 if trouble or said.error else 200,
            access=access,
            chosen=chosen,
            trouble=trouble,
            said=said,
            stream_url=_with_query("/ui/stream", _given(query, SHARED)),
            login_url=_with_query("/login", query),
        )

    async def stream(self, request: Request) -> Response:
        """The live stream; takes the position and the filters of `/subscribe`."""
        self._require_reader(request)
        query = request.query_params
        resumed = last_event_id(query, request.headers.get("last-event-id"))
        start = chosen_start(query, resumed, self._log.now_ms)
        chosen = await self._filter(request)
        return FeedResponse(
            self._log.tail(start, chosen),
            chosen,
            reading.chosen_view(chosen, query),
            self._metrics,
            self._seats,
            self._session.revoking(request),
            query=_given(query, SHARED),
            rows=query.get("rows") != "0",
            once=query.get("once") == "1",
        )

    async def rows(self, request: Request) -> Response:
        """Older rows, or those around one event."""
        self._require_reader(request)
        return await while_connected(request, self._rows(request))

    async def _rows(self, request: Request) -> Response:
        query = request.query_params
        read = reading.rows_around if query.get("at") else reading.older_rows
        return _fragment(await read(self._log, await self._filter(request), query))

    async def filter(self, request: Request) -> Response:
        """What a filter takes, in words, or what is wrong with it, and where."""
        self._require_reader(request)
        return self._html("filter.html", said=await self._said_of_filter(request))

    async def volume(self, request: Request) -> Response:
        """How many events came when, as JSON."""
        self._require_reader(request)
        return await while_connected(request, self._volume(request))

    async def _volume(self, request: Request) -> Response:
        chosen = await self._filter(request)
        counted = await reading.volume(self._log, chosen, request.query_params)
        return Response(counted, 200, {"Cache-Control": "no-store"}, "application/json")

    async def details(self, request: Request) -> Response:
        """The event of a row, as a tree. The row has all of it: the stream may have it no more.

        A POST because it is large; it changes nothing, and so may come from anywhere.
        """
        self._require_reader(request)
        form = dict(await form_of(request, self.settings.max_message_bytes))
        return _fragment(reading.details_of(form.get("event", "")))

    async def download(self, request: Request) -> Response:
        """All that matches, as a file."""
        self._require_reader(request)
        query = request.query_params
        return download(self._log, await self._filter(request), query, self._answers)

    async def _filter(self, request: Request) -> Filter:
        return await chosen_filter(request.query_params, self._seats.parsing_for(request.scope))

    async def _said_of_filter(self, request: Request) -> Said:
        query = request.query_params
        try:
            chosen = await parsed_filter(query, self._seats.parsing_for(request.scope))
        except FilterError as error:
            text = query.get("q", "").strip()
            at = error.position
            parts = ("", "") if at is None else (text[:at], text[at:])
            name = "" if error.parameter == "q" else f"{error.parameter}: "
            return Said("", f"{name}{error}", error.hint, *parts)
        return Said(chosen.explain() if chosen.query else "")

    # -- sending ------------------------------------------------------------------------------

    async def send(self, request: Request) -> Response:
        """Stores the form's events; the answer says so, or what is wrong with which field."""
        try:
            require_same_origin(request.headers)
            if not self._session.access(request).send:
                raise refusal(request, "send")
            events = events_of(await form_of(request, self.settings.max_message_bytes))
            stored = await self._submit(events)
            return self._html("sent.html", stored=stored, problem="", errors={})
        except Problem as problem:
            errors = errors_by_field(problem)
            told = "" if errors else problem.detail
            answer = self._html(
                "sent.html", problem.status, stored=None, problem=told, errors=errors
            )
            answer.headers.update(problem.answered_headers())
            return answer

    # -- signing in ---------------------------------------------------------------------------

    async def login(self, request: Request) -> Response:
        """Asks for a token, where tokens are set."""
        if not self._session.guarded:
            return RedirectResponse("/", 303)
        return self._login(request, "")

    async def sign_in(self, request: Request) -> Response:
        """Takes a token, and goes on to the page with the filters that were asked for."""
        require_same_origin(request.headers)
        form = dict(await form_of(request, self.settings.max_message_bytes))
        token = form.get("token", "").strip()
        try:
            known = self._session.passes(request, token)
        except Problem as problem:
            again = self._login(request, problem.detail, problem.status)
            again.headers.update(problem.answered_headers())
            return again
        if not known:
            return self._login(request, "This token is not known here.", 403)
        onward = RedirectResponse(_after_login(request.query_params), 303)
        access = self._session.sign_in(request, token)
        to_status = _is_for_status(request.query_params)
        if access.operate if to_status else access.read:
            return onward
        wanted = "see the status" if to_status else "read"
        return self._login(request, f"This token is known. To {wanted} needs another.", 403)

    def _login(self, request: Request, error: str, status: int = 200) -> Response:
        action = _with_query("/login", request.query_params)
        return self._html("login.html", status, error=error, action=action)

    async def sign_out(self, request: Request) -> Response:
        """Ends the browser's session, in all processes."""
        require_same_origin(request.headers)
        self._session.sign_out(request)
        return RedirectResponse("/", 303)


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


def _trouble_with_position(query: Mapping[str, str]) -> str:
    """What is wrong with the position or the columns of a URL; empty when nothing is."""
    try:
        chosen_start(query, None)
        span(query, "since")
        reading.columns_of(query)
    except Problem as problem:
        return problem.detail
    return ""


def _after_login(query: Mapping[str, str]) -> str:
    return "/status" if _is_for_status(query) else _with_query("/", query)


def _is_for_status(query: Mapping[str, str]) -> bool:
    return query.get("then") == "status"


def _given(query: Mapping[str, str], names: tuple[str, ...]) -> dict[str, str]:
    return {name: query[name] for name in names if query.get(name)}


def _with_query(path: str, query: Mapping[str, str]) -> str:
    return f"{path}?{urlencode(dict(query))}" if query else path


def _fragment(html: str, status: int = 200) -> HTMLResponse:
    return HTMLResponse(html, status, {"Cache-Control": "no-store"})
