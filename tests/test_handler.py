"""The handler with a real logpipe: every record arrives, once and in order."""

import asyncio
import datetime
import logging
import logging.config
import logging.handlers
import queue
import shutil
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from logpipe.handler import LogpipeHandler
from tests.handling import flushed, handling, logger_of
from tests.helpers import fair_time, wait_until
from tests.scripted import HANG, Scripted, Step
from tests.servers import Service, Valkey, serving, subscribed


async def stored(service: Service, **query: object) -> list[dict[str, Any]]:
    """All events of the stream, in its order."""
    answer = await service.http.get(
        "/events", params={"order": "asc", "limit": 5_000, **{k: str(v) for k, v in query.items()}}
    )
    found: list[dict[str, Any]] = answer.json()["events"]
    return found


async def test_a_record_is_an_event_that_readers_see_live(valkey: Valkey) -> None:
    async with (
        serving(redis_addr=valkey.url) as service,
        subscribed(service.url, q="level>=warn user:ada") as reader,
        handling(service.url) as (log, _),
    ):
        await reader.named("hello")
        log.info("not this one", extra={"user": "ada"})
        try:
            dict[str, int]().pop("basket")
        except KeyError:
            log.exception("no %s", "basket", extra={"user": "ada"})
        (event,) = await reader.until(1)
    assert (event["source"], event["level"], event["message"]) == ("app", "ERROR", "no basket")
    assert event["metadata"]["exception.type"] == "KeyError"
    assert event["metadata"]["code.file.path"] == __file__


async def test_events_arrive_once_through_a_restart_of_redis(
    own_valkey: Valkey,
) -> None:
    async with (
        serving(redis_addr=own_valkey.url) as service,
        handling(service.url, flush_timeout=30) as (log, handler),
    ):
        for number in range(1_000):
            log.info("%d", number)
            if number % 10 == 0:
                await asyncio.sleep(0)
            if number == 300:
                await wait_until(lambda: handler._outbox._done, "events have begun to arrive")
                own_valkey.kill()
            if number == 700:
                await wait_until(lambda: not handler._outbox.flowing, "a refusal")
                own_valkey.start()
        assert await flushed(handler.flush)
        assert handler.dropped == 0
        messages = [event["message"] for event in await stored(service)]
    assert messages == [str(number) for number in range(1_000)]


async def test_many_threads_lose_nothing_and_keep_their_own_order(valkey: Valkey) -> None:
    def work(log: logging.Logger, name: int) -> None:
        for number in range(500):
            log.info("%d", number, extra={"worker": name})

    async with (
        serving(redis_addr=valkey.url) as service,
        handling(service.url) as (log, handler),
    ):
        await asyncio.gather(*(asyncio.to_thread(work, log, name) for name in range(8)))
        assert await flushed(handler.flush)
        events = await stored(service)
    assert len(events) == 4_000
    for name in range(8):
        own = [event["message"] for event in events if event["metadata"]["worker"] == name]
        assert own == [str(number) for number in range(500)]


async def test_a_right_token_is_accepted_and_a_wrong_one_counted(
    valkey: Valkey,
) -> None:
    async with serving(redis_addr=valkey.url, ingest_tokens="secret") as service:
        async with handling(service.url, token="secret") as (log, handler):
            log.info("in")
            assert await flushed(handler.flush)
            assert handler.dropped == 0
        async with handling(service.url, token="guess") as (log, handler):
            log.info("out")
            assert await flushed(handler.flush)
            assert handler.dropped == 1
        assert [event["message"] for event in await stored(service)] == ["in"]


async def test_what_did_not_fit_is_told_in_the_stream(valkey: Valkey) -> None:
    with Scripted(Step(HANG)) as stuck:
        async with (
            serving(redis_addr=valkey.url) as service,
            handling(stuck.url, capacity=5, timeout=0.2) as (log, handler),
        ):
            log.info("0")
            await wait_until(lambda: stuck.posts, "a request that hangs")
            for number in range(1, 17):
                log.info("%d", number)
            assert handler.dropped == 12
            _redirect(handler, service.url)
            assert await flushed(handler.flush)
            await wait_until(lambda: handler._outbox.held == 0, "all is sent")
            events = await stored(service)
            log.info("17")
            assert await flushed(handler.flush)
            assert handler.dropped == 12
    assert [event["message"] for event in events] == [
        *"0",
        *"1234",
        "logpipe handler dropped 12 events: queue full",
    ]
    assert events[-1]["level"] == "WARN"


