"""A proxy between logpipe and Redis, on a unix socket, that can be told to misbehave."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

Mode = Literal["pass", "lose", "silent"]


class Proxy:
    """Passes bytes on. `lose` cuts a connection off as soon as Redis answers to an append on it,
    before a byte of the answer has left; `silent` passes nothing on; `delay_s` holds answers back.
    """

    def __init__(self, socket: Path, upstream: Path) -> None:
        self.socket = socket
        self.mode: Mode = "pass"
        self.delay_s = 0.0
        self.lost = 0
        self._upstream = upstream
        self._writers: set[asyncio.StreamWriter] = set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listens."""
        server = await asyncio.start_unix_server(self._serve, self.socket)
        try:
            yield
        finally:
            server.close()
            self.cut()

    def cut(self) -> None:
        """Cuts all connections."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_unix_connection(self._upstream)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, up_writer}
        self._writers |= both
        appended = asyncio.Event()
        ways = [
            asyncio.create_task(self._requests(reader, up_writer, appended)),
            asyncio.create_task(self._answers(up_reader, writer, appended)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            for each in both:
                each.transport.abort()
            self._writers -= both

    async def _requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, appended: asyncio.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                if b"EVALSHA" in data or b"XADD" in data or b"EVAL\r\n" in data:
                    appended.set()
                await self._while_silent()
                writer.write(data)

    async def _answers(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, appended: asyncio.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                if self.mode == "lose" and appended.is_set():
                    self.lost += 1
                    return
                await self._while_silent()
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                writer.write(data)

    async def _while_silent(self) -> None:
        while self.mode == "silent":
            await asyncio.sleep(0.02)
