import asyncio
import contextlib
import gc
import itertools
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, NamedTuple, Self, cast

import msgspec
import pytest

from logpipe import sse
from logpipe.background import Background
from logpipe.continuity import Cursor, Gap
from logpipe.event import Entry, read_entry
from logpipe.fanout import streaming
from logpipe.fanout.hub import Hub
from logpipe.fanout.streaming import NDJSON, SSE, StreamResponse, encoder_for, finding
from logpipe.fanout.subscription import HubSubscription
from logpipe.filters import EVERYTHING, Filter
from logpipe.groups import Groups
from logpipe.groups.shared import SharedSubscription
from logpipe.ids import StreamId
from logpipe.limits import Returns, Seats
from logpipe.messages import RETRY_MS, Batch, Bye, Encoder, Hello, Item, Notice, Progress, Start
from logpipe.metrics import Metrics
from logpipe.stream import Stream
from logpipe.turns import TURN_S, Turns
from logpipe.wire import EXTENSION, LATER
from tests.helpers import fair_time, wait_until
from tests.servers import Valkey
from tests.streams import add, address_of, stream_at


def an_entry(ms: int, source: str = "api", message: str = "m") -> Entry:
    raw = json.dumps({"source": source, "message": message}, ensure_ascii=False).encode()
    entry = read_entry(StreamId(ms, 0), raw)
    assert entry is not None
    return entry


def a_batch(*numbers: int, source: str = "api") -> Batch:
    entries = [an_entry(ms, source) for ms in numbers]
    return Batch(Cursor(StreamId(numbers[0] - 1, 0)), Cursor(entries[-1].id), entries)


def parsed(body: bytes) -> list[sse.ServerSentEvent]:
    return list(sse.Parser().feed(body.decode()))


HELLO = Hello(StreamId(4, 0), StreamId(1, 0), StreamId(4, 0), "broadcast", "1")
GAP = Gap("trimmed", StreamId(1, 0), StreamId(9, 0), 7, StreamId(8, 5))
HARD = 'line\u2028end "quoted" \\ \r\n\n data: x \x00 \x1b[2J é 🙂'


# -- encoders --------------------------------------------------------------------------------------


def test_an_event_on_the_wire_is_its_id_and_its_json() -> None:
    entry = an_entry(7)
    assert SSE.entries([entry, entry]) == b"id: 7-0\ndata: " + entry.json + b"\n\n" + (
        b"id: 7-0\ndata: " + entry.json + b"\n\n"
    )
    assert NDJSON.entries([entry, entry]) == (entry.json + b"\n") * 2


def test_any_message_survives_the_wire() -> None:
    entries = [an_entry(1, message=HARD), an_entry(2)]
    events = parsed(SSE.entries(entries))
    assert [event.id for event in events] == ["1-0", "2-0"]
    assert json.loads(events[0].data)["message"] == HARD
    lines = NDJSON.entries(entries).split(b"\n")
    assert len(lines) == 3
    assert json.loads(lines[0]) == {"id": "1-0", "source": "api", "message": HARD}


def test_named_messages_carry_the_cursor_that_they_move_to() -> None:
    hello, gap, progress = (parsed(SSE.message(m))[0] for m in (HELLO, GAP, Progress(GAP.before)))
    assert (hello.event, hello.id) == ("hello", "4-0")
    assert json.loads(hello.data) == {
        "first_id": "1-0",
        "last_id": "4-0",
        "delivery": "broadcast",
        "version": "1",
    }
    assert (gap.event, gap.id) == ("gap", "8-5")
    told = {"reason": "trimmed", "after": "1-0", "before": "9-0", "count": 7}
    assert json.loads(gap.data) == told
    assert (progress.event, progress.id) == ("progress", "9-0")
    assert json.loads(NDJSON.message(GAP)) == {"event": "gap", "id": "8-5", **told}


def test_a_hello_without_an_id_has_no_id_on_the_wire() -> None:
    hello = HELLO._replace(id=None)
    assert SSE.message(hello).startswith(b"event: hello\nretry: ")
    told = json.loads(NDJSON.message(hello))
    assert (told["event"], told["last_id"], "id" in told) == ("hello", "4-0", False)


def test_a_farewell_sets_the_time_to_come_back_and_moves_no_cursor() -> None:
    parser = sse.Parser()
    sent = SSE.message(Bye("stopping", 1234))
    assert sent.count(b"\n\n") == 1
    [bye] = parser.feed(sent.decode())
    assert (bye.event, bye.id, parser.retry_ms) == ("bye", "", 1234)
    assert json.loads(NDJSON.message(Bye("stopping", 1234))) == {
        "event": "bye",
        "reason": "stopping",
        "retry_ms": 1234,
    }


