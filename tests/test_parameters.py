import asyncio
import itertools
import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logpipe.filters import EVERYTHING, Filter, FilterError
from logpipe.ids import END, START, StreamId
from logpipe.messages import Start
from logpipe.parameters import (
    EVENTS,
    MAX_TAIL,
    SUBSCRIBE,
    chosen_filter,
    chosen_start,
    last_event_id,
    moment,
    nearest_parameter,
    number,
    one_of,
    parsed_filter,
    reject_unknown,
    span,
)
from logpipe.problems import Problem
from logpipe.turns import TURN_S, Turns

ID = StreamId(1_710_000_000_000, 3)
MS = StreamId(1_710_000_000_000, 0)


def refused(call: Any, *arguments: Any) -> Problem:
    with pytest.raises(Problem) as caught:
        call(*arguments)
    assert caught.value.status == 400
    return caught.value


# -- filters -----------------------------------------------------------------------------------


async def test_the_short_filters_are_taken_together() -> None:
    query = {"level": ">=warn", "source": "api*", "text": " reset ", "x": "y"}
    chosen = await chosen_filter(query, Turns().run)
    assert chosen == Filter("level>=WARN source:api* reset")


async def filter_refused(**query: str) -> Problem:
    with pytest.raises(Problem) as caught:
        await chosen_filter(query, Turns().run)
    assert caught.value.status == 400
    return caught.value


async def test_a_malformed_filter_is_refused_with_its_parameter() -> None:
    problem = await filter_refused(level=">=loud")
    assert problem.members["parameter"] == "level"
    assert "position" not in problem.members


async def test_a_malformed_query_is_refused_with_position_and_hint() -> None:
    problem = await filter_refused(q="timeout Error: x")
    assert problem.members["parameter"] == "q"
    assert problem.members["position"] == 13
    assert problem.members["hint"] in problem.detail
    assert "at position 13: " in problem.detail


@pytest.mark.parametrize("end", ["", " OR"])
async def test_filters_that_arrive_together_are_parsed_one_by_one(end: str) -> None:
    looks = itertools.count()
    turns = Turns(lambda: next(looks) * 2 * TURN_S)  # each piece of work takes a whole turn
    ended, passed = 0, list[int]()

    async def parse(number: int) -> None:
        nonlocal ended
        query = {"q": " OR ".join(f"together{number}x{word}" for word in range(64)) + end}
        with suppress(FilterError):
            await parsed_filter(query, turns.run)
        ended += 1

    async def others() -> None:
        while True:
            passed.append(ended)
            await asyncio.sleep(0)

    going = asyncio.create_task(others())
    await asyncio.gather(*map(parse, range(20)))
    going.cancel()
    assert ended == 20
    assert max(later - before for before, later in itertools.pairwise(passed)) == 1


async def test_a_lone_filter_is_parsed_without_a_pause() -> None:
    other = asyncio.create_task(asyncio.sleep(0))
    still = Turns(lambda: 0.0)
    assert await parsed_filter({"q": "alone"}, still.run) == Filter("alone")
    assert await parsed_filter({"limit": "5"}, still.run) is EVERYTHING
    assert not other.done()
    await other


# -- the id of the last event ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lastEventId", "lastEventID"])
def test_what_polyfills_send_is_the_last_event_id(name: str) -> None:
    query = {name: " 1710000000000-3 "}
    assert last_event_id(query, None) == str(ID)
    assert last_event_id({**query, "last_event_id": "1-0"}, "") == str(ID)


def test_the_header_wins() -> None:
    for value in (str(ID), "no id"):
        assert last_event_id({"lastEventId": "1-0", "lastEventID": "?"}, value) == value


def test_a_request_may_have_no_last_event_id() -> None:
    assert last_event_id({}, None) is None
    assert last_event_id({"lastEventId": "", "last_event_id": "1-0"}, None) is None


