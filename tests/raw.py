"""HTTP by hand, for what a client library would not send."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit


class Answer(NamedTuple):
    """One response; the names of its headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Connection:
    """A connection to a server, as bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        """Writes; returns when the data is on its way."""
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, timeout: float = 10.0) -> Answer:
        """The next response, an interim one (1xx) as well."""
        async with asyncio.timeout(timeout):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.strip().split("\r\n")
            pairs = (line.partition(":") for line in lines)
            headers = {name.lower(): value.strip() for name, _, value in pairs}
            if headers.get("transfer-encoding") == "chunked":
                body = b"".join([chunk async for chunk in self.chunks()])
            else:
                body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return Answer(int(first.split()[1]), headers, body)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The chunks of a body up to its clean end. Raises IncompleteReadError when it is cut."""
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            yield (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readexactly(2)

    async def rest(self, timeout: float = 10.0) -> bytes:
        """All that comes until the server closes; nothing more after a reset."""
        got = b""
        async with asyncio.timeout(timeout):
            with contextlib.suppress(ConnectionError):
                while data := await self.reader.read(65_536):
                    got += data
        return got


async def _client_socket(
    server: tuple[str | None, int | None], address: str | None, receive_bytes: int | None
) -> socket.socket:
    client = socket.socket()
    client.setblocking(False)
    try:
        if receive_bytes is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        if address is not None:
            client.bind((address, 0))
        await asyncio.get_running_loop().sock_connect(client, server)
    except BaseException:
        client.close()
        raise
    return client


@contextlib.asynccontextmanager
async def connected(
    url: str, address: str | None = None, receive_bytes: int | None = None
) -> AsyncIterator[Connection]:
    """A connection to the server at `url`: from `address`, and with a receive buffer of
    `receive_bytes`, where they are given."""
    place = urlsplit(url)
    if address is None and receive_bytes is None:
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
    else:
        client = await _client_socket((place.hostname, place.port), address, receive_bytes)
        reader, writer = await asyncio.open_connection(sock=client)
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def request(body: bytes = b"", *lines: str, start: str = "POST /ingest HTTP/1.1") -> bytes:
    """A request with Host and Content-Length."""
    head = [start, "Host: localhost", f"Content-Length: {len(body)}", *lines]
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


def peak_memory(pid: int, *, reset: bool = False) -> int:
    """The most bytes that a process has held in memory, since its start or the last reset."""
    if reset:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


can_measure_memory = os.access("/proc/self/clear_refs", os.W_OK)
"""Whether this is Linux."""