def test_a_notice_is_a_comment_that_clients_skip() -> None:
    assert SSE.message(Notice("Redis\r\n\nis away")) == b": Redis  is away\n"
    assert parsed(SSE.message(Notice("data: x\n\ndata: y"))) == []
    assert json.loads(NDJSON.message(Notice("away"))) == {"event": "notice", "reason": "away"}


@pytest.mark.parametrize(
    ("accept", "encoder"),
    [
        ("", SSE),
        ("*/*", SSE),
        ("text/event-stream", SSE),
        ("application/x-ndjson", NDJSON),
        ("text/html, Application/X-NDJSON;q=0.5", NDJSON),
    ],
)
def test_the_accept_header_chooses_the_format(accept: str, encoder: Encoder) -> None:
    assert encoder_for(accept) is encoder


def test_a_chunk_is_encoded_once_for_all_subscribers_of_a_format_and_filter() -> None:
    batch = a_batch(1, 2, 3)
    chunk = batch.chunk(SSE, EVERYTHING)
    assert batch.chunk(encoder_for("text/event-stream"), Filter()) is chunk
    assert batch.chunk(NDJSON, EVERYTHING) is not chunk


# -- the response ----------------------------------------------------------------------------------


class Source:
    """A subscription that gives what a test puts in."""

    def __init__(self, *given: Sequence[Item] | BaseException | None) -> None:
        self.filter = EVERYTHING
        self.client = ""
        self.confirms = False
        self.connected_ms = 0
        self.inside = 0
        self.asked = 0
        self.written = 0
        self.queue: asyncio.Queue[Sequence[Item] | BaseException | None] = asyncio.Queue()
        for each in given:
            self.queue.put_nowait(each)

    def __enter__(self) -> Self:
        self.inside += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.inside -= 1

    async def next(self) -> Sequence[Item] | None:
        self.asked += 1
        given = await self.queue.get()
        if isinstance(given, BaseException):
            raise given
        return given

    async def sent(self) -> None:
        self.written += 1

    async def follow(self, writer: object) -> None:
        return


class Browser:
    """The other side: `receive` and `send` as uvicorn gives them."""

    def __init__(self) -> None:
        self.left = asyncio.Event()
        self.reads = asyncio.Event()
        self.reads.set()
        self.sent: list[Any] = []
        self.dropped: list[Any] = []

    async def receive(self) -> Any:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        await self.reads.wait()
        (self.dropped if self.left.is_set() else self.sent).append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def ended(self) -> bool:
        return (bool(self.sent) and self.sent[-1].get("more_body") is False) or (
            len(self.sent) > 1 and "more_body" not in self.sent[-1]
        )


class SlowWire:
    """The wire of a client whose kernel has `left` bytes to confirm."""

    idle = False

    def __init__(self) -> None:
        self.left = 0
        self.looks = 0
        self.ended = False
        self.begun = 0
        self.bounds: list[int] = []

    @property
    def unconfirmed(self) -> int:
        self.looks += 1
        return self.left

    def begin_stream(self) -> None:
        self.begun += 1

    def bound_send_buffer(self, size: int) -> None:
        self.bounds.append(size)

    def pieces(self, body: bytes) -> list[bytes]:
        return [body]


def respond(
    source: Any,
    browser: Browser,
    encoder: Encoder = SSE,
    method: str = "GET",
    wire: SlowWire | None = None,
) -> "asyncio.Task[None]":
    response = StreamResponse(source, encoder, Metrics(), Seats(1))
    scope: dict[str, Any] = {"type": "http", "method": method}
    if wire is not None:
        scope["extensions"] = {EXTENSION: wire}
    return asyncio.create_task(response(scope, browser.receive, browser.send))


async def test_a_stream_is_sent_until_its_subscription_ends() -> None:
    source = Source([HELLO], [a_batch(5, 6), GAP], [a_batch(10)], [Bye("done", 700)], None)
    browser = Browser()
    await asyncio.wait_for(respond(source, browser), 5)
    events = parsed(browser.body)
    assert [event.event for event in events] == [
        "hello",
        "message",
        "message",
        "gap",
        "message",
        "bye",
    ]
    assert [event.id for event in events] == ["4-0", "5-0", "6-0", "8-5", "10-0", "10-0"]
    assert browser.ended
    assert (source.inside, source.written) == (0, 4)


