"""One connection to a collector, by `http.client`; a request and what its answer means."""

import contextlib
import gzip
import http.client
import json
import os
import socket
import ssl
import time
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from logpipe.handler.retry import asks_to_retry, retry_after_s

IDLE_S = 3.0
"""An idle connection is not used again after this time: servers close theirs after 5 s."""

GZIP_BYTES = 1_024
"""Smaller bodies are sent as they are."""

MAX_ANSWER_BYTES = 1024 * 1024
"""More of an answer is not read."""

MAX_RETRY_AFTER_S = 300.0
"""The longest wait that a server may ask for."""

ANSWERED_EARLY = (BrokenPipeError, ConnectionResetError)


class Answer(NamedTuple):
    """The status, the seconds of Retry-After, how many events of a 202 were refused, and why."""

    status: int
    retry_after: float | None = None
    rejected: int = 0
    detail: str = ""

    @property
    def stored(self) -> bool:
        """The collector has the batch, but for `rejected` events."""
        return 200 <= self.status < 300

    @property
    def transient(self) -> bool:
        """Whether the same batch may be accepted later."""
        return asks_to_retry(self.status) and self.status != 501


class Transport:
    """POSTs batches to the collector at `url`, on a connection that is kept.

    `timeout` bounds each step of a request (connect, send, receive), in seconds. Raises ValueError
    for a URL that is not http(s) or a token that is no header's value.
    """

    def __init__(
        self, url: str, token: str | None, timeout: float, context: ssl.SSLContext | None
    ) -> None:
        self._host, self._port, self._tls, path = _address(url)
        if token and not (token.isascii() and token.isprintable()):
            raise ValueError("the token has characters that no header can hold")
        # Asked of the codec here, too, because the first to use it imports it: a fork while the
        # thread is in there would leave the child without that import's lock for ever.
        self._host.encode("idna")
        self._path = path if path.endswith("/ingest") else f"{path}/ingest"
        self._token = token
        self.timeout = timeout
        self._context = context
        self._connection: http.client.HTTPConnection | None = None
        self._used = 0.0

    def post(self, body: bytes, key: str) -> Answer:
        """Sends NDJSON and reads the answer. Raises OSError and http.client.HTTPException."""
        headers = self._headers(key)
        if len(body) >= GZIP_BYTES:
            body = gzip.compress(body, compresslevel=1, mtime=0)
            headers["Content-Encoding"] = "gzip"
        connection = self._connected()
        try:
            with contextlib.suppress(*ANSWERED_EARLY):
                connection.request("POST", self._path, body, headers)
            response = connection.getresponse()
            content = response.read(MAX_ANSWER_BYTES)
        except BaseException:
            self.close()
            raise
        if not response.isclosed() or not 200 <= response.status < 300:
            self.close()  # there is more to read, or the body may not have been read to its end
        self._used = time.monotonic()
        return answer_of(response.status, response.headers.get("Retry-After"), content)

    def _headers(self, key: str) -> dict[str, str]:
        headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": key}
        headers["User-Agent"] = "logpipe-handler"
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        return headers

    def _connected(self) -> http.client.HTTPConnection:
        if self._connection is not None and time.monotonic() - self._used > IDLE_S:
            self.close()
        if self._connection is None:
            self._connection = self._opened()
        return self._connection

    def _opened(self) -> http.client.HTTPConnection:
        if not self._tls:
            return http.client.HTTPConnection(self._host, self._port, timeout=self.timeout)
        self._context = self._context or ssl.create_default_context()
        return http.client.HTTPSConnection(
            self._host, self._port, timeout=self.timeout, context=self._context
        )

    def close(self) -> None:
        """Closes the connection; the next request opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def abort(self) -> None:
        """Ends a request that another thread waits in: its `post` raises."""
        if (sock := self._socket()) is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # not TLS's own, which waits

    def forget(self) -> None:
        """Closes what a forked process has inherited, so that the parent notices nothing.

        Nothing but the descriptor is touched: another thread may have held any lock at the fork.
        """
        if (sock := self._socket()) is not None:
            with contextlib.suppress(OSError):
                os.close(sock.detach())

    def _socket(self) -> socket.socket | None:
        connection = self._connection
        return None if connection is None else connection.sock


def _address(url: str) -> tuple[str, int | None, bool, str]:
    """Host, port, whether it is https, and path. Raises ValueError, in words without a password."""
    with contextlib.suppress(ValueError):  # urllib's own words may
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc:
            return parts.hostname, parts.port, parts.scheme == "https", parts.path.rstrip("/")
    shown = "the URL" if "@" in url else repr(url)
    raise ValueError(f"{shown} is no collector's address: http[s]://HOST[:PORT][/PATH]")


def answer_of(status: int, retry_after: str | None, content: bytes) -> Answer:
    """What an answer says, of logpipe or of a proxy before it."""
    document: Any = None
    with contextlib.suppress(ValueError, RecursionError):
        document = json.loads(content)
    if not isinstance(document, dict):
        document = {}
    errors = document.get("errors")
    first = errors[0] if isinstance(errors, list) and errors else None
    detail = document.get("detail") or (first.get("error") if isinstance(first, dict) else "")
    rejected = document.get("rejected")
    asked = retry_after_s(retry_after, time.time())
    return Answer(
        status,
        None if asked is None else min(asked, MAX_RETRY_AFTER_S),
        rejected if isinstance(rejected, int) else 0,
        str(detail)[:200],
    )
