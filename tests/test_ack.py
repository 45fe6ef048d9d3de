"""`ack=client`: an event is a member's until it acknowledges it, at any replica."""

import asyncio
import contextlib
import json
import re
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from logpipe.distributor.ack import MAX_ACK_BYTES, Bodies
from logpipe.problems import Problem
from tests.helpers import wait_until
from tests.servers import Reader, Service, Valkey, serving, subscribed

STREAM = "logs"


@contextlib.asynccontextmanager
async def replica(valkey: Valkey, name: str = "one", **given: object) -> AsyncIterator[Service]:
    more: dict[str, Any] = {"consumer_name": name, "pending_idle_ms": 60_000, **given}
    async with serving(redis_addr=valkey.url, role="distributor", **more) as service:
        yield service


class Worker:
    """A member, over HTTP: `got` has the ids of all that has come so far."""

    def __init__(self, reader: Reader, member: str, service: Service) -> None:
        self.got: list[str] = []
        self.reader = reader
        self.member = member
        self.service = service
        self.gaps: list[dict[str, Any]] = []
        self._taken = 0

    async def read(self) -> None:
        """Reads until it is cancelled."""
        while True:
            event = await self.reader.next(60)
            if event.event == "message":
                self.got.append(event.id)
            elif event.event == "gap":
                self.gaps.append(json.loads(event.data))

    async def take(self, count: int) -> list[str]:
        """The next `count` ids."""
        end = self._taken + count
        await wait_until(lambda: len(self.got) >= end, f"{end} events have come")
        taken, self._taken = self.got[self._taken : end], end
        return taken

    async def ack(self, ids: Any, at: Service | None = None) -> tuple[int, int]:
        """How many were acknowledged and unknown; a text or bytes is sent as it is."""
        where = self.service if at is None else at
        body = ids if isinstance(ids, str | bytes) else json.dumps(ids)
        answer = await where.http.post(
            "/ack", params={"group": "g", "member": self.member}, content=body
        )
        assert answer.status_code == 200, answer.text
        document = answer.json()
        return document["acknowledged"], document["unknown"]


@contextlib.asynccontextmanager
async def working(service: Service, **query: object) -> AsyncIterator[Worker]:
    wanted: dict[str, Any] = {"delivery": "shared", "group": "g", "ack": "client", **query}
    async with subscribed(service.url, **wanted) as reader:
        hello = await reader.named("hello")
        worker = Worker(reader, hello["member"], service)
        reading = asyncio.create_task(worker.read())
        try:
            yield worker
        finally:
            reading.cancel()
            await asyncio.wait((reading,))


def add(valkey: Valkey, count: int) -> list[str]:
    with valkey.client.pipeline(transaction=False) as pipe:
        for number in range(count):
            pipe.xadd(STREAM, {"event": json.dumps({"source": "s", "message": str(number)})})
        return [id_.decode() for id_ in pipe.execute()]


def pending(valkey: Valkey) -> int:
    summary: Any = valkey.client.xpending(STREAM, "g")
    return int(summary["pending"])


async def test_an_event_is_pending_until_its_member_acknowledges_it(valkey: Valkey) -> None:
    async with replica(valkey) as one, working(one) as worker:
        ids = add(valkey, 4)
        assert await worker.take(4) == ids
        assert pending(valkey) == 4
        assert await worker.ack(ids[:3]) == (3, 0)
        assert pending(valkey) == 1


async def test_repeated_and_invented_ids_are_unknown(valkey: Valkey) -> None:
    async with replica(valkey) as one, working(one) as worker:
        ids = add(valkey, 2)
        await worker.take(2)
        assert await worker.ack([ids[0], ids[0], "1-1"]) == (1, 2)
        assert await worker.ack([ids[0]]) == (0, 1)
        assert await worker.ack([]) == (0, 0)