async def test_the_headers_keep_proxies_from_holding_the_stream_back() -> None:
    browser = Browser()
    await asyncio.wait_for(respond(Source(None), browser), 5)
    start = browser.sent[0]
    headers = dict(start["headers"])
    assert start["status"] == 200
    assert headers[b"content-type"].startswith(b"text/event-stream")
    assert headers[b"cache-control"] == b"no-cache, no-transform"
    assert headers[b"x-accel-buffering"] == b"no"
    assert b"content-length" not in headers


async def test_ndjson_is_a_line_a_message() -> None:
    browser = Browser()
    source = Source([HELLO], [a_batch(5)], [], None)
    await asyncio.wait_for(respond(source, browser, NDJSON), 5)
    lines = [json.loads(line) for line in browser.body.splitlines()]
    assert [line.get("event") or line["id"] for line in lines] == [
        "hello",
        "5-0",
        "heartbeat",
    ]


async def test_head_gets_the_headers_and_enters_no_subscription() -> None:
    source = Source()
    browser = Browser()
    await asyncio.wait_for(respond(source, browser, method="HEAD"), 5)
    assert browser.body == b""
    assert browser.ended
    assert source.asked == 0


@pytest.mark.parametrize(
    ("seats", "limit", "why"),
    [
        (Seats(1), "subscribers", "MAX_SUBSCRIBERS)"),
        (Seats(9, 1), "subscribers_per_client", "MAX_SUBSCRIBERS_PER_CLIENT)"),
    ],
)
async def test_a_stream_without_a_seat_ends_with_the_reason(
    seats: Seats, limit: str, why: str
) -> None:
    assert not seats.take("10.0.0.7")
    source, browser, metrics = Source([HELLO], None), Browser(), Metrics()
    scope = {"type": "http", "method": "GET", "client": ("10.0.0.7", 1)}
    response = StreamResponse(cast(Any, source), SSE, metrics, seats)
    await asyncio.wait_for(response(scope, browser.receive, browser.send), 5)
    [bye] = parsed(browser.body)
    assert bye.event == "bye"
    assert why in json.loads(bye.data)["reason"]
    assert browser.ended
    assert source.asked == 0
    assert seats.taken == 1  # that of the other
    assert metrics._limited[limit]._value.get() == 1


@pytest.mark.parametrize("end", [None, RuntimeError("on purpose")])
async def test_a_seat_is_given_back_however_a_stream_ends(end: RuntimeError | None) -> None:
    seats = Seats(1)
    scope = {"type": "http", "method": "GET", "client": ("10.0.0.7", 1)}
    for _ in range(2):
        source, browser = Source([HELLO], end), Browser()
        response = StreamResponse(cast(Any, source), SSE, Metrics(), seats)
        with contextlib.suppress(RuntimeError):
            await asyncio.wait_for(response(scope, browser.receive, browser.send), 5)
        assert [event.event for event in parsed(browser.body)] == ["hello"]
        assert source.client == "10.0.0.7"
    assert seats.taken == 0


async def test_the_rest_of_a_stream_follows_its_head_where_the_server_asks_for_it() -> None:
    source, browser = Source([HELLO], None), Browser()
    response = StreamResponse(cast(Any, source), SSE, Metrics(), Seats(1))
    later: list[Any] = []
    scope = {"type": "http", "method": "GET", LATER: later}
    await asyncio.wait_for(response(scope, browser.receive, browser.send), 5)
    assert [message["type"] for message in browser.sent] == ["http.response.start"]
    [rest] = later
    await asyncio.wait_for(rest(browser.receive, browser.send), 5)
    assert [event.event for event in parsed(browser.body)] == ["hello"]


@pytest.mark.parametrize("confirms", [False, True])
async def test_what_the_kernel_keeps_is_bounded_for_who_confirms(confirms: bool) -> None:
    source, browser, wire = Source([HELLO], None), Browser(), SlowWire()
    source.confirms = confirms
    await asyncio.wait_for(respond(source, browser, wire=wire), 5)
    assert wire.begun == 1
    assert wire.bounds == [streaming.SHARED_SEND_BUFFER] * confirms


class FollowingSource(Source):
    """A subscription that keeps which writers it was to follow with."""

    def __init__(self, *given: Sequence[Item] | BaseException | None) -> None:
        super().__init__(*given)
        self.writers: list[object] = []

    async def follow(self, writer: object) -> None:
        self.writers.append(writer)


