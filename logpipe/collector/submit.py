"""The way in for the page of the same process: the intake without HTTP."""

from logpipe.collector.appender import Appender
from logpipe.collector.ingest import append_of, take_in
from logpipe.settings import Settings


class LocalCollector:
    """Takes one event's JSON; the twin over HTTP is `client.RemoteCollector`."""

    def __init__(self, settings: Settings, appender: Appender) -> None:
        self._settings = settings
        self._appender = appender

    async def __call__(self, event: bytes) -> str:
        """The id of the stored event. Raises a `Problem`."""
        intake = take_in(event, "application/json", self._settings.max_message_bytes)
        appended = await self._appender.append(append_of(intake, None))
        return appended.first