async def test_ids_come_as_json_or_one_a_line(valkey: Valkey) -> None:
    async with replica(valkey) as one, working(one) as worker:
        ids = add(valkey, 4)
        await worker.take(4)
        assert await worker.ack(json.dumps(ids[:1])) == (1, 0)
        assert await worker.ack("\r\n".join(ids[1:3]) + "\n") == (2, 0)
        assert await worker.ack(f" {ids[3]} ") == (1, 0)
        assert await worker.ack("") == (0, 0)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'["1-1", "x"]', "Id 1: 'x' is not a stream id"),
        (b"[1]", "must be a JSON array of ids as texts"),
        (b"[", "must be a JSON array of ids as texts"),
        (b"\xff", "an id a line"),
        (b"1-1\nnonsense", "Id 1: 'nonsense'"),
    ],
)
async def test_what_is_no_id_is_refused_with_its_place(
    valkey: Valkey, body: bytes, says: str
) -> None:
    async with replica(valkey) as one:
        where = {"group": "g", "member": f"member-{'0' * 16}"}
        answer = await one.http.post("/ack", params=where, content=body)
        assert answer.status_code == 400
        assert says in answer.json()["detail"]


async def test_ack_names_what_is_wrong_with_a_request(valkey: Valkey) -> None:
    async with replica(valkey, read_tokens="t" * 20) as one:
        bearer = {"Authorization": f"Bearer {'t' * 20}"}
        member = f"member-{'0' * 16}"

        async def asked(**more: Any) -> int:
            given = {"params": {"group": "g", "member": member}, "headers": bearer, **more}
            return (await one.http.post("/ack", **given)).status_code

        assert await asked(content="1-1") == 200  # a group that is not there has no such member
        assert await asked(headers={}) == 401
        assert await asked(headers={"Authorization": "Bearer wrong"}) == 403
        assert await asked(params={"group": "g", "member": "one"}) == 400
        assert await asked(params={"group": "g" * 200, "member": member}) == 400
        assert await asked(params={"grup": "g", "member": member}) == 400
        assert await asked(content=b"1" * (MAX_ACK_BYTES + 1)) == 413
        assert (await one.http.get("/ack", headers=bearer)).status_code == 405


async def test_nobody_acknowledges_for_another_member(valkey: Valkey) -> None:
    async with replica(valkey) as one, working(one) as owner:
        ids = add(valkey, 1)
        assert await owner.take(1) == ids
        async with working(one) as other:
            assert await other.ack(ids) == (0, 1)
        assert await owner.ack(ids) == (1, 0)


async def test_a_member_holds_no_more_than_it_may(valkey: Valkey) -> None:
    async with replica(valkey) as one, working(one, max_in_flight=3) as worker:
        ids = add(valkey, 10)
        assert await worker.take(3) == ids[:3]
        for taken in range(3, 10):
            assert pending(valkey) == 3 and worker.got == ids[:taken]
            assert await worker.ack(ids[taken - 3]) == (1, 0)
            assert await worker.take(1) == [ids[taken]]


async def test_what_one_cannot_hold_goes_to_a_member_elsewhere(valkey: Valkey) -> None:
    async with (
        replica(valkey, "one") as one,
        replica(valkey, "two") as two,
        working(one, max_in_flight=2) as small,
    ):
        ids = add(valkey, 20)
        taken = await small.take(2)
        async with working(two) as large:
            assert {*await large.take(18), *taken} == {*ids}


async def test_an_acknowledgement_elsewhere_makes_room_within_a_second(valkey: Valkey) -> None:
    async with (
        replica(valkey, "one") as one,
        replica(valkey, "two") as two,
        working(one, max_in_flight=2) as worker,
    ):
        ids = add(valkey, 4)
        assert await worker.take(2) == ids[:2]
        loop = asyncio.get_running_loop()
        assert await worker.ack(ids[:2], at=two) == (2, 0)
        began = loop.time()
        assert await worker.take(2) == ids[2:]
        assert loop.time() - began < 5  # a second where the machine is idle


