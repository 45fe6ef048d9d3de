"""What stands between a browser and a server: a cable that dies, a proxy that buffers."""

import asyncio
import contextlib
from typing import Self


class Proxy:
    """A TCP proxy to a server, on a port of its own."""

    def __init__(self, url: str) -> None:
        self._port = int(url.rpartition(":")[2])
        self._tasks: set[asyncio.Task[None]] = set()

    async def _carry(
        self,
        near: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        far: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        raise NotImplementedError

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            await self._carry((reader, writer), far)
        finally:
            for each in (writer, far[1]):
                each.close()

    def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.create_task(self._connected(reader, writer)))

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._on_connection, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Cable(Proxy):
    """Its open connections can be made to carry nothing more."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._frozen = asyncio.Event()

    def freeze(self) -> None:
        """Nothing more goes through what is open; new connections work."""
        self._frozen.set()
        self._frozen = asyncio.Event()

    async def _carry(
        self,
        near: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        far: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        frozen = asyncio.create_task(self._frozen.wait())
        pumps = {
            asyncio.create_task(_pump(near[0], far[1])),
            asyncio.create_task(_pump(far[0], near[1])),
        }
        try:
            await asyncio.wait({frozen, *pumps}, return_when=asyncio.FIRST_COMPLETED)
            if frozen.done():
                for pump in pumps:
                    pump.cancel()
                await asyncio.Event().wait()
        finally:
            for task in (frozen, *pumps):
                task.cancel()


class Buffering(Proxy):
    """Passes an answer on when it has all of it, one request a connection."""

    async def _carry(
        self,
        near: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        far: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await near[0].readuntil(b"\r\n\r\n")
            lines = [
                line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")
            ]
            far[1].write(b"\r\n".join([lines[0], b"Connection: close", *lines[1:]]))
            sending = asyncio.create_task(_pump(near[0], far[1]))
            try:
                answer = await far[0].read()
                near[1].write(answer)
                await near[1].drain()
            finally:
                sending.cancel()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
