import asyncio
import contextlib
import datetime
import json
import re
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from logpipe import __version__, sse
from logpipe.stream import monitor
from tests.helpers import wait_until
from tests.raw import connected, request
from tests.servers import Service, Valkey, serving, subscribed

MS = 1_710_000_000_000
PROBLEM = "application/problem+json"


@contextlib.asynccontextmanager
async def distributing(valkey: Valkey, **given: object) -> AsyncIterator[Service]:
    """A distributor over this Valkey that follows its stream."""
    async with serving(redis_addr=valkey.url, role="distributor", **given) as service:
        token = str(given.get("read_tokens", "")).partition(",")[0] or "-"
        async with subscribed(service.url, {"Authorization": f"Bearer {token}"}) as reader:
            await reader.named("hello")
        yield service


def add(valkey: Valkey, count: int, *, first: int = 0, **fields: Any) -> list[str]:
    """Appends events with the messages `first`, … and the ids MS+first-0, …; their ids."""
    ids = []
    with valkey.client.pipeline(transaction=False) as pipe:
        for number in range(first, first + count):
            event = {"source": "s", "message": str(number), "level": "INFO", "ts_unix_ms": MS}
            ids.append(f"{MS + number}-0")
            pipe.xadd("logs", {"event": json.dumps({**event, **fields})}, id=ids[-1])
        pipe.execute()
    return ids


async def events(service: Service, **query: object) -> Any:
    """A page of the history; `from_` stands for `from`."""
    parameters = {name.rstrip("_"): str(value) for name, value in query.items()}
    answer = await service.http.get("/events", params=parameters)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


def messages(page: Any) -> list[int]:
    return [int(event["message"]) for event in page["events"]]


async def refused(service: Service, path: str, **query: object) -> Any:
    parameters = {name.rstrip("_"): str(value) for name, value in query.items()}
    answer = await service.http.get(path, params=parameters)
    assert answer.status_code == 400, answer.text
    assert answer.headers["content-type"] == PROBLEM
    return answer.json()["parameter"]


# -- the history -------------------------------------------------------------------------------


async def test_the_history_of_an_empty_stream_is_empty(valkey: Valkey) -> None:
    async with distributing(valkey) as service:
        for order in ("asc", "desc"):
            assert await events(service, order=order) == {
                "events": [],
                "next": None,
                "searched_to": None,
            }
        assert await events(service, cursor="5-0", from_=1, to="latest") == {
            "events": [],
            "next": None,
            "searched_to": None,
        }


async def test_the_history_comes_newest_first_a_hundred_at_a_time(valkey: Valkey) -> None:
    add(valkey, 250)
    async with distributing(valkey) as service:
        page = await events(service)
        assert messages(page) == list(range(249, 149, -1))
        assert page["events"][0]["id"] == f"{MS + 249}-0"
        assert page["events"][0]["source"] == "s"
        assert messages(await events(service, order="asc")) == list(range(100))


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("batch_count", [3, 500])
async def test_pages_by_cursor_give_every_event_once_in_either_order(
    valkey: Valkey, order: str, batch_count: int
) -> None:
    add(valkey, 50)
    for number in range(50, 60):  # ten of one millisecond
        valkey.client.xadd(
            "logs", {"event": json.dumps({"message": str(number)})}, id=f"{MS + 50}-{number}"
        )
    async with distributing(valkey, batch_count=batch_count) as service:
        for limit in (1, 7, 20, 60, 61, 5000):
            found: list[int] = []
            cursor: dict[str, str] = {}
            while True:
                page = await events(service, order=order, limit=limit, **cursor)
                assert len(page["events"]) <= limit
                found += messages(page)
                if page["next"] is None:
                    break
                cursor = {"cursor": page["next"]}
            assert found == (list(range(60)) if order == "asc" else list(range(59, -1, -1)))


