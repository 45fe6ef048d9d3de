"""TLS at the port: a connection counts and can be closed from the moment it is accepted, and all
handshakes together hold the event loop no longer than other steps of connections."""

import asyncio
import ssl
from collections.abc import Callable
from typing import cast

from logpipe.limits import client_of
from logpipe.serving.admission import LAST_S, BoundedState

HANDSHAKE_S = 15.0
"""What a handshake may take, from the connection on."""


class Handshake(asyncio.Protocol):
    """A connection until client and server agree on TLS; then the protocol that `make` returns
    takes its place.

    asyncio's own `create_server(ssl=…)` keeps a connection to itself until then, for a minute if
    its client is silent. It also answers all clients in one iteration of the event loop: 900 that
    began at the same moment held it for half a second (measured, RSA of 2,048 bits). Here each
    message of a handshake is a step of `Turns`.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        state: BoundedState,
        make: Callable[[], asyncio.Protocol],
        seconds: float = HANDSHAKE_S,
    ) -> None:
        self._context = context
        self._state = state
        self._make = make
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._address = ""
        self._received = b""
        """What has come and was not passed to TLS yet."""
        self._has_turn = False
        self._tls: asyncio.BufferedProtocol | None = None
        """The protocol that `start_tls` has made."""
        self._task: asyncio.Task[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._aborted = False
        self._left = False

    # -- what the transport calls ----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple):
            self._address = client_of(peer[0])
        self._unused = self._state.join(self._address).unused
        self._state.connections.add(self)  # type: ignore[arg-type]
        if not self._state.has_room():
            self._state.limited({"connections": 1})
            self._transport.abort()
            return
        self._unused[self] = None
        self._deadline = self._loop.call_later(self._seconds, self._is_late)

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._transport.pause_reading()
        self._ask_for_turn()

    def eof_received(self) -> bool | None:
        return self._tls.eof_received() if self._tls is not None else None

    def pause_writing(self) -> None:
        if self._tls is not None:
            self._tls.pause_writing()

    def resume_writing(self) -> None:
        if self._tls is not None:
            self._tls.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._tls is not None:
            self._tls.connection_lost(exc)
            self._tls = None  # this may wait for a turn, and TLS takes much memory
        self._leave()

    # -- what admission and the server call ------------------------------------------------------

    @property
    def begun(self) -> int:
        """1 where something of the handshake has come, 0 for nothing."""
        return int(self._tls is not None or bool(self._received))

    def close_for_room(self) -> None:
        """Closes it at once."""
        self._abort()

    def cut(self) -> None:
        """Closes it at once."""
        self._abort()

    def shutdown(self) -> None:
        """Closes it unless the handshake ends within `LAST_S`."""
        self._loop.call_later(LAST_S, self._abort_if_late)

    # -- the handshake ---------------------------------------------------------------------------

    def _ask_for_turn(self) -> None:
        """Asks for a step. A handshake that has begun goes on before others of its client begin:
        else all would begin, and none end."""
        begins = self._task is not None and self._tls is None
        if not (self._has_turn or begins):
            self._has_turn = True
            self._state.turns.add(self._step, self._address, urgent=self._tls is not None)

    def _step(self) -> None:
        """Begins TLS, or passes to it what has come."""
        self._has_turn = False
        if self._left or self._transport.is_closing():
            return
        if self._task is None:
            self._state.handshakes.begin(self, self._address)
            self._task = self._loop.create_task(self._agree())
        elif self._tls is not None:
            self._transport.resume_reading()
            self._pass_on(self._tls)

    def _pass_on(self, tls: asyncio.BufferedProtocol) -> None:
        """Passes to TLS what has come; TLS may then pause the reading."""
        data, self._received = self._received, b""
        while data:
            buffer = memoryview(tls.get_buffer(len(data)))
            size = min(len(buffer), len(data))
            buffer[:size] = data[:size]
            tls.buffer_updated(size)
            data = data[size:]

    async def _agree(self) -> None:
        """Makes the handshake, and hands the connection over."""
        early = _Early()
        try:
            transport = await self._agreed(early)
        except OSError as error:  # also ssl.SSLError
            error.__traceback__ = None  # it refers to frames that refer to the error
            transport = None
        except BaseException:
            self._transport.abort()
            raise
        finally:
            self._leave()
        if transport is None or transport.is_closing() or self._tls is None:
            self._transport.abort()
            return
        try:
            self._hand_over(self._tls, transport, early.data)
        except BaseException:
            self._transport.abort()
            raise

    async def _agreed(self, early: asyncio.Protocol) -> asyncio.Transport | None:
        """Lets `start_tls` make the handshake, with this protocol between it and the transport.
        Returns its transport; raises an `OSError`, or returns None, where that fails."""
        agreement = self._loop.create_task(
            self._loop.start_tls(self._transport, early, self._context, server_side=True)
        )
        await asyncio.sleep(0)  # now its protocol is the transport's
        tls = self._transport.get_protocol()
        if tls is not self:
            self._transport.set_protocol(self)
            await asyncio.sleep(0)  # now the `connection_made` of its protocol has been called
            self._tls = cast("asyncio.BufferedProtocol", tls)
            if self._aborted:
                self._transport.abort()
            else:
                self._ask_for_turn()
        return await agreement

    def _hand_over(
        self, tls: asyncio.BufferedProtocol, transport: asyncio.Transport, early: bytes
    ) -> None:
        """Puts the protocol that `make` returns behind TLS, and TLS behind the transport."""
        self._transport.set_protocol(tls)
        protocol = self._make()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if early and not transport.is_closing():
            protocol.data_received(early)
        self._transport.resume_reading()
        self._pass_on(tls)

    def _abort(self) -> None:
        """Closes the connection; while `start_tls` begins, which cannot with a closed one, a
        moment later."""
        if self._task is not None and self._tls is None:
            self._aborted = True
        else:
            self._transport.abort()

    def _abort_if_late(self) -> None:
        if not self._left:
            self._abort()

    def _is_late(self) -> None:
        self._state.limited({"handshake_time": 1})
        self._abort()

    def _leave(self) -> None:
        """Counts no longer as a connection."""
        if self._left:
            return
        self._left = True
        if self._deadline is not None:
            self._deadline.cancel()
        self._state.handshakes.end(self, self._address)
        self._state.connections.discard(self)
        self._state.leave(self, self._address)


class _Early(asyncio.Protocol):
    """Takes what comes behind a handshake before `Handshake` has noticed its end."""

    def __init__(self) -> None:
        self.data = b""

    def data_received(self, data: bytes) -> None:
        self.data += data