def test_two_names_may_say_the_same_and_not_two_things() -> None:
    assert last_event_id({"lastEventID": str(ID), "lastEventId": str(ID)}, None) == str(ID)
    problem = refused(last_event_id, {"lastEventID": "1-0", "lastEventId": "2-0"}, None)
    assert problem.members["parameter"] == "lastEventId"
    assert "lastEventID" in problem.detail


def test_what_is_no_id_is_refused_by_the_name_that_was_sent() -> None:
    assert refused(last_event_id, {"lastEventID": "x"}, None).members["parameter"] == "lastEventID"


# -- where a subscription begins ---------------------------------------------------------------


def test_without_parameters_a_subscription_begins_with_the_next_event() -> None:
    assert chosen_start({}, None) == Start()


def test_the_header_wins_over_the_parameter() -> None:
    assert chosen_start({"last_event_id": "5-0"}, str(ID)).resume == ID
    assert chosen_start({"last_event_id": str(ID)}, None).resume == ID
    assert chosen_start({"last_event_id": str(ID)}, "").resume == ID
    assert chosen_start({"last_event_id": "nonsense"}, str(ID)).resume == ID


@pytest.mark.parametrize(
    "header", ["abc", "-1", "1-2-3", "$", ">", "*", "1" * 10_000, f"{2**64}-0", "٣-٣", "\x00", "+"]
)
def test_a_header_that_is_no_id_is_no_error(header: str) -> None:
    start = chosen_start({}, header)
    assert start.unknown
    assert start.resume is None


@pytest.mark.parametrize("text", ["abc", "-1", "1-2-3", "$", "1" * 10_000, f"0-{2**64}"])
def test_a_parameter_that_is_no_id_is_refused(text: str) -> None:
    problem = refused(chosen_start, {"last_event_id": text}, None)
    assert problem.members["parameter"] == "last_event_id"


def test_since_tail_and_on_lag_are_read() -> None:
    start = chosen_start({"since": str(ID), "tail": "50", "on_lag": "skip"}, None)
    assert start == Start(since=ID, tail=50, on_lag="skip")
    assert chosen_start({"tail": "0"}, None).tail == 0
    assert chosen_start({"since": "latest"}, None).since is None
    assert chosen_start({"since": "earliest"}, None).since == START


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("since", "yesterday"),
        ("tail", "-1"),
        ("tail", "many"),
        ("tail", "1.5"),
        ("tail", str(MAX_TAIL + 1)),
        ("on_lag", "wait"),
    ],
)
def test_a_bad_parameter_is_refused_by_its_name(name: str, text: str) -> None:
    assert refused(chosen_start, {name: text}, None).members["parameter"] == name


# -- moments and spans -------------------------------------------------------------------------


def test_a_moment_is_an_age_a_time_or_an_id() -> None:
    now = time.time_ns() // 1_000_000
    age = moment({"since": "10m"}, "since")
    assert age is not None and abs(now - 600_000 - age.ms) < 5000
    for text in ("1710000000", "1710000000000", "2024-03-09T16:00:00Z", f" {MS} "):
        assert moment({"since": text}, "since") == MS
    assert moment({"since": "latest"}, "since") is None
    assert moment({}, "since") is None


def test_an_age_counts_back_from_the_time_that_is_given() -> None:
    now_ms = MS.ms + 600_000
    assert moment({"since": "10m"}, "since", now_ms) == MS
    assert chosen_start({"since": "10m"}, None, now_ms).since == MS
    assert span({"from": "10m", "to": "5m"}, now_ms=now_ms) == (
        MS,
        StreamId(MS.ms + 300_000, END.seq),
    )


def test_a_span_without_ends_is_everything() -> None:
    assert span({}) == (START, END)
    assert span({"from": "earliest", "to": "latest"}) == (START, END)


@pytest.mark.parametrize(
    "text", ["1710000000000", "1710000000", "2024-03-09T16:00:00Z", "2024-03-09T17:00:00+01:00"]
)
def test_a_span_up_to_a_millisecond_takes_all_of_it(text: str) -> None:
    assert span({"from": text, "to": text}) == (MS, StreamId(MS.ms, END.seq))


