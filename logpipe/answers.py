"""Answers that may be large: bounded in bytes, sent as they are taken, ended with their client."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, aclosing, asynccontextmanager, contextmanager
from typing import NoReturn

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from logpipe.limits import requester_of
from logpipe.problems import Problem, respond
from logpipe.wire import Wire, wire_of

log = logging.getLogger("logpipe.answers")

MAX_BYTES = 64 * 1024 * 1024
"""Bytes of all large answers that are under way in a process."""
SHARE = 4
"""The answers to one address may have one part in so many of these bytes: several clients that take
their answers slowly leave room for others."""
SMALL_BYTES = 64 * 1024
"""An answer up to this size is written at once and not counted; larger ones are sent in pieces of
this size, each after the connection has taken the one before."""
STREAM_BYTES = 1024 * 1024
"""What an answer counts that is sent as it is made: what one step of a scan finds
(`history.STEP_BYTES`), held once."""
BYTES_A_SECOND = 16 * 1024
"""The least that a client has to take while it is waited for: a slow mobile link."""
PATIENCE_S = 60.0
"""For how long a client may take less than that before it is cut off. The kernel takes what is sent
in bursts, also when the client reads steadily: of half of `SMALL_BYTES`, of 64 to 128 KiB as the
window of the client reopens, of another 64 KiB with TLS. At 20 KB/s there are up to 13 s between
two bursts, and a person who pages through an answer pauses for longer."""
LOOK_S = 0.25
"""Between two looks at whether a client has taken the rest of an answer."""
RETRY_S = 2
"""When a refused client is asked to try again."""
CLIENT_LEFT = 499
"""The status, for the log alone, of an answer whose client has left; nginx's number."""


class ClientLeftError(Exception):
    """The client has closed its connection."""


@asynccontextmanager
async def attended(receive: Receive) -> AsyncIterator[None]:
    """Cancels what runs in the context when the client leaves; raises `ClientLeftError` then.

    `receive` is consumed: a body of the request is dropped.
    """
    task = asyncio.current_task()
    assert task is not None
    watching = asyncio.create_task(_cancel_when_left(receive, task))
    try:
        yield
    except asyncio.CancelledError:
        if watching.done() and not watching.cancelled() and task.uncancel() == 0:
            raise ClientLeftError from None
        raise
    finally:
        watching.cancel()


