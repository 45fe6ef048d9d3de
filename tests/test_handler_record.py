"""A record as an event: what becomes of each part, and that a collector accepts it."""

import datetime
import logging
import logging.handlers
import queue
import sys
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logpipe.collector.ingest import Bounds, take_in
from logpipe.handler.record import (
    MAX_EVENT_BYTES,
    MAX_VALUES,
    cut,
    event_of,
    notice_of,
    plain,
    text,
)
from tests.handling import logger_of


def decoded(encoded: bytes) -> dict[str, Any]:
    """The event as the collector stores it: nothing of it may be refused."""
    intake = take_in(encoded, "application/x-ndjson", Bounds(MAX_EVENT_BYTES, 1_000, 1_000))
    assert not intake.refusals
    (stored,) = intake.events
    found: dict[str, Any] = msgspec.json.decode(stored)
    return found


def event(
    record: logging.LogRecord | None = None, source: str | None = None, **given: Any
) -> dict[str, Any]:
    record = record or logging.makeLogRecord({"name": "app", "msg": "hello", **given})
    return decoded(event_of(record, source, record.getMessage))


def extra(**given: Any) -> dict[str, Any]:
    """The metadata of a record with these in its `extra`."""
    found: dict[str, Any] = event(**given)["metadata"]
    return found


class Named(Enum):
    """Something with a name."""

    ONE = 1


class Mute:
    """Raises whatever is asked of it."""

    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


class Shouting(str):
    """A text that is not quite one."""

    def __str__(self) -> str:
        return self

    def isascii(self) -> bool:
        raise RuntimeError


class Endless(dict[str, Any]):
    """A container whose own code fails."""

    def copy(self) -> dict[str, Any]:
        raise RuntimeError


# -- the fields ------------------------------------------------------------------------------------


def test_the_place_of_the_call_has_the_names_of_opentelemetry() -> None:
    captured: queue.Queue[logging.LogRecord] = queue.Queue()
    log = logger_of(logging.handlers.QueueHandler(captured), name="shop.cart")
    log.warning("3 items")
    record = captured.get()
    found = event(record)
    assert (found["source"], found["level"], found["message"]) == ("shop.cart", "WARN", "3 items")
    assert found["ts_unix_ms"] == int(record.created * 1000)
    metadata = found["metadata"]
    assert metadata["code.file.path"] == __file__
    assert metadata["code.line.number"] == record.lineno
    assert metadata["code.function.name"] == (
        "test_the_place_of_the_call_has_the_names_of_opentelemetry"
    )
    assert metadata["thread.name"] == "MainThread"
    assert metadata["process.pid"] == record.process
    assert metadata["thread.id"] == record.thread
    assert "otel.scope.name" not in metadata


def test_with_a_given_source_the_logger_is_in_the_metadata() -> None:
    found = event(source="shop")
    assert found["source"] == "shop"
    assert found["metadata"]["otel.scope.name"] == "app"


def test_a_source_always_has_1_to_256_characters() -> None:
    assert event(name="")["source"] == "root"
    assert event(name="x" * 300)["source"] == "x" * 256
    assert event(source="\ud800")["source"] == "\\ud800"
    assert decoded(notice_of(1, "\u2026", "s" * 300, 0))["source"] == "s" * 256


def test_a_task_of_asyncio_is_named() -> None:
    assert extra(taskName="Task-7")["asyncio.task.name"] == "Task-7"
    assert "taskName" not in extra(taskName="Task-7")
    assert "asyncio.task.name" not in extra(taskName=None)


