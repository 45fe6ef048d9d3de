"""The handler before collectors that answer badly, late or never."""

import logging
import threading
import time

import pytest

from logpipe.handler import LogpipeHandler
from logpipe.handler.outbox import Outbox
from logpipe.handler.sender import complain
from logpipe.handler.transport import MAX_RETRY_AFTER_S, answer_of
from tests.handling import flushed, handling, logger_of
from tests.helpers import fair_time, wait_until
from tests.scripted import HANG, RESET, Scripted, Step
from tests.servers import free_port


async def test_a_batch_is_retried_under_the_same_key() -> None:
    script = (Step(RESET), Step(503), Step(500), Step(429), Step())
    with Scripted(*script) as collector:
        async with handling(collector.url) as (log, handler):
            log.info("first")
            assert await flushed(handler.flush)
            log.info("second")
            assert await flushed(handler.flush)
            assert handler.dropped == 0
    assert collector.messages == ["first"] * 5 + ["second"]
    keys = [post.key for post in collector.posts]
    assert len(set(keys[:5])) == 1
    assert keys[5] != keys[0]


async def test_events_that_come_meanwhile_wait_in_order() -> None:
    with Scripted(Step(503), Step(503), Step()) as collector:
        async with handling(collector.url) as (log, handler):
            for number in range(50):
                log.info("%d", number)
                if number == 5:
                    await wait_until(lambda: collector.posts, "the first attempt")
            assert await flushed(handler.flush)
    taken = [event["message"] for post in collector.posts[2:] for event in post.events]
    assert taken == [str(number) for number in range(50)]


async def test_retry_after_is_waited_for() -> None:
    with Scripted(Step(503, {"Retry-After": "1"}), Step()) as collector:
        async with handling(collector.url) as (log, handler):
            begun = time.monotonic()
            log.info("patience")
            assert await flushed(handler.flush)
            assert time.monotonic() - begun >= 1.0
    assert collector.messages == ["patience"] * 2


def test_a_retry_after_is_bounded() -> None:
    assert answer_of(503, "2", b"").retry_after == 2.0
    assert answer_of(503, "1" + "0" * 5_000, b"").retry_after == MAX_RETRY_AFTER_S
    assert answer_of(503, "soon", b"").retry_after is None


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 415, 422, 501])
async def test_what_is_refused_is_dropped_and_not_sent_again(status: int) -> None:
    refusal = Step(status, body=b'{"detail": "Not so."}')
    with Scripted(refusal, Step()) as collector:
        async with handling(collector.url) as (log, handler):
            log.info("bad")
            assert await flushed(handler.flush)
            assert handler.dropped == 1
            log.info("good")
            assert await flushed(handler.flush)
            assert handler.dropped == 1
    notice = f"logpipe handler dropped 1 event: refused by the collector ({status} Not so.)"
    assert collector.messages == ["bad", "good", notice]


async def test_a_rejected_notice_is_sent_later_without_a_loop() -> None:
    with Scripted(Step(403), Step(403), Step(403), Step()) as collector:
        async with handling(collector.url) as (log, handler):
            for number in range(4):
                log.info("%d", number)
                assert await flushed(handler.flush)
            assert handler.dropped == 3
    assert [len(post.events) for post in collector.posts] == [1, 2, 2, 2]
    assert "dropped 3 events: refused" in collector.messages[-1]


async def test_rejected_events_of_a_stored_batch_are_reported_at_once() -> None:
    partly = b'{"accepted": 1, "rejected": 1, "errors": [{"index": 1, "error": "no level"}]}'
    with Scripted(Step(202, body=partly), Step()) as collector:
        async with handling(collector.url) as (log, handler):
            log.info("one")
            log.info("two")
            assert await flushed(handler.flush)
            await wait_until(lambda: len(collector.posts) == 2, "the notice")
            assert handler.dropped == 1
    notice = collector.posts[1].events[0]
    assert notice["message"] == (
        "logpipe handler dropped 1 event: refused by the collector (no level)"
    )
    assert notice["level"] == "WARN"
    assert notice["source"] == "handler"
    assert notice["metadata"]["logpipe.dropped"] == 1