async def test_an_event_that_is_overdue_goes_to_another_member(valkey: Valkey) -> None:
    async with replica(valkey) as one, working(one, ack_wait="300ms") as stuck:
        ids = add(valkey, 3)
        assert await stuck.take(3) == ids
        async with working(one) as other:
            assert {*await other.take(3)} == {*ids}
            assert await stuck.ack(ids) == (0, 3)  # too late
            assert await other.ack(ids) == (3, 0)


async def test_an_overdue_event_goes_to_a_member_of_another_replica(valkey: Valkey) -> None:
    async with (
        replica(valkey, "one") as one,
        replica(valkey, "two") as two,
        working(one, ack_wait="300ms") as stuck,
    ):
        ids = add(valkey, 3)
        assert await stuck.take(3) == ids
        async with working(two) as other:
            assert {*await other.take(3)} == {*ids}
            assert await other.ack(ids) == (3, 0)


async def test_an_overdue_event_comes_again_where_there_is_no_other(valkey: Valkey) -> None:
    async with replica(valkey) as one, working(one, ack_wait="200ms") as worker:
        ids = add(valkey, 1)
        assert await worker.take(2) == ids * 2
        text = (await one.http.get("/metrics")).text
        assert 'logpipe_group_redelivered_total{group="g"}' in text


async def test_events_of_a_member_that_leaves_go_to_another(valkey: Valkey) -> None:
    async with replica(valkey) as one, working(one) as stays:
        async with working(one) as leaves:
            ids = add(valkey, 10)
            await wait_until(lambda: len(stays.got) + len(leaves.got) == 10, "all have come")
            assert leaves.got
            gone = leaves.member
        assert {*await stays.take(10)} == {*ids}
        assert len(stays.got) == 10
        late = await one.http.post("/ack", params={"group": "g", "member": gone}, content=ids[0])
        assert late.json() == {"acknowledged": 0, "unknown": 1}

        async def consumers() -> set[str]:
            return {each["name"].decode() for each in valkey.client.xinfo_consumers(STREAM, "g")}

        async def forgotten() -> bool:
            return gone not in await consumers()

        await wait_until(forgotten, "its consumer is removed")


async def test_events_of_the_last_member_wait_for_the_next_one(valkey: Valkey) -> None:
    async with replica(valkey) as one:
        async with working(one) as first:
            ids = add(valkey, 5)
            assert await first.take(5) == ids
            await first.ack(ids[:2])
        async with working(one) as second:
            assert {*await second.take(3)} == {*ids[2:]}


async def test_what_is_acknowledged_by_hand_in_redis_makes_room(valkey: Valkey) -> None:
    async with replica(valkey) as one, working(one, max_in_flight=1) as worker:
        ids = add(valkey, 2)
        assert await worker.take(1) == ids[:1]
        valkey.client.xack(STREAM, "g", ids[0])
        assert await worker.take(1) == ids[1:]


async def test_events_trimmed_while_a_member_holds_them_can_be_acknowledged(
    valkey: Valkey,
) -> None:
    async with replica(valkey) as one, working(one) as worker:
        ids = add(valkey, 3)
        await worker.take(3)
        valkey.client.xtrim(STREAM, maxlen=0, approximate=False)
        assert await worker.ack(ids) == (3, 0)


async def test_an_overdue_event_that_was_trimmed_is_reported(valkey: Valkey) -> None:
    async with replica(valkey) as one, working(one, ack_wait="300ms") as worker:
        [id_] = add(valkey, 1)
        await worker.take(1)
        valkey.client.xtrim(STREAM, maxlen=0, approximate=False)
        await wait_until(lambda: worker.gaps, "the loss is reported")
        [gap] = worker.gaps
        assert (gap["reason"], gap["count"]) == ("trimmed", 1)
        assert gap["after"] < id_ < gap["before"]


async def test_a_group_destroyed_at_work_gives_all_that_is_held_again(valkey: Valkey) -> None:
    async with replica(valkey) as one, working(one) as worker:
        ids = add(valkey, 3)
        await worker.take(3)
        await worker.ack(ids[:1])
        valkey.client.xgroup_destroy(STREAM, "g")
        assert await worker.take(2) == ids[1:]
        assert await worker.ack(ids) == (2, 1)