@pytest.mark.parametrize(
    ("name", "number", "level"),
    [
        ("DEBUG", 10, "DEBUG"),
        ("WARNING", 30, "WARN"),
        ("CRITICAL", 50, "FATAL"),
        ("TRACE", 5, "TRACE"),
        ("Notice", 25, "INFO"),
        ("SUCCESS", 25, "SUCCESS"),
        ("Audit", 35, "AUDIT"),
        ("Level 0", 0, "TRACE"),
        ("Level 15", 15, "DEBUG"),
        ("Level 45", 45, "ERROR"),
        ("Level 999", 999, "FATAL"),
        ("Level -5", -5, "TRACE"),
        ("", 33, "WARN"),
        ("", None, "INFO"),
        ("y" * 40, 20, "Y" * 32),
        ("ß" * 20, 20, "S" * 32),
    ],
)
def test_a_level_is_one_of_logpipes_or_keeps_its_name(name: str, number: int, level: str) -> None:
    found = event(levelname=name, levelno=number)
    assert found["level"] == level
    known = level == name or name in ("WARNING", "CRITICAL", "Notice")
    assert ("logging.levelno" in found["metadata"]) is (not known or name == "SUCCESS")


def test_a_time_out_of_the_calendar_is_brought_back() -> None:
    assert event(created=-5.0)["ts_unix_ms"] == 0
    assert event(created=1e15)["ts_unix_ms"] == 253_402_300_799_999
    for odd in (float("nan"), float("inf"), "yesterday"):
        assert event(created=odd)["ts_unix_ms"] > 1_700_000_000_000


# -- exceptions ------------------------------------------------------------------------------------


def raised(function: Callable[[], object]) -> Any:
    try:
        function()
    except Exception:  # noqa: BLE001 - whatever it raises
        return sys.exc_info()
    raise AssertionError("nothing was raised")


def test_an_exception_is_kept_with_its_cause() -> None:
    def fail() -> None:
        secret = "of the frame"  # noqa: F841 - shows that locals stay where they are
        try:
            dict[str, int]().pop("missing")
        except KeyError as error:
            raise ValueError("no such item") from error

    metadata = extra(exc_info=raised(fail))
    assert metadata["exception.type"] == "ValueError"
    assert metadata["exception.message"] == "no such item"
    trace = metadata["exception.stacktrace"]
    assert trace.startswith("Traceback (most recent call last):")
    assert "KeyError: 'missing'" in trace
    assert "direct cause" in trace
    assert trace.endswith("ValueError: no such item")


def test_an_exception_has_its_full_name_and_a_group_its_members() -> None:
    def fail() -> None:
        raise ExceptionGroup("two", [msgspec.ValidationError("first"), OSError("second")])

    trace = extra(exc_info=raised(fail))["exception.stacktrace"]
    assert "msgspec.ValidationError: first" in trace
    assert "OSError: second" in trace
    assert extra(exc_info=(None, msgspec.ValidationError("x"), None))["exception.type"] == (
        "msgspec.ValidationError"
    )


def test_a_deep_recursion_is_kept_short() -> None:
    def fall() -> None:
        fall()

    metadata = extra(exc_info=raised(fall))
    assert metadata["exception.type"] == "RecursionError"
    assert "more times]" in metadata["exception.stacktrace"]


def test_an_exception_that_cannot_be_shown_is_an_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class UnspeakableError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    def fail() -> None:
        raise UnspeakableError

    metadata = extra(exc_info=raised(fail))
    assert metadata["exception.message"] == "<unprintable UnspeakableError>"
    assert "UnspeakableError" in metadata["exception.stacktrace"]
    monkeypatch.setattr("traceback.format_exception", lambda *_: 1 / 0)
    assert extra(exc_info=raised(fail))["exception.stacktrace"] == (
        "<no stack trace: ZeroDivisionError>"
    )


def test_what_another_process_has_formatted_is_kept() -> None:
    assert extra(exc_text="Traceback: …")["exception.stacktrace"] == "Traceback: …"
    assert "exception.stacktrace" not in extra(exc_info=(None, None, None))


def test_a_stack_that_was_asked_for_is_kept() -> None:
    assert extra(stack_info="Stack (most recent call last):")["code.stacktrace"].startswith("Stack")


# -- extra -----------------------------------------------------------------------------------------