async def test_a_loss_of_the_last_batch_is_told_before_the_end() -> None:
    partly = b'{"accepted": 0, "rejected": 1, "errors": []}'
    with Scripted(Step(202, body=partly), Step()) as collector:
        async with handling(collector.url) as (log, _):
            log.info("last")
    assert collector.messages[1].startswith("logpipe handler dropped 1 event: refused")


async def test_a_notice_rejected_alone_waits_for_the_next_events() -> None:
    partly = Step(202, body=b'{"accepted": 0, "rejected": 1, "errors": []}')
    with Scripted(partly, Step(403), Step()) as collector:
        async with handling(collector.url) as (log, handler):
            log.info("one")
            await wait_until(lambda: len(collector.posts) == 2, "the notice")
            await wait_until(lambda: not handler._outbox.flowing, "its refusal")
            log.info("two")
            assert await flushed(handler.flush)
            assert handler.dropped == 1
    assert [len(post.events) for post in collector.posts] == [1, 1, 2]


async def test_attempts_become_rarer_while_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    real = Outbox.pause

    def pause(self: Outbox, seconds: float, *, hurry: bool) -> bool:
        waits.append(seconds)
        return real(self, seconds / 1_000, hurry=hurry)

    monkeypatch.setattr(Outbox, "pause", pause)
    with Scripted(Step(503)) as collector:
        async with handling(collector.url, flush_timeout=0.1) as (log, _):
            log.info("x")
            await wait_until(lambda: len(waits) > 10, "ten attempts")
    for number, seconds in enumerate(waits[:10]):
        assert 0.7 <= seconds / min(0.25 * 2**number, 30) <= 1.3


async def test_a_batch_that_is_too_large_is_halved_until_it_fits() -> None:
    large = Step(413, {"Connection": "close"})
    with Scripted(large, large, Step(), Step(), Step()) as collector:
        async with handling(collector.url, interval=5) as (log, handler):
            for number in range(8):
                log.info("%d", number)
            assert await flushed(handler.flush)
            assert handler.dropped == 0
    sizes = [len(post.events) for post in collector.posts]
    assert sizes == [8, 4, 2, 2, 4]
    assert collector.messages[12:] == [str(number) for number in range(8)]
    assert len({post.key for post in collector.posts}) == 5


async def test_an_event_that_is_too_large_alone_is_dropped() -> None:
    with Scripted(Step(413), Step()) as collector:
        async with handling(collector.url) as (log, handler):
            log.info("vast")
            assert await flushed(handler.flush)
            assert handler.dropped == 1


async def test_a_hanging_collector_blocks_neither_a_call_nor_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Scripted(Step(HANG)) as collector:
        handler = LogpipeHandler(collector.url, interval=0.01, flush_timeout=0.3, capacity=500)
        log = logger_of(handler)
        begun = fair_time()
        log.info("first")
        await wait_until(lambda: collector.posts, "the request")
        for number in range(1_000):
            log.info("%d", number)
        assert not handler.flush(0.01)
        assert handler.dropped == 501
        handler.close()
        assert fair_time() - begun < 5  # of the 10 s that the request may take
        assert handler.dropped == 1_001
        await wait_until(
            lambda: "logpipe-handler" not in [thread.name for thread in threading.enumerate()],
            "the end of the thread",
        )
        log.info("too late")
        assert handler.dropped == 1_002
        handler.close()
    assert len(collector.posts) == 1
    assert capsys.readouterr().err == "logpipe handler: 500 events not sent before the end\n"


async def test_a_shutdown_waits_once_for_what_cannot_be_sent() -> None:
    with Scripted(Step(HANG)) as collector:
        handler = LogpipeHandler(collector.url, flush_timeout=0.5)
        logger = logger_of(handler)
        logger.info("stuck")
        begun = time.monotonic()
        handler.flush()
        assert time.monotonic() - begun >= 0.5
        begun = fair_time()
        handler.close()
        assert fair_time() - begun < 0.5


