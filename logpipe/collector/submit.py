"""The way in for the page of the same process: the intake without HTTP."""

from logpipe.collector.appender import Appender
from logpipe.collector.ingest import Bounds, append_of, take_in
from logpipe.event import Stored
from logpipe.limits import Rates
from logpipe.settings import Settings

SENDER = "the page"
"""Whose rate the forms of all pages count for."""


class LocalCollector:
    """Takes events as JSON; the twin over HTTP is `client.RemoteCollector`."""

    def __init__(self, settings: Settings, appender: Appender, rates: Rates | None = None) -> None:
        self._bounds = Bounds.of(settings)
        self._appender = appender
        self._rates = rates

    async def __call__(self, events: bytes) -> Stored:
        """What was stored of them. Raises a `Problem` when nothing was."""
        if self._rates is not None:
            self._rates.begin(SENDER)
        intake = take_in(events, "application/json", self._bounds)
        if self._rates is not None:
            self._rates.charge(SENDER, len(intake.events) + len(intake.refusals))
        self._appender.require_share(intake.events)
        appended = await self._appender.append(append_of(intake))
        return Stored(len(intake.events), appended.first, appended.last)