async def test_pages_in_the_order_of_time_can_be_asked_for_again_when_there_is_more(
    valkey: Valkey,
) -> None:
    add(valkey, 10)
    async with distributing(valkey) as service:
        page = await events(service, order="asc", limit=5)
        add(valkey, 10, first=10)
        rest = await events(service, order="asc", limit=50, cursor=page["next"])
        assert messages(page) + messages(rest) == list(range(20))


async def test_a_cursor_whose_entry_is_trimmed_goes_on_with_what_is_left(valkey: Valkey) -> None:
    add(valkey, 20)
    async with distributing(valkey) as service:
        page = await events(service, order="asc", limit=5)
        valkey.client.xtrim("logs", maxlen=10, approximate=False)
        rest = await events(service, order="asc", cursor=page["next"])
        assert messages(rest) == list(range(10, 20))


async def test_the_history_between_two_moments_takes_both_ends(valkey: Valkey) -> None:
    add(valkey, 3000)
    for sequence in (1, 2):
        valkey.client.xadd("logs", {"event": '{"message":"9"}'}, id=f"{MS + 2999}-{sequence}")
    at_2000 = datetime.datetime.fromtimestamp((MS + 2000) / 1000, datetime.UTC)
    async with distributing(valkey) as service:

        async def between(from_: object, to: object) -> list[int]:
            page = await events(service, from_=from_, to=to, limit=5000, order="asc")
            return messages(page)

        assert await between(MS + 10, MS + 12) == [10, 11, 12]
        assert await between(f"{MS + 10}-0", f"{MS + 12}-0") == [10, 11, 12]
        assert await between(MS // 1000 + 1, MS // 1000 + 1) == [1000]
        assert await between((MS + 1500) / 1000, (MS + 1501) / 1000) == [1500, 1501]
        for moment in (at_2000, at_2000.astimezone(datetime.timezone(datetime.timedelta(hours=2)))):
            assert await between(moment.isoformat(), moment.isoformat()) == [2000]
        last = datetime.datetime.fromtimestamp((MS + 2999) / 1000, datetime.UTC).isoformat()
        assert await between(last.replace("+00:00", "Z"), last) == [2999, 9, 9]
        assert await between("earliest", MS) == [0]
        assert len(await between(MS + 2990, "latest")) == 12
        assert await between("1h", "latest") == []
        assert await between("latest", "latest") == []
        assert await between(MS + 12, MS + 10) == []


async def test_the_history_is_filtered(valkey: Valkey) -> None:
    add(valkey, 5, level="ERROR", source="api-1")
    add(valkey, 5, first=5, level="WARN", source="web")
    add(valkey, 5, first=10, source="api-2")
    async with distributing(valkey, batch_count=2) as service:

        async def found(**query: object) -> list[int]:
            return messages(await events(service, order="asc", **query))

        assert await found(level="error") == [0, 1, 2, 3, 4]
        assert await found(level=">=warn") == list(range(10))
        assert await found(source="api*") == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]
        assert await found(source="web,api-2", level="info") == [10, 11, 12, 13, 14]
        assert await found(text="4") == [4, 14]
        assert await found(text="nowhere") == []
        assert await found(text="4", limit=1) == [4]


async def test_the_limit_has_bounds(valkey: Valkey) -> None:
    add(valkey, 10)
    async with distributing(valkey) as service:
        assert len(messages(await events(service, limit=1))) == 1
        assert len(messages(await events(service, limit=5000))) == 10
        for limit in ("0", "-1", "5001", "x", "1.5", "9" * 5000):
            assert await refused(service, "/events", limit=limit) == "limit"


async def test_a_bad_parameter_of_the_history_is_refused_by_its_name(valkey: Valkey) -> None:
    async with distributing(valkey) as service:
        for name, value in (
            ("from", "yesterday"),
            ("to", "2024-03-09T16:00:00"),
            ("order", "newest"),
            ("cursor", "x"),
            ("cursor", "1-2-3"),
            ("cursor", f"{2**64}-0"),
            ("level", ">=loud"),
        ):
            assert await refused(service, "/events", **{name: value}) == name


