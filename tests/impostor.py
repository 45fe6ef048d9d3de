"""A server that is none of logpipe's, or one that misbehaves."""

import asyncio
import contextlib
import json
import re

HELLO = 'id: 5-0\nevent: hello\ndata: {"first_id":null,"last_id":null,"version":"x"}\n\n'
SSE_HEAD = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def refusing(status: int, **members: object) -> str:
    """An answer with a problem document."""
    body = json.dumps({"status": status, "detail": "No.", **members})
    head = "Content-Type: application/problem+json\r\nConnection: close"
    return f"HTTP/1.1 {status} No\r\n{head}\r\nContent-Length: {len(body)}\r\n\r\n{body}"


class Impostor:
    """An HTTP server that gives each connection the next of its answers, and keeps
    their heads and bodies."""

    def __init__(self, *answers: str) -> None:
        self.heads: list[str] = []
        self.bodies: list[bytes] = []
        self.url = ""
        self._answers = list(answers)

    def header(self, number: int, name: str) -> str | None:
        found = re.search(rf"^{name}: (.*?)\r$", self.heads[number], re.MULTILINE | re.IGNORECASE)
        return found[1] if found else None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.heads.append(head)
            if length := re.search(r"content-length: (\d+)", head, re.IGNORECASE):
                self.bodies.append(await reader.readexactly(int(length[1])))
            answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
            writer.write(answer.removesuffix("[wait]").encode())
            await writer.drain()
            if answer.endswith("[wait]"):
                await reader.read()
        finally:
            writer.close()

    def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.append((asyncio.create_task(self._serve(reader, writer)), writer))

    async def __aenter__(self) -> "Impostor":
        self._open: list[tuple[asyncio.Task[None], asyncio.StreamWriter]] = []
        self._server = await asyncio.start_server(self._on_connection, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()
        for task, writer in self._open:
            task.cancel()
            with contextlib.suppress(Exception, asyncio.CancelledError):
                await task
            writer.close()  # a task that is cancelled before its first step closes nothing
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
