"""A collector of few words: it answers each POST as its script says, and keeps what it got."""

import gzip
import json
import socket
import ssl
import struct
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

RESET = 0
"""Instead of a status: the connection is reset, without an answer."""

HANG = -1
"""Instead of a status: there is no answer until the server ends."""


class Step(NamedTuple):
    """One answer."""

    status: int = 202
    headers: Mapping[str, str] = {}
    body: bytes = b'{"accepted": 1, "rejected": 0, "errors": []}'


class Post(NamedTuple):
    """One request, its body unpacked."""

    path: str
    headers: Mapping[str, str]
    events: list[dict[str, Any]]

    @property
    def key(self) -> str:
        return self.headers["Idempotency-Key"]


class _Requests(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Content-Encoding"] == "gzip":
            body = gzip.decompress(body)
        events = [json.loads(line) for line in body.splitlines()]
        step = self.server.owner.next(Post(self.path, dict(self.headers), events))
        if step.status == RESET:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return
        if step.status == HANG:
            self.server.owner.ended.wait(30)
            self.close_connection = True
            return
        self.send_response(step.status)
        for name, value in {"Content-Length": str(len(step.body)), **step.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(step.body)

    def log_message(self, *_: object) -> None:
        """It keeps no log."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    owner: "Scripted"

    def handle_error(self, *_: object) -> None:
        """A client that leaves is nothing to talk about."""

    def shutdown_request(self, request: Any) -> None:
        """Without the FIN that would come before a reset."""
        request.close()


class Scripted:
    """Gives each POST the next of its steps, the last one for ever."""

    def __init__(self, *steps: Step, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.posts: list[Post] = []
        self.ended = threading.Event()
        self._steps = list(steps or [Step()])
        self._lock = threading.Lock()
        self._port = port
        self._tls = tls

    def next(self, post: Post) -> Step:
        """Keeps the request; the answer to it."""
        with self._lock:
            self.posts.append(post)
            return self._steps.pop(0) if len(self._steps) > 1 else self._steps[0]

    def then(self, *steps: Step) -> None:
        """What it answers from now on."""
        with self._lock:
            self._steps = list(steps)

    @property
    def messages(self) -> list[str]:
        """The messages of all events that it got, in order."""
        return [event["message"] for post in list(self.posts) for event in post.events]

    def __enter__(self) -> "Scripted":
        self._server = _Server(("127.0.0.1", self._port), _Requests)
        self._server.owner = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        if self._tls is not None:
            self._server.socket = self._tls.wrap_socket(self._server.socket, server_side=True)
            self.url = f"https://localhost:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}
        )
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()