def _redirect(handler: LogpipeHandler, url: str) -> None:
    """The network is mended: the same address leads to a collector that answers."""
    port = int(url.rpartition(":")[2])
    handler._sender.transport._port = port


async def test_a_full_queue_drops_the_newest_events(valkey: Valkey) -> None:
    with Scripted(Step(HANG)) as collector:
        async with handling(collector.url, capacity="7", flush_timeout="0.1") as (log, handler):
            for number in range(7):
                log.info("%d", number)
            assert handler.dropped == 0
            for _ in range(100):
                log.info("too many")
            assert handler.dropped == 100
            assert handler._outbox.held == 7
        assert handler.dropped == 107


# -- configuration ---------------------------------------------------------------------------------


async def test_it_is_configured_by_a_dict_of_texts(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, ingest_tokens="secret") as service:
        logging.config.dictConfig(
            {
                "version": 1,
                "disable_existing_loggers": False,
                "formatters": {"short": {"format": "<%(message)s>"}},
                "handlers": {
                    "logpipe": {
                        "class": "logpipe.handler.LogpipeHandler",
                        "url": service.url,
                        "token": "secret",
                        "source": "shop",
                        "level": "WARNING",
                        "formatter": "short",
                        "capacity": "100",
                        "interval": "0.05",
                        "timeout": "5",
                        "flush_timeout": "5",
                    }
                },
                "loggers": {"shop.cart": {"handlers": ["logpipe"], "propagate": False}},
            }
        )
        log = logging.getLogger("shop.cart")
        (handler,) = log.handlers
        assert isinstance(handler, LogpipeHandler)
        try:
            log.info("below the level")
            log.warning("full")
            assert await flushed(handler.flush)
            (event,) = await stored(service)
        finally:
            log.removeHandler(handler)
            await flushed(handler.close)
    assert (event["source"], event["message"]) == ("shop", "<full>")
    assert event["metadata"]["otel.scope.name"] == "shop.cart"


@pytest.mark.parametrize(
    "given",
    [
        {"url": "127.0.0.1:8080"},
        {"url": "ftp://logs.example"},
        {"url": "http://"},
        {"url": "http://user:password@logs.example"},
        {"url": "http://logs.example:port"},
        {"token": "two\nlines"},
        {"token": "größer"},
        {"capacity": 0},
        {"capacity": "many"},
        {"interval": 0},
        {"timeout": float("nan")},
        {"flush_timeout": float("inf")},
        {"source": "logpipe-shop"},
    ],
)
def test_a_bad_argument_is_an_error_at_once(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        LogpipeHandler(**{"url": "http://logs.example", **given})


@pytest.mark.parametrize(
    "url",
    ["http://u:s3cret@h", "http://u:s3cret/x@h", "u:s3cret@h", "http://[s3cret@h", "http://h:s3c@"],
)
def test_a_login_in_the_address_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ValueError, match="no collector's address") as caught:
        LogpipeHandler(url)
    assert "s3c" not in str(caught.value)
    assert caught.value.__context__ is None


