"""Reading a request's body: in pieces, unpacked in steps, refused once it is too large."""

import asyncio
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from logpipe.collector.inflight import Held
from logpipe.problems import Problem

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

STEP_BYTES = 64 * 1024
"""Unpacked at a time: all that a bomb can take before its size is noticed."""

PACKED_STEP_BYTES = 16 * 1024
"""Given to the unpacker at a time: what is left behind each of many tiny members is copied."""

ZSTD_WINDOW_LOG = 23
"""A frame may ask for a window of 8 MiB, which RFC 8878 (3.1.1.1.2) wants every decoder to have;
more would let a few bytes claim memory."""

MAX_FRAMES = 4096
"""Frames of zstd, members of gzip or streams of deflate that one body may have, empty ones and
those that are to be skipped among them. Each takes 10 us, whatever is in it (measured)."""

FIRST_STEP_S = 0.0003
STEP_S = 0.003
"""How long a body is unpacked without a pause: at first, and once it has waited for its turn among
the others. One more piece may go on for a millisecond."""

JOINED_BYTES = 1024 * 1024
"""More is put together in a thread: a copy of 16 MiB takes several milliseconds, for which Python
holds no lock."""

PIECE_OVERHEAD = 64
"""What a piece of a body takes besides its bytes, until they are put together."""

DRAIN_S = 2.0
DRAIN_BYTES = 256 * 1024 * 1024
"""After an early refusal the rest of the body is read and thrown away, for this long and this
much: a connection that is closed on unread data is reset, and the client never sees the answer."""


DAMAGED = (zlib.error, zstd.ZstdError)
"""What unpackers raise for what they cannot read."""


class FrameBudget:
    """How many frames may follow the first ones of what a request has packed."""

    def __init__(self) -> None:
        self._left = MAX_FRAMES - 1

    def spend(self) -> None:
        """Counts one more. Raises a 413 `Problem` for one too many."""
        self._left -= 1
        if self._left < 0:
            raise Problem(
                413,
                f"The compressed data has over {MAX_FRAMES} frames or members: compress it as one.",
                hits={"body_frames": 1},
            )


class Unpacker(Protocol):
    """One content coding."""

    @property
    def complete(self) -> bool: ...
    def feed(self, data: bytes) -> Iterator[bytes]: ...


class _Zlib:
    """gzip, also of several members, and deflate."""

    def __init__(self, wbits: int, frames: FrameBudget) -> None:
        self._wbits = wbits
        self._frames = frames
        self._inner = zlib.decompressobj(wbits)

    @property
    def complete(self) -> bool:
        return self._inner.eof

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What `data` unpacks to, at most STEP_BYTES at a time."""
        while True:
            if self._inner.eof and data:
                self._frames.spend()
                self._inner = zlib.decompressobj(self._wbits)
            piece = self._inner.decompress(data, STEP_BYTES)
            yield piece
            data = self._inner.unconsumed_tail or self._inner.unused_data
            # A full piece may have more behind it in zlib's own state, without further input.
            if not data and (len(piece) < STEP_BYTES or self._inner.eof):
                return


class _Deflate(_Zlib):
    """`deflate` is zlib's format by the standard, and without its header from some clients."""

    def __init__(self, frames: FrameBudget) -> None:
        super().__init__(zlib.MAX_WBITS, frames)
        self._begun = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """As `_Zlib.feed`; the first byte tells which of the two it is (RFC 1950, 2.2)."""
        if not self._begun and data:
            self._begun = True
            if data[0] & 0x0F != zlib.DEFLATED:
                super().__init__(-zlib.MAX_WBITS, self._frames)
        return super().feed(data)


class _Zstd:
    """zstd, also of several frames."""

    def __init__(self, frames: FrameBudget) -> None:
        self._frames = frames
        self._inner = self._new()

    @staticmethod
    def _new() -> zstd.ZstdDecompressor:
        limit: dict[int, int] = {zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG}
        return zstd.ZstdDecompressor(options=limit)

    @property
    def complete(self) -> bool:
        return self._inner.eof

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What `data` unpacks to, at most STEP_BYTES at a time."""
        while True:
            if self._inner.eof:
                if not data:
                    return
                self._frames.spend()
                self._inner = self._new()
            yield self._inner.decompress(data, STEP_BYTES)
            data = self._inner.unused_data
            if not data and (self._inner.needs_input or self._inner.eof):
                return


UNPACKERS: dict[str, Callable[[FrameBudget], Unpacker]] = {
    "gzip": lambda frames: _Zlib(16 + zlib.MAX_WBITS, frames),
    "x-gzip": lambda frames: _Zlib(16 + zlib.MAX_WBITS, frames),
    "deflate": _Deflate,
    "zstd": _Zstd,
}


class _Step:
    """The time that a body is unpacked without a pause.

    Its first is short and taken at once, as most bodies need no other. For each further one it has
    the process's one seat, in order of arrival, so that many large bodies delay the event loop no
    longer than one does.
    """

    def __init__(self, seat: asyncio.Lock) -> None:
        self._seat = seat
        self._seated = False
        self._ends = time.monotonic() + FIRST_STEP_S

    @property
    def over(self) -> bool:
        return time.monotonic() > self._ends

    async def begin_next(self) -> None:
        """Returns when it is this body's turn again."""
        self.end()
        await self._seat.acquire()
        self._seated = True
        await asyncio.sleep(0)  # within the seat: else all could have a step before the loop turns
        self._ends = time.monotonic() + STEP_S

    def end(self) -> None:
        """Gives the seat back."""
        if self._seated:
            self._seated = False
            self._seat.release()


