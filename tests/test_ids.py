from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logpipe.ids import END, MAX_PART, START, StreamId, from_wire, parse_id, parse_since

NOW = 1_710_000_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

parts = st.one_of(st.integers(0, 3), st.integers(0, MAX_PART), st.integers(MAX_PART - 3, MAX_PART))
stream_ids = st.builds(StreamId, parts, parts)


@given(stream_ids)
def test_an_id_is_the_same_after_printing_and_parsing(id_: StreamId) -> None:
    assert parse_id(str(id_)) == id_
    assert from_wire(str(id_).encode()) == id_


@given(stream_ids, stream_ids)
def test_ids_are_ordered_as_pairs_of_numbers_not_as_texts(left: StreamId, right: StreamId) -> None:
    assert (left < right) == ((left.ms, left.seq) < (right.ms, right.seq))
    assert StreamId(9, 0) < StreamId(10, 0)


@given(stream_ids.filter(lambda id_: id_ != START))
def test_before_is_undone_by_after(id_: StreamId) -> None:
    assert id_.before() < id_
    assert id_.before().after() == id_


@given(stream_ids.filter(lambda id_: id_ != END))
def test_after_is_undone_by_before(id_: StreamId) -> None:
    assert id_.after() > id_
    assert id_.after().before() == id_


def test_before_and_after_carry_between_the_halves() -> None:
    assert StreamId(5, 0).before() == StreamId(4, MAX_PART)
    assert StreamId(4, MAX_PART).after() == StreamId(5, 0)


def test_the_ends_of_the_range_stay_where_they_are() -> None:
    assert START.before() == START
    assert END.after() == END


def test_an_id_without_its_second_half_is_the_first_of_its_millisecond() -> None:
    assert parse_id("1710000000000") == StreamId(NOW, 0)


HOSTILE_IDS = [
    "",
    "-",
    "abc",
    "-1",
    "-1-0",
    "1-",
    "1-2-3",
    "1--2",
    "$",
    "+",
    ">",
    "0x10-0",
    "1.5-0",
    "1e3-0",
    " 1-0",
    "1-0 ",
    "1-0\n",
    "1-0\r\nXADD",
    "1-0\0",
    "١٢-٣",
    "1-²",
    "\uff11-0",
    f"{MAX_PART + 1}-0",
    f"0-{MAX_PART + 1}",
    f"{2**64}",
    "9" * 21,
    "9" * 10_000,
    "1-" + "0" * 10_000,
    "\ud800",
]


@pytest.mark.parametrize("text", HOSTILE_IDS, ids=lambda text: ascii(text)[:20])
def test_what_is_no_id_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(ValueError, match=r"^not a stream id") as caught:
        parse_id(text)
    assert len(str(caught.value)) < 80


@given(st.text())
def test_any_text_is_an_id_or_a_value_error(text: str) -> None:
    try:
        id_ = parse_id(text)
    except ValueError:
        return
    assert START <= id_ <= END


def test_since_latest_is_no_id_and_earliest_is_before_all() -> None:
    assert parse_since("latest", NOW) is None
    assert parse_since("earliest", NOW) == START


@pytest.mark.parametrize(
    ("text", "back"),
    [
        ("0s", 0),
        ("250ms", 250),
        ("90s", 90_000),
        ("10m", 600_000),
        ("2h", 7_200_000),
        ("7d", 604_800_000),
    ],
)
def test_an_age_counts_back_from_now(text: str, back: int) -> None:
    assert parse_since(text, NOW) == StreamId(NOW - back, 0)


def test_an_age_beyond_1970_is_the_earliest() -> None:
    assert parse_since("999999999d", NOW) == START


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("0", 0),
        ("1710000000", NOW),
        ("1710000000.5", NOW + 500),
        ("1710000000.123456789", NOW + 123),
        ("99999999999", 99_999_999_999_000),
        ("100000000000", 100_000_000_000),
        ("1710000000000", NOW),
        ("1710000000000.9", NOW + 1),
    ],
)
def test_a_unix_time_is_in_seconds_or_milliseconds_by_its_size(text: str, ms: int) -> None:
    assert parse_since(text, NOW) == StreamId(ms, 0)


@given(st.integers(0, 99_999_999_999), st.integers(0, 999))
def test_a_fraction_of_a_second_names_its_exact_millisecond(seconds: int, ms: int) -> None:
    assert parse_since(f"{seconds}.{ms:03d}", NOW) == StreamId(seconds * 1000 + ms, 0)


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("2024-03-09T16:00:00Z", NOW),
        ("2024-03-09t16:00:00z", NOW),
        ("2024-03-09 16:00:00+00:00", NOW),
        ("2024-03-09T17:30:00+01:30", NOW),
        ("2024-03-09T11:00:00-05:00", NOW),
        ("2024-03-09T16:00:00.250Z", NOW + 250),
        ("2024-03-09T16:00:00.000900Z", NOW),
        ("1960-01-01T00:00:00Z", 0),
        ("0001-01-01T00:00:00+23:59", 0),
    ],
)
def test_a_date_with_its_offset_is_a_moment(text: str, ms: int) -> None:
    assert parse_since(text, NOW) == StreamId(ms, 0)


offsets = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(st.datetimes(timezones=offsets))
def test_any_date_with_an_offset_is_its_millisecond(moment: datetime) -> None:
    ms = max(timedelta(0), moment - EPOCH) // timedelta(milliseconds=1)
    assert parse_since(moment.isoformat(), NOW) == StreamId(ms, 0)


def test_a_full_id_is_itself() -> None:
    assert parse_since("1710000000000-7", NOW) == StreamId(NOW, 7)
    assert parse_since("5-7", NOW) == StreamId(5, 7)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "yesterday",
        "-5m",
        "5 m",
        "5w",
        "1.5h",
        "m",
        "1234567890s",
        "\u0665m",
        "1e9",
        "-1",
        "1.",
        ".5",
        "NaN",
        "inf",
        "1" * 16,
        "2024-03-09",
        "2024-03-09T16:00:00",
        "2024-13-09T16:00:00Z",
        "2024-03-09T25:00:00Z",
        "1-2-3",
        "$",
        "Latest",
        "x" * 10_000,
        "2024-03-09T16:00:00\ud800",
    ],
    ids=lambda text: ascii(text)[:25],
)
def test_what_is_no_time_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match=r"^not a time: use 10m, 2h, .* RFC 3339") as caught:
        parse_since(text, NOW)
    assert len(str(caught.value)) < 150


def test_a_since_over_64_bits_is_refused_as_an_id() -> None:
    with pytest.raises(ValueError, match="over 64 bits"):
        parse_since(f"{2**64}-0", NOW)


@given(st.text())
def test_any_since_is_a_point_or_a_value_error(text: str) -> None:
    try:
        since = parse_since(text, NOW)
    except ValueError:
        return
    assert since is None or START <= since <= END