class IdleWire(SlowWire):
    """The wire of a client that takes all at once."""

    idle = True

    def __init__(self, *, chunked: bool) -> None:
        super().__init__()
        self.chunked = chunked
        self.parts: list[bytes] = []

    def send(self, part: bytes) -> bool:
        self.parts.append(part)
        return len(self.parts) < 2


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_subscription_writes_to_an_idle_wire_by_itself(chunked: bool) -> None:
    source, browser, wire = FollowingSource([HELLO], None), Browser(), IdleWire(chunked=chunked)
    await asyncio.wait_for(respond(source, browser, wire=wire), 5)
    [writer] = cast("list[StreamResponse]", source.writers)
    assert writer.chunked is chunked
    assert [writer.write(b"a"), writer.write(b"b")] == [True, False]
    assert wire.parts == [b"a", b"b"]


@pytest.mark.parametrize("wire", [None, SlowWire()])
async def test_a_subscription_writes_to_no_wire_that_is_busy(wire: SlowWire | None) -> None:
    source, browser = FollowingSource([HELLO], None), Browser()
    await asyncio.wait_for(respond(source, browser, wire=wire), 5)
    assert not source.writers
    assert source.written == 1


def test_a_response_without_a_wire_is_not_chunked() -> None:
    assert not StreamResponse(cast(Any, Source()), SSE, Metrics(), Seats(1)).chunked


@pytest.mark.parametrize("confirms", [False, True])
async def test_an_event_is_acknowledged_once_it_is_confirmed(confirms: bool) -> None:
    source, browser, wire = Source([a_batch(5)], None), Browser(), SlowWire()
    source.confirms, wire.left = confirms, 7
    response = respond(source, browser, wire=wire)
    if confirms:
        await wait_until(lambda: wire.looks > 2, "its confirmation is awaited")
        assert source.written == 0
        wire.left = 0
    await asyncio.wait_for(response, 5)
    assert source.written == 1
    assert wire.looks > 0 or not confirms


async def test_no_confirmation_of_a_heartbeat_is_awaited() -> None:
    source, browser, wire = Source([], None), Browser(), SlowWire()
    source.confirms, wire.left = True, 7
    await asyncio.wait_for(respond(source, browser, wire=wire), 5)
    assert wire.looks == 0


async def test_only_the_last_message_ends_the_body() -> None:
    browser = Browser()
    await asyncio.wait_for(respond(Source([HELLO], [a_batch(5)], None), browser), 5)
    bodies = [message for message in browser.sent if message["type"] == "http.response.body"]
    assert [message.get("more_body", False) for message in bodies] == [True, True, False]


async def test_a_client_whose_token_is_revoked_has_one_farewell() -> None:
    source, browser = Source([HELLO]), Browser()
    ends: list[Callable[[str], None]] = []

    @contextlib.contextmanager
    def revoking(end: Callable[[str], None]) -> Iterator[None]:
        ends.append(end)
        yield

    response = StreamResponse(cast(Any, source), SSE, Metrics(), Seats(1), revoking)
    scope = {"type": "http", "method": "GET"}
    task = asyncio.create_task(response(scope, browser.receive, browser.send))
    await wait_until(lambda: source.asked == 2, "it waits for more")
    ends[0]("first")
    ends[0]("second")
    await asyncio.wait_for(task, 5)
    assert [event.event for event in parsed(browser.body)] == ["hello", "bye"]
    assert "first" in parsed(browser.body)[-1].data
    assert browser.ended
    assert source.inside == 0


@pytest.mark.parametrize("end", ["left", "revoked"])
async def test_who_awaits_a_response_is_not_cancelled_with_it(end: str) -> None:
    """A time limit around it would take its own cancellation for that of the client."""
    source, browser = Source([HELLO]), Browser()
    ends: list[Callable[[str], None]] = []

    @contextlib.contextmanager
    def revoking(revoke: Callable[[str], None]) -> Iterator[None]:
        ends.append(revoke)
        yield

    async def awaited() -> int:
        response = StreamResponse(cast(Any, source), SSE, Metrics(), Seats(1), revoking)
        await response({"type": "http", "method": "GET"}, browser.receive, browser.send)
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    task = asyncio.create_task(awaited())
    await wait_until(lambda: source.asked == 2, "it waits for more")
    if end == "left":
        browser.left.set()
    else:
        ends[0]("no longer allowed")
    assert await asyncio.wait_for(task, 5) == 0


def test_a_filter_looks_at_each_entry_in_a_step_of_its_own_and_once() -> None:
    batch, chosen = a_batch(5, 6, 7), Filter("source:nobody")
    assert len(list(finding(batch, chosen))) == 1 + 3
    assert batch.kept(chosen) == []
    assert not list(finding(batch, chosen))