def test_extra_is_metadata_and_what_is_no_json_is_text() -> None:
    key = uuid.UUID(int=1)
    metadata = extra(
        user="ada",
        ok=True,
        nothing=None,
        ratio=0.5,
        tags={"a"},
        pair=(1, 2),
        frozen=frozenset({7}),
        when=datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC),
        price=Decimal("1.20"),
        path=Path("/tmp/x"),
        key=key,
        kind=Named.ONE,
        raw=b"\xffbytes",
        huge=2**70,
        nan=float("nan"),
        error=ValueError("odd"),
        mute=Mute(),
        nested={1: {"deep": [None, Mute()]}},
    )
    assert metadata["user"] == "ada"
    assert metadata["ok"] is True
    assert metadata["nothing"] is None
    assert metadata["ratio"] == 0.5
    assert metadata["tags"] == ["a"]
    assert metadata["pair"] == [1, 2]
    assert metadata["frozen"] == [7]
    assert metadata["when"] == "2026-01-02 03:04:00+00:00"
    assert metadata["price"] == "1.20"
    assert metadata["path"] == "/tmp/x"
    assert metadata["key"] == str(key)
    assert metadata["kind"] == "Named.ONE"
    assert metadata["raw"] == "\\xffbytes"
    assert metadata["huge"] == str(2**70)
    assert metadata["nan"] == "nan"
    assert metadata["error"] == "odd"
    assert metadata["mute"] == "<unprintable Mute>"
    assert metadata["nested"] == {"1": {"deep": [None, "<unprintable Mute>"]}}


def test_extra_wins_over_what_the_handler_would_say() -> None:
    assert extra(**{"thread.name": "mine"})["thread.name"] == "mine"


def test_circles_and_depths_end() -> None:
    ring: dict[str, Any] = {}
    ring["self"] = ring
    assert plain(ring) == {"self": "<circular dict>"}
    rings: list[Any] = []
    rings.append([rings])
    assert plain(rings) == [["<circular list>"]]
    deep: list[Any] = []
    for _ in range(600):
        deep = [deep]
    assert extra(deep=deep)
    twice = ["same"]
    assert plain([twice, twice]) == [["same"], ["same"]]


def test_a_vast_extra_is_cut_where_one_sees_it() -> None:
    many = plain(list(range(MAX_VALUES + 5)))
    assert len(many) == MAX_VALUES + 1
    assert many[-1] == f"… [cut: 5 of {MAX_VALUES + 5} values]"
    named = plain({str(number): number for number in range(MAX_VALUES + 1)})
    assert named["…"] == f"[cut: 1 of {MAX_VALUES + 1} values]"
    assert len(plain(list(range(MAX_VALUES)))) == MAX_VALUES


def test_a_vast_extra_beside_other_metadata_is_accepted() -> None:
    many: dict[str, Any] = {f"k{number}": number for number in range(1_500)}
    try:
        int("no")
    except ValueError:
        record = logging.makeLogRecord({"exc_info": sys.exc_info(), "levelno": 7, **many})
    metadata = event(record, "source")["metadata"]
    assert metadata["exception.type"] == "ValueError"
    assert "…" in metadata


def test_odd_texts_become_texts() -> None:
    assert text(Shouting("loud")) == "loud"
    assert type(text(Shouting("loud"))) is str
    assert text("half \ud83d") == "half \\ud83d"
    assert text("größer") == "größer"
    assert text(10**5000) == "<unprintable int>"
    assert plain(Endless(a=1)) == "{'a': 1}"
    assert plain({Mute(): 1}) == {"<unprintable Mute>": 1}


# -- message and size ------------------------------------------------------------------------------


def test_a_message_that_cannot_be_formatted_keeps_its_arguments() -> None:
    found = event(msg="%d items", args=("many",))
    assert found["message"] == "%d items ('many',)"
    assert found["metadata"]["logpipe.format_error"].startswith("TypeError: %d format")
    found = event(msg=Mute())
    assert found["message"] == "<unprintable Mute>"
    assert found["metadata"]["logpipe.format_error"] == "RuntimeError: no words"


def test_a_long_message_is_cut_and_keeps_both_ends() -> None:
    found = event(msg="begin" + "x" * 100_000 + "end")["message"]
    assert found.startswith("beginxxx")
    assert found.endswith("xxxend")
    assert "… [cut: 52008 characters] …" in found


