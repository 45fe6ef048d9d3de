"""A Sentinel that names whatever primary a test wants it to."""

import asyncio
from typing import Any

import hiredis

from tests.deployments import MASTER, Endpoint


class FakeSentinel(Endpoint):
    """Answers what logpipe asks a Sentinel."""

    def __init__(self) -> None:
        self._word = 0, 0
        """The port of the primary, and the epoch of that word."""
        super().__init__()

    def name(self, port: int) -> None:
        """From now on the primary of `MASTER` is the server at this port."""
        self._word = port, self._word[1] + 1

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
