"""The HTTP server: uvicorn, owned, so that it ends while streams are open."""

import asyncio
import ipaddress
import logging
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.config import create_ssl_context

from logpipe.listening import BACKLOG, copies
from logpipe.serving.admission import BoundedState, Limited
from logpipe.serving.handshake import Handshake
from logpipe.serving.protocol import BoundedProtocol
from logpipe.settings import Settings
from logpipe.tls import unusable

log = logging.getLogger("logpipe")

KEEP_ALIVE_S = 75
"""Idle connections stay open for longer than load balancers and shippers keep theirs."""

GRACE_S = 2.0
"""What requests and farewells may take at the end, before their connections are cut."""

RETIRE = signal.SIGUSR1
"""Ends a worker whose successor serves."""

RETIRE_S = 60.0
"""What its requests may take then: as long as a body may."""

CUT_S = 0.3
"""What requests may take to notice that they were cut."""

POLL_S = 0.02
"""Between two looks at what is still open, at the end."""


def _mapped(proxies: Iterable[str]) -> Iterator[str]:
    """The IPv4 ones as a socket of IPv6 shows them, too."""
    for each in proxies:
        network = each != "*" and ipaddress.ip_network(each)
        if isinstance(network, ipaddress.IPv4Network):
            yield f"::ffff:{network.network_address}/{96 + network.prefixlen}"


class Server(uvicorn.Server):
    """Stops in order: no new connections, farewells, open requests, then the rest is cut.

    uvicorn alone waits for open streams, by default forever, before any of them learns of the end.
    """

    def __init__(
        self,
        app: ASGIApp,
        farewell: Callable[[], None],
        limited: Limited = lambda _: None,
        most_connections: int = sys.maxsize,
        settings: Settings = Settings(),  # noqa: B008 - it is frozen
    ) -> None:
        proxies = list(settings.forwarded_allow_ips)
        super().__init__(
            uvicorn.Config(
                app,
                interface="asgi3",
                http=BoundedProtocol,
                lifespan="off",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=bool(proxies),
                forwarded_allow_ips="*" if "*" in proxies else [*proxies, *_mapped(proxies)],
                ssl_certfile=settings.ssl_certfile or None,
                ssl_keyfile=settings.ssl_keyfile or None,
                ssl_keyfile_password=settings.ssl_keyfile_password or None,
                reset_contextvars=True,  # of two requests on a connection, each has its own id
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_S,
            )
        )
        self.server_state: BoundedState = BoundedState(limited, most_connections)
        self._farewell = farewell
        self._settings = settings
        self._tls: ssl.SSLContext | None = None
        self._retires = False
        self.on_ready: Callable[[], None] | None = None
        """Called once connections are accepted."""
        self.on_drain: Callable[[], None] = lambda: None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves the signals alone: uvicorn raises them again at its end, and exits with 143."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to accept connections."""
        # asyncio's own loops accept all that wait from one socket.
        if sockets is not None and not isinstance(
            asyncio.get_running_loop(), asyncio.BaseEventLoop
        ):
            sockets = [each for given in sockets for each in copies(given)]
        if self.config.ssl is not None:
            self._begin_with_handshakes()
        await super().startup(sockets)
        if self.on_ready is not None:
            self.on_ready()

    def reload(self) -> None:
        """Reads certificate and key again; connections from now on begin with them. Where they
        cannot be used, those of before stay in force, and the log says why."""
        if self._tls is None:
            return
        config, wrong = self.config, unusable(self._settings)
        if not wrong:
            try:
                self._tls = create_ssl_context(
                    self._settings.ssl_certfile,
                    config.ssl_keyfile,
                    config.ssl_keyfile_password,
                    config.ssl_version,
                    config.ssl_cert_reqs,
                    None,
                    config.ssl_ciphers,
                )
            except OSError as error:  # they were replaced just now
                wrong = f"SSL_CERTFILE={self._settings.ssl_certfile}: {error}"
        if wrong:
            log.error("%s: the previous certificate stays in force", wrong)
        else:
            log.info("certificate and key have been reloaded")

    def _begin_with_handshakes(self) -> None:
        """Has connections begin with a `Handshake` instead of asyncio's own."""

        def handshake(**given: Any) -> Handshake:
            assert self._tls is not None
            return Handshake(self._tls, self.server_state, partial(BoundedProtocol, **given))

        self._tls, self.config.ssl = self.config.ssl, None
        self.config.http_protocol_class = handshake  # type: ignore[assignment]

    def stop(self, number: int = signal.SIGINT) -> None:
        """Ends the server, by SIGTERM after DRAIN_S, by `RETIRE` with more time for requests. Asked
        again it no longer drains, and asked once more it no longer waits for anyone."""
        self._retires = number == RETIRE
        state, drain_s = self.server_state, self._settings.drain_s
        if number == signal.SIGTERM and drain_s and not (state.draining or self.should_exit):
            state.draining = True
            log.info("draining: all is served for another %g s, and /healthz says 503", drain_s)
            self.on_drain()
            asyncio.get_running_loop().call_later(drain_s, self._end)
        else:
            self.force_exit = self.should_exit
            self._end()

    def _end(self) -> None:
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002
        """Says farewell to the streams, and lets what is open finish for a while.

        In place of uvicorn's own, which waits for ever for a reader that does not take its rest.
        """
        for server in self.servers:
            server.close()
        streams = len(self.server_state.tasks)
        log.info("stopping: ending %d open requests and streams", streams)
        self._farewell()
        self.server_state.draining = self.server_state.ending = True
        for connection in list(self.server_state.connections):
            connection.shutdown()
        grace_s = RETIRE_S if self._retires else GRACE_S
        await self._finish(0 if self.force_exit else grace_s)
        for connection in list(self.server_state.connections):
            cast("BoundedProtocol | Handshake", connection).cut()
        await self._finish(CUT_S)

    async def _finish(self, seconds: float) -> None:
        """Waits until nothing is open, or until it is asked not to wait any more."""
        forced = self.force_exit
        deadline = asyncio.get_running_loop().time() + seconds
        while self.server_state.tasks or self.server_state.connections:
            late = asyncio.get_running_loop().time() >= deadline
            if late or self.force_exit is not forced:
                return
            await asyncio.sleep(POLL_S)
