"""The operator's page `/status`, and the part of it that is asked for again and again."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from logpipe.problems import Problem
from logpipe.settings import Settings
from logpipe.ui.session import Session, refusal
from logpipe.ui.tables import (
    GroupRow,
    ProcessRow,
    SubscriberRow,
    group_rows,
    process_row,
    settings_in_force,
    subscriber_rows,
)
from logpipe.ui.tiles import Tile, tiles_of
from logpipe.watch import EVERY_S, Watch, Watched, of_role

MAX_SUBSCRIBERS = 50
"""Subscribers that the page lists: those furthest behind."""

LOGIN = "/login?then=status"
"""Where one signs in, and comes back from."""


class Now(NamedTuple):
    """What changes of the page."""

    troubles: Sequence[str]
    tiles: Sequence[Tile]
    processes: Sequence[ProcessRow]
    subscribers: Sequence[SubscriberRow] | None
    more_subscribers: int
    groups: Sequence[GroupRow]


class Status:
    """The endpoints; `render` makes a response of a template and its values."""

    def __init__(
        self, settings: Settings, session: Session, render: Callable[..., Response], watch: Watch
    ) -> None:
        self._session = session
        self._render = render
        self._watch = watch
        self._workers = settings.workers
        self._settings = settings_in_force(settings)

    async def page(self, request: Request) -> Response:
        """The whole page."""
        if not self._session.access(request).operate:
            return RedirectResponse(LOGIN, 303)
        return await self._rendered("status.html", settings=self._settings, every_s=EVERY_S)

    async def now(self, request: Request) -> Response:
        """What changes of it."""
        if not self._session.access(request).operate:
            raise _to_login(refusal(request, "see the status"))
        return await self._rendered("status_now.html")

    async def _rendered(self, template: str, **values: object) -> Response:
        now = _now(await self._watch.now())
        return self._render(template, now=now, workers=self._workers, **values)


def _now(watched: Sequence[Watched]) -> Now:
    rows = [process_row(each) for each in watched]
    distributor = of_role(watched, "distributor")
    listed = subscriber_rows(distributor)
    return Now(
        troubles=[f"{row.name} ({row.roles}): {row.trouble}" for row in rows if row.trouble],
        tiles=list(tiles_of(watched, time.monotonic())),
        processes=rows,
        subscribers=None if listed is None else listed[:MAX_SUBSCRIBERS],
        more_subscribers=max(0, len(listed or ()) - MAX_SUBSCRIBERS),
        groups=group_rows(distributor),
    )


def _to_login(problem: Problem) -> Problem:
    """The refusal, as one that htmx follows to the login."""
    headers = {**problem.answered_headers(), "HX-Redirect": LOGIN}
    return Problem(problem.status, problem.detail, headers=headers)