async def test_the_history_without_redis_asks_to_come_back() -> None:
    async with serving(redis_addr="unix:///nonexistent", role="distributor") as service:
        answer = await service.http.get("/events")
        assert answer.status_code == 503
        assert answer.headers["content-type"] == PROBLEM
        assert int(answer.headers["retry-after"]) >= 1


async def test_entries_of_other_writers_do_not_break_the_history(valkey: Valkey) -> None:
    add(valkey, 1)
    for fields in ({"x": "y"}, {"event": b"\xff"}, {"event": "[1]"}, {"event": "{"}):
        valkey.client.xadd("logs", fields)  # type: ignore[arg-type]
    add_last = valkey.client.xadd("logs", {"event": '{"message":"7","extra":{"id":1}}\n'})
    async with distributing(valkey) as service:
        page = await events(service, order="asc")
        assert messages(page) == [0, 7]
        assert page["events"][1] == {
            "id": add_last.decode(),  # type: ignore[union-attr]
            "message": "7",
            "extra": {"id": 1},
        }


async def test_methods_and_paths_that_are_not_there_are_refused(valkey: Valkey) -> None:
    async with distributing(valkey) as service:
        for path in ("/events", "/subscribe"):
            answer = await service.http.post(path)
            assert answer.status_code == 405
            assert "GET" in answer.headers["allow"]
            assert answer.headers["content-type"] == PROBLEM
        for path in ("/events/", "/subscribe/x", "/", "/ingest"):
            assert (await service.http.get(path)).status_code == 404


# -- the stream --------------------------------------------------------------------------------


async def test_a_subscription_begins_with_hello_and_its_headers_keep_proxies_from_buffering(
    valkey: Valkey,
) -> None:
    first, *_, last = add(valkey, 5)
    async with distributing(valkey) as service, subscribed(service.url) as reader:
        headers = reader.response.headers
        assert reader.response.status_code == 200
        assert headers["content-type"].startswith("text/event-stream")
        assert headers["cache-control"] == "no-cache, no-transform"
        assert headers["x-accel-buffering"] == "no"
        assert "content-length" not in headers
        hello = await reader.next()
        assert (hello.event, hello.id) == ("hello", last)
        assert json.loads(hello.data) == {
            "first_id": first,
            "last_id": last,
            "delivery": "broadcast",
            "version": __version__,
        }


async def test_an_empty_stream_says_hello_and_its_id_can_be_resumed_from(valkey: Valkey) -> None:
    async with distributing(valkey) as service:
        async with subscribed(service.url) as reader:
            hello = await reader.next()
            assert json.loads(hello.data)["first_id"] is None
            assert json.loads(hello.data)["last_id"] is None
        add(valkey, 3)
        async with subscribed(service.url, {"Last-Event-ID": hello.id}) as reader:
            assert [event["message"] for event in await reader.until(3)] == ["0", "1", "2"]


async def test_an_event_has_its_id_twice_and_everything_it_was_sent_with(valkey: Valkey) -> None:
    async with distributing(valkey) as service, subscribed(service.url) as reader:
        await reader.named("hello")
        (id_,) = add(valkey, 1, metadata={"a": [1, {"b": None}]}, message="x\r\n\ndata: y\u2028")
        event = await reader.next()
        assert (event.event, event.id) == ("message", id_)
        assert json.loads(event.data) == {
            "id": id_,
            "source": "s",
            "message": "x\r\n\ndata: y\u2028",
            "level": "INFO",
            "ts_unix_ms": MS,
            "metadata": {"a": [1, {"b": None}]},
        }


