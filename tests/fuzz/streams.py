"""Byte streams that are hardly HTTP: one a number, and what a server may make of each."""

from collections.abc import Callable, Sequence
from random import Random
from typing import Literal, NamedTuple
from urllib.parse import quote

from tests.fuzz.mutations import MUTATIONS, NUMBERS, flipped, replaced, truncated
from tests.fuzz.requests import chance, request

SMUGGLED = b"smuggled"
"""The id of a request that hides in another: no answer may have it."""

End = Literal["wait", "half", "close", "reset"]


class Stream(NamedTuple):
    """What is written to one connection, piece by piece, and how it ends: by waiting for answers,
    or with an end of what is written before that, or by closing at once, orderly or not.

    `statuses` are those of all answers, in order, where there can be no others.
    """

    kind: str
    pieces: Sequence[bytes]
    end: End = "wait"
    statuses: Sequence[int] = ()


_METHODS = ("GET", "POST", "PUT", "HEAD", "OPTIONS", "DELETE", "PATCH", "TRACE", "CONNECT", "PRI",
            "get", "", "G T", "POST\t", "M-SEARCH", "X" * 9_000, "\xff", "PROPFIND")  # fmt: skip
_PATHS = (
    "/", "/ingest", "/subscribe", "/events", "/subscribers", "/healthz", "/livez", "/metrics",
    "/status", "/login", "/ui/stream", "/ui/rows", "/ui/filter", "/ui/volume", "/ui/download",
    "/ui/status", "/ui/details", "/ui/send", "/ui/logout", "/static/page.js", "/ingest/json",
    "/loki/api/v1/push", "/ready", "/v1/logs", "/elasticsearch", "/services/collector/health",
    "/api/v1/validate", "/openapi.json",
)  # fmt: skip
_TARGETS = (
    "*", "", "//", "///ingest", "/../etc/passwd", "/static/../app.py",
    "/static/%2e%2e/%2e%2e/app.py", "http://evil.example/ingest", "http://[::1", "https://x:99999/",
    "evil.example:443", "/%", "/%zz", "/%00", "/\xff", "/a b", "/?", "/#x", "/ingest/", "/ingest?",
    "/ingest;x", "/%69ngest", "\\ingest", "/static/", "/static/\x01", "/static/%00",
    "/static/" + "a" * 5_000, "/" + "a" * 70_000, "/ingest%0d%0aX: y", "/insert", "/insert/",
    "/elasticsearch/%ff/_bulk", "/v1/input/%2f%00", "/events?q=" + "(" * 3_000,
)  # fmt: skip
_VERSIONS = ("HTTP/1.1", "HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/1.9", "http/1.1", "HTTP/11", "",
             "HTTP/1.1 x", "HTTP/ 1.1", "ICE/1.0", "HTTP/1.1\t", "\x00")  # fmt: skip
