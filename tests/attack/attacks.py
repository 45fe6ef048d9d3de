"""The attacks: a table of rows, each with a function that hostile clients repeat."""

import asyncio
import base64
import contextlib
import gzip
import json
import ssl
import sys
import time
import zlib
from collections.abc import Awaitable, Callable, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

from tests.attack.client import Target, head, post, url
from tests.attack.judge import Bound

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

JSON = "Content-Type: application/json"
GZIP = "Content-Encoding: gzip"
BODY_BYTES = 16 * 1024 * 1024
"""MAX_BODY_BYTES."""
HELLOS_EVERY_S = 1.0
IDLE_FILES = 1_200
"""How many files the server may have open where connections are attacked."""


class Turn(NamedTuple):
    """One turn of one client."""

    target: Target
    client: int
    """The number of the client."""
    number: int
    """The number of the turn, of all clients; every turn has its own."""


Play = Callable[[Turn], Awaitable[None]]


class Attack(NamedTuple):
    """A row: what is done by how many clients at the same time, to which server."""

    says: str
    play: Play
    clients: int
    bound: Bound
    """What its limits add up to: `because` says which."""
    because: str
    pause_s: float = 0.0
    """Between two turns of a client."""
    stored: int = 0
    """Events that the stream has before."""
    large: bool = False
    """Whether those have 60 KB each."""
    settings: Mapping[str, str] = {}
    files: int = 0
    """How many files the server may have open; 0: as the machine lets it."""
    tls: bool = False
    """Whether the server speaks TLS."""
    syslog: bool = False
    """Whether it listens to syslog over TCP, and an honest sender uses that."""
    control: str = ""
    """The alteration that removes its bound, and with which it must fail."""


# -- connections -----------------------------------------------------------------------------------


async def pipelined(turn: Turn) -> None:
    """Thousands of requests at once on one connection, whose answers nobody reads."""
    requests = head("GET /openapi.json") * 8 + b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n" * 14_000
    async with turn.target.connected(takes_little=True) as connection, asyncio.timeout(5):
        await turn.target.send(connection, requests, 14_008)
        await asyncio.sleep(5)


async def pipelined_posts(turn: Turn) -> None:
    """The same with events, which are to be stored."""
    one = head(post("/ingest"), 27, JSON) + b'{"source":"a","message":""}'
    async with turn.target.connected(takes_little=True) as connection, asyncio.timeout(5):
        await turn.target.send(connection, one * 5_000, 5_000)
        await asyncio.sleep(5)


async def idle(turn: Turn) -> None:
    """A connection that has asked once and stays."""
    async with turn.target.connected() as connection:
        await turn.target.ask_over(connection, "GET /livez")
        await connection.reader.read()


async def silent(turn: Turn) -> None:
    """A connection that begins nothing and stays."""
    async with turn.target.connected() as connection:
        turn.target.tally.requests += 1
        await connection.reader.read()


async def hello(turn: Turn) -> None:
    """The first message of TLS, which all clients send at the same moment."""
    async with turn.target.connected() as connection:
        await asyncio.sleep(HELLOS_EVERY_S - time.monotonic() % HELLOS_EVERY_S)
        await turn.target.send(connection, _client_hello(), 1)
        await asyncio.sleep(HELLOS_EVERY_S / 2)


@cache
def _client_hello() -> bytes:
    sent = ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), sent, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return sent.read()


async def slow_head(turn: Turn) -> None:
    """A head of which a byte comes now and then."""
    async with turn.target.connected() as connection:
        await turn.target.send(connection, b"GET /livez HTTP/1.1\r\nHost: localhost\r\n", 1)
        for _ in range(120):
            await asyncio.sleep(0.5)
            await turn.target.send(connection, b"X")


async def slow_body(turn: Turn) -> None:
    """A large body of which a byte comes now and then."""
    async with turn.target.connected() as connection:
        await turn.target.send(connection, head(post("/ingest"), BODY_BYTES, JSON), 1)
        for _ in range(120):
            await asyncio.sleep(0.5)
            await turn.target.send(connection, b" ")


