"""The HTTP server: uvicorn, owned, so that it ends while streams are open."""

import asyncio
import contextlib
import errno
import logging
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

log = logging.getLogger("logpipe")

BACKLOG = 2048
"""Connections that the kernel keeps until they are accepted."""

KEEP_ALIVE_S = 75
"""Idle connections stay open for longer than load balancers and shippers keep theirs."""

DEAD_READER_MS = 60_000
"""A reader that takes nothing for so long, or whose host is gone, is cut off by the kernel."""

GRACE_S = 3.0
"""What requests and farewells may take at the end, before their connections are cut."""


class PortTakenError(Exception):
    """The address cannot be listened on; one line that says why."""


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `PortTakenError`."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise PortTakenError(f"HOST={host}: {error.strerror}") from None
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_READER_MS)
    try:
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortTakenError(
                f"PORT={port}: in use on {host}; stop what listens there or choose another --port"
            ) from None
        raise PortTakenError(f"{host}:{port}: {error.strerror}") from None
    listener.setblocking(False)
    return listener


class Server(uvicorn.Server):
    """Stops in order: no new connections, farewells, open requests, then the rest is cut.

    uvicorn alone waits for open streams, for ever by default, before anyone is told of the end.
    """

    def __init__(self, app: ASGIApp, farewell: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="off",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_S,
            )
        )
        self._farewell = farewell

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handles the signals itself: uvicorn raises them again at the end, and exits with 143."""
        loop = asyncio.get_running_loop()
        handled = (signal.SIGINT, signal.SIGTERM)
        for number in handled:
            loop.add_signal_handler(number, self.stop)
        try:
            yield
        finally:
            for number in handled:
                loop.remove_signal_handler(number)

    def stop(self) -> None:
        """Ends the server; asked a second time, it no longer waits for anyone."""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Says farewell to the streams first; then what uvicorn does."""
        for server in self.servers:
            server.close()
        streams = len(self.server_state.tasks)
        log.info("stopping: %d open requests and streams are told", streams)
        self._farewell()
        await self._finish(GRACE_S)
        for connection in list(self.server_state.connections):
            if self.server_state.tasks and connection.transport is not None:
                connection.transport.abort()
        await super().shutdown(sockets)

    async def _finish(self, seconds: float) -> None:
        deadline = asyncio.get_running_loop().time() + seconds
        while tasks := list(self.server_state.tasks):
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0 or self.force_exit:
                return
            await asyncio.wait(tasks, timeout=min(left, 0.1))