_ENDS = ("\r\n", "\n", "\r", "\n\r", "\r\r\n", "\0\r\n", " \r\n")
_LINES = (
    "Host:", "Host: a\r\nHost: b", "Host: evil.example", "Host: \xff", "Host: [::1", "Host: [",
    "Host: a@b:c", "no colon", ": empty", "A :b", " folded: x", "A: b\r\n folded", "A: \0",
    "A: \x01\x1f\x7f", "A\0: b", "A: " + "x" * 9_000, "A: " + "x" * 70_000, "Content-Length: -1",
    "Content-Length: 1e3", "Content-Length: " + "9" * 40, "Content-Length:",
    "Content-Length: 18446744073709551617", "Content-Length: 99999999", "Transfer-Encoding: gzip",
    "Transfer-Encoding: identity", "Connection: close", "Connection: keep-alive, close",
    "Connection: Upgrade\r\nUpgrade: h2c", "Connection: \xff, ,,", "Expect: 100-continue",
    "Expect: 200-ok", "Cookie: logpipe=" + "." * 5_000, "Cookie: =;;=\xff", "Last-Event-ID: x",
    "Last-Event-ID: 1-1", "Last-Event-ID: 99999999999999-0",
    "Last-Event-ID: 9-99999999999999999999999", "Accept: application/x-ndjson", "Origin: null",
    "Origin: \xff", "Origin: http://[", "Sec-Fetch-Site: x", "Authorization: Bearer \xff",
    "Range: bytes=0-", "If-None-Match: *", "If-Modified-Since: x",
    "Access-Control-Request-Method: POST", "X-Request-ID: \xe9", "Content-Type: \xff",
    "Proxy-Connection: x", "Keep-Alive: 0", "TE: trailers", "Trailer: Content-Length",
)  # fmt: skip
_CHUNKS = (
    b"5\r\nabcde\r\n0\r\n\r\n", b"5;x=y\r\nabcde\r\n0\r\n\r\n", b"5\r\nabcdeX0\r\n\r\n",
    b"-1\r\n\r\n", b"g\r\n", b"0x5\r\nabcde\r\n0\r\n\r\n", b"5\nabcde\n0\n\n",
    b"ffffffffffffffff\r\nx", b"10000000000000000\r\nx", b"\r\n", b"5\r\nabc",
    b"0\r\nTrailer: x\r\n\r\n", b"0\r\nContent-Length: 5\r\nHost: b\r\n\r\n",
    b"0\r\n" + b"A: b\r\n" * 9_000, b"5;" + b"x" * 70_000,
    b"00000000000000005\r\nabcde\r\n0\r\n\r\n", b"5 \r\nabcde\r\n0\r\n\r\n", b"0\r\n\r\nGARBAGE",
    b"1\r\n{\r\n1\r\n}\r\n0\r\n\r\n", b"0\r\n", b"", b"5\r\nabcde\r\n0\r\nno colon\r\n\r\n",
    b"0\r\n\0\r\n\r\n",
)  # fmt: skip
_AMBIGUOUS = (
    "Content-Length: {n}\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: chunked\r\nContent-Length: {n}",
    "Content-Length: {n}\r\nContent-Length: 5",
    "Content-Length: 5\r\nContent-Length: {n}",
    "Content-Length: 5, {n}",
    "Content-Length: {n}\r\nTransfer-Encoding: xchunked",
    "Content-Length: {n}\r\nTransfer-Encoding: chunked, identity",
    "Content-Length: {n}\r\nTransfer-Encoding:\x0bchunked",
    "Content-Length: {n}\r\nTransfer-Encoding : chunked",
    "Content-Length: {n}\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    "Content-Length: {n}\r\nX: y\nTransfer-Encoding: chunked",
    "Content-Length: {n}\r\nTransfer-Encoding:\r\n chunked",
    'Content-Length: {n}\r\nTransfer-Encoding: "chunked"',
    "Content-Length: {n}\r\nTransfer-Encoding: ch\xfcnked",
    "Content-Length: {n}\r\n\0Transfer-Encoding: chunked",
    "Content-Length : {n}\r\nContent-Length: 5",
    "Content-Length: 0{n}\r\nContent-Length: {n}5",
)
"""Heads that two servers may read differently, so that what follows is a body to one of them and a
request to the other (RFC 9112, 11.2)."""

_PARAMETERS = (
    "q", "level", "source", "text", "since", "tail", "from", "to", "limit", "order", "cursor",
    "last_event_id", "on_lag", "delivery", "group", "cols", "rows", "once", "at", "format", "then",
    "before", "after", "buckets", "x",
)  # fmt: skip
_VALUES = (
    "", "x", "latest", "earliest", "10m", "9999999999d", "-1", "0", "1", "1-1", "1-", "-", "asc",
    "desc", "shared", "skip", "\x00", "\xff", "\ud7ff", "level>=warn", "(a OR b", "/(a+)+$/", "/[/",
    "a:b:c", "\\", '"', "NOT NOT a", "-" * 500, "metadata.a.b.c:*", "a>=1e999", "*" * 400,
    "2024-13-01T00:00:00Z", "9" * 30, "99999999999999-99999999999999999999", "1710000000",
    "1710000000000-0", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-12:00", "csv", "json",
    "ndjson", "source:" + "x" * 2_000, " AND ".join("abcdefgh"), "(" * 100 + ")" * 100,
    "text:\u2028", "ts_unix_ms>=-1",
)  # fmt: skip


_UNREADABLE = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nno size\r\n"