async def tiny_chunks(turn: Turn) -> None:
    """A body in chunks of one byte each."""
    async with turn.target.connected() as connection:
        lines = ("Transfer-Encoding: chunked", JSON)
        start = head(post("/ingest"), 0, *lines).replace(b"Content-Length: 0\r\n", b"")
        await turn.target.send(connection, start, 1)
        await turn.target.send(connection, b"1\r\n \r\n" * 500_000)
        await turn.target.send(connection, b"0\r\n\r\n")
        await connection.answer(30)


async def wide_head(turn: Turn) -> None:
    """Heads of 60 KB in 12,000 lines."""
    lines = ["a:"] * 15_000
    async with turn.target.connected() as connection:
        for _ in range(20):
            await turn.target.ask_over(connection, "GET /livez", b"", *lines)


async def long_head(turn: Turn) -> None:
    """A subscriber or an idle connection whose request has a head of 60 KB in 900 lines."""
    lines = [f"X-{number}: {'y' * 40}" for number in range(900)]
    path = "/subscribe" if turn.client % 2 else "/livez"
    async with turn.target.connected() as connection:
        await turn.target.send(connection, head(f"GET {path}", 0, *lines), 1)
        async with asyncio.timeout(30):
            while await connection.reader.read(65_536):
                pass


async def wide_query(turn: Turn) -> None:
    """Queries of 60 KB with as many parameters."""
    paths = ("/events", "/ui/rows", "/ui/volume", "/")
    await turn.target.ask(f"GET {paths[turn.number % 4]}?{'_a&' * 20_000}")


async def half_syslog(turn: Turn) -> None:
    """A message of syslog over TCP that never ends."""
    async with turn.target.connected(turn.target.syslog_port) as connection:
        await turn.target.send(connection, b"<14>1 2026-01-01T00:00:00Z host", 1)
        await connection.reader.read()
    await asyncio.sleep(0.2)


# -- reading ---------------------------------------------------------------------------------------


async def abandoned(turn: Turn, path: str) -> None:
    """A search of the history whose client leaves at once."""
    async with turn.target.connected() as connection:
        await turn.target.send(connection, head(url(path, q=f"nothing{turn.number}")), 1)
        await asyncio.sleep(0.002)


async def searched(turn: Turn) -> None:
    """A search by a regular expression that finds nothing."""
    await turn.target.ask(url("/events", q=f"/zzz{turn.number % 7}[0-9]+qq/"))


async def volume(turn: Turn) -> None:
    """What the page asks whenever a letter is typed."""
    await turn.target.ask(url("/ui/volume", q=f"rare{turn.number}"))


async def looked_back(turn: Turn) -> None:
    """What `logpipe tail` asks, for something that hardly ever happened, again as soon as the
    search has ended."""
    async with turn.target.connected() as connection:
        start = url("/subscribe", tail=10, q=f"/rare{turn.number}/")
        await turn.target.send(connection, head(start), 1)
        async with asyncio.timeout(20):
            while data := await connection.reader.read(65_536):
                turn.target.tally.received += len(data)
                if b"event: progress" in data:
                    return


async def untaken(turn: Turn) -> None:
    """A large answer of which nothing is read."""
    async with turn.target.connected(takes_little=True) as connection:
        await turn.target.send(connection, head(url("/events", limit=5_000)), 1)
        await asyncio.sleep(30)


async def sipped(turn: Turn) -> None:
    """A large answer of which 64 bytes are read now and then."""
    async with turn.target.connected(takes_little=True) as connection:
        await turn.target.send(connection, head(url("/events", limit=5_000)), 1)
        while data := await connection.reader.read(64):
            turn.target.tally.received += len(data)
            await asyncio.sleep(10)


async def untaken_stream(turn: Turn) -> None:
    """A subscription to all that is kept, of which nothing is read."""
    async with turn.target.connected(takes_little=True) as connection:
        await turn.target.send(connection, head(url("/subscribe", since="earliest")), 1)
        await asyncio.sleep(20)


async def come_and_gone(turn: Turn) -> None:
    """A subscriber that leaves after a moment."""
    queries: tuple[dict[str, str | int], ...] = (
        {},
        {"since": "earliest"},
        {"tail": 1_000},
        {"since": "1h", "q": f"service-{turn.number % 10}"},
    )
    async with turn.target.connected() as connection:
        await turn.target.send(connection, head(url("/subscribe", **queries[turn.number % 4])), 1)
        turn.target.tally.received += len(await connection.reader.read(65_536))