def test_only_an_event_over_the_limit_is_cut() -> None:
    empty = len(event_of(logging.makeLogRecord({"created": 1.7e9}), None, lambda: ""))
    room = MAX_EVENT_BYTES - empty
    record = logging.makeLogRecord({"created": 1.7e9})
    whole = event_of(record, None, lambda: "x" * room)
    assert len(whole) == MAX_EVENT_BYTES
    assert decoded(whole)["message"] == "x" * room
    assert "[cut: " in decoded(event_of(record, None, lambda: "x" * (room + 1)))["message"]


def test_large_metadata_is_cut_before_it_is_given_up() -> None:
    found = event(msg="short", body="y" * 100_000, small=1)
    assert found["message"] == "short"
    assert found["metadata"]["small"] == 1
    assert "… [cut: " in found["metadata"]["body"]
    lists = event(msg="short", rows=[["z" * 300] * 23 for _ in range(10)])
    assert "… [cut: 100 characters] …" in lists["metadata"]["rows"][0][0]
    hopeless = event(msg="\x01" * 70_000, rows={f"{n}" * 40: "\x01" * 300 for n in range(500)})
    assert hopeless["metadata"]["…"].startswith("[cut: the metadata of an event of ")
    assert "characters] …" in hopeless["message"]


def test_a_text_is_cut_only_beyond_its_limit() -> None:
    assert cut("abcd", 4) == "abcd"
    assert cut("abcdefgh", 4) == "abc… [cut: 4 characters] …h"


def test_a_notice_says_how_many_why_and_since_when() -> None:
    found = decoded(notice_of(12, "queue full", None, 1_700_000_000_000))
    assert found["message"] == "logpipe handler dropped 12 events: queue full"
    assert (found["source"], found["level"]) == ("handler", "WARN")
    assert found["metadata"] == {
        "logpipe.dropped": 12,
        "logpipe.dropped_since_unix_ms": 1_700_000_000_000,
        "logpipe.dropped_reason": "queue full",
    }
    assert decoded(notice_of(1, "x", "shop", 0))["source"] == "shop"
    assert "dropped 1 event:" in decoded(notice_of(1, "x", "shop", 0))["message"]


# -- any record ------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=()), max_size=50)
oddities: list[Any] = [Shouting("s"), Endless(a=1), object(), b"\xff", Named.ONE, 2**80]
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | texts
    | st.binary(max_size=20)
    | st.sampled_from(oddities)
    | st.builds(Mute)
    | st.datetimes()
    | st.decimals()
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(texts | st.integers(), inner, max_size=4)
        | st.tuples(inner, inner)
    ),
    max_leaves=15,
)
FIELDS = sorted({*logging.makeLogRecord({}).__dict__, "taskName"} - {"args", "exc_info"})


@given(
    fields=st.dictionaries(st.sampled_from(FIELDS), values, max_size=6),
    extras=st.dictionaries(texts, values, max_size=5),
    args=st.none() | st.tuples(values) | st.tuples(values, values),
    msg=values | st.sampled_from(["%s", "%d %s", "%(a)s", "100%"]),
    error=st.none() | values | st.just(ValueError("\ud800")),
    source=st.none() | texts,
    blown_up=st.sampled_from([1, 3_000]),
)
def test_any_record_becomes_an_event_that_a_collector_accepts(
    fields: dict[str, Any],
    extras: dict[str, Any],
    args: Any,
    msg: Any,
    error: Any,
    source: str | None,
    blown_up: int,
) -> None:
    exc_info = None if error is None else (type(error), error, None)
    if isinstance(msg, str):
        msg = msg * blown_up
    record = logging.makeLogRecord(
        {**extras, **fields, "args": args, "msg": msg, "exc_info": exc_info}
    )
    decoded(event_of(record, source, record.getMessage))


@pytest.fixture(autouse=True)
def _standard_level_names() -> Iterator[None]:
    """Nothing here registers a level; the names come from the records."""
    yield
    assert logging.getLevelName(25) == "Level 25"


@pytest.mark.parametrize("name", ["logpipe", "LogPipe.client"])
def test_a_reserved_logger_name_is_kept_in_the_metadata(name: str) -> None:
    found = event(name=name)
    assert (found["source"], found["metadata"]["otel.scope.name"]) == ("python", name)
