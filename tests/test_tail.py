"""`logpipe tail` as its users run it: in a pipe or a terminal, while servers come and go."""

import asyncio
import contextlib
import fcntl
import json
import os
import re
import signal
import struct
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
from wcwidth import width

from logpipe.client.connection import base_url, http_client
from logpipe.client.distributor import RemoteDistributor
from logpipe.continuity import Gap
from logpipe.fanout.streaming import NDJSON
from logpipe.handler.retry import Backoff
from logpipe.ids import StreamId
from logpipe.messages import Start
from logpipe.tail import Acknowledging, JsonLines, Totals, Wanted
from tests.commands import Command
from tests.helpers import wait_until
from tests.hostile import HOSTILE
from tests.impostor import HELLO, SSE_HEAD, Impostor, refusing
from tests.servers import Service, Valkey, free_port, serving, spawned
from tests.terminals import CLEAN, on_terminal

TAIL = [sys.executable, "-m", "logpipe", "tail"]


class Tailing(Command):
    """A running `logpipe tail`."""

    @property
    def lines(self) -> list[str]:
        return self.out.decode().splitlines()

    @property
    def messages(self) -> list[str]:
        """Of --output json."""
        return [json.loads(line)["message"] for line in self.lines]

    async def until_lines(self, count: int, timeout: float = 20) -> None:
        await wait_until(lambda: self.out.count(b"\n") >= count, f"{count} lines", timeout)


def tailing(*arguments: str, **environ: str) -> contextlib.AbstractAsyncContextManager[Tailing]:
    return Tailing.running("tail", *arguments, **environ)


async def send(service: Service, first: int, last: int, **fields: Any) -> None:
    events = [{"source": "t", "message": str(n), **fields} for n in range(first, last)]
    assert (await service.post(events)).status_code == 202


# -- what is shown -----------------------------------------------------------------------------


async def test_the_last_ten_come_first_and_then_the_live_ones(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        await send(service, 0, 25)
        async with tailing(URL=service.url) as tail:
            await tail.until_lines(10)
            await send(service, 25, 30, level="warn", metadata={"a": 1})
            await tail.until_lines(15)
            found = [re.fullmatch(PIPED, line) for line in tail.lines]
            assert [match["message"] for match in found if match] == [str(n) for n in range(15, 30)]
            assert tail.lines[-1].endswith("WARN  t        29  a=1")
            assert await tail.stop() == 0
            assert tail.told == ["15 events, 0 gaps, 0 reconnects"]


PIPED = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} (INFO|WARN)  t        (?P<message>\d+)(  a=1)?"