async def test_a_filter_of_spaces_takes_everything() -> None:
    source, browser = Source([a_batch(5, 6)], None), Browser()
    source.filter = Filter(" ")
    await asyncio.wait_for(respond(source, browser), 5)
    assert [event.id for event in parsed(browser.body)] == ["5-0", "6-0"]


async def test_a_client_that_leaves_is_not_looked_for_once_the_stream_has_ended() -> None:
    before = asyncio.all_tasks()
    browser = Browser()
    await asyncio.wait_for(respond(Source([HELLO], None), browser), 5)
    await wait_until(lambda: asyncio.all_tasks() == before, "no task is left")


def test_only_a_hello_and_a_farewell_say_when_to_come_back() -> None:
    for message, tells in ((HELLO, True), (Bye("done", 7), True), (GAP, False)):
        assert (b"retry: " in SSE.message(message)) is tells
    assert b"retry: " not in SSE.message(Progress(GAP.before))


async def test_others_go_on_while_a_batch_is_filtered() -> None:
    ticks = itertools.count()
    seats = Seats(1)
    seats.turns = Turns(clock=lambda: next(ticks) * TURN_S)
    batch = a_batch(*range(5, 105))
    source, browser = Source([batch], None), Browser()
    source.filter = Filter("source:a*")
    passed = 0

    async def others() -> None:
        nonlocal passed
        while True:
            passed += 1
            await asyncio.sleep(0)

    going = asyncio.create_task(others())
    response = StreamResponse(cast(Any, source), SSE, Metrics(), seats)
    await asyncio.wait_for(
        response({"type": "http", "method": "GET"}, browser.receive, browser.send), 10
    )
    going.cancel()
    assert passed >= 50  # of 100 entries, which take half a turn or more each
    expected = SSE.entries(batch.matching(source.filter))
    assert browser.body == expected


async def test_a_reader_without_a_filter_waits_for_no_other_readers_filter() -> None:
    seats = Seats(1)
    async with seats.turns._turn:  # as long as another reader's filter takes
        response = StreamResponse(cast(Any, Source([a_batch(5)], None)), SSE, Metrics(), seats)
        browser = Browser()
        scope = {"type": "http", "method": "GET"}
        await asyncio.wait_for(response(scope, browser.receive, browser.send), 10)
        assert browser.body == SSE.entries(a_batch(5).entries)


async def test_a_client_that_leaves_ends_the_response_and_its_subscription() -> None:
    source, browser = Source([HELLO]), Browser()
    response = respond(source, browser)
    await wait_until(lambda: source.asked == 2, "it waits for more")
    assert source.inside == 1
    browser.left.set()
    await asyncio.wait_for(response, 10)
    assert source.inside == 0


async def test_a_client_that_leaves_while_it_reads_nothing_ends_the_response_too() -> None:
    source, browser = Source([a_batch(5)]), Browser()
    response = respond(source, browser)
    await wait_until(lambda: source.asked == 2, "it waits for more")
    browser.reads.clear()
    source.queue.put_nowait([a_batch(6)])
    await wait_until(lambda: source.queue.empty(), "it writes")
    browser.left.set()
    await asyncio.wait_for(response, 10)
    assert (source.inside, source.written) == (0, 1)


async def test_a_response_that_is_cancelled_releases_its_subscription() -> None:
    source, browser = Source([HELLO]), Browser()
    response = respond(source, browser)
    await wait_until(lambda: source.asked == 2, "it waits for more")
    response.cancel()
    await asyncio.wait((response,), timeout=1)
    assert response.cancelled()
    assert source.inside == 0


def times_to_come_back(browsers: Sequence[Browser], encoder: Encoder) -> list[int]:
    """The `retry_ms` of each bye, in the order in which the streams have ended."""
    if encoder is NDJSON:
        return [json.loads(browser.body.splitlines()[-1])["retry_ms"] for browser in browsers]
    times: list[int] = []
    for browser in browsers:
        parser = sse.Parser()
        (*_, bye) = parser.feed(browser.body.decode())
        assert json.loads(bye.data)["retry_ms"] == parser.retry_ms
        times.append(parser.retry_ms or 0)
    return times


def are_turns(times: Sequence[int], each_ms: int) -> bool:
    """Whether each reader comes back in a turn of its own, after the usual time."""
    firsts = [number * each_ms for number in range(len(times))]
    return all(
        first + RETRY_MS[0] - 200 <= time <= first + RETRY_MS[1]
        for first, time in zip(firsts, times, strict=True)
    )


