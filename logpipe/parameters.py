"""Query parameters: what `/subscribe`, `/events` and the page share."""

import difflib
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from logpipe.filters import EVERYTHING, Filter, FilterError, parse_filter
from logpipe.filters import PARAMETERS as FILTER_PARAMETERS
from logpipe.ids import END, START, UNIT_MS, StreamId, parse_id, parse_since
from logpipe.messages import Start
from logpipe.problems import bad_parameter
from logpipe.turns import Run

MAX_TAIL = 1_000_000
MAX_LIMIT = 5_000
MAX_NAME_SHOWN = 64
"""Characters of an unknown parameter's name that an error repeats."""

HEADER_PARAMETERS = ("lastEventId", "lastEventID")
"""What stands for the Last-Event-ID header: of EventSource polyfills, and of Mercure's clients."""

SHARED = ("group", "ack", "ack_wait", "max_in_flight", "filter")
"""Parameters of `/subscribe` that have an effect on shared delivery alone."""

SUBSCRIBE = (
    *FILTER_PARAMETERS,
    *("last_event_id", *HEADER_PARAMETERS, "since", "tail", "on_lag", "delivery", *SHARED),
)
"""Parameters of `/subscribe`."""

ACK = ("group", "member")
"""Parameters of `/ack`."""

EVENTS = (*FILTER_PARAMETERS, "from", "to", "limit", "order", "cursor")
"""Parameters of `/events`."""

_MEANT: Mapping[str, tuple[str, ...]] = {
    "after": ("last_event_id", "from"),
    "before": ("to",),
    "consumer_group": ("group",),
    "count": ("limit", "tail"),
    "direction": ("order",),
    "end": ("to",),
    "filter": ("q",),
    "from": ("since",),
    "lines": ("limit", "tail"),
    "message": ("text",),
    "mode": ("delivery",),
    "n": ("limit", "tail"),
    "page": ("cursor",),
    "query": ("q",),
    "search": ("q",),
    "service": ("source",),
    "severity": ("level",),
    "since": ("from",),
    "sort": ("order",),
    "start": ("from", "since"),
    "until": ("to",),
}
"""Names that other log services have, and the parameters that mean the same here."""

_FULL_ID = re.compile(r"\d+-\d+", re.ASCII)


def reject_unknown(names: Iterable[str], known: Sequence[str], path: str) -> None:
    """Raise a 400 `Problem` for a parameter that is not `known`, with the nearest one that is.

    Names that begin with `_` are ignored: libraries add such to get past caches.
    """
    for name in names:
        if name in known or name.startswith("_"):
            continue
        shown = name[:MAX_NAME_SHOWN]
        nearest = nearest_parameter(shown, known)
        raise bad_parameter(
            shown, f"{path} has no such parameter; did you mean {nearest}?", nearest=nearest
        )


def nearest_parameter(name: str, known: Sequence[str]) -> str:
    """The known parameter that means the same or, if none does, is spelled most alike."""
    word = name.lower()
    for meant in _MEANT.get(word, ()):
        if meant in known:
            return meant
    return difflib.get_close_matches(word, known, n=1, cutoff=0)[0]


async def parsed_filter(query: Mapping[str, str], run: Run) -> Filter:
    """The filter of a request, compiled. Raises `FilterError`.

    To parse and compile one takes up to 10 ms, each in one piece. With the turns of `run`
    (`limits.Seats.parsing_for`) everything else goes on between two pieces, however many requests
    arrive together.
    """
    chosen = EVERYTHING

    def steps() -> Iterator[None]:
        nonlocal chosen
        chosen = parse_filter(query)
        yield
        yield from chosen.compile()

    if any(query.get(name) for name in FILTER_PARAMETERS):
        await run(steps())
    return chosen


async def chosen_filter(query: Mapping[str, str], run: Run) -> Filter:
    """As `parsed_filter`. Raises a 400 `Problem`."""
    try:
        return await parsed_filter(query, run)
    except FilterError as error:
        place = "" if error.position is None else f"at position {error.position}: "
        remedy = f"; {error.hint}" if error.hint else ""
        members = {"position": error.position, "hint": error.hint}
        raise bad_parameter(
            error.parameter,
            f"{place}{error}{remedy}",
            **{name: value for name, value in members.items() if value not in (None, "")},
        ) from None


