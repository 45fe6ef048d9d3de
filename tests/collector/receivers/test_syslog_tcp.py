import asyncio
import contextlib
import logging
import math
import signal
import socket
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from logpipe.app import running
from logpipe.collector.receivers.syslog_tcp import EVENTS_AT_ONCE, Limits, SyslogListener
from logpipe.listening import PortTakenError, bind
from logpipe.problems import Problem
from logpipe.settings import load
from logpipe.stream import Append
from tests.collector.receivers.samples import collecting, counted, outcomes, stored, texts
from tests.helpers import wait_until
from tests.raw import Connection
from tests.servers import Service, Valkey, free_port, serving, spawned


def listener_of(service: Service) -> SyslogListener:
    assert service.process.syslog is not None
    return service.process.syslog


@contextlib.asynccontextmanager
async def to(port: int, address: str = "127.0.0.1") -> AsyncIterator[Connection]:
    """A connection from an address of this machine."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def sent(port: int, data: bytes) -> None:
    async with to(port) as connection:
        await connection.send(data)


async def rejected(service: Service, count: int) -> bool:
    return await outcomes(service, "syslog-tcp") == {"rejected": count}


async def test_both_framings_come_in_over_one_port(valkey: Valkey) -> None:
    async with collecting(valkey, syslog_tcp=0) as service:
        port = listener_of(service).port
        await sent(port, b"<14>1 - h a - - - one\n<14>1 - h a - - - two\n")
        await wait_until(lambda: len(stored(valkey)) == 2, "lines are stored")
        await sent(port, counted(b"<14>1 - h a - - - th\nree", b"<14>four") + b"<14>five")
        await wait_until(lambda: len(stored(valkey)) == 5, "counted ones are stored")
        assert texts(valkey) == ("one", "two", "th\nree", "four", "five")
        assert await outcomes(service, "syslog-tcp") == {"accepted": 5}
        first, *_, last = stored(valkey)
        assert first["metadata"]["host.name"] == "h"
        assert last["metadata"]["host.name"] == "127.0.0.1"  # the message says nothing of it


async def test_a_line_that_begins_with_a_number_takes_no_other_along(valkey: Valkey) -> None:
    errors = b"".join(
        b"<11>1 2024-05-02T10:00:00Z h app - - - error number %d\n" % n for n in range(5_000)
    )
    async with collecting(valkey, syslog_tcp=0, trim_maxlen=10_000) as service:
        await sent(listener_of(service).port, b"500000 rows imported in 3 s\n" + errors)
        await wait_until(lambda: valkey.client.xlen("logs") >= 5_001, "all are stored")
        numbers = tuple(f"error number {n}" for n in range(5_000))
        assert texts(valkey) == ("500000 rows imported in 3 s", *numbers)
        assert all("log.truncated" not in event["metadata"] for event in stored(valkey))


async def test_a_read_may_end_within_a_count_or_a_number(valkey: Valkey) -> None:
    async with collecting(valkey, syslog_tcp=0) as service, to(listener_of(service).port) as sender:

        def seen() -> tuple[tuple[str, ...], bytes]:
            """What is stored, and what is held until more of it comes."""
            held = [bytes(each._frames._kept) for each in listener_of(service)._open]
            return texts(valkey), b"".join(held)

        for piece, *expected in (
            (b"a\n5", ("a",), b"5"),
            (b"4 <", ("a",), b"54 <"),
            (b"1 minute\n5 <1", ("a", "54 <1 minute"), b"5 <1"),
            (b"4>b7 x", ("a", "54 <1 minute", "b"), b"7 x"),
            (b"\n", ("a", "54 <1 minute", "b", "7 x"), b""),
        ):
            await sender.send(piece)
            await wait_until(partial(lambda e: seen() == tuple(e), expected), "it was read")


async def test_half_a_count_at_the_end_is_a_line(valkey: Valkey) -> None:
    async with collecting(valkey, syslog_tcp=0) as service:
        for piece in (b"54", b"54 <1", b"54 <14>part"):
            before = len(stored(valkey))
            await sent(listener_of(service).port, piece)
            await wait_until(partial(lambda n: len(stored(valkey)) > n, before), "it is stored")
        assert texts(valkey) == ("54", "54 <1", "part")


async def test_a_message_without_any_room_is_rejected_and_counted(
    valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    async with collecting(valkey, syslog_tcp=0, max_message_bytes=64) as service:
        async with to(listener_of(service).port) as sender:
            for count in (1, 2):
                await sender.send(b"x\n")
                await wait_until(partial(rejected, service, count), "it is counted")
        assert "syslog-tcp: events rejected: 1; the first: The event has" in caplog.text


async def test_it_is_off_unless_a_port_is_given(valkey: Valkey) -> None:
    async with collecting(valkey) as service:
        assert service.process.syslog is None


async def test_a_role_without_a_collector_listens_to_none(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, role="distributor", syslog_tcp=0) as service:
        assert service.process.syslog is None


async def test_a_message_that_comes_in_pieces_is_one(valkey: Valkey) -> None:
    async with collecting(valkey, syslog_tcp=0) as service, to(listener_of(service).port) as sender:
        await sender.send(b"<14>first\n<14>sec")
        await wait_until(lambda: texts(valkey) == ("first",), "the first is stored")
        await sender.send(b"ond\n")
        await wait_until(lambda: texts(valkey) == ("first", "second"), "the second is stored")


@pytest.mark.parametrize(("length", "cut"), [(1000, False), (1001, True), (100_000, True)])
async def test_a_message_over_the_limit_is_cut_and_what_follows_is_whole(
    valkey: Valkey, length: int, cut: bool
) -> None:
    async with collecting(valkey, syslog_tcp=0, max_message_bytes=1000) as service:
        await sent(listener_of(service).port, b"x" * length + b"\nnext\n")
        await wait_until(lambda: len(stored(valkey)) == 2, "both are stored")
        long, following = stored(valkey)
        assert ("log.truncated" in long["metadata"]) is cut
        assert following["message"] == "next"


@contextlib.asynccontextmanager
async def listening(service: Service, **given: float) -> AsyncIterator[SyslogListener]:
    """Another listener of the same process, with limits of its own."""
    limits = {"connections": 512, "message_s": 600.0, "sweep_s": 0.02, **given}
    listener = SyslogListener(
        listener_of(service).process,
        bind("127.0.0.1", 0),
        Limits(**limits),  # type: ignore[arg-type]
    )
    await listener.start()
    try:
        yield listener
    finally:
        await listener.aclose()


async def limited(service: Service, limit: str) -> float:
    """How often a limit was hit."""
    name = f'logpipe_limited_total{{limit="{limit}"}} '
    lines = (await service.http.get("/metrics")).text.splitlines()
    return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))


async def is_limited(service: Service, limit: str, count: int) -> bool:
    return await limited(service, limit) == count


async def test_one_connection_too_many_is_closed_and_the_others_go_on(
    own_valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        collecting(own_valkey, syslog_tcp=0) as service,
        listening(service, connections=2) as listener,
        to(listener.port) as one,
        to(listener.port) as two,
    ):
        own_valkey.signal(signal.SIGSTOP)  # what waits for Redis is not ended for another
        await one.send(b"1\n")
        await two.send(b"2\n")
        connections = listener._open
        await wait_until(lambda: len([c for c in connections if c._ready]) == 2, "both wait")
        for _ in range(2):
            async with to(listener.port) as third:
                assert await third.rest() == b""
        assert len([each for each in caplog.messages if "more are closed" in each]) == 1
        assert await limited(service, "syslog_connections") == 2
        own_valkey.signal(signal.SIGCONT)
        await wait_until(lambda: len(stored(own_valkey)) == 2, "they are stored")
        await one.send(b"3\n")
        await wait_until(lambda: len(stored(own_valkey)) == 3, "an open one goes on")


async def test_a_message_that_takes_too_long_ends_its_connection(valkey: Valkey) -> None:
    async with (
        collecting(valkey, syslog_tcp=0) as service,
        listening(service, message_s=0.3) as listener,
        to(listener.port) as slow,
        to(listener.port) as quiet,
    ):
        await quiet.send(b"quiet\n")
        await slow.send(b"whole\nhal")
        ended = asyncio.create_task(slow.rest())
        while not ended.done():  # bytes that come one by one give it no more time
            with contextlib.suppress(ConnectionError):
                await slow.send(b"f")
            await asyncio.sleep(0.02)
        await wait_until(lambda: len(stored(valkey)) == 3, "what had come is stored")
        assert sorted(texts(valkey))[1:] == ["quiet", "whole"]
        assert min(texts(valkey)).startswith("half")
        half = next(each for each in stored(valkey) if each["message"].startswith("half"))
        assert half["metadata"]["log.truncated"]
        assert await limited(service, "syslog_time") == 1
        await quiet.send(b"later\n")  # to be silent between messages is no fault
        await wait_until(lambda: len(stored(valkey)) == 4, "the quiet one is still read")


@pytest.mark.parametrize("begin", [b"999999999 <14>", b"x" * 3000], ids=["counted", "a line"])
async def test_a_message_beyond_the_limit_has_to_end_as_well(valkey: Valkey, begin: bytes) -> None:
    async with (
        collecting(valkey, syslog_tcp=0, max_message_bytes=1000) as service,
        listening(service, message_s=0.3) as listener,
        to(listener.port) as slow,
    ):
        await slow.send(begin + b"y" * 3000)
        await asyncio.wait_for(slow.rest(), 10)
        assert len(stored(valkey)) == 1


async def test_many_messages_in_a_row_may_take_longer_than_one(valkey: Valkey) -> None:
    """The time limit of each message counts from its own beginning."""
    async with (
        collecting(valkey, syslog_tcp=0) as service,
        listening(service) as listener,
        to(listener.port) as sender,
    ):
        await sender.send(b"begin")
        since = 0.0
        for number in range(1, 6):
            await sender.send(b" %d\nbegin" % number)
            await wait_until(partial(has, valkey, number), "it is stored")
            (connection,) = listener._open
            await wait_until(
                lambda after=since, it=connection: after < it.message_since < math.inf,  # type: ignore[misc]
                "the next message has begun",
            )
            since = connection.message_since


async def test_time_in_which_a_connection_is_not_read_is_not_counted(own_valkey: Valkey) -> None:
    async with (
        collecting(own_valkey, syslog_tcp=0) as service,
        listening(service, message_s=1.0) as listener,
        to(listener.port) as sender,
        to(listener.port) as other,
    ):
        own_valkey.signal(signal.SIGSTOP)
        await sender.send(b"one\nha")
        await other.send(b"ha")  # which is read, as nothing of it has to be stored
        await wait_until(partial(is_limited, service, "syslog_time", 1), "it took too long")
        own_valkey.signal(signal.SIGCONT)
        await sender.send(b"lf\n")
        await wait_until(lambda: {"one", "half"} <= set(texts(own_valkey)), "it was read on")
        assert await limited(service, "syslog_time") == 1


async def test_half_messages_of_one_address_lock_out_no_other(valkey: Valkey) -> None:
    async with (
        collecting(valkey, syslog_tcp=0) as service,
        listening(service, connections=20) as listener,
        contextlib.AsyncExitStack() as stack,
    ):
        for count in range(40):
            one = await stack.enter_async_context(to(listener.port))
            await one.send(b"half")
            await wait_until(partial(has_begun, listener, min(count + 1, 16)), "it is read")
        for count in range(1, 4):
            async with to(listener.port, "127.0.0.2") as honest:
                await honest.send(b"honest\n")
                await wait_until(partial(has_of, valkey, "honest", count), "it is stored")
        assert await limited(service, "syslog_connections") >= 24


def has_begun(listener: SyslogListener, count: int) -> bool:
    return len([each for each in listener._open if each.begun]) >= count


def has_of(valkey: Valkey, text: str, count: int) -> bool:
    return texts(valkey).count(text) == count


async def test_the_address_with_most_idle_connections_loses_the_oldest(
    valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        collecting(valkey, syslog_tcp=0) as service,
        listening(service, connections=10) as listener,
        contextlib.AsyncExitStack() as stack,
    ):
        alone = await stack.enter_async_context(to(listener.port, "127.0.0.2"))
        await alone.send(b"alone\n")
        await wait_until(partial(has, valkey, 1), "it is stored")
        many = []
        for count in range(7):
            many.append(await stack.enter_async_context(to(listener.port)))
            await many[-1].send(b"many\n")
            await wait_until(partial(has, valkey, count + 2), "it is stored")
        assert await limited(service, "syslog_connections") == 0
        await many[0].send(b"not the oldest\n")
        await wait_until(partial(has, valkey, 9), "it is stored")
        new = await stack.enter_async_context(to(listener.port, "127.0.0.3"))
        await new.send(b"new\n")
        assert await asyncio.wait_for(many[1].rest(), 10) == b""
        await wait_until(partial(has, valkey, 10), "it is stored")
        assert await limited(service, "syslog_connections") == 1
        assert "idle ones of 127.0.0.1 are closed" in caplog.text
        for each in (alone, many[0], *many[2:], new):
            await each.send(b"still here\n")
        await wait_until(partial(has, valkey, 18), "all others are open")


async def test_messages_that_wait_take_no_more_memory_than_bytes(own_valkey: Valkey) -> None:
    """A message of one byte takes a hundred in memory."""
    async with (
        collecting(own_valkey, syslog_tcp=0, trim_maxlen=1_000_000) as service,
        to(listener_of(service).port) as sender,
    ):
        own_valkey.signal(signal.SIGSTOP)
        sending = asyncio.create_task(sender.send(b"a\n" * 40_000))
        (connection,) = listener_of(service)._open
        await wait_until(lambda: bool(connection._ready), "some of it was read")
        assert len(connection._ready) <= EVENTS_AT_ONCE
        own_valkey.signal(signal.SIGCONT)
        await sending
        count = own_valkey.client.xlen
        await wait_until(lambda: count("logs") == 40_000, "all is stored", timeout=60)


async def test_while_redis_is_away_nothing_is_read_and_then_everything_is_stored_once(
    own_valkey: Valkey,
) -> None:
    async with collecting(own_valkey, syslog_tcp=0) as service:
        async with to(listener_of(service).port) as sender:
            await sender.send(b"before\n")
            await wait_until(lambda: len(stored(own_valkey)) == 1, "the first is stored")
            own_valkey.signal(signal.SIGSTOP)
            line = b"x" * 1000
            lines = [b"%05d %b\n" % (number, line) for number in range(10_000)]
            sending = asyncio.create_task(sender.send(b"".join(lines)))
            (connection,) = listener_of(service)._open
            await wait_until(lambda: bool(connection._ready), "some of it was read")
            await wait_until(lambda: not connection._transport.is_reading(), "no more is read")
            held = sum(len(frame.data) for frame in connection._ready)
            assert held <= 512 * 1024
            assert not sending.done()  # the rest waits with the sender
            own_valkey.signal(signal.SIGCONT)
            own_valkey.kill()
            own_valkey.start()
            await sending
        count = own_valkey.client.xlen
        await wait_until(lambda: count("logs") >= 10_001, "all is stored", timeout=60)
        assert [text[:5] for text in texts(own_valkey)[1:]] == [f"{n:05d}" for n in range(10_000)]


async def test_an_append_whose_confirmation_was_lost_is_not_made_twice(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with collecting(valkey, syslog_tcp=0) as service:
        appender = listener_of(service).process.appender
        append, calls = appender.append, []

        async def lossy(request: Append) -> object:
            done = await append(request)
            calls.append(request.once)
            if len(calls) == 1:
                raise Problem(503, "no confirmation in time")
            return done

        monkeypatch.setattr(appender, "append", lossy)
        await sent(listener_of(service).port, b"once\n")
        await wait_until(lambda: len(calls) == 2, "it is tried again")
        assert calls[0] == calls[1]
        assert texts(valkey) == ("once",)


def has(valkey: Valkey, count: int) -> bool:
    return len(texts(valkey)) == count


async def test_the_appends_of_a_connection_share_a_key(valkey: Valkey) -> None:
    async with collecting(valkey, syslog_tcp=0) as service:
        async with to(listener_of(service).port) as sender:
            for count in range(1, 6):
                await sender.send(b"same\n")
                await wait_until(partial(has, valkey, count), "it is stored")
        assert len(valkey.client.keys("*:once:*")) == 2  # that, and what is counted


async def test_what_was_read_and_not_stored_at_the_end_is_told(
    own_valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        collecting(own_valkey, syslog_tcp=0) as service,
        to(listener_of(service).port) as sender,
    ):
        await sender.send(b"before\n")
        await wait_until(lambda: len(stored(own_valkey)) == 1, "the first is stored")
        own_valkey.kill()
        await sender.send(b"1\n2\n3\n")
        (connection,) = listener_of(service)._open
        await wait_until(lambda: len(connection._ready) == 3, "they were read")
        service.server.stop()
        await sender.rest()
    assert "3 messages of 127.0.0.1 were read and not stored" in caplog.text


async def test_tokens_cannot_be_asked_for_and_that_is_said(
    valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        async with collecting(valkey, syslog_tcp=0):
            assert "syslog knows no tokens" not in caplog.text
        async with collecting(valkey, syslog_tcp=0, ingest_tokens="t"):
            assert "syslog knows no tokens" in caplog.text


async def test_a_port_in_use_ends_the_start_with_its_own_variable(valkey: Valkey) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortTakenError, match=rf"^SYSLOG_TCP={port}: .* --syslog-tcp$"):
            async with running(load({"redis_addr": valkey.url, "syslog_tcp": port}, {})):
                pass


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_process_takes_syslog_and_ends_in_time_while_senders_are_connected(
    valkey: Valkey, tmp_path: Path, workers: str
) -> None:
    port = free_port()
    async with spawned(
        tmp_path, ROLE="collector", REDIS_ADDR=valkey.url, SYSLOG_TCP=str(port), WORKERS=workers
    ) as process:
        await process.ready()
        async with contextlib.AsyncExitStack() as stack:
            senders = [await stack.enter_async_context(to(port)) for _ in range(8)]
            for number, sender in enumerate(senders):
                await sender.send(b"%d\n" % number)
            await wait_until(lambda: len(stored(valkey)) == 8, "all are stored")
            await senders[0].send(b"half a line")
            process.popen.send_signal(signal.SIGTERM)
            assert await process.exit_status(timeout=5) == 0, process.log.read_text()
            assert [await sender.rest() for sender in senders] == [b""] * 8


async def test_what_comes_at_once_may_be_more_than_a_request_may_have(valkey: Valkey) -> None:
    async with collecting(valkey, syslog_tcp=0, max_batch_events=3) as service:
        await sent(listener_of(service).port, b"<14>m\n" * 10)
        await wait_until(lambda: len(stored(valkey)) == 10, "all are stored")