async def grouped(turn: Turn) -> None:
    """A subscriber of a consumer group that nobody has heard of."""
    async with turn.target.connected() as connection:
        start = url("/subscribe", delivery="shared", group=f"g{turn.number}")
        await turn.target.send(connection, head(start), 1)
        turn.target.tally.received += len(await connection.reader.read(65_536))
        await asyncio.sleep(0.2)


async def charted(turn: Turn) -> None:
    """Whatever an operator looks at."""
    paths = ("/metrics", "/subscribers", "/openapi.json", "/status", "/ui/status", "/")
    await turn.target.ask(f"GET {paths[turn.number % len(paths)]}")


# -- filters ---------------------------------------------------------------------------------------


async def regexes(turn: Turn) -> None:
    """A filter of four new regular expressions, each with as many states as its text makes."""
    q = " OR ".join(f"/[0-4{k}].{{14}}x{turn.number}/" for k in range(5, 9))
    await turn.target.ask(url("/events", q=q, limit=1))


async def malformed(turn: Turn) -> None:
    """A filter of the greatest length that is wrong at its end."""
    q = f"a{turn.number} " + "(a OR b) " * 200 + "level=="
    await turn.target.ask(url("/events", q=q))


async def worded(turn: Turn) -> None:
    """A subscriber with a filter of 64 words that no other has."""
    q = " OR ".join(f"w{turn.number}x{k}" for k in range(64))
    async with turn.target.connected() as connection:
        await turn.target.send(connection, head(url("/subscribe", q=q)), 1)
        async with asyncio.timeout(30):
            while data := await connection.reader.read(65_536):
                turn.target.tally.received += len(data)


def costly_filter(number: int) -> str:
    """One of six kinds, with words of its own."""
    return (
        " OR ".join(f"a>{number}{1_000 + n}" for n in range(64)),
        " OR ".join(f"a:*x{n}*{number}y" for n in range(64)),
        ".".join("a" * 900) + f":x{number}",
        " OR ".join(f"ä{n}é{number}" for n in range(64)),
        " OR ".join(f"*:x{n}y{number}" for n in range(64)),
        " OR ".join(f"/{'[ab]' * 9}.{{9}}x{number}y{n}/" for n in range(4)),
    )[number % 6]


@cache
def costly_events() -> bytes:
    """Events on which each of those filters takes long, packed."""
    nested: Any = "x"
    for _ in range(500):
        nested = {"a": nested}
    events: list[dict[str, Any]] = [
        {"source": "attack", "message": "m", "metadata": {"a": [""] * 21_000}},
        {"source": "attack", "message": "m", "metadata": {"a": ["x1x2x3x4x5x6" * 5_000]}},
        {"source": "attack", "message": "m", "metadata": nested},
        {"source": "attack", "message": "İ" * 32_000},
        {"source": "attack", "message": "ab" * 32_000},
        {"source": "attack", "message": "m", "metadata": {f"k{n}": "y" * 40 for n in range(999)}},
    ]
    return _packed(json.dumps(events * 3, ensure_ascii=False, separators=(",", ":")).encode())


async def costly(turn: Turn) -> None:
    """Clients that read by a costly filter, and two that send costly events."""
    if turn.client < 2:
        await turn.target.ask(post("/ingest"), costly_events(), JSON, GZIP)
        await asyncio.sleep(0.1)
        return
    q = costly_filter(turn.client)
    path = "/ui/stream" if turn.client % 3 == 0 else "/subscribe"
    async with turn.target.connected() as connection:
        await turn.target.send(connection, head(url(path, q=q)), 1)
        async with asyncio.timeout(20):
            while data := await connection.reader.read(65_536):
                turn.target.tally.received += len(data)


# -- bodies ----------------------------------------------------------------------------------------


def _packed(body: bytes) -> bytes:
    return gzip.compress(body, 6)


