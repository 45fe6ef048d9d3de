"""The other roles over HTTP, against real servers and against ones that misbehave."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest

from logpipe.client import distributor as client
from logpipe.client.collector import RemoteCollector
from logpipe.client.connection import http_client
from logpipe.client.distributor import (
    QUEUE_LEN,
    Refused,
    RemoteDistributor,
    RemoteSubscription,
    query_of,
)
from logpipe.client.log import RemoteLog
from logpipe.continuity import Gap
from logpipe.event import Stored
from logpipe.fanout.history import STEP_BYTES, Budget, page_of
from logpipe.filters import EVERYTHING, Filter
from logpipe.ids import END, START, StreamId, parse_id
from logpipe.messages import Batch, Bye, Hello, Item, Message, Notice, Progress, Start
from logpipe.problems import Problem
from logpipe.settings import Settings, load
from tests.helpers import retry_after, wait_until
from tests.impostor import HELLO, SSE_HEAD, Impostor, refusing
from tests.servers import Service, Valkey, free_port, serving, spawned

ALL = Start(since=START)


def settings_for(url: str, **given: object) -> Settings:
    return load({"role": "ui", "distributor_url": url, "collector_url": url, **given}, {})


@contextlib.asynccontextmanager
async def remote(url: str, **given: object) -> AsyncIterator[RemoteDistributor]:
    async with http_client() as http:
        chosen = settings_for(url, **given)
        yield RemoteDistributor(
            url, http, tokens=chosen.read_tokens, heartbeat_s=chosen.heartbeat_s
        )


@contextlib.asynccontextmanager
async def collector_at(url: str, **given: object) -> AsyncIterator[RemoteCollector]:
    async with http_client() as http:
        chosen = settings_for(url, **given)
        yield RemoteCollector(chosen.collector_url, http, chosen.ingest_tokens)


class Taken:
    """What a subscription has given so far."""

    def __init__(self, subscription: RemoteSubscription) -> None:
        self.subscription = subscription
        self.items: list[Item] = []

    @property
    def messages(self) -> list[str]:
        return [e.event.message for i in self.items if isinstance(i, Batch) for e in i.entries]

    @property
    def ids(self) -> list[StreamId]:
        return [e.id for i in self.items if isinstance(i, Batch) for e in i.entries]

    async def until_count(self, count: int, timeout: float = 15) -> None:
        async with asyncio.timeout(timeout):
            while len(self.messages) < count:
                await self.more()

    async def until(self, kind: type[Message], timeout: float = 15) -> Any:
        seen = 0
        async with asyncio.timeout(timeout):
            while True:
                for item in self.items[seen:]:
                    if isinstance(item, kind):
                        self.items = self.items[self.items.index(item) + 1 :]
                        return item
                seen = len(self.items)
                await self.more()

    async def more(self) -> Sequence[Item] | None:
        items = await self.subscription.next()
        self.items += items or ()
        return items


@contextlib.contextmanager
def reading(
    distributor: RemoteDistributor,
    start: Start = ALL,
    chosen: Filter = EVERYTHING,
    *,
    insist: bool = True,
) -> Iterator[Taken]:
    with distributor(start, query_of(chosen), insist=insist) as subscription:
        yield Taken(subscription)


async def send(service: Service, first: int, last: int) -> None:
    events = [{"source": "t", "message": str(n)} for n in range(first, last)]
    assert (await service.post(events)).status_code == 202


async def test_a_subscription_gives_a_hello_then_all_events(
    valkey: Valkey,
) -> None:
    async with serving(redis_addr=valkey.url) as service, remote(service.url) as distributor:
        await send(service, 0, 500)
        with reading(distributor) as taken:
            assert isinstance(await taken.until(Hello), Hello)
            await taken.until_count(500)
            await send(service, 500, 600)
            await taken.until_count(600)
            assert taken.messages == [str(n) for n in range(600)]
            assert taken.ids == sorted(set(taken.ids))
            await taken.subscription.sent()


async def test_a_subscription_resumes_right_after_the_id_it_is_given(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service, remote(service.url) as distributor:
        await send(service, 0, 10)
        with reading(distributor) as taken:
            await taken.until_count(10)
        with reading(distributor, Start(resume=taken.ids[6])) as rest:
            await rest.until_count(3)
            assert rest.ids == taken.ids[7:]


async def test_the_distributor_filters_and_tells_progress(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logpipe.fanout.streaming.PROGRESS_S", 0.05)
    async with (
        serving(redis_addr=valkey.url, heartbeat_s=0.2) as service,
        remote(service.url) as distributor,
    ):
        with reading(distributor, ALL, Filter("7")) as taken:
            await taken.until(Hello)
            await send(service, 0, 30)
            await taken.until_count(3)
            assert taken.messages == ["7", "17", "27"]
            await send(service, 0, 5)
            progress = await taken.until(Progress)
            assert progress.id > START


async def test_the_first_events_wanted_are_those_of_tail(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service, remote(service.url) as distributor:
        await send(service, 0, 50)
        with reading(distributor, Start(tail=5)) as taken:
            await taken.until_count(5)
            assert taken.messages == ["45", "46", "47", "48", "49"]


@pytest.mark.parametrize("signal", ["kill", "terminate"])
async def test_a_restart_of_the_distributor_costs_no_event(
    own_valkey: Valkey, tmp_path: Path, signal: str
) -> None:
    port = str(free_port())
    role = {"ROLE": "distributor", "REDIS_ADDR": own_valkey.url, "PORT": port}
    async with (
        serving(role="collector", redis_addr=own_valkey.url) as collector,
        remote(f"http://127.0.0.1:{port}", heartbeat_s=1) as distributor,
    ):
        with reading(distributor) as taken:
            for round_ in range(3):
                async with spawned(tmp_path, **role) as process:
                    await process.ready()
                    await send(collector, 200 * round_, 200 * round_ + 100)
                    await taken.until_count(200 * round_ + 100)
                    getattr(process.popen, signal)()
                    await send(collector, 200 * round_ + 100, 200 * round_ + 200)
                    await process.exit_status()
            async with spawned(tmp_path, **role) as process:
                await taken.until_count(600, 30)
                assert taken.messages == [str(n) for n in range(600)]
                assert any(isinstance(item, Notice) for item in taken.items)


async def test_a_page_opened_before_the_distributor_misses_nothing(
    valkey: Valkey,
) -> None:
    port = free_port()
    async with (
        serving(role="collector", redis_addr=valkey.url) as collector,
        remote(f"http://127.0.0.1:{port}") as distributor,
    ):
        await send(collector, 0, 3)
        await asyncio.sleep(0.002)  # ids and the page's time are in milliseconds
        with reading(distributor, Start()) as taken:
            notice = await taken.until(Notice)
            assert "cannot be reached" in notice.reason
            await send(collector, 3, 8)
            async with serving(role="distributor", redis_addr=valkey.url, port=port):
                await taken.until(Hello)
                await taken.until_count(5)
                assert taken.messages == ["3", "4", "5", "6", "7"]


async def test_after_an_outage_a_hello_says_that_it_goes_on(valkey: Valkey) -> None:
    port = free_port()
    async with remote(f"http://127.0.0.1:{port}") as distributor:
        with reading(distributor) as taken:
            for _ in range(2):
                async with serving(redis_addr=valkey.url, port=port):
                    await taken.until(Hello)
                assert (await taken.until(Notice)).reason


async def test_the_first_read_token_is_shown_to_the_distributor(valkey: Valkey) -> None:
    async with (
        serving(redis_addr=valkey.url, read_tokens="one,two") as service,
        remote(service.url, read_tokens="two,one") as distributor,
    ):
        await send(service, 0, 2)
        with reading(distributor) as taken:
            await taken.until_count(2)


@pytest.mark.parametrize(("tokens", "status"), [("", "401"), ("wrong", "403")])
async def test_a_token_that_the_distributor_refuses_is_told(
    valkey: Valkey, tokens: str, status: str
) -> None:
    async with (
        serving(redis_addr=valkey.url, read_tokens="right") as service,
        remote(service.url, read_tokens=tokens) as distributor,
    ):
        with reading(distributor) as taken:
            notice = await taken.until(Notice)
            assert status in notice.reason
            assert "READ_TOKENS" in notice.reason
            assert "wrong" not in notice.reason


async def test_a_trouble_that_lasts_is_told_once() -> None:
    async with (
        Impostor("HTTP/1.1 500 Oops\r\nContent-Length: 0\r\nConnection: close\r\n\r\n") as other,
        remote(other.url, heartbeat_s=0.05) as distributor,
    ):
        with reading(distributor) as taken:
            await wait_until(lambda: len(other.heads) > 2, "it tries on")
            assert (await taken.until(Notice)).reason == "the distributor answers 500"
            assert list(await taken.more() or ()) == []


async def test_a_gap_is_passed_on_as_the_distributor_tells_it(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service, remote(service.url) as distributor:
        await send(service, 0, 20)
        with reading(distributor) as taken:
            await taken.until_count(20)
    valkey.client.xtrim("logs", maxlen=5, approximate=False)
    async with serving(redis_addr=valkey.url) as service, remote(service.url) as distributor:
        with reading(distributor, Start(resume=taken.ids[0])) as rest:
            gap = await rest.until(Gap)
            assert (gap.reason, gap.after, gap.before) == ("trimmed", taken.ids[0], taken.ids[15])
            await rest.until_count(5)
            assert rest.ids == taken.ids[15:]


async def test_a_last_event_id_that_is_none_is_answered_by_a_gap(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service, remote(service.url) as distributor:
        await send(service, 0, 3)
        with reading(distributor, Start(unknown=True)) as taken:
            assert (await taken.until(Gap)).reason == "reset"
            await taken.until_count(3)


async def test_a_page_that_does_not_read_loses_nothing(
    valkey: Valkey,
) -> None:
    async with serving(redis_addr=valkey.url) as service, remote(service.url) as distributor:
        pad = "x" * 2000
        for part in range(20):
            await service.post([{"source": "t", "message": f"{part}-{pad}"}] * 500)
        with reading(distributor) as taken:
            queue = taken.subscription._queue
            await wait_until(queue.full, "the queue is full")
            assert queue.qsize() <= QUEUE_LEN
            await taken.until_count(10_000, 30)
            assert len(set(taken.ids)) == 10_000


async def test_leaving_ends_the_task_and_the_connection(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service, remote(service.url) as distributor:
        hub_tasks = asyncio.all_tasks()
        for _ in range(20):
            with reading(distributor) as taken:
                await taken.until(Hello)
        await wait_until(lambda: pool_is_empty(distributor), "the connections are closed")

        async def alone() -> bool:
            metrics = (await service.http.get("/metrics")).text
            return 'logpipe_subscribers{delivery="broadcast"} 0.0' in metrics

        await wait_until(alone, "the distributor has no subscriber left")
        left = asyncio.all_tasks() - hub_tasks
        assert not [task for task in left if task.get_name() == "remote subscription"]
        assert not distributor.open


def pool_is_empty(distributor: RemoteDistributor) -> bool:
    transport: Any = distributor.http._transport
    return not transport._pool.connections


async def test_leaving_with_a_full_queue_ends_the_connection(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service, remote(service.url) as distributor:
        for _ in range(20):
            await service.post([{"source": "t", "message": "x" * 4000}] * 500)
        with reading(distributor) as taken:
            await wait_until(taken.subscription._queue.full, "the queue is full")
        await wait_until(lambda: pool_is_empty(distributor), "the connection is closed")


async def test_a_server_that_stops_says_bye_to_its_pages(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service, remote(service.url) as distributor:
        with reading(distributor) as taken:
            await taken.until(Hello)
            distributor.close()
            assert isinstance(await taken.until(Bye), Bye)
            assert await taken.more() is None
        with reading(distributor) as late:
            assert isinstance(await late.until(Bye), Bye)
            assert await late.more() is None


async def test_an_idle_stream_asks_for_heartbeats(valkey: Valkey) -> None:
    async with (
        serving(redis_addr=valkey.url) as service,
        remote(service.url, heartbeat_s=0.05) as distributor,
    ):
        with reading(distributor) as taken:
            await taken.until(Hello)
            assert await taken.more() == []


async def test_what_is_no_distributor_is_told() -> None:
    page = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nhi"
    async with Impostor(page) as other, remote(other.url) as distributor:
        with reading(distributor) as taken:
            assert "no distributor" in (await taken.until(Notice)).reason


async def test_a_refusal_is_raised_for_who_does_not_insist(valkey: Valkey) -> None:
    async with (
        serving(redis_addr=valkey.url, read_tokens="right") as service,
        remote(service.url) as distributor,
    ):
        with reading(distributor, insist=False) as taken:
            for _ in range(2):
                with pytest.raises(Refused) as refused:
                    await taken.more()
                assert refused.value.status == 401
                assert "token" in refused.value.document["detail"]


@pytest.mark.parametrize(
    "answer",
    [
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nhi",
        "HTTP/1.1 308 Moved\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\n[{}]",
        f"HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\n{'x' * 100_000}",
    ],
)
async def test_what_is_no_distributor_is_refused_with_no_document(answer: str) -> None:
    async with Impostor(answer) as other, remote(other.url) as distributor:
        with reading(distributor, insist=False) as taken:
            with pytest.raises(Refused) as refused:
                await taken.more()
            assert refused.value.document == {}


async def test_once_greeted_a_404_is_a_restart_and_a_401_is_the_end() -> None:
    answers = [SSE_HEAD + HELLO, refusing(404), refusing(503), SSE_HEAD + HELLO, refusing(401)]
    async with Impostor(*answers) as other, remote(other.url) as distributor:
        with reading(distributor, insist=False) as taken:
            await taken.until(Hello)
            await taken.until(Hello)
            with pytest.raises(Refused) as refused:
                await taken.until(Bye)
            assert refused.value.status == 401
            assert len(other.heads) == 5


async def test_overload_is_waited_for_and_not_taken_for_a_refusal() -> None:
    async with (
        Impostor(refusing(429), refusing(500), f"{SSE_HEAD}{HELLO}[wait]") as other,
        remote(other.url) as distributor,
    ):
        with reading(distributor, insist=False) as taken:
            await taken.until(Hello)


async def test_parameters_are_passed_on_as_they_are() -> None:
    async with Impostor(f"{SSE_HEAD}{HELLO}[wait]") as other, remote(other.url) as distributor:
        query = {"q": "level:error -a&b", "since": "10m"}
        with distributor(Start(tail=3), query, insist=False) as subscription:
            await Taken(subscription).until(Hello)
        target = other.heads[0].split()[1]
        assert dict(parse_qsl(target.partition("?")[2])) == {
            "delivery": "broadcast", "on_lag": "catchup", "tail": "3", **query
        }  # fmt: skip


@pytest.mark.parametrize(
    "broken",
    [
        "id: 8-0\ndata: {nonsense\n\n",
        'id: 8-0\nevent: gap\ndata: {"reason":"x","after":"7-0","before":"9-0","count":"?"}\n\n',
    ],
)
async def test_what_cannot_be_read_does_not_move_the_cursor(broken: str) -> None:
    good = 'id: 7-0\ndata: {"id":"7-0","source":"t","message":"good"}\n\n'
    again = good.replace("7-0", "8-0")
    async with (
        Impostor(SSE_HEAD + HELLO + good + broken, SSE_HEAD + HELLO + again + "[wait]") as other,
        remote(other.url) as distributor,
    ):
        with reading(distributor) as taken:
            assert "not understood" in (await taken.until(Notice)).reason
            await taken.until_count(1)
            assert other.header(1, "Last-Event-ID") in ("5-0", "7-0")
            assert parse_id(other.header(1, "Last-Event-ID") or "") < taken.ids[0]


BYE = 'event: bye\nretry: 600\ndata: {"reason":"too many","retry_ms":600}\n\n'


NAMELESS_HELLO = HELLO.removeprefix("id: 5-0\n")
LIMITED = 'id: 6-0\nevent: progress\ndata: {"id":"6-0","looked_back_to":"5-0"}\n\n'


async def test_a_reader_without_an_id_asks_for_its_tail_again() -> None:
    async with (
        Impostor(
            f"{SSE_HEAD}{NAMELESS_HELLO}",
            f"{SSE_HEAD}{NAMELESS_HELLO}{LIMITED}",
            f"{SSE_HEAD}{HELLO}[wait]",
        ) as other,
        remote(other.url) as distributor,
    ):
        with reading(distributor, Start(tail=7)) as taken:
            assert (await taken.until(Hello)).id is None
            limited = await taken.until(Progress)
            assert limited == Progress(StreamId(6, 0), StreamId(5, 0))
            await wait_until(lambda: len(other.heads) == 3, "it connects again")
        for number in range(3):
            assert "tail=7" in other.heads[number].splitlines()[0]
        resumed = [other.header(number, "Last-Event-ID") for number in range(3)]
        assert resumed == [None, None, "6-0"]


@pytest.mark.parametrize(
    "farewell",
    [BYE, "retry: 600\n\n: too many\n\n"],
    ids=["a bye", "as older distributors say it"],
)
async def test_a_reader_that_is_asked_to_come_back_later_waits(farewell: str) -> None:
    async with (
        Impostor(f"{SSE_HEAD}{farewell}", f"{SSE_HEAD}{HELLO}[wait]") as other,
        remote(other.url) as distributor,
    ):
        with reading(distributor) as taken:
            await wait_until(lambda: other.heads, "the first attempt")
            began = asyncio.get_running_loop().time()
            assert "too many" in (await taken.until(Notice)).reason
            await taken.until(Hello)
            assert asyncio.get_running_loop().time() - began > 0.5


async def test_heartbeats_old_and_new_are_no_items() -> None:
    beats = ":\n" * 3 + ":\n\n" * 3
    event = 'id: 7-0\ndata: {"id":"7-0","source":"t","message":"good"}\n\n'
    async with (
        Impostor(f"{SSE_HEAD}{HELLO}{beats}{event}{beats}[wait]") as other,
        remote(other.url) as distributor,
    ):
        with reading(distributor) as taken:
            await taken.until_count(1)
            assert [type(item) for item in taken.items] == [Hello, Batch]


async def test_a_distributor_that_falls_silent_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "SILENCE_S", 0.1)
    async with (
        Impostor(f"{SSE_HEAD}{HELLO}[wait]") as other,
        remote(other.url, heartbeat_s=0.01) as distributor,
    ):
        with reading(distributor) as taken:
            await taken.until(Hello)
            assert "ReadTimeout" in (await taken.until(Notice)).reason
            await taken.until(Hello)
            assert other.header(1, "Last-Event-ID") == "5-0"


async def test_a_fault_of_its_own_ends_the_stream_and_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(RemoteSubscription, "_items", fail)
    async with remote("http://127.0.0.1:9") as distributor:
        with reading(distributor) as taken:
            assert isinstance(await taken.until(Bye), Bye)
            assert await taken.more() is None
    assert "a remote subscription has died" in caplog.text


async def test_a_sent_event_is_stored_and_its_id_comes_back(valkey: Valkey) -> None:
    async with (
        serving(redis_addr=valkey.url, ingest_tokens="w") as service,
        collector_at(service.url, ingest_tokens="w") as submit,
    ):
        one = await submit(b'{"source":"a","message":"b"}')
        more = await submit(b'[{"source":"a","message":"b"},{"source":"a","message":"c"}]')
        rows: Any = valkey.client.xrange("logs")
        ids = [row[0].decode() for row in rows]
        assert one == Stored(1, ids[0], ids[0])
        assert more == Stored(2, ids[1], ids[2])


async def test_what_the_collector_refuses_is_passed_on_with_the_field(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service, collector_at(service.url) as submit:
        with pytest.raises(Problem) as refused:
            await submit(b'{"source":"","message":"b"}')
        assert refused.value.status == 422
        assert refused.value.members["errors"][0]["field"] == "source"


async def test_the_collectors_503_keeps_its_retry_after(own_valkey: Valkey) -> None:
    async with serving(redis_addr=own_valkey.url) as service, collector_at(service.url) as submit:
        own_valkey.kill()
        with pytest.raises(Problem) as refused:
            await submit(b'{"source":"a","message":"b"}')
        assert refused.value.status == 503
        assert refused.value.headers["retry-after"] in retry_after(1)


@pytest.mark.parametrize("token", ["", "wrong"])
async def test_a_token_rejected_by_the_collector_is_a_502(valkey: Valkey, token: str) -> None:
    async with (
        serving(redis_addr=valkey.url, ingest_tokens="right") as service,
        collector_at(service.url, ingest_tokens=token) as submit,
    ):
        with pytest.raises(Problem) as refused:
            await submit(b'{"source":"a","message":"b"}')
        assert refused.value.status == 502
        assert "INGEST_TOKENS" in refused.value.detail


async def test_a_collector_that_is_away_is_a_503() -> None:
    async with collector_at(f"http://127.0.0.1:{free_port()}") as submit:
        with pytest.raises(Problem) as refused:
            await submit(b"{}")
        assert refused.value.status == 503
        assert refused.value.headers["Retry-After"] == "1"
        assert "cannot be reached" in refused.value.detail


async def test_a_cut_connection_is_tried_once_more_with_the_same_key() -> None:
    stored = 'HTTP/1.1 202 Accepted\r\nContent-Length: 13\r\n\r\n{"id": "7-0"}'
    async with Impostor("", stored) as other, collector_at(other.url) as submit:
        assert await submit(b"{}") == Stored(1, "7-0", "7-0")
        keys = {other.header(number, "Idempotency-Key") for number in range(2)}
        assert len(other.heads) == 2
        assert len(keys) == 1
    async with Impostor("") as other, collector_at(other.url) as submit:
        with pytest.raises(Problem) as refused:
            await submit(b"{}")
        assert refused.value.status == 503
        assert len(other.heads) == 2


@pytest.mark.parametrize(
    "answer",
    [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
        "HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\n[]",
        "HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\n{}",
        'HTTP/1.1 202 Accepted\r\nContent-Length: 20\r\n\r\n{"accepted": "many"}',
        'HTTP/1.1 202 Accepted\r\nContent-Length: 13\r\n\r\n{"id": "<b>"}',
        'HTTP/1.1 422 Odd\r\nContent-Length: 30\r\n\r\n{"detail": "a", "errors": [1]}',
        'HTTP/1.1 520 Odd\r\nContent-Length: 15\r\n\r\n{"detail": "a"}',
        'HTTP/1.1 302 Odd\r\nContent-Length: 15\r\n\r\n{"detail": "a"}',
        "HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n",
        'HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\n{"a":"b"}',
    ],
)
async def test_what_is_no_collector_is_told(answer: str) -> None:
    async with Impostor(answer) as other, collector_at(other.url) as submit:
        with pytest.raises(Problem) as refused:
            await submit(b"{}")
        assert refused.value.status == 502


# -- the history ------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def log_at(
    url: str, *, patience_s: float = 30.0, **given: object
) -> AsyncIterator[RemoteLog]:
    async with http_client() as http:
        tokens = settings_for(url, **given).read_tokens
        distributor = RemoteDistributor(url, http, tokens=tokens)
        yield RemoteLog(f"{url}/", http, distributor, tokens, patience_s)


async def test_a_page_of_the_history_is_that_of_the_distributor(valkey: Valkey) -> None:
    async with (
        serving(redis_addr=valkey.url, read_tokens="r") as service,
        log_at(service.url, read_tokens="r") as log,
    ):
        await send(service, 0, 30)
        page = await page_of(log.history(Filter("1 -12"), START, END, newest_first=False), 5)
        assert [entry.event.message for entry in page.entries] == ["1", "10", "11", "13", "14"]
        assert page.next is not None
        rest = await page_of(log.history(Filter("1 -12"), page.next, END, newest_first=False), 5000)
        assert [entry.event.message for entry in rest.entries] == [
            "15",
            "16",
            "17",
            "18",
            "19",
            "21",
        ]
        assert rest.next is None
        back = await page_of(log.history(Filter(), START, page.next, newest_first=True), 2)
        assert [entry.event.message for entry in back.entries] == ["15", "14"]
        own = valkey.client.xrange("logs", str(back.entries[0].id), str(back.entries[0].id))
        assert len(own) == 1  # type: ignore[arg-type]
        assert back.entries[0].json.startswith(b'{"id":"%d-%d",' % back.entries[0].id)
        assert log.name == f"distributor {service.url}"


@pytest.mark.parametrize("newest_first", [True, False])
async def test_a_step_in_the_history_has_no_more_than_its_bytes(
    valkey: Valkey, *, newest_first: bool
) -> None:
    with valkey.client.pipeline(transaction=False) as pipe:
        for number in range(200):
            large = "x" * 60_000 if 50 <= number < 150 else ""
            pipe.xadd("logs", {"event": f'{{"source":"a","message":"{number} {large}"}}'})
        pipe.execute()
    async with serving(redis_addr=valkey.url) as service, log_at(service.url) as log:
        budget = Budget.unlimited()
        scan = log.history(Filter(), START, END, newest_first=newest_first, budget=budget)
        found = []
        while not scan.over:
            entries = await scan.step(5_000)
            found += [int(entry.event.message.partition(" ")[0]) for entry in entries]
            assert sum(len(entry.json) for entry in entries) < STEP_BYTES + 61_000
            if entries:
                assert scan.searched_to is not None
        assert found == (list(range(200))[::-1] if newest_first else list(range(200)))


async def test_a_distributor_without_redis_is_a_503_with_retry_after(
    own_valkey: Valkey,
) -> None:
    async with serving(redis_addr=own_valkey.url) as service, log_at(service.url) as log:
        own_valkey.kill()
        with pytest.raises(Problem) as refused:
            await page_of(log.history(Filter(), START, END, newest_first=True), 5)
        assert refused.value.status == 503
        assert refused.value.detail.startswith("Redis:")
        assert refused.value.headers["retry-after"] in retry_after(1)


def page_with(number: int, last: int) -> str:
    """An answer with one event of so many."""
    following = f'"{number + 1}-0"' if number < last else "null"
    event = f'{{"id":"{number}-0","source":"s","message":"{number}"}}'
    body = f'{{"events":[{event}],"next":{following},"searched_to":"{number}-0"}}'
    return f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}"


BUSY = refusing(503).replace("Connection: close", "Connection: close\r\nRetry-After: 0", 1)


async def test_a_search_that_has_begun_waits_for_a_busy_distributor() -> None:
    answers = [page_with(1, 3), BUSY, BUSY, page_with(2, 3), BUSY, page_with(3, 3)]
    async with Impostor(*answers) as busy, log_at(busy.url) as log:
        scan = log.history(Filter(), START, END, newest_first=False, budget=Budget.unlimited())
        found = []
        while not scan.over:
            found += await scan.step(100)
        assert [entry.event.message for entry in found] == ["1", "2", "3"]
        assert len(busy.heads) == len(answers)


async def test_a_search_that_has_not_begun_is_refused_at_once() -> None:
    async with Impostor(BUSY, page_with(1, 1)) as busy, log_at(busy.url) as log:
        with pytest.raises(Problem) as refused:
            await page_of(log.history(Filter(), START, END, newest_first=False), 5)
        assert refused.value.status == 503
        assert len(busy.heads) == 1


@pytest.mark.parametrize("answer", [BUSY, refusing(500)])
async def test_a_page_ends_where_the_distributor_fails(answer: str) -> None:
    async with (
        Impostor(page_with(1, 3), answer) as failing,
        log_at(failing.url, patience_s=0.3) as log,
    ):
        scan = log.history(Filter(), START, END, newest_first=False, budget=Budget.unlimited())
        page = await page_of(scan, 5)
        assert [entry.event.message for entry in page.entries] == ["1"]
        assert (str(page.next), str(page.searched_to)) == ("2-0", "1-0")


async def test_a_distributor_that_is_away_is_a_503_for_the_history() -> None:
    async with log_at(f"http://127.0.0.1:{free_port()}") as log:
        with pytest.raises(Problem) as refused:
            await page_of(log.history(Filter(), START, END, newest_first=True), 5)
        assert refused.value.status == 503
        assert refused.value.headers["Retry-After"] == "1"


async def test_a_token_rejected_by_the_distributor_is_a_502(
    valkey: Valkey,
) -> None:
    async with (
        serving(redis_addr=valkey.url, read_tokens="right") as service,
        log_at(service.url, read_tokens="wrong") as log,
    ):
        with pytest.raises(Problem) as refused:
            await page_of(log.history(Filter(), START, END, newest_first=True), 5)
        assert refused.value.status == 502
        assert "READ_TOKENS" in refused.value.detail


@pytest.mark.parametrize(
    "body",
    [
        "hi",
        "[]",
        "{}",
        '{"events": [{}], "next": null}',
        '{"events": [{"id": "x"}], "next": null}',
        '{"events": [{"id": "1-1", "message": 5}], "next": null}',
        '{"events": [], "next": "soon"}',
        '{"events": ' + "[" * 5000 + "]" * 5000 + ', "next": null}',
    ],
)
async def test_what_is_no_distributor_is_told_for_the_history(body: str) -> None:
    answer = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    async with Impostor(answer) as other, log_at(other.url) as log:
        with pytest.raises(Problem) as refused:
            await page_of(log.history(Filter(), START, END, newest_first=True), 5)
        assert refused.value.status == 502
