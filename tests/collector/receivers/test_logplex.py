import pytest

from logpipe.collector.receivers.logplex import parse
from logpipe.event import Event
from logpipe.problems import Problem
from tests.collector.receivers.parsing import event, events, items
from tests.collector.receivers.samples import collecting, counted, outcomes, texts
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


def test_messages_that_are_missing_keep_those_that_came_from_nothing() -> None:
    for count in ("1", "2"):
        assert len(events(parse, counted(LINE, LINE), headers={"logplex-msg-count": count})) == 2
    *came, missing = items(parse, counted(LINE, LINE), headers={"logplex-msg-count": "3"})
    assert [isinstance(each, Event) for each in came] == [True, True]
    assert isinstance(missing, Problem)
    assert (missing.status, "Logplex-Msg-Count" in missing.detail) == (400, True)


async def test_missing_messages_are_counted_and_a_400_where_none_came(valkey: Valkey) -> None:
    async with collecting(valkey) as service:
        for body, status in ((counted(b"<14>a"), 204), (b"", 400)):
            answer = await service.http.post(
                "/logplex", content=body, headers={"Logplex-Msg-Count": "2"}
            )
            assert answer.status_code == status
        assert await outcomes(service, "logplex") == {"accepted": 1, "rejected": 2}
        assert texts(valkey) == ("a",)


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