def last_event_id(query: Mapping[str, str], header: str | None) -> str | None:
    """The Last-Event-ID of a request: the header, or what polyfills of EventSource, which can set
    no header in some browsers, send as a parameter when they reconnect.

    `last_event_id` of the same request, where their first connection began, is then out of date.
    Raises a 400 `Problem` for a parameter that is no id, and for two that differ.
    """
    given = {name: query[name].strip() for name in HEADER_PARAMETERS if query.get(name)}
    if header or not given:
        return header
    name, value = next(iter(given.items()))
    if len(set(given.values())) > 1:
        raise bad_parameter(name, f"must not differ from {' and '.join([*given][1:])}")
    try:
        parse_id(value)
    except ValueError as error:
        raise bad_parameter(name, str(error)) from None
    return value


def chosen_start(
    query: Mapping[str, str], last_event_id: str | None, now_ms: int | None = None
) -> Start:
    """Where a subscription begins; `now_ms` as for `moment`. Raises a 400 `Problem` for a bad
    parameter.

    A bad Last-Event-ID *header* is no error: any status but 200 would end an EventSource for good,
    so it is answered by a gap.
    """
    on_lag = one_of(query, "on_lag", "catchup", "catchup", "skip")
    resume, unknown = None, False
    if last_event_id:
        try:
            resume = parse_id(last_event_id.strip())
        except ValueError:
            unknown = True
    elif query.get("last_event_id"):
        try:
            resume = parse_id(query["last_event_id"])
        except ValueError as error:
            raise bad_parameter("last_event_id", str(error)) from None
    return Start(
        resume=resume,
        unknown=unknown,
        since=moment(query, "since", now_ms),
        tail=number(query, "tail", None, 0, MAX_TAIL),
        on_lag="skip" if on_lag == "skip" else "catchup",
    )


def moment(query: Mapping[str, str], name: str, now_ms: int | None = None) -> StreamId | None:
    """The least id that a time parameter names; None for `latest` and for no parameter. Ages like
    `10m` count back from `now_ms`, by default the time of this machine. Raises a 400 `Problem`."""
    text = query.get(name)
    if not text:
        return None
    try:
        now_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
        return parse_since(text.strip(), now_ms)
    except ValueError as error:
        raise bad_parameter(name, str(error)) from None


def span(
    query: Mapping[str, str], start: str = "from", now_ms: int | None = None
) -> tuple[StreamId, StreamId]:
    """The first and the last id of `from` and `to`; a `to` in milliseconds takes all of them.

    `start` is the name that `from` has, where it has another; `now_ms` as for `moment`.
    """
    low = moment(query, start, now_ms) or (END if query.get(start) else START)
    high = moment(query, "to", now_ms) or END
    if high != END and not _FULL_ID.fullmatch(query["to"].strip()):
        high = StreamId(high.ms, END.seq)
    return low, high


def number(
    query: Mapping[str, str], name: str, default: int | None, low: int, high: int
) -> int | None:
    """A whole number of a parameter, within its bounds."""
    text = query.get(name)
    if not text:
        return default
    if not (re.fullmatch(r"[0-9]{1,10}", text) and low <= int(text) <= high):
        raise bad_parameter(name, f"must be a whole number from {low} to {high}")
    return int(text)


def duration_ms(
    query: Mapping[str, str], name: str, default: int, low_ms: int, high_ms: int
) -> int:
    """The milliseconds of a length of time, like `500ms`, `30s`, `5m` or `500`, within bounds."""
    text = query.get(name)
    if not text:
        return default
    found = re.fullmatch(r"([0-9]{1,9})(ms|s|m|h|d)?", text)
    length_ms = int(found[1]) * UNIT_MS[found[2] or "ms"] if found else -1
    if not low_ms <= length_ms <= high_ms:
        raise bad_parameter(
            name,
            f"must be a length of time from {low_ms}ms to {high_ms // 1000}s, like 500ms, 30s or"
            " 5m; a number alone is in milliseconds",
        )
    return length_ms


def one_of(query: Mapping[str, str], name: str, default: str, *allowed: str) -> str:
    """A word of a parameter."""
    text = query.get(name) or default
    if text not in allowed:
        raise bad_parameter(name, f"must be {' or '.join(filter(None, allowed))}")
    return text