def test_a_worker_of_multiprocessing_is_given_a_last_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Such a process ends without `atexit`: what it registers flushes all handlers."""
    last: list[Callable[[], None]] = []
    monkeypatch.setattr("multiprocessing.process.parent_process", object)
    monkeypatch.setattr(
        "multiprocessing.util.Finalize", lambda _, function, exitpriority: last.append(function)
    )
    monkeypatch.setattr("logpipe.handler._exit_began", [])
    with Scripted() as collector:
        handler = LogpipeHandler(collector.url, interval=60)
        logger_of(handler).info("last words")
        assert len(last) == 1
        last[0]()
        assert collector.messages == ["last words"]
        handler.close()


# -- odd company -----------------------------------------------------------------------------------


class Talkative:
    """Logs while it is formatted."""

    def __init__(self, log: logging.Logger, *, of_itself: bool = False) -> None:
        self._log = log
        self._of_itself = of_itself

    def __str__(self) -> str:
        self._log.info("asked: %s", self if self._of_itself else "once")
        return "an answer"


async def test_an_object_may_log_while_it_is_logged() -> None:
    with Scripted() as collector:
        async with handling(collector.url) as (log, handler):
            log.info("got %s", Talkative(log))
            assert await flushed(handler.flush)
            assert handler.dropped == 0
    assert collector.messages == ["asked: once", "got an answer"]


async def test_an_object_that_logs_itself_comes_to_an_end() -> None:
    with Scripted() as collector:
        async with handling(collector.url) as (log, handler):
            log.info("got %s", Talkative(log, of_itself=True))
            assert await flushed(handler.flush)
            await wait_until(lambda: len(collector.messages) == 3, "the notice")
            assert handler.dropped == 1
    assert collector.messages[:2] == ["asked: an answer", "got an answer"]
    assert collector.messages[2].endswith("1 event: logged while a record was formatted")


async def test_records_of_the_sending_thread_are_ignored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chatter = logging.getLogger("http.client")
    real = LogpipeHandler.handle
    seen: list[str] = []

    def handle(self: LogpipeHandler, record: logging.LogRecord) -> bool:
        if threading.current_thread().name == "logpipe-handler":
            seen.append(record.getMessage())
        return real(self, record)

    monkeypatch.setattr(LogpipeHandler, "handle", handle)
    monkeypatch.setattr(
        "http.client.print", lambda *words: chatter.debug("%s", words), raising=False
    )
    monkeypatch.setattr("http.client.HTTPConnection.debuglevel", 1)
    with Scripted() as collector:
        async with (
            handling(collector.url) as (log, handler),
            handling(collector.url) as (_, other),
        ):
            chatter.setLevel(logging.DEBUG)
            chatter.addHandler(handler)
            chatter.addHandler(other)
            try:
                log.info("one")
                assert await flushed(handler.flush)
                assert await flushed(other.flush)
            finally:
                chatter.setLevel(logging.NOTSET)
                chatter.removeHandler(handler)
                chatter.removeHandler(other)
    assert any("send" in words for words in seen)
    assert collector.messages == ["one"]


async def test_it_stands_behind_other_handlers(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service, handling(service.url) as (_, handler):
        waiting: queue.Queue[logging.LogRecord] = queue.Queue()
        listener = logging.handlers.QueueListener(waiting, handler)
        memory = logging.handlers.MemoryHandler(10, target=handler)
        log = logger_of(logging.handlers.QueueHandler(waiting), memory)
        listener.start()
        log.warning("hello %s", "you", extra={"way": 1})
        listener.stop()
        memory.close()
        assert await flushed(handler.flush)
        events = await stored(service)
    assert [event["message"] for event in events] == ["hello you"] * 2
    assert events[0]["metadata"]["way"] == 1


async def test_a_slow_object_holds_up_no_other_thread() -> None:
    class Slow:
        def __init__(self) -> None:
            self.asked = threading.Event()
            self.go = threading.Event()

        def __str__(self) -> str:
            self.asked.set()
            self.go.wait(30)
            return "slow"

    with Scripted() as collector:
        async with handling(collector.url) as (log, handler):
            slow = Slow()
            thread = threading.Thread(target=log.info, args=("%s", slow))
            thread.start()
            await wait_until(slow.asked.is_set, "it is being formatted")
            log.info("quick")
            assert await flushed(handler.flush)
            assert collector.messages == ["quick"]
            slow.go.set()
            thread.join()


async def test_filters_see_records_and_may_change_them() -> None:
    with Scripted() as collector:
        async with handling(collector.url) as (log, handler):
            handler.addFilter(lambda record: "secret" not in record.getMessage())
            if sys.version_info >= (3, 12):

                def renamed(record: logging.LogRecord) -> logging.LogRecord:
                    changed = logging.makeLogRecord(record.__dict__)
                    changed.msg = "changed"
                    return changed

                handler.addFilter(renamed)
            log.info("secret")
            log.info("changed")
            assert await flushed(handler.flush)
    assert collector.messages == ["changed"]


async def test_an_error_in_the_handler_is_counted_and_not_raised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Scripted() as collector:
        async with handling(collector.url) as (log, handler):
            with monkeypatch.context() as patch:
                patch.setattr("logpipe.handler.event_of", lambda *_: 1 / 0)
                log.info("unlucky")
            assert handler.dropped == 1
            log.info("lucky")
            assert await flushed(handler.flush)
    assert collector.messages[0] == "lucky"
    assert "ZeroDivisionError in the handler" in collector.messages[1]


async def test_a_handler_without_references_sends_and_ends() -> None:
    with Scripted() as collector:
        handler = LogpipeHandler(collector.url, interval=60)
        handler.handle(logging.makeLogRecord({"msg": "last words"}))
        thread = handler._thread
        assert thread is not None
        del handler
        await wait_until(lambda: not thread.is_alive(), "the end of the thread")
        assert collector.messages == ["last words"]


async def test_an_unused_handler_has_no_thread_and_closes_at_once() -> None:
    handler = LogpipeHandler("http://127.0.0.1:9")
    assert handler.flush()
    handler.close()
    assert handler._thread is None
    handler.handle(logging.makeLogRecord({"msg": "too late"}))
    assert handler.dropped == 1
    assert handler._thread is None


async def test_the_thread_does_not_wait_for_itself() -> None:
    answers: list[bool] = []
    with Scripted() as collector:
        async with handling(collector.url) as (log, handler):
            real = handler._sender.transport.post

            def post(body: bytes, key: str) -> Any:
                answers.append(handler.flush())
                return real(body, key)

            handler._sender.transport.post = post  # type: ignore[method-assign]
            log.info("x")
            assert await flushed(handler.flush)
    assert answers == [False]


async def test_the_time_is_that_of_the_record() -> None:
    moment = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC).timestamp()
    with Scripted() as collector:
        async with handling(collector.url) as (_, handler):
            handler.handle(logging.makeLogRecord({"msg": "then", "created": moment}))
            assert await flushed(handler.flush)
    assert collector.posts[0].events[0]["ts_unix_ms"] == int(moment * 1000)


def certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate for localhost, signed by itself, and a server's side of it."""
    if shutil.which("openssl") is None:
        pytest.skip("NOT TESTED: https needs openssl")
    words = "req -x509 -newkey rsa:2048 -nodes -keyout key -out pem -subj /CN=localhost"
    name = ("-addext", "subjectAltName=DNS:localhost")
    subprocess.run(["openssl", *words.split(), *name], cwd=folder, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "pem", folder / "key")
    return folder / "pem", context