@cache
def frames(kind: str) -> bytes:
    """As many frames without content as a body holds."""
    if kind == "gzip":
        frame = gzip.compress(b"", mtime=0)
    elif kind == "zstd":
        frame = zstd.compress(b"")
    elif kind == "zstd-skippable":
        frame = b"\x50\x2a\x4d\x18\x00\x00\x00\x00"
    else:
        packer = zlib.compressobj(wbits=-15)
        return packer.compress(b" ") + packer.flush(zlib.Z_SYNC_FLUSH) * 1_000_000
    return frame * (BODY_BYTES // len(frame))


async def framed(turn: Turn) -> None:
    """A body of tiny frames."""
    kinds = ("zstd", "gzip", "zstd-skippable")
    kind = kinds[turn.number % len(kinds)]
    coding = kind.partition("-")[0]
    await turn.target.ask(post("/ingest"), frames(kind), JSON, f"Content-Encoding: {coding}")


@cache
def bodies() -> tuple[tuple[str, bytes, tuple[str, ...]], ...]:
    """Large bodies of several protocols, packed: path, body, headers."""

    def filled(start: bytes, each: bytes, end: bytes, size: int = BODY_BYTES - 1_000) -> bytes:
        return _packed(start + each * (size // len(each)) + each[:-1] + end)

    otlp = b'{"resourceLogs":[{"scopeLogs":[{"logRecords":['
    loki = b'{"streams":[{"stream":{"app":"a"},"values":['
    bulk = b'{"create":{}}\n{}\n'
    return (
        ("/ingest", filled(b"[", b"0,", b"]"), ()),
        ("/ingest", filled(b"[", b"{},", b"]"), ()),
        ("/ingest", filled(b"[", b"[[[[]]]],", b"]"), ()),
        ("/ingest", filled(b"", b'{"source":"a","message":""}\n', b"}"), ()),
        ("/ingest/json", filled(b"[", b"{},", b"]"), ()),
        ("/v1/logs", filled(otlp, b"{},", b"]}]}]}"), ()),
        ("/loki/api/v1/push", filled(loki, b'["1","a"],', b"]}]}"), ()),
        ("/elasticsearch/_bulk", filled(b"", bulk, b""), ()),
        ("/api/v2/logs", filled(b"[", b"{},", b"]"), ()),
        ("/services/collector/event", filled(b"", b'{"event":""}\n', b""), ()),
        ("/gelf", filled(b"", b'{"short_message":"a","host":"b"}\n', b""), ()),
    )


async def enlarged(turn: Turn) -> None:
    """A body of MAX_BODY_BYTES in one of the protocols, packed."""
    path, body, lines = bodies()[turn.number % len(bodies())]
    await turn.target.ask(post(path), body, JSON, GZIP, *lines)


async def objects(turn: Turn) -> None:
    """Events of 60 KB that are mostly empty objects: decoded, they take 25 times as much."""
    await turn.target.ask(post("/ingest"), objects_body(), JSON, GZIP)


@cache
def objects_body() -> bytes:
    """50 such events."""
    event = b'{"source":"a","message":"","metadata":{"a":[%b]}}' % b",".join([b"{}"] * 20_000)
    return _packed(b"\n".join([event] * 50))


@cache
def damaged() -> tuple[tuple[str, bytes], ...]:
    """Large bodies that are malformed, or whose parts are, packed: path, body."""
    kinds = (
        b"x\n",
        b'{"a":',
        b"[",
        b'"\\',
        b"}{",
        b'{"source":"a"}\n',
        b'{"source":"a","message":"\xff"}\n',
        b"\n",
        b'{"a":1e999}\n',
        b"9",
    )
    paths = ("/ingest", "/ingest/json", "/ingest", "/api/v2/logs")
    return (
        *(
            (paths[number % len(paths)], _packed(kind * ((BODY_BYTES - 1) // len(kind))))
            for number, kind in enumerate(kinds)
        ),
        ("/logplex", _packed(b"4 <1>x" * (BODY_BYTES // 6))),
        ("/syslog", _packed(b"<1>\n" * (BODY_BYTES // 4))),
        ("/services/collector/raw", _packed(b"a\n" * (BODY_BYTES // 2))),
    )


async def misled(turn: Turn) -> None:
    """A malformed body of MAX_BODY_BYTES, packed."""
    path, body = damaged()[turn.number % len(damaged())]
    await turn.target.ask(post(path), body, JSON, GZIP)


@cache
def delivery() -> bytes:
    """A request of Firehose whose records are tiny frames."""
    data = base64.b64encode(frames("zstd")[: 10 * 1024 * 1024]).decode()
    records = [{"data": data}]
    return _packed(json.dumps({"requestId": "r", "timestamp": 1, "records": records}).encode())


async def delivered(turn: Turn) -> None:
    """Records that are packed once more, in tiny frames."""
    await turn.target.ask(post("/firehose"), delivery(), JSON, GZIP)


@cache
def protobufs() -> tuple[tuple[str, bytes], ...]:
    """Bodies of protobuf with as many empty messages as they hold, packed: path, body."""
    import cramjam

    size = BODY_BYTES - 100
    record = b"\x12\x00" * (size // 2)
    scope = b"\x12" + _varint(len(record)) + record
    logs = b"\x0a" + _varint(len(scope)) + scope
    loki = b"\x0a\x00" * (size // 2)
    return (
        ("/v1/logs", logs),
        ("/v1/logs", b"\x0a\x00" * (size // 2)),
        ("/loki/api/v1/push", bytes(cramjam.snappy.compress_raw(loki))),
    )


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


async def emptied(turn: Turn) -> None:
    """Empty messages of protobuf."""
    path, body = protobufs()[turn.number % len(protobufs())]
    lines = ["Content-Type: application/x-protobuf"]
    if path == "/v1/logs":
        body, lines = _packed(body), [*lines, GZIP]
    await turn.target.ask(post(path), body, *lines)


async def batches(turn: Turn) -> None:
    """As many tiny events as a request may have, packed: 14 KB."""
    await turn.target.ask(post("/ingest"), many_events(), JSON, GZIP)


@cache
def many_events() -> bytes:
    """199,000 tiny events."""
    return _packed(b"\n".join([b'{"source":"a","message":""}'] * 199_000))


async def keyed(turn: Turn) -> None:
    """One good event and a thousand bad ones, under a key of their own."""
    body = _packed(b"[" + b"0," * 1_000 + b'{"source":"a","message":"m"}]')
    await turn.target.ask(post("/ingest"), body, JSON, GZIP, f"Idempotency-Key: k{turn.number}")


async def mixed(turn: Turn) -> None:
    """Of several attacks a client each."""
    plays: tuple[Play, ...] = (
        pipelined,
        partial(abandoned, path="/events"),
        searched,
        looked_back,
        costly,
        regexes,
        framed,
        enlarged,
        come_and_gone,
        grouped,
    )
    await plays[turn.client % len(plays)](turn)


SCANNED = 50_000
LONG = 600_000
LONG_STREAM = {"TRIM_MAXLEN": "1000000"}

ATTACKS: Mapping[str, Attack] = {
    "pipelining": Attack(
        "30 connections with 14,000 requests each at once, whose answers nobody reads",
        pipelined,
        30,
        Bound(30, 10),
        "1 MB a connection",
        control="pipeline",
    ),
    "pipelined-posts": Attack(
        "10 connections with 5,000 events each at once, whose answers nobody reads",
        pipelined_posts,
        10,
        Bound(30, 20),
        "1 MB a connection; the window",
    ),
    "scans-abandoned": Attack(
        "200 searches at a time whose clients leave after 2 ms",
        partial(abandoned, path="/events"),
        200,
        Bound(40, 20),
        "3 steps of 1 MB, heads of 200 connections",
        pause_s=0.5,
        stored=SCANNED,
        control="scans",
    ),
    "rows-abandoned": Attack(
        "the same for the rows of the page",
        partial(abandoned, path="/ui/rows"),
        200,
        Bound(40, 20),
        "3 steps of 1 MB, heads of 200 connections",
        pause_s=0.5,
        stored=SCANNED,
    ),
    "volume-abandoned": Attack(
        "the same for the volume of the page",
        partial(abandoned, path="/ui/volume"),
        200,
        Bound(40, 20),
        "3 steps of 1 MB, heads of 200 connections",
        pause_s=0.5,
        stored=SCANNED,
    ),
    "download-abandoned": Attack(
        "the same for downloads",
        partial(abandoned, path="/ui/download"),
        200,
        Bound(40, 20),
        "3 steps of 1 MB, heads of 200 connections",
        pause_s=0.5,
        stored=SCANNED,
    ),
    "volume": Attack(
        "20 clients that ask for the volume of a rare word all the time",
        volume,
        20,
        Bound(40, 20),
        "3 steps of 1 MB",
        stored=LONG,
        settings=LONG_STREAM,
    ),
    "scans-100": Attack(
        "100 searches by regular expressions at a time",
        searched,
        100,
        Bound(40, 20),
        "3 steps of 1 MB",
        stored=SCANNED,
        control="scans",
    ),
    "scans-300": Attack(
        "300 searches by regular expressions at a time",
        searched,
        300,
        Bound(60, 20),
        "3 steps of 1 MB, heads of 300 connections",
        stored=SCANNED,
    ),
    "look-backs": Attack(
        "8 subscribers that look back for something rare",
        looked_back,
        8,
        Bound(40, 30),
        "3 steps of 1 MB, the shelf",
        stored=LONG,
        settings=LONG_STREAM,
        control="look-backs",
    ),
    "look-backs-40": Attack(
        "40 subscribers that look back for something rare",
        looked_back,
        40,
        Bound(40, 30),
        "3 steps of 1 MB, the shelf",
        stored=LONG,
        settings=LONG_STREAM,
    ),
    "costly-filters": Attack(
        "18 readers with costly filters, 2 senders of costly events",
        costly,
        20,
        Bound(161 + 47, 161),
        "the window (161 MB), encoded chunks (47 MB)",
        control="filter-cost",
    ),
    "regexes": Attack(
        "filters of four regular expressions, each of them new",
        regexes,
        8,
        Bound(10, 6),
        "compiled.IDLE_BYTES, and 8 filters in use",
        stored=300,
        control="filter-memory",
    ),
    "malformed-filters": Attack(
        "100 clients whose long filters have an error at the end, each of them new",
        malformed,
        100,
        Bound(20, 20),
        "none",
    ),
    "words": Attack(
        "300 subscribers, each with 64 words of its own",
        worded,
        300,
        Bound(120, 120),
        "the compiled filters of 300 subscribers",
    ),
    "idle-connections": Attack(
        "900 connections that have asked once and stay, with 1,200 files",
        idle,
        900,
        Bound(60, 20),
        "16 KB a connection",
        pause_s=0.2,
        files=IDLE_FILES,
        control="idle-connections",
    ),
    "silent-tls": Attack(
        "900 connections that begin no TLS, with 1,200 files",
        silent,
        900,
        Bound(60, 20),
        "16 KB a connection",
        pause_s=0.2,
        files=IDLE_FILES,
        tls=True,
    ),
    "hellos": Attack(
        "900 connections that begin TLS at the same moment",
        hello,
        900,
        Bound(60, 40),
        "110 KB a handshake, 16 KB a connection",
        tls=True,
        control="handshakes",
    ),
    "slow-heads": Attack(
        "900 heads that come byte by byte, with 1,200 files",
        slow_head,
        900,
        Bound(60, 20),
        "64 KB a head",
        pause_s=0.2,
        files=IDLE_FILES,
    ),
    "slow-bodies": Attack(
        "900 bodies that come byte by byte, with 1,200 files",
        slow_body,
        900,
        Bound(60, 20),
        "64 bytes a piece",
        pause_s=0.2,
        files=IDLE_FILES,
    ),
    "tiny-chunks": Attack(
        "bodies in chunks of one byte",
        tiny_chunks,
        8,
        Bound(100, 20),
        "MAX_INFLIGHT_BYTES",
    ),
    "wide-heads": Attack(
        "heads of 60 KB in 15,000 lines",
        wide_head,
        8,
        Bound(40, 20),
        "64 KB a head",
    ),
    "long-heads": Attack(
        "900 subscribers and idle connections whose heads have 60 KB",
        long_head,
        900,
        Bound(30, 30),
        "20 KB a subscriber, 16 KB a connection",
        control="heads",
    ),
    "wide-queries": Attack(
        "queries with 20,000 parameters",
        wide_query,
        8,
        Bound(40, 20),
        "64 KB a head",
    ),
    "half-syslog": Attack(
        "600 messages of syslog over TCP that never end",
        half_syslog,
        600,
        Bound(60, 20),
        "a read and a message of each of 512 connections",
        pause_s=0.2,
        syslog=True,
        control="half-syslog",
    ),
    "untaken-answers": Attack(
        "60 pages of large events, of which nothing is read",
        untaken,
        60,
        Bound(80, 40),
        "1 MB an answer under way; 3 steps of up to 16 MB",
        stored=400,
        large=True,
        control="answers",
    ),
    "sipped-answers": Attack(
        "60 pages of large events, of which 64 bytes are read every ten seconds",
        sipped,
        60,
        Bound(80, 40),
        "1 MB an answer under way; 3 steps of up to 16 MB",
        stored=400,
        large=True,
    ),
    "untaken-streams": Attack(
        "200 subscribers to all that is kept, of which nothing is read",
        untaken_stream,
        200,
        Bound(180, 100),
        "the shelf (16 MB), 0.5 MB a subscriber",
        stored=400,
        large=True,
    ),
    "frames": Attack(
        "bodies of tiny frames of gzip and zstd",
        framed,
        6,
        Bound(100, 30),
        "MAX_INFLIGHT_BYTES",
        control="frames",
    ),
    "bodies": Attack(
        "8 bodies of 16 MiB at a time, in several protocols",
        enlarged,
        8,
        Bound(128 + 302, 302),
        "MAX_INFLIGHT_BYTES, nine times MAX_BODY_BYTES for each of two bodies",
    ),
    "objects": Attack(
        "4 senders of large events that are mostly empty objects",
        objects,
        4,
        Bound(161 + 47 + 128, 161 + 47),
        "the window (161 MB), encoded chunks (47 MB), MAX_INFLIGHT_BYTES",
    ),
    "malformed-bodies": Attack(
        "8 malformed bodies of 16 MiB at a time, in several protocols",
        misled,
        8,
        Bound(128 + 302, 150),
        "MAX_INFLIGHT_BYTES, nine times MAX_BODY_BYTES for each of two bodies",
    ),
    "protobuf": Attack(
        "4 bodies of 16 MiB of empty messages at a time",
        emptied,
        4,
        Bound(128 + 302, 150),
        "MAX_INFLIGHT_BYTES, nine times MAX_BODY_BYTES for each of two bodies",
    ),
    "records": Attack(
        "4 requests of Firehose whose records are tiny frames of zstd",
        delivered,
        4,
        Bound(128 + 302, 150),
        "MAX_INFLIGHT_BYTES, nine times MAX_BODY_BYTES for each of two bodies",
    ),
    "batches": Attack(
        "batches of 199,000 events in 14 KB",
        batches,
        4,
        Bound(128 + 302, 150),
        "MAX_INFLIGHT_BYTES, nine times MAX_BODY_BYTES for each of two bodies",
        settings=LONG_STREAM,
    ),
    "keys": Attack(
        "requests with a new idempotency key and a thousand bad events",
        keyed,
        4,
        Bound(60, 30),
        "none",
    ),
    "come-and-gone": Attack(
        "20 subscribers that connect and leave all the time",
        come_and_gone,
        20,
        Bound(60, 40),
        "the shelf (16 MB)",
        stored=SCANNED,
    ),
    "groups": Attack(
        "20 subscribers of consumer groups, each time another",
        grouped,
        20,
        Bound(40, 30),
        "64 groups",
    ),
    "pages": Attack(
        "whatever an operator looks at, all the time",
        charted,
        8,
        Bound(40, 20),
        "none",
    ),
    "mixed": Attack(
        "30 clients, three of each of ten attacks",
        mixed,
        30,
        Bound(128 + 302 + 161 + 47 + 67 + 67, 302 + 161),
        "all of theirs",
        stored=SCANNED,
        control="accepting",
    ),
}

SLICE = (
    "pipelining",
    "scans-abandoned",
    "scans-100",
    "costly-filters",
    "frames",
    "idle-connections",
)
"""What continuous integration plays, for a few seconds each."""