async def _cancel_when_left(receive: Receive, task: asyncio.Task[object]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    task.cancel()


async def while_connected(request: Request, work: Awaitable[Response]) -> Response:
    """The response that `work` makes. When the client leaves before, `work` is cancelled, and what
    is returned reaches nobody."""
    try:
        async with attended(request.receive):
            return await work
    except ClientLeftError:
        return Response(status_code=CLIENT_LEFT)


class Answers:
    """The large answers that are under way in a process, and what their clients have to take."""

    def __init__(
        self,
        limited: Callable[[Mapping[str, int]], None] = lambda _: None,
        *,
        most: int = MAX_BYTES,
        bytes_a_second: float = BYTES_A_SECOND,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.limited = limited
        self.bytes_a_second = bytes_a_second
        self.patience_s = patience_s
        self.under_way = 0
        """Bytes."""
        self._of_client: Counter[str] = Counter()
        self._most = most

    @contextmanager
    def counted(self, size: int, scope: Scope) -> Iterator[None]:
        """Counts so many bytes of the answer to a request while the context lasts.

        Raises a 503 `Problem` where all answers, or those to the address of this one
        (`limits.requester_of`), leave no room for them. An answer that is the only one, or the only
        one to its address, may exceed the share of an address; the only one may exceed all.
        """
        client = requester_of(scope)
        own = self._of_client[client]
        if own and own + size > self._most // SHARE:
            self._refuse("Too many large answers to this address are under way here")
        if self.under_way and self.under_way + size > self._most:
            self._refuse("Too many large answers are under way here")
        self.under_way += size
        self._of_client[client] += size
        try:
            yield
        finally:
            self.under_way -= size
            self._of_client[client] -= size
            if not self._of_client[client]:
                del self._of_client[client]

    def _refuse(self, why: str) -> NoReturn:
        self.limited({"answers": 1})
        raise Problem(503, f"{why}; try again later.", headers={"Retry-After": str(RETRY_S)})


class Pace:
    """Sends to one client, and cuts it off when it takes too little.

    A client may be waited for during `Answers.patience_s`. Each wait reduces the time that is left,
    and each byte that the connection takes adds 1 / `Answers.bytes_a_second` to it, up to
    `Answers.patience_s` again. A client without time left is cut off.
    """

    def __init__(self, send: Send, wire: Wire | None, answers: Answers) -> None:
        self._send = send
        self._wire = wire
        self._answers = answers
        self._left_s = answers.patience_s
        self.cut = False
        """Whether the client was cut off; what is sent after that is dropped."""

    async def body(self, body: bytes) -> bool:
        """Sends a part of a body, in pieces; returns when the connection has taken nearly all,
        False where the client was cut off."""
        if self._wire is not None:
            self._wire.bound_unsent(SMALL_BYTES)
        for at in range(0, len(body), SMALL_BYTES):
            if self.cut:
                return False
            piece = body[at : at + SMALL_BYTES]
            message = {"type": "http.response.body", "body": piece, "more_body": True}
            await self.message(message, len(piece))
        # A server takes a message and returns; before the next it waits until there is room.
        await self.message({"type": "http.response.body", "body": b"", "more_body": True}, 0)
        return not self.cut

    async def message(self, message: Message, size: int) -> None:
        """Sends a message whose body has `size` bytes."""
        if self.cut:
            return
        waited = 0.0
        if self._wire is None or not self._wire.waiting:
            await self._send(message)
        else:
            began = time.monotonic()
            try:
                async with asyncio.timeout(self._left_s):
                    await self._send(message)
            except TimeoutError:
                self._cut()
                return
            waited = time.monotonic() - began
        left = self._left_s - waited + size / self._answers.bytes_a_second
        self._left_s = min(self._answers.patience_s, left)

    async def end(self, message: Message, size: int) -> None:
        """Sends the last message; returns when the connection has taken all, or the next answer of
        the connection has begun, of whose pace the rest of this one is part."""
        await self.message(message, size)
        await self._taken()

    async def give_up(self) -> None:
        """Ends the answer before its end, and the connection, when it has taken what was sent."""
        if self._wire is not None and not self.cut:
            self._wire.give_up()
            await self._taken()

    async def _taken(self) -> None:
        wire = self._wire
        if wire is None or self.cut or not wire.waiting:
            return
        deadline = time.monotonic() + self._left_s + wire.waiting / self._answers.bytes_a_second
        while wire.waiting and not wire.superseded:
            left = deadline - time.monotonic()
            if left <= 0:
                self._cut()
                return
            await asyncio.sleep(min(left, LOOK_S))

    def _cut(self) -> None:
        self.cut = True
        if self._wire is not None:
            self._answers.limited({"answer_rate": 1})
            self._wire.cut()


class PacedSend:
    """An ASGI `send` for answers whose size is known: a large one is counted, sent in pieces, and
    refused with 503 while there is no room for it. Other answers pass as they are."""

    def __init__(self, send: Send, scope: Scope, answers: Answers) -> None:
        self._send = send
        self._scope = scope
        self._answers = answers
        self._start: Message | None = None
        self._pace: Pace | None = None
        self._refused = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if any(name == b"content-length" for name, _ in message.get("headers", ())):
                self._start = message  # its body says whether there is room for it
                self._pace = Pace(self._send, wire_of(self._scope), self._answers)
            else:
                await self._send(message)
        elif self._pace is None:
            await self._send(message)
        elif not self._refused:
            await self._body(self._pace, message)

    async def _body(self, pace: Pace, message: Message) -> None:
        body = message.get("body", b"")
        size = len(body)
        if size <= SMALL_BYTES:
            await self._begin(pace)
            await (pace.message if message.get("more_body") else pace.end)(message, size)
            return
        try:
            with self._answers.counted(size, self._scope):
                await self._begin(pace)
                await pace.body(body)
                await pace.end({**message, "body": b""}, 0)
        except Problem as problem:
            self._refused = True
            await respond(problem)(self._scope, _nothing, self._send)

    async def _begin(self, pace: Pace) -> None:
        if self._start is not None:
            start, self._start = self._start, None
            await pace.message(start, 0)


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


class StreamedResponse(Response):
    """An answer that is made piece by piece, each when the client has taken those before.

    One of up to `SMALL_BYTES` is an ordinary response. A larger one is counted once so much of it
    is made, and is 503 where there is no room for it. A `Problem` that is raised for the first
    pieces is answered as such; a later one cuts the answer off, so that nobody takes it for whole.
    When the client leaves, `pieces` is cancelled.
    """

    def __init__(
        self,
        pieces: AsyncGenerator[bytes, None],
        answers: Answers,
        headers: Mapping[str, str],
        media_type: str,
    ) -> None:
        super().__init__(None, 200, headers, media_type)
        del self.headers["content-length"]
        self._pieces = pieces
        self._answers = answers
        self._begun: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request; for HEAD with what is known after the first pieces."""
        headless = scope["method"] == "HEAD"
        pace = Pace(send, wire_of(scope), self._answers)
        last: Message = {"type": "http.response.body", "body": b""}
        with ExitStack() as room:
            try:
                async with attended(receive), aclosing(self._pieces):
                    if not await self._begin():
                        body = b"".join(self._begun)
                        self.headers["content-length"] = str(len(body))
                        last["body"] = b"" if headless else body
                        await send(self._head())
                    elif headless:
                        await send(self._head())
                    else:
                        room.enter_context(self._answers.counted(STREAM_BYTES, scope))
                        if not await self._stream(pace):
                            return
            except ClientLeftError:
                return
            await pace.end(last, len(last["body"]))

    def _head(self) -> Message:
        return {"type": "http.response.start", "status": 200, "headers": self.raw_headers}

    async def _begin(self) -> bool:
        """Has the first pieces made; True where there may be more."""
        size = 0
        async for piece in self._pieces:
            self._begun.append(piece)
            size += len(piece)
            if size > SMALL_BYTES:
                return True
        return False

    async def _stream(self, pace: Pace) -> bool:
        """Sends all but the end; False where the answer was cut off."""
        await pace.message(self._head(), 0)
        while self._begun:
            if not await pace.body(self._begun.pop(0)):
                return False
        try:
            async for piece in self._pieces:
                if not await pace.body(piece):
                    return False
        except Problem as problem:
            log.warning("an answer is cut off: %s", problem.detail)
            await pace.give_up()
            return False
        return True