async def test_who_accepts_ndjson_gets_a_line_an_event(valkey: Valkey) -> None:
    ids = add(valkey, 3)
    async with (
        distributing(valkey) as service,
        service.http.stream(
            "GET",
            "/subscribe",
            params={"since": "earliest"},
            headers={"Accept": "application/x-ndjson, text/event-stream;q=0.5"},
        ) as response,
    ):
        assert response.headers["content-type"].startswith("application/x-ndjson")
        lines = response.aiter_lines()
        hello = json.loads(await anext(lines))
        assert hello["event"] == "hello"
        assert [json.loads(await anext(lines))["id"] for _ in ids] == ids


async def test_a_reader_resumes_by_the_header_or_the_parameter_and_the_header_wins(
    valkey: Valkey,
) -> None:
    ids = add(valkey, 10)
    async with distributing(valkey) as service:
        for headers, query, first in (
            ({"Last-Event-ID": ids[3]}, {}, 4),
            ({}, {"last_event_id": ids[6]}, 7),
            ({"Last-Event-ID": ids[3]}, {"last_event_id": ids[6]}, 4),
            ({"Last-Event-ID": ids[3]}, {"last_event_id": "nonsense", "since": "earliest"}, 4),
        ):
            async with subscribed(service.url, headers, **query) as reader:
                hello = await reader.next()
                assert hello.id == ids[first - 1]
                found = await reader.until(10 - first)
                assert [event["id"] for event in found] == ids[first:]


async def test_a_header_that_is_no_id_gets_the_oldest_and_a_gap_because_an_error_ends_a_browser(
    valkey: Valkey,
) -> None:
    ids = add(valkey, 3)
    async with distributing(valkey) as service:
        for header in ("abc", "-1", "1-2-3", "$", f"{2**64}-0", "x" * 8000, "é".encode()):
            headers: Any = {"Last-Event-ID": header}
            async with subscribed(service.url, headers) as reader:
                assert reader.response.status_code == 200
                gap = await reader.named("gap")
                assert gap["reason"] == "reset"
                assert [event["id"] for event in await reader.until(3)] == ids


async def test_a_bad_parameter_of_a_subscription_is_refused_by_its_name(valkey: Valkey) -> None:
    async with distributing(valkey) as service:
        for name, value in (
            ("last_event_id", "abc"),
            ("since", "soon"),
            ("tail", "-1"),
            ("tail", "0" * 5000),
            ("on_lag", "x"),
            ("delivery", "twice"),
            ("level", ">=loud"),
        ):
            assert await refused(service, "/subscribe", **{name: value}) == name
        assert (await refused(service, "/subscribe", delivery="shared", group="g" * 129)) == "group"


async def test_an_unknown_parameter_is_rejected_by_its_name(valkey: Valkey) -> None:
    async with distributing(valkey) as service:
        assert await refused(service, "/subscribe", qq="level:error", tail=2) == "qq"
        assert await refused(service, "/events", limitt=1) == "limitt"
        answer = await service.http.get("/events", params={"since": "10m"})
        assert answer.json()["nearest"] == "from"
        assert (await service.http.get("/events", params={"_": "17"})).status_code == 200
        async with subscribed(service.url, _="17") as reader:
            await reader.named("hello")


@pytest.mark.parametrize("delivery", ["broadcast", "shared"])
async def test_a_group_without_shared_delivery_is_rejected(valkey: Valkey, delivery: str) -> None:
    async with distributing(valkey, delivery=delivery) as service:
        assert await refused(service, "/subscribe", delivery="broadcast", group="g") == "group"
        if delivery == "broadcast":
            assert await refused(service, "/subscribe", group="g") == "group"
            assert await refused(service, "/subscribe", group="") == "group"
        else:
            async with subscribed(service.url, group="g") as reader:
                assert (await reader.named("hello"))["delivery"] == "shared"