@pytest.mark.parametrize("encoder", [SSE, NDJSON], ids=["sse", "ndjson"])
async def test_streams_that_end_together_come_back_in_turns(encoder: Encoder) -> None:
    seats = Seats(5)
    seats.returns = Returns(0.1)
    browsers = [Browser() for _ in range(5)]
    for browser in browsers:
        source: Any = Source([HELLO], [Bye("stopping")], None)
        response = StreamResponse(source, encoder, Metrics(), seats)
        await response({"type": "http", "method": "GET"}, browser.receive, browser.send)
    assert are_turns(times_to_come_back(browsers, encoder), 10_000)


async def test_streams_of_a_revoked_token_come_back_in_turns() -> None:
    seats = Seats(5)
    seats.returns = Returns(0.1)
    ends: list[Callable[[str], None]] = []

    @contextlib.contextmanager
    def revoking(end: Callable[[str], None]) -> Iterator[None]:
        ends.append(end)
        yield

    browsers = [Browser() for _ in range(5)]
    tasks = []
    for browser in browsers:
        source: Any = Source([HELLO])
        response = StreamResponse(source, SSE, Metrics(), seats, revoking)
        scope = {"type": "http", "method": "GET"}
        tasks.append(asyncio.create_task(response(scope, browser.receive, browser.send)))
    await wait_until(lambda: len(ends) == 5, "all are open")
    for end in ends:
        end("no longer allowed")
    await asyncio.wait_for(asyncio.gather(*tasks), 10)
    assert are_turns(sorted(times_to_come_back(browsers, SSE)), 10_000)


async def test_a_client_that_leaves_as_its_token_is_revoked_ends_the_response_too() -> None:
    source, browser = Source([HELLO]), Browser()
    ends: list[Callable[[str], None]] = []

    @contextlib.contextmanager
    def revoking(end: Callable[[str], None]) -> Iterator[None]:
        ends.append(end)
        yield

    response = StreamResponse(cast(Any, source), SSE, Metrics(), Seats(1), revoking)
    scope = {"type": "http", "method": "GET"}
    task = asyncio.create_task(response(scope, browser.receive, browser.send))
    await wait_until(lambda: source.asked == 2, "it waits for more")
    browser.left.set()
    ends[0]("revoked")
    await asyncio.wait_for(task, 10)
    assert source.inside == 0
    assert not any(message["body"] for message in browser.dropped)


async def test_many_clients_that_leave_anywhere_leave_nothing_behind() -> None:
    gc.disable()
    try:
        before = len(asyncio.all_tasks())
        pairs = [(Source([HELLO], [a_batch(5)], [a_batch(6)]), Browser()) for _ in range(200)]
        responses = [respond(source, browser) for source, browser in pairs]
        for turns, (_, browser) in enumerate(pairs):
            if turns % 7 == 0:
                await asyncio.sleep(0)
            browser.left.set()
        await asyncio.wait_for(asyncio.gather(*responses), 5)
        assert [source.inside for source, _ in pairs] == [0] * 200
        assert len(asyncio.all_tasks()) == before
    finally:
        gc.enable()


async def test_an_error_in_the_subscription_surfaces_and_releases_it() -> None:
    source, browser = Source([HELLO], RuntimeError("a fault on purpose")), Browser()
    with pytest.raises(RuntimeError, match="on purpose"):
        await asyncio.wait_for(respond(source, browser), 5)
    assert source.inside == 0


async def test_a_farewell_always_has_a_reason() -> None:
    """Work that many share may be cancelled, though no client left and no token was revoked."""
    source, browser = Source([HELLO], asyncio.CancelledError()), Browser()
    await asyncio.wait_for(respond(source, browser), 5)
    assert [event.event for event in parsed(browser.body)] == ["hello"]
    assert source.inside == 0


async def test_nothing_is_acknowledged_that_could_not_be_written() -> None:
    source, browser = Source([a_batch(5)]), Browser()
    written: list[int] = []

    async def refuse(message: Any) -> None:
        if message["type"] == "http.response.body":
            raise OSError("the client has gone")
        written.append(1)

    browser.send = refuse  # type: ignore[method-assign]
    with pytest.raises(OSError, match="gone"):
        await asyncio.wait_for(respond(source, browser), 5)
    assert (source.written, source.inside) == (0, 0)


async def test_a_heartbeat_is_sent_when_nothing_comes() -> None:
    browser = Browser()
    source = Source([HELLO], [], [], None)
    await asyncio.wait_for(respond(source, browser), 5)
    assert browser.body.endswith(b"\n\n:\n:\n")
    assert [event.event for event in parsed(browser.body)] == ["hello"]


