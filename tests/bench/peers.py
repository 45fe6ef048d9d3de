"""The servers that logpipe's speed is compared with, each started on 127.0.0.1 for a while.

All inherit the caller's limit of open files, which many subscribers need raised, except nginx,
which raises its own.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.raw import request
from tests.servers import Valkey, free_port

ROOT = Path(__file__).parents[2]
NCHAN_MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
"""Where Debian's libnginx-mod-nchan puts it."""
START_S = 10.0
"""How long a server has until it answers."""
SBIN = "/usr/local/sbin:/usr/sbin"
"""Where Debian keeps servers, which not every user's PATH names."""
CEILING = "bench:ceiling"


class Peer(NamedTuple):
    """A server to measure, on 127.0.0.1, as bytes on the wire.

    `pids` are its processes, for CPU seconds and resident memory. `single` makes the request that
    sends one event's JSON, `batch` the one that sends many, None where there is no such thing; each
    gets one HTTP response if `answers`, and else none. `greeting` is what a publisher and a
    subscriber send first on a connection. `subscribe` is what a subscriber sends to get the live
    stream, None where there is none.
    """

    name: str
    port: int
    pids: tuple[int, ...]
    single: Callable[[bytes], bytes]
    batch: Callable[[Sequence[bytes]], bytes] | None
    greeting: bytes
    answers: bool
    subscribe: bytes | None


def have_nchan() -> bool:
    """Whether nginx and its module nchan are installed."""
    return _binary("nginx") is not None and NCHAN_MODULE.exists()


def have_nats() -> bool:
    """Whether nats-server is installed."""
    return _binary("nats-server") is not None


def have_redis_benchmark() -> bool:
    """Whether redis-benchmark is installed."""
    return _binary("redis-benchmark") is not None


@contextlib.contextmanager
def bare() -> Iterator[Peer]:
    """`tests.bench.bare`, which keeps nothing: what uvicorn itself can take."""
    port = free_port()
    command = [sys.executable, "-m", "tests.bench.bare", "--port", str(port)]
    with _folder() as folder, _started("bare", command, folder) as process:
        process.wait_for(port, _get("/"), b"HTTP/1.1 202")
        yield Peer("bare", port, process.pids(), _single, None, b"", True, None)


@contextlib.contextmanager
def baseline(valkey: Valkey) -> Iterator[Peer]:
    """`tests.bench.baseline` on this Valkey, where it leaves its stream."""
    port = free_port()
    command = [sys.executable, "-m", "tests.bench.baseline", "--port", str(port)]
    command += ["--redis", str(valkey.socket)]
    subscribe = _get("/subscribe")
    with _folder() as folder, _started("baseline", command, folder) as process:
        process.wait_for(port, _get("/"), b"HTTP/1.1 404")
        yield Peer("baseline", port, process.pids(), _single, _batch, b"", True, subscribe)


@contextlib.contextmanager
def nchan() -> Iterator[Peer]:
    """nginx with nchan, one worker, its messages in a Valkey of its own.

    That listens on TCP: nchan takes a path for a unix socket, but then its worker aborts for ever.
    A subscriber's response has neither length nor chunks: its events are bare on the connection,
    after a first comment `: hi`. A publisher's status is 201 or 202. There are no batches.
    """
    port, redis_port = free_port(), free_port()
    options = ["--save", "", "--port", str(redis_port), "--bind", "127.0.0.1"]
    with _folder() as folder, Valkey.started(*options) as valkey:
        config = folder / "nginx.conf"
        config.write_text(_nginx_conf(folder, port, redis_port))
        command = [_needed("nginx"), "-p", str(folder), "-c", str(config), "-e", "stderr"]
        with _started("nchan", command, folder) as process:
            # On a channel of its own, and not on a subscriber's: 503 until Redis is connected.
            process.wait_for(port, _publish(b"ready", "ready"), b"HTTP/1.1 20")
            if not valkey.client.keys("*ready*"):
                raise RuntimeError("nchan keeps messages to itself instead of in Redis")
            subscribe = _get("/sub?id=bench")
            _warm_up(port, subscribe)
            yield Peer("nchan", port, process.pids(), _publish, None, b"", True, subscribe)


@contextlib.contextmanager
def nats() -> Iterator[Peer]:
    """nats-server, which keeps nothing and answers a publisher nothing.

    Each connection begins with its line INFO. About two seconds later comes one PING, which may
    stay unanswered, and must be told apart from messages; the next one is a day away. A publisher
    that wants to know when all has been taken sends `PING` itself and waits for `PONG`.
    """
    port = free_port()
    with _folder() as folder:
        config = folder / "nats.conf"
        # By itself it closes after three PINGs without an answer, two minutes apart.
        config.write_text(f'listen: "127.0.0.1:{port}"\nping_interval: "24h"\n')
        greeting = b'CONNECT {"verbose":false}\r\n'
        command = [_needed("nats-server"), "-c", str(config)]
        with _started("nats", command, folder) as process:
            process.wait_for(port, greeting + b"PING\r\n", b"PONG")
            subscribe = b"SUB bench 1\r\n"
            yield Peer("nats", port, process.pids(), _pub, _pubs, greeting, False, subscribe)