async def test_an_outage_is_reported_once_on_stderr(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Scripted(Step(503), Step(503), Step(), Step(401), Step()) as collector:
        async with handling(collector.url) as (log, handler):
            for number in range(3):
                log.info("%d", number)
                assert await flushed(handler.flush)
    assert capsys.readouterr().err.splitlines() == [
        "logpipe handler: waits: the collector answers 503",
        "logpipe handler: dropped 1 event: refused by the collector (401)",
    ]


async def test_nothing_is_complained_of_where_logging_is_told_not_to(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    complain("x")
    monkeypatch.setattr(logging, "raiseExceptions", True)
    monkeypatch.setattr("sys.stderr", None)
    complain("x")
    closed = open("/dev/null", "w")  # noqa: SIM115, PTH123
    closed.close()
    monkeypatch.setattr("sys.stderr", closed)
    complain("x")
    assert capsys.readouterr().err == ""


async def test_a_collector_that_starts_later_gets_everything() -> None:
    port = free_port()
    async with handling(f"http://127.0.0.1:{port}") as (log, handler):
        log.info("early")
        assert not await flushed(lambda: handler.flush(0.5))
        with Scripted(port=port) as collector:
            assert await flushed(handler.flush)
            assert collector.messages == ["early"]


async def test_a_flush_cuts_a_long_backoff_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jitters = iter([240.0])  # a pause of a minute, then short ones
    monkeypatch.setattr("logpipe.handler.retry.random.uniform", lambda _, high: next(jitters, high))
    with Scripted(Step(503), Step()) as collector:
        async with handling(collector.url) as (log, handler):
            log.info("x")
            await wait_until(lambda: collector.posts, "the first attempt")
            assert await flushed(handler.flush)
    assert collector.messages == ["x", "x"]


async def test_a_connection_that_the_collector_closed_is_opened_again() -> None:
    with Scripted(Step(202, {"Connection": "close"}), Step(RESET), Step()) as collector:
        async with handling(collector.url) as (log, handler):
            for number in range(3):
                log.info("%d", number)
                assert await flushed(handler.flush)
    assert collector.messages == ["0", "1", "1", "2"]


async def test_an_idle_connection_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("logpipe.handler.transport.IDLE_S", 0.0)
    with Scripted() as collector:
        async with handling(collector.url) as (log, handler):
            for number in range(3):
                log.info("%d", number)
                assert await flushed(handler.flush)
            assert handler.dropped == 0
    assert collector.messages == ["0", "1", "2"]


async def test_an_unexpected_error_costs_one_batch_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Scripted() as collector:
        async with handling(collector.url) as (log, handler):
            with monkeypatch.context() as patch:
                patch.setattr(handler._sender.transport, "post", lambda *_: 1 / 0)
                log.info("unlucky")
                assert await flushed(handler.flush)
            assert handler.dropped == 1
            log.info("lucky")
            assert await flushed(handler.flush)
    assert collector.messages == [
        "lucky",
        "logpipe handler dropped 1 event: ZeroDivisionError: division by zero",
    ]


async def test_large_bodies_are_packed_and_small_ones_are_not() -> None:
    with Scripted() as collector:
        async with handling(f"{collector.url}/logs/", token="t1") as (log, handler):
            log.info("small")
            assert await flushed(handler.flush)
            log.info("large " * 1_000)
            assert await flushed(handler.flush)
    small, large = collector.posts
    assert "Content-Encoding" not in small.headers
    assert large.headers["Content-Encoding"] == "gzip"
    assert large.headers["Content-Type"] == "application/x-ndjson"
    assert large.headers["Authorization"] == "Bearer t1"
    assert int(large.headers["Content-Length"]) < 1_000
    assert small.path == "/logs/ingest"


async def test_the_address_may_name_the_path_itself() -> None:
    with Scripted() as collector:
        async with handling(f"{collector.url}/ingest") as (log, handler):
            log.info("x")
            assert await flushed(handler.flush)
    assert collector.posts[0].path == "/ingest"


def test_an_answer_may_be_anything() -> None:
    for content in (b"", b"<html>", b"[1]", b"{", b"[" * 100_000, b'{"errors": [1]}'):
        answer = answer_of(202, None, content)
        assert answer.stored
        assert answer.rejected == 0
        assert answer.detail == ""
    assert answer_of(202, None, b'{"rejected": "x"}').rejected == 0
    assert not answer_of(503, None, b"").stored


async def test_an_answer_that_does_not_end_is_not_read_to_its_end() -> None:
    endless = Step(202, {"Content-Length": str(2**31)}, b" " * 2_000_000)
    with Scripted(endless, Step()) as collector:
        async with handling(collector.url) as (log, handler):
            log.info("one")
            assert await flushed(handler.flush)
            log.info("two")
            assert await flushed(handler.flush)
    assert collector.messages == ["one", "two"]
