"""HTTP as a hostile client speaks it: bytes over connections that are not looked after."""

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from urllib.parse import urlencode

import msgspec

from tests.raw import Connection

HOST = "127.0.0.1"
ADDRESS = "127.0.0.66"
"""Where the attacker's connections come from: not the address of the honest clients."""
SMALL_BUFFER = 4_096
"""What the kernel takes for a client that reads nothing."""


class Tally(msgspec.Struct, tag=True):
    """What an attacker has done."""

    requests: int = 0
    sent: int = 0
    received: int = 0
    statuses: dict[str, int] = msgspec.field(default_factory=Counter)
    failures: dict[str, int] = msgspec.field(default_factory=Counter)


class Target:
    """The server that is attacked."""

    def __init__(self, port: int, syslog_port: int = 0, address: str = ADDRESS) -> None:
        self.port = port
        self.syslog_port = syslog_port
        self.tally = Tally()
        self._address = address

    @contextlib.asynccontextmanager
    async def connected(
        self, port: int = 0, *, takes_little: bool = False
    ) -> AsyncIterator[Connection]:
        """A connection, which is cut off at the end."""
        plain = socket.socket()
        plain.setblocking(False)
        try:
            if takes_little:
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
            plain.bind((self._address, 0))
            await asyncio.get_running_loop().sock_connect(plain, (HOST, port or self.port))
            limit = SMALL_BUFFER if takes_little else 2**16
            reader, writer = await asyncio.open_connection(sock=plain, limit=limit)
        except BaseException:
            plain.close()
            raise
        try:
            yield Connection(reader, writer)
        finally:
            writer.transport.abort()

    async def send(self, connection: Connection, data: bytes, requests: int = 0) -> None:
        """Sends, and counts."""
        self.tally.requests += requests
        for at in range(0, len(data), 2**16):
            piece = data[at : at + 2**16]
            await connection.send(piece)
            self.tally.sent += len(piece)

    async def ask(self, start: str, body: bytes = b"", *lines: str) -> int:
        """A whole request over a new connection, whose answer is read; its status."""
        async with self.connected() as connection:
            return await self.ask_over(connection, start, body, *lines)

    async def ask_over(
        self, connection: Connection, start: str, body: bytes = b"", *lines: str
    ) -> int:
        """A whole request, whose answer is read; its status."""
        await self.send(connection, head(start, len(body), *lines) + body, 1)
        answer = await connection.answer(120)
        self.tally.received += len(answer.body)
        self.tally.statuses[str(answer.status)] += 1
        return answer.status


def head(start: str, length: int = 0, *lines: str) -> bytes:
    """The head of a request, like `GET /x`."""
    named = [f"{start} HTTP/1.1", f"Host: {HOST}", *lines]
    if length or start.startswith(("POST", "PUT")):
        named.append(f"Content-Length: {length}")
    return "\r\n".join([*named, "", ""]).encode()


def url(path: str, **query: str | int) -> str:
    """The start line of a GET."""
    return f"GET {path}?{urlencode(query)}"


def post(path: str) -> str:
    """The start line of a POST."""
    return f"POST {path}"


def joined(parts: Sequence[bytes]) -> bytes:
    """JSON of an array."""
    return b"[" + b",".join(parts) + b"]"
