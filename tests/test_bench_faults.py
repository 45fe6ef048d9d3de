"""What a benchmark counts at servers that misbehave, and at readers that miss events."""

import asyncio
import contextlib
import shutil
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logpipe.bench.events import Template
from logpipe.bench.reading import Crowd, Read, Reader
from logpipe.bench.sending import Address, Sender, Sent
from tests.helpers import wait_until
from tests.servers import free_port

RUN = "0123abcd"
ACCEPTED = b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\n{}"
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
REFUSAL = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"
REQUEST = b"GET /subscribe HTTP/1.1\r\n\r\n"
END = b'x"}'
LONG_S = 60
"""Longer than any test may take."""

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter, int], Awaitable[None]]
"""What a server does with a connection, by its number."""


@contextlib.asynccontextmanager
async def scripted(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[Address]:
    """A server that does to each connection what the script says, and closes it."""
    tasks: list[asyncio.Task[None]] = []

    async def serve(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> None:
        with contextlib.closing(writer), contextlib.suppress(ConnectionError):
            await script(reader, writer, number)

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.create_task(serve(reader, writer, len(tasks))))

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    try:
        yield Address("127.0.0.1", server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# -- senders -----------------------------------------------------------------------------------


async def request(reader: asyncio.StreamReader) -> bytes:
    """The next request, which ends as an event does; nothing at the end."""
    try:
        return await reader.readuntil(END)
    except asyncio.IncompleteReadError:
        return b""


async def answer_all(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int = 0
) -> None:
    while await request(reader):
        writer.write(ACCEPTED)


async def sent_to(
    script: Script, run: Callable[[Sender], Awaitable[Sent]], connections: int = 2
) -> Sent:
    template = Template(RUN, b"".join)
    async with (
        scripted(script) as address,
        asyncio.timeout(LONG_S / 2),
        contextlib.aclosing(Sender(template, answer_s=0.2)) as sender,
    ):
        await sender.connect(address, connections)
        return await run(sender)


async def test_an_answer_in_pieces_counts_once() -> None:
    async def script(r: asyncio.StreamReader, w: asyncio.StreamWriter, _: int) -> None:
        while await request(r):
            for piece in (ACCEPTED[:20], ACCEPTED[20:]):
                w.write(piece)
                await asyncio.sleep(0.002)

    sent = await sent_to(script, lambda sender: sender.at_rate(50, 0.2))
    assert (sent.events, sorted(sent.numbers), sent.refused) == (10, list(range(10)), {})
    assert len(sent.answer_ms) == 10


async def test_an_answer_to_no_request_is_ignored() -> None:
    async def script(r: asyncio.StreamReader, w: asyncio.StreamWriter, _: int) -> None:
        while await request(r):
            w.write(2 * ACCEPTED)

    sent = await sent_to(script, lambda sender: sender.at_rate(50, 0.2))
    assert (sent.events, sent.refused) == (10, {})


async def test_other_connections_go_on_when_one_is_closed() -> None:
    async def script(r: asyncio.StreamReader, w: asyncio.StreamWriter, number: int) -> None:
        await (answer_all(r, w) if number else request(r))

    sent = await sent_to(script, lambda sender: sender.at_rate(100, 0.2))
    assert (sent.events, sent.refused) == (19, {"closed": 1})


async def test_a_connection_closed_while_idle_is_counted() -> None:
    async def script(r: asyncio.StreamReader, w: asyncio.StreamWriter, number: int) -> None:
        if number:
            await answer_all(r, w)
        elif await request(r):
            w.write(ACCEPTED)

    sent = await sent_to(script, lambda sender: sender.at_rate(20, 0.5))
    assert (sent.events, sent.refused) == (10, {"closed": 1})


@pytest.mark.parametrize(
    "run", [lambda s: s.at_full_rate(LONG_S), lambda s: s.at_rate(100, LONG_S)]
)
async def test_without_a_connection_left_sending_ends(
    run: Callable[[Sender], Awaitable[Sent]],
) -> None:
    async def script(r: asyncio.StreamReader, w: asyncio.StreamWriter, _: int) -> None:
        await request(r)

    sent = await sent_to(script, run)
    assert (sent.events, sent.refused) == (0, {"closed": 2})


async def test_an_answer_that_is_not_http_is_counted() -> None:
    async def script(r: asyncio.StreamReader, w: asyncio.StreamWriter, _: int) -> None:
        await request(r)
        w.write(b"-ERR what?\r\n\r\n")

    sent = await sent_to(script, lambda sender: sender.at_full_rate(LONG_S), 1)
    assert (sent.events, sent.refused) == (0, {"not HTTP: b'-ERR what?\\r\\n\\r\\n'": 1})


async def test_a_connection_that_a_refusal_closes_counts_once() -> None:
    async def script(r: asyncio.StreamReader, w: asyncio.StreamWriter, _: int) -> None:
        await request(r)
        w.write(b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")

    sent = await sent_to(script, lambda sender: sender.at_full_rate(LONG_S))
    assert (sent.events, sent.refused) == (0, {"403": 2})


@pytest.mark.parametrize("run", [lambda s: s.at_full_rate(0.1), lambda s: s.at_rate(50, LONG_S)])
async def test_a_request_that_is_never_answered_is_counted(
    run: Callable[[Sender], Awaitable[Sent]],
) -> None:
    async def script(r: asyncio.StreamReader, w: asyncio.StreamWriter, _: int) -> None:
        await r.read()

    sent = await sent_to(script, run)
    assert (sent.events, sent.refused) == (0, {"no answer within 0.2 s": 2})


@pytest.mark.parametrize("body", [b"--", b'{"detail": 1}'])
async def test_a_413_of_a_proxy_is_shown_by_its_status(body: bytes) -> None:
    async def script(r: asyncio.StreamReader, w: asyncio.StreamWriter, _: int) -> None:
        while await request(r):
            w.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    sent = await sent_to(script, lambda sender: sender.at_rate(50, 0.1))
    assert (sent.refused, sent.max_events) == ({"413": 5}, 0)


async def test_a_closed_port_is_an_error_of_connecting() -> None:
    async with contextlib.aclosing(Sender(Template(RUN, b"".join))) as sender:
        with pytest.raises(ConnectionRefusedError):
            await sender.connect(Address("127.0.0.1", free_port()), 1)


# -- readers -----------------------------------------------------------------------------------


def event(number: int) -> bytes:
    """An event as a subscription sends it."""
    data = Template(RUN, b"".join, size=120).request(number, time.time_ns() // 1000)
    return b"id: %d\ndata: %b\n\n" % (number, data)


EVENTS = [event(number) for number in range(12)]


def chunk(*numbers: int) -> bytes:
    text = b"".join(EVENTS[number] for number in numbers)
    return b"%x\r\n%b\r\n" % (len(text), text)


class Stage:
    """A server whose streams the test writes; `answer` begins each, by its number."""

    def __init__(self, answer: Callable[[int], bytes]) -> None:
        self.requests: list[bytes] = []
        self.streams: dict[int, asyncio.StreamWriter] = {}
        self._answer = answer

    async def __call__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> None:
        self.requests.append(await reader.readuntil(b"\r\n\r\n"))
        self.streams[number] = writer
        writer.write(self._answer(number))
        await reader.read()

    def send(self, *events: int, to: int | None = None) -> None:
        for number, stream in self.streams.items():
            if to in (None, number):
                stream.write(chunk(*events))


@contextlib.asynccontextmanager
async def watched(
    count: int,
    answer: Callable[[int], bytes] = lambda _: HEAD,
    *,
    settle_s: float = LONG_S / 2,
    tls: ssl.SSLContext | None = None,
    requests: tuple[bytes, ...] = (REQUEST,),
) -> AsyncIterator[tuple[Stage, Crowd]]:
    """A server, and its readers, which count from now on."""
    stage = Stage(answer)
    crowd = Crowd(RUN, 1, settle_s=settle_s, quiet_s=0.02)
    async with scripted(stage, tls) as address, contextlib.aclosing(crowd):
        if tls:
            address = address._replace(host="localhost", tls=True)
        await crowd.connect(address, requests, count)
        await crowd.arm()
        yield stage, crowd


def counts(read: Read) -> tuple[int, int, int]:
    return read.delivered, read.missing, read.doubled


async def test_each_reader_has_every_event() -> None:
    async with watched(3) as (stage, crowd):
        stage.send(0, 1)
        stage.send(2, 3)
        read = await crowd.finish({0, 1, 2, 3})
    assert stage.requests == [REQUEST] * 3
    assert counts(read) == (12, 0, 0)
    assert (read.connected, read.broken) == (3, {})
    assert read.received_bytes == 3 * len(chunk(0, 1) + chunk(2, 3))
    assert len(read.latency_ms) == 12
    assert min(read.latency_ms) > 0


async def test_a_greeting_is_not_counted() -> None:
    async with watched(2, lambda number: HEAD + chunk(number)) as (stage, crowd):
        stage.send(5)
        read = await crowd.finish({5})
    assert counts(read) == (2, 0, 0)
    assert read.received_bytes == 2 * len(chunk(5))


async def test_events_that_a_reader_did_not_get_are_missing() -> None:
    async with watched(3, settle_s=0.3) as (stage, crowd):
        stage.send(0, 1, 2, 3, to=0)
        stage.send(0, 3, to=1)
        stage.send(0, to=2)
        read = await crowd.finish({0, 1, 2, 3})
    assert counts(read) == (4 + 2 + 1, 2 + 3, 0)
    assert len(read.latency_ms) == 7


async def test_events_that_a_reader_got_twice_are_doubled() -> None:
    async with watched(2) as (stage, crowd):
        stage.send(0, 1, to=0)
        stage.send(0, 1, 1, to=1)
        sent = len(chunk(0, 1) + chunk(0, 1, 1))
        await wait_until(lambda: crowd.read.received_bytes == sent, "all has arrived")
        read = await crowd.finish({0, 1})
    assert counts(read) == (5, 0, 1)


async def test_readers_take_turns_at_the_requests() -> None:
    requests = (b"GET /a HTTP/1.1\r\n\r\n", b"GET /b HTTP/1.1\r\n\r\n")
    async with watched(4, requests=requests) as (stage, crowd):
        for number, path in enumerate(stage.requests):
            stage.send(*((0, 1) if path == requests[0] else (1, 0)), to=number)
        read = await crowd.finish({0, 1})
    assert sorted(stage.requests) == sorted([*requests, *requests])
    assert counts(read) == (8, 0, 0)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (REFUSAL, "HTTP/1.1 401 Unauthorized"),
        (b"-ERR what?\r\n\r\n", "not HTTP"),
        (HEAD + b"0\r\n\r\n", "the server has ended the stream"),
    ],
)
async def test_a_reader_that_ends_early_is_not_waited_for(answer: bytes, reason: str) -> None:
    async with watched(2, lambda number: answer if number else HEAD) as (stage, crowd):
        stage.send(0, to=0)
        read = await crowd.finish({0})
    assert counts(read) == (1, 1, 0)
    ((broken, count),) = read.broken.items()
    assert (broken.split(":")[0], count) == (reason, 1)
    assert read.connected == (2 if answer.startswith(HEAD) else 1)


async def test_a_reader_whose_connection_closes_misses_the_rest() -> None:
    async with watched(2) as (stage, crowd):
        stage.send(0)
        await wait_until(lambda: crowd.read.received_bytes == 2 * len(chunk(0)), "all have one")
        stage.streams[1].close()
        stage.send(1, to=0)
        read = await crowd.finish({0, 1})
    assert counts(read) == (3, 1, 0)
    assert read.broken == {"closed by the server": 1}


async def test_a_reader_without_an_answer_is_not_connected() -> None:
    async with watched(1, lambda _: b"", settle_s=0.1) as (_, crowd):
        read = await crowd.finish({0})
    assert (read.connected, counts(read)) == (0, (0, 1, 0))


async def test_readers_of_a_closed_port_are_broken() -> None:
    crowd = Crowd(RUN, 1)
    await crowd.connect(Address("127.0.0.1", free_port()), (REQUEST,), 2)
    assert crowd.read.connected == 0
    ((reason, count),) = crowd.read.broken.items()
    assert count == 2 and "111" in reason


async def test_a_stream_that_is_never_quiet_is_measured() -> None:
    stage = Stage(lambda _: HEAD)
    crowd = Crowd(RUN, 1, settle_s=0.3, quiet_s=0.1)
    async with scripted(stage) as address, contextlib.aclosing(crowd):
        await crowd.connect(address, (REQUEST,), 2)
        arming = asyncio.create_task(crowd.arm())
        while not arming.done():
            stage.send(11)
            await asyncio.sleep(0.005)
        stage.send(0, 1)
        read = await crowd.finish({0, 1})
    assert read.missing == 0
    assert read.delivered >= 4


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


async def test_a_reader_over_tls_has_every_event(certified: ssl.SSLContext) -> None:
    async with watched(2, tls=certified) as (stage, crowd):
        stage.send(0, 1)
        read = await crowd.finish({0, 1})
    assert (counts(read), read.broken) == ((4, 0, 0), {})


async def test_a_server_with_an_unknown_certificate_is_refused(
    certified: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    async with watched(1, tls=certified) as (_, crowd):
        assert crowd.read.connected == 0
        assert "CERTIFICATE_VERIFY_FAILED" in "".join(crowd.read.broken)


# -- comparing ---------------------------------------------------------------------------------


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[left:right] for left, right in pairwise(edges)]


cuts = st.lists(st.integers(0, 100_000), max_size=12)
streams = st.lists(st.integers(0, 5), max_size=6)


@given(streams, st.data(), cuts, cuts)
def test_marks_count_once_wherever_bytes_are_cut_or_differ(
    leading: list[int], data: st.DataObject, places: list[int], others: list[int]
) -> None:
    second = leading[: data.draw(st.integers(0, len(leading)))] + data.draw(streams)
    crowd = Crowd(RUN, 1)
    crowd.armed = True
    pairs = [(Reader(crowd), wanted) for wanted in (leading, second)]
    turns = [
        (reader, piece)
        for (reader, wanted), where in zip(pairs, (places, others), strict=True)
        for piece in split(b"".join(EVENTS[number] for number in wanted), where)
    ]
    if data.draw(st.booleans(), label="alternating"):
        half = len(split(b"".join(EVENTS[number] for number in leading), places))
        first, last = turns[:half], turns[half:]
        turns = [turn for both in zip(first, last, strict=False) for turn in both] + (
            first[len(last) :] or last[len(first) :]
        )
    for reader, piece in turns:
        reader.take(piece)
    for reader, wanted in pairs:
        assert [number for piece in reader.numbers for number in piece] == wanted
        assert reader.count == len(wanted)