def test_a_span_up_to_an_id_ends_with_it() -> None:
    assert span({"from": str(ID), "to": str(ID)}) == (ID, ID)


def test_a_span_from_latest_is_empty() -> None:
    low, high = span({"from": "latest", "to": str(ID)})
    assert low > high


# -- numbers and words -------------------------------------------------------------------------


def test_a_number_has_a_default_and_bounds() -> None:
    assert number({}, "limit", 100, 1, 5000) == 100
    assert number({"limit": ""}, "limit", 100, 1, 5000) == 100
    assert number({"limit": "1"}, "limit", 100, 1, 5000) == 1
    assert number({"limit": "5000"}, "limit", 100, 1, 5000) == 5000
    assert number({"limit": "007"}, "limit", 100, 1, 5000) == 7


@pytest.mark.parametrize(
    "text",
    [
        "0",
        "5001",
        "-1",
        "+1",
        "1e3",
        "x",
        "1.0",
        " 1",
        "²",
        "٣",
        "9" * 5000,
        "0" * 5000,
        "0" * 20 + "9" * 9,
    ],
    ids=lambda text: text[:12],
)
def test_what_is_no_number_within_its_bounds_is_refused(text: str) -> None:
    assert refused(number, {"limit": text}, "limit", 100, 1, 5000).members["parameter"] == "limit"


@given(st.text(max_size=40))
def test_any_text_is_a_number_within_its_bounds_or_refused(text: str) -> None:
    try:
        found = number({"tail": text}, "tail", None, 0, 1000)
    except Problem as problem:
        assert problem.status == 400  # noqa: PT017 - either outcome is right
    else:
        assert found is None or 0 <= found <= 1000


def test_a_word_is_one_of_those_allowed() -> None:
    assert one_of({}, "order", "desc", "asc", "desc") == "desc"
    assert one_of({"order": "asc"}, "order", "desc", "asc", "desc") == "asc"
    problem = refused(one_of, {"order": "up"}, "order", "desc", "asc", "desc")
    assert problem.members["parameter"] == "order"
    assert "asc or desc" in problem.detail


# -- unknown parameters ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "name", "nearest"),
    [
        (SUBSCRIBE, "qq", "q"),
        (SUBSCRIBE, "Tail", "tail"),
        (SUBSCRIBE, "tial", "tail"),
        (SUBSCRIBE, "last-event-id", "last_event_id"),
        (SUBSCRIBE, "from", "since"),
        (SUBSCRIBE, "consumer_group", "group"),
        (SUBSCRIBE, "mode", "delivery"),
        (SUBSCRIBE, "n", "tail"),
        (EVENTS, "limitt", "limit"),
        (EVENTS, "limt", "limit"),
        (EVENTS, "since", "from"),
        (EVENTS, "until", "to"),
        (EVENTS, "query", "q"),
        (EVENTS, "filter", "q"),
        (EVENTS, "sort", "order"),
    ],
)
def test_the_nearest_parameter_is_suggested(
    known: tuple[str, ...], name: str, nearest: str
) -> None:
    problem = refused(reject_unknown, {name: "1"}, known, "/x")
    assert problem.members["parameter"] == name
    assert problem.members["nearest"] == nearest
    assert f"did you mean {nearest}?" in problem.detail


@given(st.text())
def test_each_unknown_name_gets_a_suggestion(name: str) -> None:
    assert nearest_parameter(name, EVENTS) in EVENTS


def test_a_parameter_with_an_underscore_in_front_is_ignored() -> None:
    reject_unknown({"_": "1710000000000", "_cache": "x", "q": "a"}, EVENTS, "/events")


def test_a_long_unknown_name_is_cut_in_the_error() -> None:
    assert len(refused(reject_unknown, {"x" * 9000: ""}, EVENTS, "/events").detail) < 200