async def test_json_is_each_event_as_the_server_sends_it(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        for text in HOSTILE:
            await send(service, 0, 1, message=text, metadata={"text": text})
        wanted = (await service.http.get("/events?order=asc&limit=5000")).json()["events"]
        async with tailing("--url", service.url, "--since", "earliest", "--output=json") as tail:
            await tail.until_lines(len(HOSTILE))
            assert await tail.stop(signal.SIGTERM) == 0
            assert [json.loads(line) for line in tail.out.decode().split("\n")[:-1]] == wanted


async def test_n_and_since_say_where_to_begin(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        await send(service, 0, 20)
        for arguments, messages in (
            (["-n3"], ["17", "18", "19"]),
            (["--since", "1h"], [str(n) for n in range(20)]),
            (["--since", "1h", "-n", "2"], ["18", "19"]),
        ):
            async with tailing("--url", service.url, "--output=json", *arguments) as tail:
                await tail.until_lines(len(messages))
                assert tail.messages == messages


def test_start_and_parameters_are_those_that_were_asked_for() -> None:
    assert Wanted("u").start == Start(tail=10)
    assert Wanted("u", tail=0).start == Start()
    assert Wanted("u", since="1h").start == Start()
    assert Wanted("u", since="1h", tail=0).start == Start(tail=0)
    assert Wanted("u", query="a b", since="1h").parameters == {"q": "a b", "since": "1h"}


@pytest.mark.parametrize("count", [5, None])
def test_a_gap_in_json_is_that_of_the_ndjson_of_subscribe(count: int | None) -> None:
    gap = Gap("trimmed", StreamId(1, 0), StreamId(5, 0), count, StreamId(4, 9))
    assert JsonLines().gap(gap) == NDJSON.message(gap)


def test_a_gap_in_json_holds_nothing_that_a_terminal_obeys() -> None:
    reason: Any = "\x9b2J"
    gap = Gap(reason, StreamId(1, 0), StreamId(5, 0), None, StreamId(4, 9))
    line = JsonLines(terminal=True).gap(gap).decode()
    assert line.removesuffix("\n").isprintable()
    assert json.loads(line)["reason"] == reason


# -- connections that end ----------------------------------------------------------------------


async def test_a_killed_distributor_costs_no_event_and_no_order(
    own_valkey: Valkey, tmp_path: Path
) -> None:
    port = str(free_port())
    role = {"ROLE": "distributor", "REDIS_ADDR": own_valkey.url, "PORT": port}
    url = f"http://127.0.0.1:{port}"
    async with (
        serving(role="collector", redis_addr=own_valkey.url) as collector,
        tailing("--url", url, "--output", "json", "-n", "0") as tail,
    ):
        await tail.until_told("cannot be reached")
        for round_ in range(3):
            async with spawned(tmp_path, **role) as process:
                await process.ready()
                first = 300 * round_
                await tail.until_told("connected", times=round_ + 1)
                for at in range(first, first + 200, 10):
                    await send(collector, at, at + 10)
                    if at == first + 100:
                        process.popen.kill()
            await send(collector, first + 200, first + 300)
        async with spawned(tmp_path, **role):
            await tail.until_lines(900, 30)
            assert tail.messages == [str(n) for n in range(900)]
            assert await tail.stop() == 0
    assert tail.told[-1] == "900 events, 0 gaps, 3 reconnects"
    # Why, and that it is back: once each.
    assert [line.count("connected") for line in tail.told[:-1]] == [0, 1] * 4
    assert tail.told[2].endswith("; trying again")
    assert "connected again after" in tail.told[3]


async def test_events_that_went_while_it_was_away_are_told_by_a_line(own_valkey: Valkey) -> None:
    port = free_port()
    given = {"redis_addr": own_valkey.url, "port": port}
    async with tailing("--url", f"http://127.0.0.1:{port}") as tail:
        await tail.until_told("cannot be reached")
        async with serving(**given) as service:
            await tail.until_told("connected")
            await send(service, 0, 3)
            await tail.until_lines(3)
        async with serving(redis_addr=own_valkey.url, role="collector") as collector:
            await send(collector, 3, 10)
            own_valkey.client.xtrim("logs", maxlen=2, approximate=False)
        async with serving(**given):
            await tail.until_lines(6)
            assert re.fullmatch(
                r"── an unknown number of events is missing: trimmed before .* \(\S+ … \S+\) ──",
                tail.lines[3],
            )
            assert await tail.stop() == 0
    assert tail.told[-1] == ("5 events, 1 gap (an unknown number of events missing), 1 reconnect")


async def test_a_gap_whose_size_is_known_is_counted() -> None:
    gap = {"reason": "trimmed", "after": "5-0", "before": "7-0", "count": 213}
    answer = f"{SSE_HEAD}{HELLO}id: 6-0\nevent: gap\ndata: {json.dumps(gap)}\n\n[wait]"
    async with Impostor(answer) as other:
        async with tailing("--url", other.url, "--output=json") as tail:
            await tail.until_lines(1)
            assert json.loads(tail.out) == {"event": "gap", "id": "6-0", **gap}
        async with tailing("--url", other.url) as tail:
            await tail.until_lines(1)
            assert tail.lines == [
                "── 213 events are missing: trimmed before they could be read (5-0 … 7-0) ──"
            ]
            assert await tail.stop() == 0
            assert tail.told == ["0 events, 1 gap (213 events missing), 0 reconnects"]


async def test_a_search_that_ended_at_its_limit_is_told_with_its_time() -> None:
    hello = HELLO.removeprefix("id: 5-0\n")
    limited = {"id": "1710000000123-0", "looked_back_to": "1710000000123-0"}
    told = f"id: {limited['id']}\nevent: progress\ndata: {json.dumps(limited)}\n\n"
    async with (
        Impostor(f"{SSE_HEAD}{hello}{told}[wait]") as other,
        tailing("--url", other.url, TZ="UTC") as tail,
    ):
        await tail.until_told("not shown")
        assert await tail.stop() == 0
        assert tail.out == b""
        assert tail.told == [
            "logpipe: looked back as far as 2024-03-09 16:00:00.123; older matches are not shown",
            "0 events, 0 gaps, 0 reconnects",
        ]


async def test_an_unreachable_service_is_reported_with_a_remedy() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    async with tailing("--url", url) as tail:
        await tail.until_told("cannot be reached")
        assert url in tail.told[0]
        assert "logpipe serve" in tail.told[0]
        assert "--url" in tail.told[0]
        assert await tail.stop() == 0
        assert tail.told[1:] == ["0 events, 0 gaps, 0 reconnects"]
        assert tail.out == b""


async def test_an_outage_of_redis_and_its_end_are_reported(own_valkey: Valkey) -> None:
    async with serving(redis_addr=own_valkey.url) as service:
        await send(service, 0, 3)
        own_valkey.kill()
        async with tailing("--url", service.url, "--since=1h") as tail:
            await tail.until_told("the distributor has nothing to give yet: ")
            own_valkey.start()
            await tail.until_lines(3)
            assert [line.count("connected") for line in tail.told] == [0, 1]
            assert await tail.stop() == 0
            assert tail.told[2:] == ["3 events, 0 gaps, 0 reconnects"]


async def test_a_notice_in_mid_stream_is_no_reconnect() -> None:
    over = f'{HELLO}: over\n\nid: 7-0\ndata: {{"id":"7-0","source":"t","message":"good"}}\n\n'
    answer = f"{SSE_HEAD}{over}: away\x1b[2J\n\n:\n\n[wait]"
    async with Impostor(answer) as other, tailing("--url", other.url) as tail:
        await tail.until_told("trying")
        assert await tail.stop() == 0
        why, total = tail.told
        assert why.endswith(": the distributor has nothing to give yet: away\\x1b[2J; trying again")
        assert total == "1 event, 0 gaps, 0 reconnects"


# -- refusals ----------------------------------------------------------------------------------


async def refused(url: str, *arguments: str, **environ: str) -> tuple[int, list[str]]:
    async with tailing("--url", url, *arguments, **environ) as tail:
        status = await tail.exit_status()
        assert tail.out == b""
        return status, tail.told


async def test_a_filter_that_cannot_be_read_is_shown_with_a_caret() -> None:
    problem = refusing(400, detail="q: a ) too many", position=10, hint="drop\x1b it")
    async with Impostor(problem) as other:
        status, told = await refused(other.url, "level:err", ")", "-healthz")
        assert "q=level%3Aerr+%29+-healthz" in other.heads[0]
    assert status == 2
    assert told == [
        "logpipe: q: a ) too many",
        "logpipe:   level:err ) -healthz",
        "logpipe:             ^",
        "logpipe: hint: drop\\x1b it",
    ]


async def test_a_time_that_cannot_be_read_is_an_error_of_use(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        status, told = await refused(service.url, "--since", "yesterday")
        assert (status, len(told)) == (2, 1)
        assert "since" in told[0]


async def test_tokens_are_shown_and_their_lack_is_told(valkey: Valkey, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("right\nother\n")
    async with serving(redis_addr=valkey.url, read_tokens="right") as service:
        await send(service, 0, 1)
        for environ in ({}, {"READ_TOKENS": "wrong"}):
            status, told = await refused(service.url, **environ)
            assert (status, len(told)) == (1, 1)
            assert "READ_TOKENS" in told[0]
            assert "--token" in told[0]
            assert "wrong" not in told[0]
        for arguments, environ in (
            (["--token", "right"], {"READ_TOKENS": "wrong"}),
            ([], {"READ_TOKENS": "right,wrong"}),
            ([], {"READ_TOKENS_FILE": str(tmp_path / "tokens"), "PORT": "no matter"}),
        ):
            async with tailing("--url", service.url, *arguments, **environ) as tail:
                await tail.until_lines(1)


async def test_what_is_no_distributor_ends_it_with_words(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, role="collector") as collector:
        status, told = await refused(collector.url)
        assert status == 1
        assert f"{collector.url} answers 404: There is nothing here" in told[0]
        assert "distributor" in told[1]
    page = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nhi"
    async with Impostor(page) as other:
        status, told = await refused(other.url)
        assert (status, told[0]) == (1, f"logpipe: {other.url} is no distributor")


async def test_a_proxy_without_its_distributor_is_waited_for() -> None:
    event = 'id: 7-0\ndata: {"id":"7-0","source":"t","message":"good"}\n\n'
    async with (
        Impostor(SSE_HEAD + HELLO, refusing(404), f"{SSE_HEAD}{HELLO}{event}[wait]") as other,
        tailing("--url", other.url, "--output=json") as tail,
    ):
        await tail.until_lines(1)
        assert await tail.stop() == 0
        assert tail.told[-1] == "1 event, 0 gaps, 1 reconnect"


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://[::1", "http://a:b:c"])
async def test_a_url_that_is_none_is_an_error_of_use(url: str) -> None:
    status, told = await refused(url)
    assert (status, len(told)) == (2, 1)
    assert url in told[0]


def test_a_url_without_a_scheme_is_http() -> None:
    assert base_url(" localhost:8080/ ") == "http://localhost:8080"
    assert base_url("https://logs.example/pipe/") == "https://logs.example/pipe"


# -- pipes and terminals -----------------------------------------------------------------------


async def test_head_ends_it_silently(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        await send(service, 0, 10)
        command = f"{' '.join(TAIL)} --url {service.url} | head -3; echo ${{PIPESTATUS[0]}}"
        process = await asyncio.create_subprocess_exec(
            "bash", "-c", command, stdout=-1, stderr=-1, env=CLEAN
        )
        out, err = await asyncio.wait_for(process.communicate(), 20)
        assert [line.split()[-1] for line in out.decode().splitlines()] == ["0", "1", "2", "0"]
        assert err == b""


async def test_a_full_disk_is_told() -> None:
    event = 'id: 7-0\ndata: {"id":"7-0","source":"t","message":"good"}\n\n'
    async with Impostor(f"{SSE_HEAD}{HELLO}{event}[wait]") as other:
        with Path("/dev/full").open("wb") as full:
            process = await asyncio.create_subprocess_exec(
                *TAIL, "--url", other.url, stdout=full, stderr=-1
            )
            _, err = await asyncio.wait_for(process.communicate(), 20)
        assert process.returncode == 1
        assert err.decode() == "logpipe: the output cannot be written: No space left on device\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_blocked_output_does_not_prevent_the_end(valkey: Valkey, number: int) -> None:
    async with serving(redis_addr=valkey.url) as service:
        await send(service, 0, 500, metadata={"pad": "x" * 2000})
        reader, writer = os.pipe()
        process = await asyncio.create_subprocess_exec(
            *TAIL, "--url", service.url, "--since=1h", stdout=writer, stderr=-1
        )
        os.close(writer)
        try:
            await wait_until(lambda: _bytes_in(reader) > 60_000, "the pipe is full", 30)
            process.send_signal(number)
            _, told = await asyncio.wait_for(process.communicate(), 5)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            os.close(reader)
        assert re.fullmatch(rb"\d+ events, 0 gaps, 0 reconnects\n", told)
        assert process.returncode == 0


def _bytes_in(pipe: int) -> int:
    (count,) = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0\0\0\0"))
    return int(count)


async def test_a_terminal_gets_colours_its_width_and_a_sum(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        await send(service, 0, 2, message="漢字 " * 30, level="error")
        with on_terminal(60, "tail", "--url", service.url) as terminal:
            await terminal.until(lambda seen: seen.count("ERROR") == 2, "both events")
            lines = terminal.seen.split("\n")
            assert "\x1b[1;38;5;160mERROR\x1b[0m" in lines[0]
            assert len(lines) > 6
            assert 50 < max(map(width, lines)) <= 60
            terminal.resize(150)
            await send(service, 0, 1, message="x" * 100)
            await terminal.until(lambda seen: "x" * 100 in seen, "the new width is used")
            await terminal.press(b"\x03")
            assert await asyncio.to_thread(terminal.popen.wait, 5) == 0
            assert terminal.seen.endswith("\r3 events, 0 gaps, 0 reconnects\n")


@pytest.mark.parametrize(
    ("arguments", "environ"), [(["--color=never"], {}), ([], {"NO_COLOR": "1"})]
)
async def test_a_terminal_gets_no_colours_where_they_are_not_wanted(
    valkey: Valkey, arguments: list[str], environ: dict[str, Any]
) -> None:
    async with serving(redis_addr=valkey.url) as service:
        for text in HOSTILE:
            await send(service, 0, 1, message=text)
        with on_terminal(
            80, "tail", "--url", service.url, "--since=1h", *arguments, **environ
        ) as terminal:
            await send(service, 0, 1, message="the end")
            await terminal.until(lambda seen: "the end" in seen, "the last event")
            assert "\x1b" not in terminal.seen
            assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e]", terminal.seen)


async def test_json_on_a_terminal_steers_it_no_more_than_columns_do(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        for text in HOSTILE:
            await send(service, 0, 1, message=text)
        await send(service, 0, 1, message="the end")
        arguments = ("--url", service.url, "--since=1h", "--output=json")
        with on_terminal(80, "tail", *arguments) as terminal:
            await terminal.until(lambda seen: "the end" in seen, "the last event")
            assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e]", terminal.seen)
            found = [json.loads(line)["message"] for line in terminal.seen.split("\n")[:-1]]
            assert found == [*HOSTILE, "the end"]


async def test_colours_in_a_pipe_are_for_who_asks(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        await send(service, 0, 1)
        for arguments, environ in (["--color=always"], {}), ([], {"FORCE_COLOR": "1"}):
            async with tailing("--url", service.url, *arguments, **environ) as tail:
                await tail.until_lines(1)
                assert b"\x1b[38;5;28mINFO" in tail.out


# -- the sum -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("events", "counts", "reconnects", "told"),
    [
        (1234, [200, 13], 1, "1,234 events, 2 gaps (213 events missing), 1 reconnect"),
        (1, [1], 2, "1 event, 1 gap (1 event missing), 2 reconnects"),
        (0, [5, None], 0, "0 events, 2 gaps (at least 5 events missing), 0 reconnects"),
        (0, [None], 0, "0 events, 1 gap (an unknown number of events missing), 0 reconnects"),
    ],
)
def test_the_sum_says_what_was_had_and_what_is_missing(
    events: int, counts: list[int | None], reconnects: int, told: str
) -> None:
    totals = Totals()
    totals.events, totals.reconnects = events, reconnects
    for count in counts:
        totals.add_gap(Gap("trimmed", StreamId(1, 0), StreamId(5, 0), count, StreamId(4, 9)))
    assert str(totals) == told


# -- as a member of a group --------------------------------------------------------------------


async def test_a_member_of_a_group_acknowledges_what_it_has_written(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        asked = ("--url", service.url, "--group", "g", "--ack", "--output", "json", "source:t")
        async with tailing(*asked) as tail:
            await wait_until(lambda: valkey.client.exists("logs"), "the group is there", 30)
            await send(service, 0, 30)
            assert (await service.post({"source": "other", "message": "x"})).status_code == 202
            await tail.until_lines(30)

            def acknowledged() -> bool:
                summary: Any = valkey.client.xpending("logs", "g")
                return bool(summary["pending"] == 0)

            await wait_until(acknowledged, "all are acknowledged")
            assert sorted(tail.messages, key=int) == [str(n) for n in range(30)]
            assert await tail.stop() == 0
            assert tail.told == ["30 events, 0 gaps, 0 reconnects"]


async def test_unwritten_events_of_a_killed_member_go_to_another(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        asked = ("--url", service.url, "--group", "g", "--ack", "--output", "json")
        async with tailing(*asked) as killed, tailing(*asked) as other:

            async def both() -> bool:
                return await members(service) == 2

            await wait_until(both, "both are there", 30)
            killed.process.send_signal(signal.SIGSTOP)
            await send(service, 0, 400)
            await wait_until(lambda: other.lines, "the other works")
            killed.process.kill()
            await wait_until(
                lambda: {*killed.messages, *other.messages} == {str(n) for n in range(400)},
                "none is lost",
            )


async def members(service: Service) -> int:
    return len((await service.http.get("/subscribers")).json()["subscribers"])


async def test_a_member_whose_filter_is_another_is_refused(valkey: Valkey) -> None:
    async with (
        serving(redis_addr=valkey.url) as service,
        tailing("--url", service.url, "--group", "g", "source:a"),
    ):
        await wait_until(lambda: valkey.client.exists("logs"), "the group is there", 30)
        async with tailing("--url", service.url, "--group", "g", "source:b") as refused:
            assert await refused.exit_status() == 1
            assert "filter=replace" in refused.err.decode()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["--ack"], "--group"), (["--group", "g", "-n5"], "-n")],
)
async def test_options_of_groups_are_checked(arguments: list[str], says: str) -> None:
    async with tailing("--url", "http://127.0.0.1:1", *arguments) as tail:
        assert await tail.exit_status() == 2
        assert says in tail.err.decode()


async def test_an_acknowledgement_that_fails_is_reported() -> None:
    told: list[str] = []
    wanted = Wanted("http://127.0.0.1:1", group="g", ack=True)
    backoff = Backoff(first_s=0.001)
    async with Impostor(refusing(503)) as broken, http_client() as http:
        distributor = RemoteDistributor(broken.url, http)
        await Acknowledging(distributor, wanted, told.append, backoff)("m", [StreamId(1, 1)])
        assert len(broken.bodies) == 3
    [line] = told
    assert line.startswith("1 event could not be acknowledged and will come again: ")
    assert line.endswith("503")


async def test_an_acknowledgement_that_comes_too_late_is_reported() -> None:
    told: list[str] = []
    wanted = Wanted("http://127.0.0.1:1", group="g", ack=True)
    body = '{"acknowledged":1,"unknown":2}'
    answer = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    async with Impostor(answer) as service, http_client() as http:
        distributor = RemoteDistributor(service.url, http)
        await Acknowledging(distributor, wanted, told.append)("m", [StreamId(1, 1)])
    assert told == ["2 events acknowledged too late: given to another member as well"]