async def test_since_and_tail_say_where_a_subscription_begins(valkey: Valkey) -> None:
    add(valkey, 10)
    async with distributing(valkey) as service:
        for query, first in (
            ({"since": "earliest"}, 0),
            ({"since": MS + 7}, 7),
            ({"since": f"{MS + 7}-0"}, 7),
            ({"tail": 3}, 7),
            ({"tail": 50}, 0),
            ({"tail": 3, "since": MS + 9}, 9),
            ({"tail": 3, "since": "earliest"}, 7),
            ({"tail": 2, "text": "1"}, 1),
        ):
            async with subscribed(service.url, **query) as reader:
                (event,) = await reader.until(1)
                assert int(event["message"]) == first, query
        async with subscribed(service.url, since="latest") as reader:
            await reader.named("hello")
            add(valkey, 1, first=10)
            assert [event["message"] for event in await reader.until(1)] == ["10"]


@pytest.mark.parametrize("ahead_s", [-7200, 7200])
async def test_ages_count_by_the_clock_of_redis(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch, ahead_s: int
) -> None:
    of_this_machine = monitor._clock_ahead_in
    monkeypatch.setattr(monitor, "_clock_ahead_in", lambda info: of_this_machine(info) + ahead_s)
    now_ms = int((time.time() + ahead_s) * 1000)
    for number, age_ms in enumerate((900_000, 300_000)):
        event = json.dumps({"source": "s", "message": str(number)})
        valkey.client.xadd("logs", {"event": event}, id=now_ms - age_ms)
    async with serving(redis_addr=valkey.url, role="distributor,ui") as service:
        async with subscribed(service.url) as reader:
            await reader.named("hello")
        shared: dict[str, object] = {"delivery": "shared", "group": f"g{ahead_s}"}
        for delivery in ({}, shared):
            async with subscribed(service.url, None, since="10m", **delivery) as reader:
                assert [event["message"] for event in await reader.until(1)] == ["1"]
        assert messages(await events(service, from_="10m")) == [1]
        assert messages(await events(service, to="10m")) == [0]
        download = await service.http.get("/ui/download", params={"since": "10m"})
        assert json.loads(download.text)["message"] == "1"
        assert await refused(service, "/subscribe", since=now_ms + 120_000) == "since"


async def test_a_subscription_is_filtered(valkey: Valkey) -> None:
    async with (
        distributing(valkey) as service,
        subscribed(service.url, level=">=warn") as by_level,
        subscribed(service.url, source="api*") as by_source,
        subscribed(service.url, text="NEEDLE") as by_text,
        subscribed(service.url, level="error", source="api*", text="needle") as by_all,
    ):
        for reader in (by_level, by_source, by_text, by_all):
            await reader.named("hello")
        add(valkey, 1, level="DEBUG", source="web", message="1 hay")
        add(valkey, 1, first=2, level="WARN", source="web", message="2 a needle")
        add(valkey, 1, first=3, level="INFO", source="api-1", message="3 hay")
        add(valkey, 1, first=4, level="ERROR", source="api-2", message="4 Needle")
        for reader, wanted in (
            (by_level, ["2 a needle", "4 Needle"]),
            (by_source, ["3 hay", "4 Needle"]),
            (by_text, ["2 a needle", "4 Needle"]),
            (by_all, ["4 Needle"]),
        ):
            found = await reader.until(len(wanted))
            assert [event["message"] for event in found] == wanted


async def test_an_idle_subscription_is_kept_alive_by_comments(valkey: Valkey) -> None:
    async with (
        distributing(valkey, heartbeat_s=0.1) as service,
        service.http.stream("GET", "/subscribe") as response,
    ):
        seen = ""
        async with asyncio.timeout(5):
            async for text in response.aiter_text():
                seen += text
                if "\n\n:\n:\n:\n" in seen:
                    break
        assert seen.startswith("id: ")
        assert "event: hello" in seen


