"""Crowds of subscribers: what they count, and what they make of a server that misbehaves."""

import contextlib
import itertools
import multiprocessing
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from logpipe.bench import readers
from logpipe.bench.events import Template
from logpipe.bench.http import Address
from logpipe.bench.readers import Crowd, Read, reading
from tests.servers import free_port

RUN = "0123abcd"
STREAM = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
REFUSAL = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"
REQUEST = b"GET /subscribe HTTP/1.1\r\n\r\n"
IN_TIME_S = 5
"""Far above what is needed, and far below what a reader waits for at the most."""


def chunk(text: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(text), text)


def event(number: int, id_: int | None = None) -> bytes:
    """An event as a chunk of a subscription; `id_` is what differs between subscriptions."""
    template = Template(RUN, b"".join, size=120)
    data = template.request(number, time.time_ns() // 1000)
    return chunk(b"id: %d\ndata: %b\n\n" % (number if id_ is None else id_, data))


def events(*numbers: int) -> bytes:
    return b"".join(event(number) for number in numbers)


class Stage:
    """A server whose streams the test writes by itself; `answer` begins each, by its number."""

    def __init__(
        self, answer: Callable[[int], bytes | None], tls: ssl.SSLContext | None = None
    ) -> None:
        self.requests: list[bytes] = []
        self.streams: list[socket.socket] = []
        self._answer = answer
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.address = Address("127.0.0.1", self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        for number in itertools.count():
            try:
                stream, _ = self._listener.accept()
            except OSError:
                return
            if self._tls is not None:
                stream = self._tls.wrap_socket(stream, server_side=True)
            self.streams.append(stream)
            self.requests.append(stream.recv(65_536))
            answer = self._answer(number)
            if answer is None:
                stream.close()
            else:
                with contextlib.suppress(ConnectionError):
                    stream.sendall(answer)

    def send(self, data: bytes, *numbers: int) -> None:
        """Sends to the streams of these numbers, or to all."""
        for number in numbers or range(len(self.streams)):
            self.streams[number].sendall(data)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)
        for stream in self.streams:
            stream.close()


@contextlib.contextmanager
def stage(
    answer: Callable[[int], bytes | None] = lambda _: STREAM, tls: ssl.SSLContext | None = None
) -> Iterator[Stage]:
    with contextlib.closing(Stage(answer, tls)) as made:
        yield made


@contextlib.contextmanager
def crowd(
    address: Address, count: int, *, requests: tuple[bytes, ...] = (REQUEST,), http: bool = True
) -> Iterator[readers._Process]:
    """A crowd in this process."""
    process = readers._Process(Crowd(address, requests, RUN, count, http=http))
    try:
        yield process
    finally:
        for one in process._subscribers:
            one.sock.close()
        process._selector.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Greetings that come from this process need no long wait."""
    monkeypatch.setattr(readers, "QUIET_S", 0.02)


def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what is to come to nothing."""
    monkeypatch.setattr(readers, "SETTLE_S", 0.2)


def counts(read: Read) -> tuple[int, int, int]:
    return read.delivered, read.missing, read.doubled


# -- what is counted ---------------------------------------------------------------------------


def test_each_reader_is_connected_and_has_every_event() -> None:
    with stage() as server, crowd(server.address, 3) as process:
        connected = process.connect()
        assert (connected.connected, connected.broken) == (3, [])
        assert connected.connect_s > 0
        process.arm()
        sent = events(0, 1, 2, 3)
        server.send(sent)
        read = process.finish({0, 1, 2, 3})
    assert server.requests == [REQUEST] * 3
    assert counts(read) == (12, 0, 0)
    assert (read.connected, read.broken) == (3, [])
    assert read.received_bytes == 3 * len(sent)
    assert len(read.latency_ms) == 12
    assert all(0 <= each < IN_TIME_S * 1000 for each in read.latency_ms)
    assert read.cpu_s >= 0


def test_what_came_before_is_a_greeting_of_each_readers_own() -> None:
    with (
        stage(lambda number: STREAM + chunk(b"hello %d" % number)) as server,
        crowd(server.address, 2) as process,
    ):
        process.connect()
        process.arm()
        server.send(events(0))
        read = process.finish({0})
        assert not any(one.differs for one in process._subscribers)
    assert counts(read) == (2, 0, 0)
    assert read.received_bytes == 2 * len(events(0))


def test_events_that_one_reader_did_not_get_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch)
    with stage() as server, crowd(server.address, 3) as process:
        process.connect()
        process.arm()
        first, *_, last = (event(number) for number in range(4))
        server.send(first + events(1, 2) + last, 0)
        process.turn(1)
        server.send(first + last, 1)
        server.send(first, 2)
        read = process.finish({0, 1, 2, 3})
    assert counts(read) == (4 + 2 + 1, 2 + 3, 0)
    assert len(read.latency_ms) == 7