def _event(name: str) -> bytes:
    body = b'{"source":"fuzz","message":"%b"}' % name.encode()
    return b"POST /ingest HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )


def _head(*lines: str, start: str = "POST /ingest HTTP/1.1") -> bytes:
    return "\r\n".join([start, "Host: localhost", *lines, "", ""]).encode("latin-1")


def _query(random: Random) -> str:
    pairs = ((random.choice(_PARAMETERS), random.choice((*_VALUES, *map(str, NUMBERS))))
             for _ in range(random.choice((0, 1, 2, 5))))  # fmt: skip
    return "&".join(f"{name}={quote(value.encode(errors='replace'))}" for name, value in pairs)


def _request_line(random: Random) -> Stream:
    target = random.choice((*_PATHS, *_TARGETS)) + random.choice(("", "", "?" + _query(random)))
    method, version = random.choice(_METHODS), random.choice((*_VERSIONS, *["HTTP/1.1"] * 12))
    line = random.choice((" ", " ", " ", "  ", "\t")).join((method, target, version))
    end = random.choice((*_ENDS, *["\r\n"] * 12))
    return Stream("request line", [f"{line}{end}Host: localhost{end}{end}".encode("latin-1")])


def _header_lines(random: Random) -> Stream:
    lines = [random.choice(_LINES) for _ in range(random.choice((1, 1, 2, 4, 12)))]
    start = f"{random.choice(_METHODS[:6])} {random.choice(_PATHS)} HTTP/1.1"
    data = "\r\n".join([start, *lines, *["Host: localhost"] * (random.random() < 0.7), "", ""])
    body = random.choice((b"", b"{}", b"x" * 70_000))
    return Stream("header lines", [data.encode("latin-1") + body], random.choice(("wait", "half")))


def _chunks(random: Random) -> Stream:
    pieces = [
        _head("Transfer-Encoding: " + random.choice(("chunked", "Chunked", "chunked, chunked")))
    ]
    pieces += [random.choice(_CHUNKS) for _ in range(random.choice((1, 1, 2)))]
    if random.random() < 0.3:
        pieces.append(random.choice((flipped, truncated, replaced))(random, pieces.pop()))
    return Stream("chunks", pieces, random.choice(("wait", "half", "close")))


_KNOWN = (("/livez", 200), ("/nothing", 404), ("/events?limit=x", 400))


def _pipelined(random: Random) -> Stream:
    """Good requests, all at once: each has its answer, in order."""
    known = {_head(start=f"GET {path} HTTP/1.1"): status for path, status in _KNOWN}
    known[_event("pipelined")] = 202
    chosen = [random.choice(list(known)) for _ in range(random.choice((2, 3, 20)))]
    data = b"".join(chosen)
    at = random.randint(0, len(data))
    return Stream("pipelined", [data[:at], data[at:]], statuses=[known[each] for each in chosen])


def _pipelined_garbage(random: Random) -> Stream:
    """Good requests and what is none: they are answered before it is refused."""
    good = random.choice((0, 1, 3))
    garbage = random.choice((b"\xff\xff\r\n\r\n", b"GET / HTTP/x\r\n\r\n", _UNREADABLE))
    data = _event("before") * good + garbage + _event("after") * random.choice((0, 1))
    # In one piece: what comes after the end resets the connection, and with it the answers.
    return Stream("pipelined garbage", [data], statuses=[*[202] * good, 400])


def _smuggling(random: Random) -> Stream:
    inner = _head(f"X-Request-ID: {SMUGGLED.decode()}", start="GET /nothing HTTP/1.1")
    body = random.choice((b"0\r\n\r\n", b"5\r\nabcde\r\n0\r\n\r\n", b"abcde")) + inner
    head = _head(random.choice(_AMBIGUOUS).format(n=len(body)))
    return Stream("smuggling", random.choice(([head + body], [head, body])))


def _early_end(random: Random) -> Stream:
    data = request(random.randrange(1 << 30), 0).on_the_wire()
    at = random.randint(1, len(data) - 1)
    return Stream("early end", [data[:at]], random.choice(("half", "close", "reset")))


