"""The other end of the wire: sends cases, and says what is wrong with what comes back."""

import asyncio
import contextlib
import re
import socket
import struct
from collections import Counter
from typing import cast

from tests.fuzz.requests import Request
from tests.fuzz.streams import SMUGGLED, Stream

ANSWER_S = 30.0
"""An answer that is due and has not come by then will never come."""

QUIET_S = 0.02
"""Where nothing is due, a server that is silent for so long has said what it had to say."""

WAIT_S = 2.0
"""What is read of a stream that goes on for ever."""

_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSES = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)


class Client:
    """One sender with a connection that it keeps."""

    def __init__(self, host: str, port: int) -> None:
        self.statuses: Counter[int] = Counter()
        self._place = host, port
        self._open: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    # -- requests -----------------------------------------------------------------------------

    async def ask(self, request: Request) -> str:
        """Sends it; what is wrong with the answer, or nothing."""
        try:
            async with asyncio.timeout(ANSWER_S):
                head = await self._answered(request)
        except TimeoutError:
            self.leave()
            return f"no answer within {ANSWER_S:.0f} s"
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            self.leave()
            return f"no answer: {error!r}"
        status = int(head[9:12])
        self.statuses[status] += 1
        return f"{status}: {head[:200]!r}" if status >= 500 else ""

    async def _answered(self, request: Request) -> bytes:
        kept = self._open is not None
        try:
            return await self._exchanged(request)
        except (ConnectionError, asyncio.IncompleteReadError):
            # An idle connection may have been closed when the request before it was answered.
            if not kept:
                raise
            self.leave()
            return await self._exchanged(request)

    async def _exchanged(self, request: Request) -> bytes:
        if self._open is None:
            self._open = await asyncio.open_connection(*self._place)
        reader, writer = self._open
        writer.write(request.on_the_wire())
        head = await reader.readuntil(b"\r\n\r\n")
        if not _STATUS.match(head):
            raise ConnectionError(f"no HTTP: {head[:100]!r}")
        if length := _LENGTH.search(head):
            await reader.readexactly(int(length[1]))
        elif _CHUNKED.search(head):
            await _skip_chunks(reader)
        if _CLOSES.search(head):
            self.leave()
        return head

    def leave(self) -> None:
        """Closes the connection."""
        if self._open is not None:
            self._open[1].close()
            self._open = None

    # -- streams ------------------------------------------------------------------------------

    async def stream(self, stream: Stream) -> str:
        """Plays it on a connection of its own; what is wrong with what came back, or nothing."""
        reader, writer = await asyncio.open_connection(*self._place, limit=1 << 20)
        try:
            with contextlib.suppress(OSError):
                await _write(writer, stream)
            got = await _read(reader, len(stream.statuses))
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        statuses = statuses_in(got)
        self.statuses.update(statuses)
        return offence(stream, got, statuses)


async def _skip_chunks(reader: asyncio.StreamReader) -> None:
    while size := int(await reader.readuntil(b"\r\n"), 16):
        await reader.readexactly(size + 2)
    await reader.readexactly(2)


async def _write(writer: asyncio.StreamWriter, stream: Stream) -> None:
    connection = cast("socket.socket", writer.get_extra_info("socket"))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for piece in stream.pieces:
        writer.write(piece)
        await asyncio.wait_for(writer.drain(), WAIT_S)
        await asyncio.sleep(0)
    if stream.end == "half":
        writer.write_eof()
    elif stream.end == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    elif stream.end == "close":
        writer.close()


async def _read(reader: asyncio.StreamReader, due: int) -> bytes:
    """What comes: so many answers, or until there is silence or the end."""
    got = b""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + (ANSWER_S if due else WAIT_S)
    while loop.time() < deadline:
        owing = len(_STATUS.findall(got)) < due
        try:
            data = await asyncio.wait_for(reader.read(1 << 16), ANSWER_S if owing else QUIET_S)
        except OSError:
            break
        if not data:
            break
        got += data
    return got


def statuses_in(got: bytes) -> list[int]:
    """The status of each answer, in order; no case holds text that looks like one."""
    return [status for each in _STATUS.findall(got) if (status := int(each)) >= 200]


def offence(stream: Stream, got: bytes, statuses: list[int]) -> str:
    """What is wrong with what came back."""
    if got and not got.startswith(b"HTTP/1.1 "):
        return f"no HTTP: {got[:200]!r}"
    # 501 is the answer to a transfer coding that is not supported.
    if bad := [status for status in statuses if status >= 500 and status != 501]:
        return f"{bad[0]}: {got[:300]!r}"
    if b"\r\nx-request-id: " + SMUGGLED in got:
        return f"what was hidden in a request was answered: {got[:400]!r}"
    if stream.statuses and statuses != list(stream.statuses):
        return f"{statuses} in place of {list(stream.statuses)}"
    return ""