def test_events_that_one_reader_got_twice_are_doubled() -> None:
    with stage() as server, crowd(server.address, 2) as process:
        process.connect()
        process.arm()
        server.send(events(0, 1), 0)
        server.send(events(0, 1, 1), 1)
        read = process.finish({0, 1})
        assert [one.differs for one in process._subscribers].count(True) == 1
    assert counts(read) == (5, 0, 1)


def test_events_beyond_those_expected_are_delivered_all_the_same() -> None:
    with stage() as server, crowd(server.address, 2) as process:
        process.connect()
        process.arm()
        server.send(events(0, 1))
        read = process.finish({0, 1})
        assert counts(read) == (4, 0, 0)


def test_readers_take_turns_at_the_requests_and_each_has_its_own_reference() -> None:
    requests = (b"GET /a HTTP/1.1\r\n\r\n", b"GET /b HTTP/1.1\r\n\r\n")
    with stage() as server, crowd(server.address, 4, requests=requests) as process:
        process.connect()
        process.arm()
        for first, sent in enumerate(event(0, id_=n) + event(1, id_=n) for n in (5, 6)):
            server.send(sent, first, first + 2)
        read = process.finish({0, 1})
        assert not any(one.differs for one in process._subscribers)
    assert server.requests == [*requests, *requests]
    assert counts(read) == (8, 0, 0)


def test_only_some_readers_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "TIMED", 1)
    with stage() as server, crowd(server.address, 3) as process:
        process.connect()
        process.arm()
        server.send(events(0, 1))
        read = process.finish({0, 1})
    assert counts(read) == (6, 0, 0)
    assert len(read.latency_ms) == 2


def test_a_server_that_speaks_no_http_is_connected_without_a_head() -> None:
    with stage(lambda _: b"") as server, crowd(server.address, 2, http=False) as process:
        assert process.connect().connected == 2
        process.arm()
        server.send(b"MSG bench\r\n" + events(0))
        read = process.finish({0})
    assert counts(read) == (2, 0, 0)


def test_greetings_are_read_while_others_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "CONNECTING_AT_ONCE", 2)
    with stage() as server, crowd(server.address, 5) as process:
        assert process.connect().connected == 5
        process.arm()
        server.send(events(0))
        assert counts(process.finish({0})) == (5, 0, 0)


@pytest.fixture
def certified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """Of a server on localhost that this process trusts."""
    if shutil.which("openssl") is None:
        pytest.skip("NOT TESTED: https:// needs openssl")
    words = "req -x509 -newkey rsa:2048 -nodes -keyout key -out pem -subj /CN=localhost"
    name = ("-addext", "subjectAltName=DNS:localhost")
    subprocess.run(
        ["openssl", *words.split(), *name], cwd=tmp_path, check=True, capture_output=True
    )
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pem", tmp_path / "key")
    return context


def test_a_reader_over_tls_has_every_event(certified: ssl.SSLContext) -> None:
    with stage(tls=certified) as server:
        address = server.address._replace(host="localhost", tls=True)
        with crowd(address, 2) as process:
            assert process.connect().connected == 2
            process.arm()
            server.send(events(0, 1))
            read = process.finish({0, 1})
    assert counts(read) == (4, 0, 0)
    assert read.broken == []


# -- servers that misbehave --------------------------------------------------------------------


def test_a_closed_port_is_told_for_each_reader() -> None:
    with crowd(Address("127.0.0.1", free_port()), 2) as process:
        assert process.connect().connected == 0
        process.arm()
        read = process.finish({0})
    assert counts(read) == (0, 0, 0)
    assert len(read.broken) == 2
    assert all("refused" in reason for reason in read.broken)


def test_a_reader_that_is_refused_is_not_waited_for() -> None:
    with (
        stage(lambda number: REFUSAL if number else STREAM) as server,
        crowd(server.address, 2) as process,
    ):
        connected = process.connect()
        assert connected.connected == 1
        assert connected.connect_s < IN_TIME_S
        process.arm()
        server.send(events(0), 0)
        read = process.finish({0})
    assert counts(read) == (1, 1, 0)
    assert read.broken == ["HTTP/1.1 401 Unauthorized"]