def redis_benchmark(
    valkey: Valkey, *, clients: int, pipeline: int, requests: int, payload: int
) -> float:
    """XADDs a second that this Valkey takes from redis-benchmark, over its unix socket.

    `pipeline` commands go out together, on each of `clients` connections, `requests` in all; an
    event is JSON of `payload` bytes, but at least of about 40. Raises RuntimeError when
    redis-benchmark is missing or fails.
    """
    filling = "x" * (payload - len(json.dumps(_event(""))))
    text = json.dumps(_event(filling))
    command = [_needed("redis-benchmark"), "-s", str(valkey.socket), "--csv"]
    command += ["-c", str(clients), "-P", str(pipeline), "-n", str(requests)]
    command += ["XADD", CEILING, "MAXLEN", "~", "50000", "*", "event", text]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        valkey.client.delete(CEILING)
    with contextlib.suppress(IndexError, ValueError):
        # The command with its own quotes and commas, then seven numbers, of which this is the
        # first.
        return float(done.stdout.splitlines()[-1].rsplit(",", 7)[1].strip('"'))
    raise RuntimeError(f"redis-benchmark has ended with {done.returncode}: {done.stderr}")


class _Process:
    """A server's process, and those that it starts, which are its group."""

    def __init__(self, name: str, popen: subprocess.Popen[bytes], log: Path) -> None:
        self._name = name
        self._popen = popen
        self._log = log

    def wait_for(self, port: int, sent: bytes, expected: bytes) -> None:
        """Returns when it has answered `expected` to `sent`. Raises RuntimeError with its log."""
        deadline = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError):
                if expected in _exchange(port, sent, expected):
                    return
            if self._popen.poll() is not None:
                raise RuntimeError(f"{self._name} has ended: {self._log.read_text()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self._name} does not answer: {self._log.read_text()}")
            time.sleep(0.02)

    def pids(self) -> tuple[int, ...]:
        """The process itself, then its children."""
        pid = self._popen.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        return pid, *map(int, children.split())

    def kill(self) -> None:
        """Ends them all by SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait(10)


@contextlib.contextmanager
def _started(name: str, command: Sequence[str], folder: Path) -> Iterator[_Process]:
    log = folder / "log"
    with log.open("ab") as out:
        popen = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, process_group=0)
    process = _Process(name, popen, log)
    try:
        yield process
    finally:
        process.kill()


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="logpipe-bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _exchange(port: int, sent: bytes, expected: bytes) -> bytes:
    """What comes back until `expected` is in it, the server closes, or for a second nothing."""
    got = b""
    with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
        connection.sendall(sent)
        while expected not in got and (data := connection.recv(65_536)):
            got += data
    return got


def _warm_up(port: int, subscribe: bytes) -> None:
    """Publishes to nchan until a subscriber has got something. Raises RuntimeError.

    nchan answers a channel's first subscriber before it has itself subscribed in Redis; what is
    published in between, that subscriber never gets. Later ones get all.
    """
    deadline = time.monotonic() + START_S
    got = b""
    with socket.create_connection(("127.0.0.1", port), timeout=0.05) as connection:
        connection.sendall(subscribe)
        while b"\ndata: " not in got:
            if time.monotonic() > deadline:
                raise RuntimeError("nchan's subscriber gets nothing")
            _exchange(port, _publish(b"warm up"), b"HTTP/1.1 20")
            with contextlib.suppress(TimeoutError):
                got += connection.recv(65_536)


def _binary(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path=SBIN)


def _needed(name: str) -> str:
    if (path := _binary(name)) is None:
        raise RuntimeError(f"{name} is not installed")
    return path


def _event(message: str) -> dict[str, str]:
    return {"source": "bench", "message": message}


def _get(target: str) -> bytes:
    start = f"GET {target} HTTP/1.1"
    return f"{start}\r\nHost: bench\r\nAccept: text/event-stream\r\n\r\n".encode()


def _single(event: bytes) -> bytes:
    return request(event, "Content-Type: application/json")


def _batch(events: Sequence[bytes]) -> bytes:
    return _single(b"[" + b",".join(events) + b"]")


def _publish(event: bytes, channel: str = "bench") -> bytes:
    return request(event, start=f"POST /pub?id={channel} HTTP/1.1")


def _pub(event: bytes) -> bytes:
    return b"PUB bench %d\r\n%b\r\n" % (len(event), event)


def _pubs(events: Sequence[bytes]) -> bytes:
    return b"".join(map(_pub, events))


def _nginx_conf(folder: Path, port: int, redis_port: int) -> str:
    # The temporary folder is private to this user, and so the worker must be this user, too.
    user = "user root;" if os.geteuid() == 0 else ""
    paths = "\n".join(
        f"  {name}_temp_path {folder}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""\
load_module {NCHAN_MODULE};
daemon off;
{user}
worker_processes 1;
worker_rlimit_nofile 20000;
pid {folder}/nginx.pid;
error_log stderr;
events {{ worker_connections 20000; }}
http {{
{paths}
  access_log off;
  # A publisher keeps its connection, as with the other peers; the default closes after 1000.
  keepalive_requests 1000000000;
  client_body_buffer_size 1m;
  nchan_shared_memory_size 256m;
  upstream store {{ nchan_redis_server redis://127.0.0.1:{redis_port}; }}
  server {{
    listen 127.0.0.1:{port} backlog=2048;
    nchan_channel_id $arg_id;
    # Here nchan_redis_pass would do nothing and say nothing: a location does not inherit it.
    location = /pub {{
      nchan_redis_pass store;
      nchan_publisher;
      nchan_message_buffer_length 50000;
      nchan_message_timeout 10m;
    }}
    location = /sub {{
      nchan_redis_pass store;
      nchan_subscriber eventsource;
      nchan_subscriber_first_message newest;
    }}
  }}
}}
"""
