import pytest

from logpipe.collector.receivers.logplex import parse
from logpipe.problems import Problem
from tests.collector.receivers.parsing import event, events, items
from tests.collector.receivers.samples import collecting, counted, texts
from tests.servers import Valkey

LINE = b"<40>1 2012-11-30T06:45:29.123456+00:00 host app web.3 - State changed: [up] - now\n"


def test_a_message_has_no_structured_data() -> None:
    found = event(parse, counted(LINE), headers={"logplex-drain-token": "d.1"})
    assert (found.source, found.message) == ("app", "State changed: [up] - now")
    assert (found.level, found.ts_unix_ms) == ("FATAL", 1_354_257_929_123)
    assert found.metadata == {
        "host.name": "host", "syslog.procid": "web.3", "logplex.drain_token": "d.1",
        "syslog.facility.code": 5, "syslog.facility.name": "syslog", "syslog.severity.code": 0,
    }  # fmt: skip


def test_what_has_no_header_is_taken_as_it_is() -> None:
    found = event(parse, counted(b"<14>hello"))
    assert (found.source, found.message, found.level) == ("logplex", "hello", "INFO")


@pytest.mark.parametrize(("count", "right"), [("2", True), ("1", False), ("3", False)])
def test_as_many_messages_have_to_come_as_were_announced(count: str, right: bool) -> None:
    headers = {"logplex-msg-count": count}
    if right:
        assert len(events(parse, counted(LINE, LINE), headers=headers)) == 2
    else:
        with pytest.raises(Problem, match="Logplex-Msg-Count") as caught:
            items(parse, counted(LINE, LINE), headers=headers)
        assert caught.value.status == 400


@pytest.mark.parametrize("count", ["", "x", "²", "-1"])
def test_a_count_that_is_none_is_not_looked_at(count: str) -> None:
    assert len(events(parse, counted(LINE), headers={"logplex-msg-count": count})) == 1


async def test_a_frame_that_comes_again_adds_nothing(valkey: Valkey) -> None:
    async with collecting(valkey) as service:
        for frame in ("a", "a", "b", "a"):
            answer = await service.http.post(
                "/logplex",
                content=counted(b"<14>1 - h a p - " + frame.encode()),
                headers={
                    "Content-Type": "application/logplex-1",
                    "Logplex-Frame-Id": frame,
                    "Logplex-Msg-Count": "1",
                },
            )
            assert (answer.status_code, answer.content) == (204, b"")
        assert texts(valkey) == ("a", "b")


async def test_an_empty_id_is_no_id(valkey: Valkey) -> None:
    async with collecting(valkey) as service:
        for text in (b"a", b"b"):
            await service.http.post(
                "/logplex", content=counted(b"<14>" + text), headers={"Logplex-Frame-Id": ""}
            )
        assert texts(valkey) == ("a", "b")


async def test_nothing_is_a_success(valkey: Valkey) -> None:
    async with collecting(valkey) as service:
        assert (await service.http.post("/logplex")).status_code == 204