async def test_a_parameter_with_an_id_that_the_stream_never_had_is_refused(
    valkey: Valkey,
) -> None:
    ids = add(valkey, 5)
    async with distributing(valkey) as service:
        for unknown in (f"{MS + 99}-0", f"{MS + 2}-7", str(MS + 99)):
            assert await refused(service, "/subscribe", last_event_id=unknown) == "last_event_id"
        assert await refused(service, "/subscribe", since="2999-01-01T00:00:00Z") == "since"
        # The same in the header: an EventSource would give up for good.
        async with subscribed(service.url, {"Last-Event-ID": f"{MS + 99}-0"}) as reader:
            assert (await reader.named("gap"))["reason"] == "reset"
        for known in (ids[1], "0-0"):
            async with subscribed(service.url, last_event_id=known) as reader:
                await reader.until(3)
        valkey.client.flushall()
        assert await refused(service, "/subscribe", last_event_id=ids[1]) == "last_event_id"
        add(valkey, 5, first=50)
        assert await refused(service, "/subscribe", last_event_id=ids[1]) == "last_event_id"


async def test_a_polyfill_goes_on_where_it_was_wherever_it_had_begun(valkey: Valkey) -> None:
    ids = add(valkey, 5)
    async with distributing(valkey) as service:
        for name in ("lastEventId", "lastEventID"):
            query = {name: ids[2], "last_event_id": ids[0]}
            async with subscribed(service.url, None, **query) as reader:
                assert [event["message"] for event in await reader.until(2)] == ["3", "4"]
            assert await refused(service, "/subscribe", **{name: "x"}) == name
        # An error status would end it for good, as it ends an EventSource.
        valkey.client.flushall()
        add(valkey, 5, first=50)
        async with subscribed(service.url, lastEventId=ids[2]) as reader:
            assert (await reader.named("gap"))["reason"] == "reset"


async def test_a_since_a_little_ahead_of_the_server_s_clock_is_latest(valkey: Valkey) -> None:
    add(valkey, 1)
    async with distributing(valkey) as service:
        soon = time.time() + 10
        async with subscribed(service.url, since=f"{soon:.0f}") as reader:
            await reader.named("hello")
            add(valkey, 1, first=5)
            assert [event["message"] for event in await reader.until(1)] == ["5"]


async def test_what_has_not_left_the_process_is_not_acknowledged(valkey: Valkey) -> None:
    """A process that is killed takes it along, and nobody would ever get it."""
    async with distributing(valkey, pending_idle_ms=60_000) as service:
        valkey.client.xgroup_create("logs", "workers", "0", mkstream=True)
        add(valkey, 400, message="x" * 50_000)  # more than the kernel takes
        async with subscribed(service.url, delivery="shared", group="workers") as worker:
            await worker.until(1)
            await asyncio.sleep(0.3)
            assert valkey.client.xpending("logs", "workers")["pending"] > 0
            assert valkey.client.xinfo_groups("logs")[0]["lag"] > 0
            await worker.until(399)

            def acknowledged() -> bool:
                return bool(valkey.client.xpending("logs", "workers")["pending"] == 0)

            await wait_until(acknowledged, "it has been written")


async def test_what_a_clients_kernel_has_not_confirmed_is_not_acknowledged(
    valkey: Valkey,
) -> None:
    def pending() -> int:
        groups: Any = valkey.client.xinfo_groups("logs")
        return sum(group["pending"] for group in groups)

    async with distributing(valkey, pending_idle_ms=60_000) as service:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(10)
            client.connect(("127.0.0.1", int(service.url.rpartition(":")[2])))
            head = b"GET /subscribe?delivery=shared HTTP/1.1\r\nHost: localhost\r\n\r\n"
            await asyncio.to_thread(client.sendall, head)
            await wait_until(lambda: valkey.client.exists("logs"), "the group is there")
            add(valkey, 20, message="x" * 5_000 + "event_")  # what this kernel takes at once

            async def written() -> bool:
                text = (await service.http.get("/metrics")).text
                found = re.search(r"^logpipe_delivered_bytes_total (\S+)", text, re.MULTILINE)
                return found is not None and float(found[1]) > 100_000

            await wait_until(written, "all has left the process")
            for _ in range(20):
                assert pending() == 20
                await asyncio.sleep(0.01)

            def read() -> None:
                body = b""
                while body.count(b"event_") < 20:
                    body += client.recv(65_536)

            await asyncio.to_thread(read)
            await wait_until(lambda: pending() == 0, "all is acknowledged")


