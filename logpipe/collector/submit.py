"""The way in for the page of the same process: the intake without HTTP."""

from logpipe.collector.appender import Appender
from logpipe.collector.ingest import append_of, take_in
from logpipe.event import Stored
from logpipe.settings import Settings


class LocalCollector:
    """Takes events as JSON; the twin over HTTP is `client.RemoteCollector`."""

    def __init__(self, settings: Settings, appender: Appender) -> None:
        self._settings = settings
        self._appender = appender

    async def __call__(self, events: bytes) -> Stored:
        """What was stored of them. Raises a `Problem` when nothing was."""
        intake = take_in(events, "application/json", self._settings.max_message_bytes)
        appended = await self._appender.append(append_of(intake, None))
        return Stored(len(intake.events), appended.first, appended.last)