def test_a_reader_that_is_never_answered_is_not_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch)
    with stage(lambda _: b"") as server, crowd(server.address, 1) as process:
        assert process.connect().connected == 0


def test_a_reader_whose_connection_closes_misses_the_rest_and_is_not_waited_for() -> None:
    with stage() as server, crowd(server.address, 2) as process:
        process.connect()
        process.arm()
        server.send(events(0))
        server.streams[1].close()
        server.send(events(1), 0)
        started = time.monotonic()
        read = process.finish({0, 1})
        assert time.monotonic() - started < IN_TIME_S
    assert counts(read) == (3, 1, 0)
    assert read.broken == ["closed by the server"]


def test_a_reader_whose_stream_the_server_ends_is_broken() -> None:
    with stage() as server, crowd(server.address, 1) as process:
        process.connect()
        process.arm()
        server.send(b"0\r\n\r\n")
        process.turn(1)
        read = process.finish(set())
    assert read.broken == ["the server has ended the stream"]


def test_a_deployment_that_is_never_quiet_is_measured_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    impatient(monkeypatch)
    with stage() as server, crowd(server.address, 2) as process:
        process.connect()
        busy, done = threading.Event(), threading.Event()

        def others() -> None:
            while not done.wait(0.001):
                server.send(chunk(b"data: of somebody else\n\n"))
                busy.set()

        thread = threading.Thread(target=others)
        thread.start()
        try:
            assert busy.wait(10)
            process.arm()
        finally:
            done.set()
            thread.join(10)
        server.send(events(0, 1))
        assert counts(process.finish({0, 1})) == (4, 0, 0)


# -- memory ------------------------------------------------------------------------------------


def read_through(process: readers._Process, server: Stage, *streams: int) -> int:
    """Sends a hundred events to these streams; the most bytes that were kept meanwhile."""
    most = 0
    for number in range(100):
        server.send(event(number), *streams)
        while process.turn(0.02):
            most = max(most, *(len(each.data) for each in process._references))
            if all(one.offset == one.reference.end for one in process._open()):
                break
    return most


def test_what_all_readers_have_had_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "KEPT_BYTES", 1000)
    with stage() as server, crowd(server.address, 3) as process:
        process.connect()
        process.arm()
        assert read_through(process, server) < 1000 + 2 * len(event(0))
        assert counts(process.finish(set(range(100)))) == (300, 0, 0)


def test_a_reader_that_is_gone_keeps_nothing_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "KEPT_BYTES", 1000)
    with stage() as server, crowd(server.address, 2) as process:
        process.connect()
        process.arm()
        server.streams[1].close()
        assert read_through(process, server, 0) < 1000 + 2 * len(event(0))
        assert counts(process.finish(set(range(100)))) == (100, 100, 0)


# -- processes ---------------------------------------------------------------------------------


def test_a_process_connects_arms_and_finishes_as_it_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = multiprocessing.Pipe()
    with stage() as server, ours, theirs, crowd(server.address, 2) as process:
        monkeypatch.setattr(readers, "_Process", lambda _: process)
        asked = Crowd(server.address, (REQUEST,), RUN, 2)
        thread = threading.Thread(target=readers._main, args=(theirs, asked))
        thread.start()
        try:
            assert ours.poll(10) and ours.recv().connected == 2
            ours.send(None)
            assert ours.poll(10) and ours.recv() is None
            server.send(events(0, 1))
            ours.send({0, 1})
            assert ours.poll(10) and counts(ours.recv()) == (4, 0, 0)
        finally:
            thread.join(10)


def test_a_crowd_is_split_over_processes_and_counted_together() -> None:
    with stage() as server, reading(Crowd(server.address, (REQUEST,), RUN, 3), 2) as crowds:
        assert crowds.connected.connected == 3
        assert len(server.requests) == 3
        crowds.arm()
        server.send(events(0, 1))
        read = crowds.finish([0, 1])
        assert counts(read) == (6, 0, 0)
        assert len(read.latency_ms) == 6
        assert multiprocessing.active_children()
    assert not multiprocessing.active_children()


def test_a_process_of_readers_that_dies_is_named() -> None:
    with stage() as server, reading(Crowd(server.address, (REQUEST,), RUN, 1), 1) as crowds:
        for child in multiprocessing.active_children():
            child.kill()
            child.join()
        with pytest.raises(OSError, match="process of readers"):
            crowds.finish([0])