async def test_head_gets_the_headers_and_no_stream(valkey: Valkey) -> None:
    async with distributing(valkey) as service:
        answer = await service.http.head("/subscribe", timeout=2)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        # A group that HEAD names is not one that is read.
        for number in range(70):
            await service.http.head(f"/subscribe?delivery=shared&group={number}", timeout=2)
        async with subscribed(service.url, delivery="shared", group="real") as reader:
            assert (await reader.named("hello"))["delivery"] == "shared"


async def test_a_subscriber_that_leaves_is_forgotten(valkey: Valkey) -> None:
    async with distributing(valkey) as service:

        async def subscribers() -> float:
            text = (await service.http.get("/metrics")).text
            lines = [line for line in text.splitlines() if line.startswith("logpipe_subscribers{")]
            return sum(float(line.split()[1]) for line in lines)

        async with (
            subscribed(service.url) as one,
            subscribed(service.url, delivery="shared") as two,
        ):
            await one.named("hello")
            await two.named("hello")
            assert await subscribers() == 2

        async def nobody() -> bool:
            return await subscribers() == 0

        await wait_until(nobody, "nobody is subscribed")


async def test_a_client_of_http_1_0_gets_the_stream_too(valkey: Valkey) -> None:
    async with distributing(valkey) as service, connected(service.url) as connection:
        await connection.send(request(start="GET /subscribe HTTP/1.0"))
        got = await connection.reader.readuntil(b"event: hello")
        assert b" 200 OK" in got


# -- shared delivery ---------------------------------------------------------------------------


async def test_the_readers_of_a_group_on_two_replicas_share_the_events(valkey: Valkey) -> None:
    async with (
        distributing(valkey, consumer_name="one", delivery="shared") as first,
        distributing(valkey, consumer_name="two", delivery="shared") as second,
        subscribed(first.url) as reader_1,
        subscribed(second.url) as reader_2,
        subscribed(second.url, delivery="broadcast") as all_of_it,
        subscribed(second.url, group="others") as another_group,
    ):
        assert (await reader_1.named("hello"))["delivery"] == "shared"
        assert (await reader_2.named("hello"))["delivery"] == "shared"
        assert (await all_of_it.named("hello"))["delivery"] == "broadcast"
        await another_group.named("hello")
        await wait_until(
            lambda: (
                {group["name"] for group in valkey.client.xinfo_groups("logs")}
                == {b"distributors", b"others"}
            ),
            "both groups are there",
        )
        found: list[list[str]] = [[], []]

        async def read(reader: Any, into: list[str]) -> None:
            while True:
                into += [event["id"] for event in await reader.until(1, timeout=30)]

        tasks = [
            asyncio.create_task(read(reader_1, found[0])),
            asyncio.create_task(read(reader_2, found[1])),
        ]
        ids: list[str] = []
        for number in range(100):
            ids += add(valkey, 2, first=number * 2)
            await asyncio.sleep(0.001)
        try:
            await wait_until(lambda: len(found[0]) + len(found[1]) >= 200, "all have arrived")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        assert sorted(found[0] + found[1]) == sorted(ids)
        assert found[0] and found[1]
        assert [event["id"] for event in await all_of_it.until(200)] == ids
        assert [event["id"] for event in await another_group.until(200)] == ids

        async def acknowledged() -> bool:
            pending: Any = valkey.client.xpending("logs", "distributors")
            return bool(pending["pending"] == 0)

        await wait_until(acknowledged, "all are acknowledged")