async def test_every_block_has_data() -> None:
    """Several clients dispatch at each blank line, whatever is before it."""
    browser = Browser()
    given: list[Any] = [
        [Notice("Redis is away")], [], [HELLO], [], [a_batch(5)], [], [GAP], [Notice("again")],
        [a_batch(10, source="db")], [], [], [Bye("stopping", 700)], None,
    ]  # fmt: skip
    source = Source(*given)
    source.filter = Filter("source:api")
    await asyncio.wait_for(respond(source, browser), 5)
    *blocks, rest = browser.body.split(b"\n\n")
    assert rest == b""
    assert all(re.search(rb"^data: .", block, re.MULTILINE) for block in blocks)
    events = [event.event for event in parsed(browser.body)]
    assert events == ["hello", "message", "gap", "progress", "bye"]


async def test_progress_is_told_with_the_heartbeat_when_the_filter_rejects_everything() -> None:
    browser = Browser()
    source = Source([HELLO], [a_batch(5, 6)], [a_batch(7)], [], [], None)
    source.filter = Filter("source:nobody")
    await asyncio.wait_for(respond(source, browser), 5)
    events = parsed(browser.body)
    assert [(event.event, event.id) for event in events] == [("hello", "4-0"), ("progress", "7-0")]
    assert browser.body.endswith(b"\n\n:\n")  # said once; the next time a heartbeat will do
    assert source.written == 5


async def test_progress_is_told_in_time_while_rejected_events_keep_coming(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streaming, "PROGRESS_S", 0.05)
    source, browser = Source([HELLO]), Browser()
    source.filter = Filter("source:nobody")
    response = respond(source, browser)
    loop = asyncio.get_running_loop()
    started, fair = loop.time(), fair_time()
    for ms in range(1, 1000):
        source.queue.put_nowait([a_batch(ms + 4)])
        await asyncio.sleep(0.002)
        if len(parsed(browser.body)) == 4:
            break
    took, fairly = loop.time() - started, fair_time() - fair
    browser.left.set()
    await response
    told = [event for event in parsed(browser.body) if event.event == "progress"]
    assert len(told) == 3
    assert [event.id for event in told] == sorted({event.id for event in told}, key=_ms)
    assert took > 0.14
    assert fairly < 1


def _ms(text: str) -> int:
    return int(text.partition("-")[0])


async def test_no_progress_is_told_that_is_behind_an_event_that_was_sent() -> None:
    browser = Browser()
    source = Source([HELLO], [a_batch(5, source="db")], [a_batch(6)], [], None)
    source.filter = Filter("source:api")
    await asyncio.wait_for(respond(source, browser), 5)
    assert [event.event for event in parsed(browser.body)] == ["hello", "message"]


async def test_a_match_and_a_rejection_in_one_write_tell_progress_after_the_match() -> None:
    browser = Browser()
    source = Source([HELLO], [a_batch(5), a_batch(6, source="db")], [], None)
    source.filter = Filter("source:api")
    await asyncio.wait_for(respond(source, browser), 5)
    events = parsed(browser.body)
    assert [(event.event, event.id) for event in events[1:]] == [
        ("message", "5-0"),
        ("progress", "6-0"),
    ]


async def test_no_progress_is_told_that_is_behind_a_gap() -> None:
    browser = Browser()
    source = Source([HELLO], [a_batch(5, source="db"), GAP], [], None)
    source.filter = Filter("source:api")
    await asyncio.wait_for(respond(source, browser), 5)
    assert [event.event for event in parsed(browser.body)] == ["hello", "gap"]


async def test_what_is_delivered_is_counted() -> None:
    metrics = Metrics()
    source, browser = Source([HELLO], [a_batch(5, 6), GAP], None), Browser()
    response = StreamResponse(source, SSE, metrics, Seats(1))
    await response({"type": "http", "method": "GET"}, browser.receive, browser.send)
    assert metrics.delivered_events._value.get() == 2
    assert metrics.delivered_bytes._value.get() == len(browser.body)
    assert metrics.gaps.labels("trimmed")._value.get() == 1
    assert metrics.gap_events.labels("trimmed")._value.get() == 7
    response.count_gap(msgspec.structs.replace(GAP, count=None))
    assert metrics.gaps.labels("trimmed")._value.get() == 2
    assert metrics.gap_events.labels("trimmed")._value.get() == 7


# -- over real subscriptions -----------------------------------------------------------------------


