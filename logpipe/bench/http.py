"""Connections of a benchmark: plain sockets, and of HTTP only what it needs to see."""

import contextlib
import re
import socket
import ssl
import time
from typing import NamedTuple

CONNECT_S = 10.0
PING = b"PING\r\n"

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_SIZE = re.compile(rb"([0-9a-fA-F]+) *(;.*)?", re.DOTALL)


class Address(NamedTuple):
    """Where a server listens, and what is said first on a connection to it."""

    host: str
    port: int
    tls: bool = False
    greeting: bytes = b""


class BrokenError(Exception):
    """The server has closed a connection, or has answered what is not understood."""


def connect(address: Address) -> socket.socket:
    """A connection, blocking, with its greeting sent. Raises OSError."""
    plain = socket.create_connection((address.host, address.port), CONNECT_S)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock = plain
    if address.tls:
        sock = ssl.create_default_context().wrap_socket(plain, server_hostname=address.host)
    if address.greeting:
        sock.sendall(address.greeting)
    return sock


class Answer(NamedTuple):
    """A response: its status and its body."""

    status: int
    body: bytes


class Answers:
    """Takes bytes as they come and gives the responses that are whole."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Answer | None:
        """The response that `data` completes. Raises `BrokenError`."""
        rest = self._rest = self._rest + data if self._rest else data
        end = rest.find(b"\r\n\r\n")
        if end < 0:
            return None
        if not rest.startswith(b"HTTP/1.") or not rest[9:12].isdigit():
            raise BrokenError(f"not HTTP: {rest[:60]!r}")
        found = _LENGTH.search(rest, 0, end)
        if found is None and rest[9:12] != b"204":
            raise BrokenError("an answer without Content-Length")
        size = end + 4 + (int(found[1]) if found else 0)
        if len(rest) < size:
            return None
        self._rest = rest[size:]
        return Answer(int(rest[9:12]), rest[end + 4 : size])


class Body:
    """The body of an endless response, out of its head and its chunks."""

    def __init__(self, *, http: bool = True) -> None:
        self.begun = not http
        self._http = http
        self._head = b""
        self._chunked = False
        self._left = 0  # of the chunk that has begun, its line end included
        self._size = b""  # of the next chunk, as far as its line has come

    def feed(self, data: memoryview) -> list[memoryview]:
        """The pieces of the body in `data`. Raises `BrokenError` for a status but 200."""
        if not self.begun:
            data = self._read_head(data)
        if not self._chunked:
            return self._without_pings(data)
        pieces: list[memoryview] = []
        while data:
            if self._left == 0:
                data = self._read_size(data)
            elif self._left > 2:
                piece = data[: self._left - 2]
                pieces.append(piece)
                self._left -= len(piece)
                data = data[len(piece) :]
            else:
                taken = min(self._left, len(data))
                self._left -= taken
                data = data[taken:]
        return pieces

    def _without_pings(self, data: memoryview) -> list[memoryview]:
        """All of it, but for what a broker that is no HTTP server asks each client in turn."""
        at = -1 if self._http else bytes(data).find(PING)
        if at < 0:
            return [data] if data else []
        return [piece for piece in (data[:at], data[at + len(PING) :]) if piece]

    def _read_head(self, data: memoryview) -> memoryview:
        before = len(self._head)
        self._head += bytes(data)
        end = self._head.find(b"\r\n\r\n")
        if end < 0:
            return data[:0]
        if not self._head.startswith((b"HTTP/1.1 200", b"HTTP/1.0 200")):
            raise BrokenError(self._head[:200].split(b"\r\n")[0].decode("latin-1"))
        self.begun = True
        self._chunked = _CHUNKED.search(self._head, 0, end) is not None
        return data[end + 4 - before :]

    def _read_size(self, data: memoryview) -> memoryview:
        window = self._size + bytes(data[:20])
        end = window.find(b"\r\n")
        if end < 0:
            self._size = window
            return data[20:]
        line = _SIZE.fullmatch(window, 0, end)
        if line is None:
            raise BrokenError(f"not a chunk: {window[:end]!r}")
        size = int(line[1], 16)
        if size == 0:
            raise BrokenError("the server has ended the stream")
        self._left = size + 2
        taken = end + 2 - len(self._size)
        self._size = b""
        return data[taken:]


def get(address: Address, path: str, headers: str = "", timeout: float = 10.0) -> Answer:
    """One GET on a connection of its own, whose end is the end of the answer.

    Raises OSError and `BrokenError`.
    """
    deadline = time.monotonic() + timeout
    with contextlib.closing(connect(address)) as sock:
        sock.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {address.host}\r\n".encode()
            + f"{headers}Connection: close\r\n\r\n".encode()
        )
        answers = Answers()
        while True:
            sock.settimeout(max(0.01, deadline - time.monotonic()))
            data = sock.recv(1 << 18)
            if not data:
                raise BrokenError("closed before its answer was whole")
            if (answer := answers.feed(data)) is not None:
                return answer