async def test_too_many_groups_are_told_to_come_back_without_an_error_status(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logpipe.groups.MAX_GROUPS", 1)
    async with (
        distributing(valkey) as service,
        subscribed(service.url, delivery="shared", group="one") as reader,
    ):
        await reader.named("hello")
        answer = await service.http.get("/subscribe?delivery=shared&group=two")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        (bye,) = sse.Parser().feed(answer.text)
        assert bye.event == "bye"
        assert json.loads(bye.data)["reason"].startswith("1 groups are read here already")


# -- who may read ------------------------------------------------------------------------------


async def test_without_a_token_nobody_reads_and_a_wrong_one_is_forbidden(valkey: Valkey) -> None:
    async with distributing(valkey, read_tokens="one,two", ingest_tokens="three") as service:
        for path in ("/events", "/subscribe"):
            answer = await service.http.get(path)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith("Bearer")
            for wrong in ("three", "x"):
                bearer = {"Authorization": f"Bearer {wrong}"}
                assert (await service.http.get(path, headers=bearer)).status_code == 403
            assert (await service.http.get(f"{path}?token=one")).status_code == 400
        bearer = {"Authorization": "Bearer two"}
        assert (await service.http.get("/events", headers=bearer)).status_code == 200
        async with subscribed(service.url, bearer) as reader:
            await reader.named("hello")
        for path in ("/livez", "/healthz", "/metrics"):
            assert (await service.http.get(path)).status_code in (200, 503)


def allowed(answer: httpx.Response) -> str | None:
    assert "access-control-allow-credentials" not in answer.headers
    origin: str | None = answer.headers.get("access-control-allow-origin")
    return origin


@pytest.mark.parametrize("given", [{"cors_allow_origins": "*"}, {"host": "0.0.0.0"}])
async def test_browsers_of_any_origin_may_read_by_default_and_never_with_credentials(
    valkey: Valkey, given: dict[str, str]
) -> None:
    async with distributing(valkey, **given) as service:
        for path, headers in (
            ("/events", {}),
            ("/events", {"Cookie": "a=b"}),
            ("/events?limit=x", {}),
        ):
            answer = await service.http.get(
                path, headers={"Origin": "https://x.example", **headers}
            )
            assert allowed(answer) == "*"
        async with subscribed(service.url, {"Origin": "https://x.example"}) as reader:
            assert allowed(reader.response) == "*"


async def test_only_browsers_of_the_origins_that_are_set_may_read(valkey: Valkey) -> None:
    good, bad = "https://good.example", "https://good.example.evil"
    async with distributing(valkey, cors_allow_origins=f"{good},http://two") as service:
        for origin, shown in ((good, good), ("http://two", "http://two"), (bad, None)):
            answer = await service.http.get("/events", headers={"Origin": origin})
            assert allowed(answer) == shown
            preflight = await service.http.options(
                "/subscribe",
                headers={
                    "Origin": origin,
                    "Access-Control-Request-Method": "GET",
                    "Access-Control-Request-Headers": "last-event-id, authorization",
                },
            )
            assert allowed(preflight) == shown
            assert (preflight.status_code == 200) is (shown is not None)


async def test_a_reader_that_leaves_with_all_that_it_was_sent_has_had_it(valkey: Valkey) -> None:
    async with distributing(valkey, pending_idle_ms=60_000) as service:
        for number in range(20):
            async with subscribed(service.url, delivery="shared") as reader:
                await reader.named("hello")
                ids = add(valkey, 3, first=3 * number)
                assert [event["id"] for event in await reader.until(3)] == ids

        def acknowledged() -> bool:
            groups: Any = valkey.client.xinfo_groups("logs")
            return [group["pending"] for group in groups] == [0]

        await wait_until(acknowledged, "all is acknowledged")