class _Pieces:
    """A body as it comes, unpacked: at most `limit` bytes, which `held` counts."""

    def __init__(self, limit: int, held: Held) -> None:
        self._limit = limit
        self._held = held
        self._pieces: list[bytes] = []
        self._size = 0
        self._stepped = False

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def add(self, piece: bytes) -> None:
        """Takes the next bytes. Raises a 413 or 503 `Problem`."""
        self._size += len(piece)
        if self._size > self._limit:
            raise too_large(self._limit)
        if piece:
            self._held.add(len(piece) + PIECE_OVERHEAD)
            self._pieces.append(piece)

    async def unpack(self, unpacker: Unpacker, data: bytes) -> None:
        """Takes what `data` unpacks to, in steps. Raises as `add`, and `DAMAGED`."""
        step = _Step(self._held.seat)
        try:
            if self._stepped:  # the first step is for what came first
                await step.begin_next()
            self._stepped = True
            for at in range(0, len(data), PACKED_STEP_BYTES):
                for piece in unpacker.feed(data[at : at + PACKED_STEP_BYTES]):
                    self.add(piece)
                    if step.over:
                        await step.begin_next()
        finally:
            step.end()

    async def joined(self) -> bytes:
        """All of it; nothing is left here."""
        pieces, self._pieces = self._pieces, []
        if len(pieces) == 1:
            return pieces[0]
        if self._size <= JOINED_BYTES:
            return b"".join(pieces)
        return await asyncio.to_thread(b"".join, pieces)


async def read_body(receive: Receive, encoding: str, length: str, limit: int, held: Held) -> bytes:
    """The whole body, unpacked: at most `limit` bytes, which `held` counts as they come.

    `encoding` and `length` are the values of Content-Encoding and Content-Length, empty for none.
    Raises a `Problem` (413 too large or too many frames, 415 unknown coding, 400 damaged, 503 no
    room for it now) and ClientDisconnect, which is also the end of one that comes too slowly
    (`protocol.BODY_S`). While it is unpacked everything else has its turns.
    """
    coding = encoding.strip().lower()
    announced = int(length[:20]) if length.isascii() and length.isdigit() else 0
    if coding in ("", "identity"):
        if announced > limit:
            raise too_large(limit)
        held.require(announced)
        return await _collect(receive, None, limit, held)
    if coding not in UNPACKERS:
        raise Problem(
            415,
            f"Content-Encoding {coding[:64]!r} is not one of {', '.join(UNPACKERS)}.",
            headers={"Accept-Encoding": ", ".join(UNPACKERS)},
        )
    try:
        return await _collect(receive, UNPACKERS[coding](FrameBudget()), limit, held)
    except DAMAGED as error:
        raise Problem(400, f"The body is not {coding}: {error}") from None


async def unpacked(data: bytes, coding: str, limit: int, held: Held) -> bytes:
    """A body that has come, unpacked by one of `UNPACKERS`; `limit`, `held` and problems as of
    `read_body`."""
    unpacker = UNPACKERS[coding](FrameBudget())
    pieces = _Pieces(limit, held)
    try:
        await pieces.unpack(unpacker, data)
    except DAMAGED as error:
        raise Problem(400, f"The data is not {coding}: {error}") from None
    if not unpacker.complete:
        raise Problem(400, f"The data is not {coding}: it ends too early.")
    return await pieces.joined()


async def _collect(receive: Receive, unpacker: Unpacker | None, limit: int, held: Held) -> bytes:
    pieces = _Pieces(limit, held)
    packed = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        data: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        held.complete = not more
        if not (more or pieces or unpacker) and len(data) <= limit:
            return data  # as most do, it came whole and in one piece
        packed += len(data)
        if packed > limit + limit // 16 + STEP_BYTES:
            # Packing adds less than that to any data: this is empty blocks without end.
            raise too_large(limit)
        if unpacker is None:
            pieces.add(data)
        else:
            await pieces.unpack(unpacker, data)
    if unpacker is not None and not unpacker.complete:
        raise Problem(400, "The body ends in the middle of its compressed data.")
    return await pieces.joined()


def too_large(limit: int) -> Problem:
    """The 413 of a body over MAX_BODY_BYTES."""
    return Problem(
        413, f"The body is over {limit} bytes (MAX_BODY_BYTES).", hits={"body": 1}, limit=limit
    )


async def drain(receive: Receive) -> None:
    """Throws away what still comes of a refused body, within bounds."""
    seen = 0
    try:
        async with asyncio.timeout(DRAIN_S):
            while seen < DRAIN_BYTES:
                message = await receive()
                seen += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return
