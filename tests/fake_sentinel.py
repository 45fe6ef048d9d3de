"""A Sentinel that names whatever primary a test wants it to."""

import asyncio
import threading
from typing import Any

import hiredis

from tests.deployments import MASTER
from tests.servers import free_port


class FakeSentinel:
    """Answers what logpipe asks a Sentinel, in a thread of its own."""

    def __init__(self) -> None:
        self.port = free_port()
        self._word = 0, 0
        """The port of the primary, and the epoch of that word."""
        self._loop = asyncio.new_event_loop()
        starting = asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self._server = self._loop.run_until_complete(starting)
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def name(self, port: int) -> None:
        """From now on the primary of `MASTER` is the server at this port."""
        self._word = port, self._word[1] + 1

    def close(self) -> None:
        """Ends it and its connections."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._end())
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests = hiredis.Reader()
        try:
            while data := await reader.read(4096):
                requests.feed(data)
                while (request := requests.gets()) is not False:
                    writer.write(self._answer([word.decode() for word in request]))
        except (OSError, asyncio.CancelledError):
            pass  # who asked has gone, or it ends itself
        finally:
            writer.transport.abort()

    def _answer(self, request: list[str]) -> bytes:
        port, epoch = self._word
        match request:
            case ["SENTINEL", "MASTER", _]:
                state = {"name": MASTER, "ip": "127.0.0.1", "port": port, "flags": "master"}
                state["config-epoch"] = epoch
                return _listed(*(word for pair in state.items() for word in pair))
            case ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", _]:
                return _listed("127.0.0.1", port)
            case ["CLIENT" | "AUTH", *_]:
                return b"+OK\r\n"
        return b"-ERR unknown command\r\n"


def _listed(*words: Any) -> bytes:
    """An array of bulk strings."""
    packed: bytes = hiredis.pack_command(tuple(words))
    return packed