async def test_clients_that_leave_a_real_hub_are_all_let_go(valkey: Valkey) -> None:
    async with stream_at(address_of(valkey)) as stream:
        hub = Hub(stream, Metrics(), queue_len=5, batch_count=7, heartbeat_s=0.05)
        tasks = [asyncio.create_task(each) for each in (hub.run(), hub.beat(), stream.monitor())]
        ids = await add(stream, 50)
        await wait_until(lambda: hub.attached, "attached")
        for turns in range(120):
            browser = Browser()
            start = Start(resume=ids[turns % 50]) if turns % 3 else Start(tail=20)
            response = respond(HubSubscription(hub, start, EVERYTHING), browser)
            for _ in range(turns):
                await asyncio.sleep(0)
            browser.left.set()
            await asyncio.wait_for(response, 10)
        assert not hub.subscribers
        assert hub.catching_up.free == 8
        await wait_until(lambda: not hub.searches, "no search goes on")
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def groups_over(stream: Stream) -> Groups:
    return Groups(
        stream,
        Metrics(),
        Background(),
        consumer="one",
        pending_idle_ms=60_000,
        batch_count=10,
        heartbeat_s=15,
    )


async def test_an_event_given_to_a_client_in_the_moment_it_left_goes_to_another(
    valkey: Valkey,
) -> None:
    """uvicorn takes what is sent after the client has left, and drops it without a word."""
    async with (
        stream_at(address_of(valkey), block_ms=50) as stream,
        groups_over(stream) as groups,
    ):
        for turns in range(40):
            browser = Browser()
            response = respond(SharedSubscription(groups, "g", Start(), EVERYTHING), browser)
            await wait_until(lambda b=browser: b.body, "hello")  # type: ignore[misc]
            [id_] = await add(stream)
            for _ in range(turns):
                await asyncio.sleep(0)
            browser.left.set()
            await asyncio.wait_for(response, 10)
            if str(id_).encode() in browser.body:
                continue
            other = Browser()
            response = respond(SharedSubscription(groups, "g", Start(), EVERYTHING), other)
            await wait_until(
                lambda o=other, i=id_: str(i).encode() in o.body,  # type: ignore[misc]
                "another has it",
            )
            other.left.set()
            await asyncio.wait_for(response, 10)


class Waiting(NamedTuple):
    """The only subscriber of the group `g`, which waits for work."""

    stream: Stream
    browser: Browser
    wire: SlowWire
    response: asyncio.Task[None]

    async def leave(self) -> None:
        self.browser.left.set()
        await asyncio.wait_for(self.response, 10)


@contextlib.asynccontextmanager
async def waiting(valkey: Valkey) -> AsyncIterator[Waiting]:
    async with (
        stream_at(address_of(valkey), block_ms=50) as stream,
        groups_over(stream) as groups,
    ):
        browser, wire = Browser(), SlowWire()
        subscription = SharedSubscription(groups, "g", Start(), EVERYTHING)
        response = respond(subscription, browser, wire=wire)
        await wait_until(lambda: subscription.share.asking, "it waits for work")
        yield Waiting(stream, browser, wire, response)


@pytest.mark.parametrize(("confirmed", "pending"), [(True, 0), (False, 1)])
async def test_a_client_that_leaves_has_had_what_its_kernel_confirmed(
    valkey: Valkey, confirmed: bool, pending: int
) -> None:
    async with waiting(valkey) as reader:
        wire = reader.wire
        wire.left, wire.looks = 7, 0
        await add(reader.stream)
        await wait_until(lambda: wire.looks > 1, "it is written, and its confirmation is awaited")
        wire.left = 0 if confirmed else 7
        await reader.leave()
        assert await reader.stream.groups.pending("g") == pending


async def test_events_written_after_a_connections_end_stay_pending(valkey: Valkey) -> None:
    async with waiting(valkey) as reader:
        reader.wire.ended = True
        [id_] = await add(reader.stream)
        await wait_until(lambda: str(id_).encode() in reader.browser.body, "it is written")
        await reader.leave()
        assert await reader.stream.groups.pending("g") == 1


async def test_what_is_given_as_the_client_leaves_is_not_acknowledged(valkey: Valkey) -> None:
    async with (
        stream_at(address_of(valkey), block_ms=50) as stream,
        groups_over(stream) as groups,
    ):
        subscription = SharedSubscription(groups, "g", Start(), EVERYTHING)
        browser = Browser()
        response = respond(subscription, browser)
        await wait_until(lambda: subscription.share.asking, "it waits for work")
        # The write and the client's end fall into one turn of the event loop.
        [entry] = [an_entry(5)]
        subscription.share.give([entry], [])
        browser.left.set()
        await asyncio.wait_for(response, 10)
        assert [bool(each["body"]) for each in browser.dropped] == [True, False]
        assert subscription.share.entries == [entry]