async def test_members_with_and_without_acknowledgement_share_a_group(valkey: Valkey) -> None:
    async with (
        replica(valkey) as one,
        working(one, max_in_flight=1) as worker,
        subscribed(one.url, delivery="shared", group="g") as plain,
    ):
        await plain.named("hello")
        ids = add(valkey, 10)
        rest = [event["id"] for event in await plain.until(9)]
        assert {*rest, *await worker.take(1)} == {*ids}
        await wait_until(lambda: pending(valkey) == 1, "only the member's is pending")


async def test_parameters_of_acknowledgement_are_checked(valkey: Valkey) -> None:
    async with replica(valkey) as one:

        async def named(**query: object) -> str:
            parameters = {name: str(value) for name, value in query.items()}
            answer = await one.http.get("/subscribe", params=parameters)
            assert answer.status_code == 400, query
            return str(answer.json()["parameter"])

        assert await named(ack="client") == "ack"  # broadcast
        assert await named(ack_wait="30s") == "ack_wait"
        assert await named(max_in_flight=3) == "max_in_flight"
        assert await named(filter="replace") == "filter"
        shared = {"delivery": "shared"}
        assert await named(**shared, ack="server") == "ack"
        assert await named(**shared, ack_wait="30s") == "ack_wait"
        assert await named(**shared, max_in_flight=3) == "max_in_flight"
        asked = {**shared, "ack": "client"}
        for wait in ("2", "99ms", "2d", "x", "-5s"):
            assert await named(**asked, ack_wait=wait) == "ack_wait"
        for most in (0, 10_001, "x"):
            assert await named(**asked, max_in_flight=most) == "max_in_flight"


async def test_the_lines_of_a_member_have_its_id_as_well(valkey: Valkey) -> None:
    async with replica(valkey) as one:
        query = {"delivery": "shared", "group": "g", "ack": "client"}
        lines = {"Accept": "application/x-ndjson"}
        async with one.http.stream("GET", "/subscribe", params=query, headers=lines) as response:
            hello = json.loads(await anext(response.aiter_lines()))
        assert hello["member"].startswith("member-")


async def pieces(*given: bytes) -> AsyncIterator[bytes]:
    for piece in given:
        yield piece


async def test_bodies_of_acknowledgements_are_bounded_together() -> None:
    bodies = Bodies(most=100)
    with contextlib.ExitStack() as stack:
        for client in "abcd":
            body = stack.enter_context(bodies.body(client))
            await body.receive(pieces(b"x" * 20, b"x" * 4))
            assert body.content == b"x" * 24
        with bodies.body("e") as late, pytest.raises(Problem) as refused:
            await late.receive(pieces(b"x" * 10))
        assert refused.value.status == 503
        assert refused.value.headers["Retry-After"] == "1"
        assert refused.value.hits == {"acks": 1}
    assert not bodies.held


async def test_one_client_leaves_room_for_the_acknowledgements_of_others() -> None:
    bodies = Bodies(most=100)
    with bodies.body("a") as many, pytest.raises(Problem):
        await many.receive(pieces(b"x" * 26))
    with bodies.body("a") as first, bodies.body("b") as other:
        await first.receive(pieces(b"x" * 25))
        await other.receive(pieces(b"x" * 25))
    assert not bodies.held


async def test_ids_that_come_too_slowly_are_refused() -> None:
    async def never() -> AsyncIterator[bytes]:
        yield b"1-1"
        await asyncio.Event().wait()

    with Bodies().body("a") as body, pytest.raises(Problem) as refused:
        await body.receive(never(), 0.01)
    assert refused.value.status == 408