async def test_https_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent to who cannot prove to be that host."""
    pem, tls = certificate(tmp_path)
    with Scripted(tls=tls) as collector:
        async with handling(collector.url, flush_timeout=0.5) as (log, handler):
            log.info("to a stranger")
            assert not await flushed(handler.flush)
        assert handler.dropped == 1
        async with handling(collector.url, context=ssl.create_default_context(cafile=pem)) as (
            log,
            handler,
        ):
            log.info("with a context")
            assert await flushed(handler.flush)
        monkeypatch.setenv("SSL_CERT_FILE", str(pem))
        async with handling(collector.url) as (log, handler):
            log.info("by default")
            assert await flushed(handler.flush)
    assert collector.messages == ["with a context", "by default"]


@pytest.mark.parametrize(
    ("step", "dropped"),
    [(Step(), 0), (Step(HANG), 1), (Step(503, {"Retry-After": "60"}), 1), (Step(403), 1)],
)
def test_without_a_thread_who_closes_sends_within_the_deadline(
    step: Step, dropped: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Scripted(step) as collector:
        handler = LogpipeHandler(collector.url, flush_timeout=0.5)
        log = logger_of(handler)
        monkeypatch.setattr("threading.Thread.start", _no_more_threads)
        log.info("one")
        begun = fair_time()
        with monkeypatch.context() as patch:
            patch.setattr("socketserver.ThreadingMixIn.process_request", _in_place)
            assert not handler.flush()
            handler.close()
        assert fair_time() - begun < 5
        assert handler.dropped == dropped
        log.info("too late")
        assert handler.dropped == dropped + 1
        collector.ended.set()
    assert collector.messages == ["one"]


async def test_a_thread_that_cannot_be_had_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Scripted() as collector:
        async with handling(collector.url) as (log, handler):
            with monkeypatch.context() as patch:
                patch.setattr("threading.Thread.start", _no_more_threads)
                log.info("one")
            assert handler.dropped == 0
            log.info("two")
            assert await flushed(handler.flush)
    assert collector.messages == ["one", "two"]


def _in_place(server: Any, request: Any, address: Any) -> None:
    """The collector's own threads are none of this."""
    server.process_request_thread(request, address)


def _no_more_threads(_: object) -> None:
    raise RuntimeError("can't start new thread")
