"""The life of a serving process: bind, open, serve, close."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Self

import msgspec

from logpipe import __version__
from logpipe.app import running
from logpipe.listening import bind
from logpipe.serving import garbage
from logpipe.serving.open_files import room_for, warn_of_few
from logpipe.serving.server import RETIRE, Server
from logpipe.settings import Settings

log = logging.getLogger("logpipe")

HANDLED = (signal.SIGTERM, signal.SIGINT)

SHORT_TOKEN = 16
"""Characters of a token that nobody guesses: as random letters and digits, 95 bits."""

MOMENT_S = 0.1
"""What closing a resource may take when the process is asked a second time to end."""


class Inherited(NamedTuple):
    """What a worker has from the process that started it: descriptors of its listening socket, of
    a pipe that ends when that process does, and of one by which it reports that it serves."""

    listener: int
    life: int
    ready: int

    def report(self) -> None:
        """Reports that it serves; where that process is gone, this one ends by `life`."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self.ready, b"1")
        os.close(self.ready)


async def serve_until_stopped(settings: Settings, inherited: Inherited | None = None) -> int:
    """Serves until SIGTERM or SIGINT; the exit status.

    Raises `PortTakenError` before anything is started, and `EngineError`.
    """
    status = 0
    room = room_for(settings.max_subscribers)
    if settings.roles & {"distributor", "ui"}:
        warn_of_few(settings.max_subscribers, room)
    settings = msgspec.structs.replace(settings, max_subscribers=room.subscribers)
    with _listener(settings, inherited) as listener, Signals() as signals:
        if inherited is not None:
            signals.take_for_one(inherited.life)
        async with running(settings) as process:
            server = Server(
                process.app,
                process.farewell,
                process.metrics.count_limited,
                room.connections,
                settings,
            )
            process.background.on_failure = server.stop

            def drain() -> None:
                process.background.draining = True

            def reload() -> None:
                server.reload()
                process.tokens.reload()

            if inherited is None:
                introduce(settings, listener.getsockname()[1])
            process.background.start("garbage", garbage.look_now_and_then())
            if process.background.failure is None:
                with garbage.settled(), signals.handled_by(server.stop, reload):
                    server.on_drain = drain
                    server.on_ready = inherited.report if inherited else None
                    await server.serve(sockets=[listener])
            status = 1 if process.background.failure else 0
            if server.force_exit:
                signals.cancel()
    return status


def _listener(settings: Settings, inherited: Inherited | None) -> socket.socket:
    if inherited is None:
        return bind(settings.host, settings.listen_port)
    return socket.socket(fileno=inherited.listener)


class Signals:
    """SIGTERM and SIGINT: outside of `handled_by`, while all opens or closes, they end the task.
    SIGHUP does nothing then. When the terminal that the process writes to is closed, it counts as
    SIGTERM, unless the process was started with nohup.

    Handled from the first moment on, because the first process of a container has no defaults.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._handler: Callable[[int], None] = self.cancel
        self._reload: Callable[[], None] = lambda: None
        self._again: asyncio.TimerHandle | None = None
        self._handled = list(HANDLED)
        stays = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        self._terminals = [] if stays else [file for file in range(3) if os.isatty(file)]

    def __enter__(self) -> Self:
        for number in self._handled:
            self._loop.add_signal_handler(number, self._on_signal, number)
        self._loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        for number in self._handled:
            self._loop.remove_signal_handler(number)
        self._loop.remove_signal_handler(signal.SIGHUP)
        if self._again is None:
            return False
        self._again.cancel()
        return kind is asyncio.CancelledError

    def take_for_one(self, life: int) -> None:
        """Takes the end of a pipe for SIGINT, and handles RETIRE, too."""
        self._handled.append(RETIRE)
        self._loop.add_signal_handler(RETIRE, self._on_signal, RETIRE)

        def ended() -> None:
            self._loop.remove_reader(life)
            self._handler(signal.SIGINT)

        self._loop.add_reader(life, ended)

    def _on_signal(self, number: int) -> None:
        self._handler(number)

    def _on_hangup(self) -> None:
        if self._terminals and not any(map(os.isatty, self._terminals)):
            self._handler(signal.SIGTERM)
        else:
            self._reload()

    def cancel(self, _: int = signal.SIGINT) -> None:
        """Ends the task: each thing that it closes may take a moment, none more."""
        assert self._task is not None
        self._task.cancel()
        if self._again is not None:
            self._again.cancel()
        self._again = self._loop.call_later(MOMENT_S, self.cancel)

    @contextmanager
    def handled_by(
        self, handler: Callable[[int], None], reload: Callable[[], None]
    ) -> Iterator[None]:
        """Calls `handler` with their number instead, and `reload` for SIGHUP."""
        before = self._handler, self._reload
        self._handler, self._reload = handler, reload
        try:
            yield
        finally:
            self._handler, self._reload = before


def introduce(settings: Settings, port: int) -> None:
    """Says in the log what runs where, and what is open to whom."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    roles = ", ".join(sorted(settings.roles))
    workers = f" in {settings.workers} processes" if settings.workers > 1 else ""
    log.info(
        "logpipe %s runs %s%s at %s://%s:%d",
        __version__,
        roles,
        workers,
        settings.scheme,
        host,
        port,
    )
    if settings.exposed and (open_to := _open_to_all(settings)):
        log.warning(
            "%s listens beyond this machine, and anyone who reaches it can %s: set %s",
            settings.host,
            " and ".join(open_to.values()),
            " and ".join(open_to),
        )
    elif settings.exposed and not settings.admin_tokens:
        log.info(
            "%s listens beyond this machine, and anyone who reaches it can see /metrics: set"
            " ADMIN_TOKENS",
            settings.host,
        )
    if short := _short_tokens(settings):
        log.warning(
            "%s: tokens of fewer than %d characters can be guessed; `openssl rand -hex 32` makes"
            " one that cannot",
            ", ".join(short),
            SHORT_TOKEN,
        )


def _short_tokens(settings: Settings) -> list[str]:
    """The settings with a token that can be guessed."""
    scopes = {
        "INGEST_TOKENS": settings.ingest_tokens,
        "READ_TOKENS": settings.read_tokens,
        "ADMIN_TOKENS": settings.admin_tokens,
    }
    return [
        name for name, tokens in scopes.items() if any(len(token) < SHORT_TOKEN for token in tokens)
    ]


def _open_to_all(settings: Settings) -> dict[str, str]:
    """The settings of tokens that are missing, and what that leaves open."""
    missing = {}
    if not settings.ingest_tokens and settings.roles & {"collector", "ui"}:
        missing["INGEST_TOKENS"] = "send"
    if not settings.read_tokens and settings.roles & {"distributor", "ui"}:
        missing["READ_TOKENS"] = "read"
    return missing