def _oversized(random: Random) -> Stream:
    name = random.choice(
        ("A", "Cookie", "Content-Type", "Authorization", "X-Request-ID", "Content-Encoding")
    )
    line = f"{name}: ".encode() + b"x" * random.choice((8_000, 60_000, 66_000, 140_000))
    pieces = [
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\n",
        *[line[at : at + 9_000] for at in range(0, len(line), 9_000)],
    ]
    return Stream("oversized", [*pieces, b"\r\n\r\n"] if random.random() < 0.5 else pieces)


def _many_headers(random: Random) -> Stream:
    count = random.choice((100, 1_000, 8_000))
    return Stream(
        "many headers", [_head(*(f"a{n}: b" for n in range(count)), start="GET /livez HTTP/1.1")]
    )


def _upgrade(random: Random) -> Stream:
    upgrade = random.choice(("websocket", "h2c", "WebSocket", "x, websocket", "\xff", "TLS/1.0"))
    lines = ["Connection: Upgrade", f"Upgrade: {upgrade}", "Sec-WebSocket-Version: 13",
             "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]  # fmt: skip
    start = f"{random.choice(('GET', 'GET', 'POST', 'CONNECT'))} {random.choice(_PATHS)} HTTP/1.1"
    after = random.choice(
        (b"", b"\x81\x85\x00\x00\x00\x00hello", b"{}", _event("upgraded"), b"\xff" * 99)
    )
    if random.random() < 0.4:
        lines.append(f"Content-Length: {random.choice((len(after), 0, 5))}")
    return Stream("upgrade", [_head(*lines, start=start), after], random.choice(("wait", "half")))


def _upgradable(random: Random) -> Stream:
    """A good request of a client that would rather speak another protocol."""
    wish = b"\r\nConnection: Upgrade\r\nUpgrade: %b\r\n" % random.choice((b"h2c", b"websocket"))
    data = _event("upgradable").replace(b"\r\n", wish, 1)
    at = random.randint(0, len(data))
    return Stream("upgradable", [data[:at], data[at:] + _event("next")], statuses=[202, 202])


def _dribbled(random: Random) -> Stream:
    """A good request, a few bytes at a time."""
    data, size = _event("dribbled"), random.choice((1, 2, 7))
    return Stream(
        "dribbled", [data[at : at + size] for at in range(0, len(data), size)], statuses=[202]
    )


_OTHERS = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
    b"\x16\3\1\2\0\1\0\1\xfc\3\3" + bytes(300),
    b"SSH-2.0-x\r\n", b"*1\r\n$4\r\nPING\r\n", b"<14>1 - h a p - text\n", b"\0" * 70_000,
    b"GET /livez\r\n", b"\r\n\r\n" + _event("late"), b"\r\n" * 40_000,
)  # fmt: skip


def _not_http(random: Random) -> Stream:
    data = random.choice((*_OTHERS, random.randbytes(random.choice((1, 40, 3_000)))))
    return Stream("not HTTP", [data], random.choice(("wait", "half", "reset")))


def _damaged(random: Random) -> Stream:
    data = request(random.randrange(1 << 30), 0).on_the_wire()[:5_000]
    for _ in range(random.choice((1, 2, 5))):
        data = random.choice(MUTATIONS)(random, data)
    return Stream("damaged", [data[:200_000]], random.choice(("wait", "half", "close")))


def _read(random: Random) -> Stream:
    """Anything asked of those who read, left as soon as there is an answer."""
    path = random.choice(_PATHS) + "?" + _query(random)
    lines = [random.choice(_LINES) for _ in range(random.choice((0, 0, 1)))]
    method = random.choice(("GET", "GET", "GET", "HEAD", "OPTIONS"))
    return Stream("read", [_head(*lines, start=f"{method} {path} HTTP/1.1")])


KINDS: Sequence[Callable[[Random], Stream]] = (
    _request_line, _header_lines, _chunks, _pipelined, _pipelined_garbage, _smuggling, _early_end,
    _oversized, _many_headers, _upgrade, _upgradable, _dribbled, _not_http, _damaged, _read, _read,
)  # fmt: skip


def stream(seed: int, number: int) -> Stream:
    """The stream of that number."""
    random = chance(seed, "stream", number)
    return random.choice(KINDS)(random)