async def test_a_client_that_leaves_with_its_ids_is_no_fault(
    valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    async with replica(valkey) as one:
        head = "POST /ack?group=g&member=member-0123456789abcdef HTTP/1.1\r\nHost: localhost\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", int(one.url.rsplit(":", 1)[1]))
        writer.write(f"{head}Content-Length: 100\r\n\r\n1-1".encode())
        await writer.drain()
        writer.transport.abort()
        for _ in range(20):
            assert (await one.http.get("/livez")).status_code == 200
        del reader
    assert "Traceback" not in caplog.text
    assert "Exception" not in caplog.text


@pytest.mark.parametrize("trouble", ["destroy", "flush", "delete"])
async def test_a_member_that_holds_all_it_may_survives_the_end_of_its_group(
    valkey: Valkey, trouble: str
) -> None:
    async with replica(valkey) as one, working(one, max_in_flight=1) as worker:
        [first] = add(valkey, 1)
        assert await worker.take(1) == [first]
        if trouble == "destroy":
            valkey.client.xgroup_destroy(STREAM, "g")
        elif trouble == "flush":
            valkey.client.flushall()
        else:
            valkey.client.delete(STREAM)
        await worker.ack([first])
        new = add(valkey, 3)
        for id_ in [first, *new] if trouble == "destroy" else new:
            assert await worker.take(1) == [id_]
            await worker.ack([id_])


async def test_a_group_made_anew_has_what_all_its_members_hold(valkey: Valkey) -> None:
    async with (
        replica(valkey, "one") as one,
        replica(valkey, "two") as two,
        working(one) as early,
    ):
        older = add(valkey, 3)
        assert await early.take(3) == older
        async with working(two) as late:
            newer = add(valkey, 3)
            await wait_until(lambda: len(early.got) + len(late.got) >= 6, "all have come")
            valkey.client.xgroup_destroy(STREAM, "g")
            wanted = {*older, *newer}
            await wait_until(lambda: {*early.got[3:], *late.got} >= wanted, "all come again")


async def test_a_client_that_leaves_is_no_fault_of_the_server() -> None:
    async def cut() -> AsyncIterator[bytes]:
        yield b"x"
        raise ClientDisconnect

    with Bodies().body("a") as body, pytest.raises(Problem) as refused:
        await body.receive(cut())
    assert refused.value.status == 400


async def test_as_many_ids_as_a_member_may_hold_fit_into_a_request(valkey: Valkey) -> None:
    async with replica(valkey) as one, working(one, max_in_flight=10_000) as worker:
        ids = add(valkey, 10_000)
        await worker.take(10_000)
        assert await worker.ack(ids) == (10_000, 0)
        assert pending(valkey) == 0


# -- the worker of docs/groups.md ------------------------------------------------------------------

DOCUMENT = (Path(__file__).parent.parent / "docs" / "groups.md").read_text(encoding="utf-8")
WORKER = textwrap.dedent(
    re.findall(r"^    import http.client\n(?:(?: {4}.*)?\n)+", DOCUMENT, re.MULTILINE)[0]
)


@contextlib.asynccontextmanager
async def program(service: Service, output: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """The worker of the document, at work."""
    code = WORKER.replace("8080", service.url.rpartition(":")[2])
    with output.open("wb") as file:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=file)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_no_event_is_lost_with_a_worker_of_the_document(
    valkey: Valkey, tmp_path: Path
) -> None:
    outputs = [tmp_path / "one", tmp_path / "two"]

    def numbers(output: Path) -> set[str]:
        lines = output.read_text().split("\n")[:-1]  # of a line a part may be written
        return {line.removeprefix("s ") for line in lines if line.startswith("s ")}

    async with (
        replica(valkey) as one,
        program(one, outputs[0]) as first,
        program(one, outputs[1]),
    ):

        async def both() -> bool:
            listed = (await one.http.get("/subscribers")).json()["subscribers"]
            return len(listed) == 2

        await wait_until(both, "both are there")
        add(valkey, 300)
        await wait_until(lambda: numbers(outputs[0]), "the first one works")
        first.kill()
        wanted = {str(number) for number in range(300)}
        await wait_until(
            lambda: numbers(outputs[0]) | numbers(outputs[1]) == wanted, "all is done", 20
        )
