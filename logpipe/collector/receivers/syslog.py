"""Syslog, RFC 5424 and what came before it: its framings, its messages, and `/syslog` over HTTP."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from logpipe.collector.answer import Answer, problem_answer
from logpipe.collector.receivers import fields, levels, schema, times
from logpipe.collector.receivers.protocol import Batch, Request, always
from logpipe.event import Event
from logpipe.problems import Problem

PATHS = ("/syslog",)

FACILITIES = (
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv",
    "ftp", "ntp", "audit", "alert", "clock", *(f"local{n}" for n in range(8)),
)  # fmt: skip

CUT = "log.truncated"
"""In the metadata of a message of which only the first of its bytes were kept."""

_COUNT = re.compile(rb"([1-9]\d{0,8}) (?=(<(?:\d{1,2}|0\d\d|1[0-8]\d|19[01])>))")
_MAYBE_COUNT = re.compile(rb"[1-9]\d{0,8}(?: (?:<\d{0,3})?)?\Z")
_END = re.compile(rb"[\n\0]")
_BLANK_LINES = re.compile(rb"(?:[\r ]*+[\n\0]){1,65536}+")
_TEXT = re.compile(rb"[^\r\n \0]")
_PRI = re.compile(r"<(\d{1,3})>")
HEADER = re.compile(
    r"(?P<version>[1-9]\d?) (?P<time>\S+) (?P<host>\S+) (?P<app>\S+) (?P<proc>\S+)"
    r" (?P<id>\S+)(?: |$)"
)
_BSD = re.compile(
    r"(?P<time>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d) (?:(?P<host>[^\s:\[]+) )?"
    r"(?P<app>[^\s:\[]{1,64})(?:\[(?P<proc>[^\]\s]{1,64})\])?: ?"
)
_SD_ID = re.compile(r'\[([^\s=\]"]{1,256})')
_SD_PARAM = re.compile(r' +([^\s=\]"]{1,256})="((?:[^"\\]++|\\.)*+)"', re.DOTALL)
_SD_ESCAPE = re.compile(r'\\(["\\\]])')


class Frame(NamedTuple):
    """One message's bytes, and whether there were more of it than the limit."""

    data: bytes
    cut: bool = False


class Frames:
    """Takes a byte stream apart by both framings of RFC 6587, told apart message by message: a
    count of bytes, or an end: of a line, or the zero byte that Python's own handler writes. A
    number is a count only where a whole `<PRI>` follows: plain lines begin with numbers, too. Holds
    at most `limit` bytes of a message.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept = bytearray()
        self._skipping = 0  # bytes still to come of a counted message that was too long
        self._skipping_line = False
        self.ended = 0
        """Messages that have ended; blank ones among them, of which several may count as one."""

    def feed(self, data: bytes) -> list[Frame]:
        """The messages that are complete now."""
        return list(self.each(data))

    def each(self, data: bytes) -> Iterator[Frame]:
        """The same, one by one; all of them have to be taken before there is more."""
        self._kept += data
        at = 0
        while (step := self._next(at)) is not None:
            frame, at = step
            self.ended += not (self._skipping or self._skipping_line)
            if frame is not None and frame.data.strip(b"\r\n \0"):
                yield frame
        del self._kept[:at]

    @property
    def begun(self) -> bool:
        """Whether a message has begun and not ended, once all of `each` was taken."""
        return bool(self._skipping or self._skipping_line or _TEXT.search(self._kept))

    def end(self, *, cut: bool = False) -> list[Frame]:
        """What is left when the stream ends: a line without its end, or part of a message. `cut`
        says that the line would have gone on."""
        rest, self._kept = bytes(self._kept), bytearray()
        if self._skipping or self._skipping_line or not rest.strip(b"\r\n \0"):
            return []
        counted = _count(rest, 0)
        return [Frame(rest[counted.end() :] if counted else rest, cut or counted is not None)]

    def _next(self, at: int) -> tuple[Frame | None, int] | None:
        """A step from `at`: a frame or something skipped, and where the next begins; or None."""
        kept, size = self._kept, len(self._kept)
        if self._skipping:
            step = min(self._skipping, size - at)
            self._skipping -= step
            return (None, at + step) if step else None
        if self._skipping_line:
            found = _END.search(kept, at)
            self._skipping_line = found is None
            return (None, found.end() if found else size) if at < size else None
        if blank := _BLANK_LINES.match(kept, at):
            return None, blank.end()
        if counted := _count(kept, at):
            return self._counted(counted.end(), int(counted[1]))
        if _MAYBE_COUNT.match(kept, at):
            return None
        return self._line(at)

    def _counted(self, start: int, length: int) -> tuple[Frame, int] | None:
        there = len(self._kept) - start
        if length <= self._limit:
            end = start + length
            return (Frame(bytes(self._kept[start:end])), end) if there >= length else None
        if there < self._limit:
            return None
        end = start + self._limit
        self._skipping = length - self._limit
        return Frame(bytes(self._kept[start:end]), True), end

    def _line(self, at: int) -> tuple[Frame, int] | None:
        found = _END.search(self._kept, at, at + self._limit + 1)
        if found:
            return Frame(bytes(self._kept[at : found.start()])), found.end()
        if len(self._kept) - at <= self._limit:
            return None
        self._skipping_line = True
        return Frame(bytes(self._kept[at : at + self._limit]), True), at + self._limit


def _count(data: bytes | bytearray, at: int) -> re.Match[bytes] | None:
    """The count of bytes that begins there, if one does: of a message that holds its `<PRI>`."""
    found = _COUNT.match(data, at)
    return found if found and int(found[1]) >= len(found[2]) else None


def frames_of(body: bytes, limit: int) -> Iterator[Frame]:
    """The messages of a body that is whole, one by one: they may be many and tiny."""
    frames = Frames(limit)
    yield from frames.each(body)
    yield from frames.end()


def parse(request: Request) -> Batch:
    """Each message is an event. Raises a 415 `Problem` for JSON, which belongs elsewhere."""
    if "json" in request.media_type:
        raise Problem(415, "This takes syslog: send JSON to /ingest/json.")
    frames = frames_of(request.body, request.limit)
    return Batch(map(event_of, frames), always(Answer(204)))


def event_of(frame: Frame) -> Event:
    """The event of a message: RFC 5424, the older form of RFC 3164, or any text."""
    text = frame.data.rstrip(b"\r\n\0").decode(errors="replace")
    metadata: dict[str, Any] = {CUT: True} if frame.cut else {}
    severity, rest = priority(text, metadata)
    if header := HEADER.match(rest):
        return _modern(header, rest[header.end() :], severity, metadata)
    if header := _BSD.match(rest):
        metadata |= {"syslog.timestamp": header["time"]}  # has neither a year nor a zone
        metadata |= about(header)
        return schema.event_of(header["app"], rest[header.end() :], severity, None, metadata)
    return schema.event_of("syslog", rest, severity, None, metadata)


def priority(text: str, metadata: dict[str, Any]) -> tuple[int | None, str]:
    """The severity of a message's `<PRI>`, and what follows it; both numbers go to metadata."""
    pri = _PRI.match(text)
    if pri is None or int(pri[1]) >= 8 * len(FACILITIES):
        return None, text
    facility, severity = divmod(int(pri[1]), 8)
    metadata |= {
        "syslog.facility.code": facility,
        "syslog.facility.name": FACILITIES[facility],
        levels.SYSLOG_SEVERITY: severity,
    }
    return severity, text[pri.end() :]


def _modern(header: re.Match[str], rest: str, severity: int | None, metadata: Any) -> Event:
    data, message = structured_data(rest)
    if data:
        metadata["syslog.structured_data"] = data
    return finished(header, message, severity, metadata)


def finished(
    header: re.Match[str], message: str, severity: int | None, metadata: dict[str, Any]
) -> Event:
    """The event of an RFC 5424 header and what it is about."""
    metadata |= about(header) | fields.present(
        syslog__msg__id=_nil(header["id"]),
        syslog__version=None if header["version"] == "1" else header["version"],
    )
    ts_unix_ms = times.ms_of(header["time"])
    if ts_unix_ms is None and header["time"] != "-":
        metadata["syslog.timestamp"] = header["time"]
    source = _nil(header["app"]) or _nil(header["host"]) or "syslog"
    return schema.event_of(source, message.removeprefix("\ufeff"), severity, ts_unix_ms, metadata)


def about(header: re.Match[str]) -> dict[str, Any]:
    """Host and process of a header."""
    return fields.present(host__name=_nil(header["host"]), syslog__procid=_nil(header["proc"]))


def _nil(text: str | None) -> str | None:
    return None if text == "-" else text


def structured_data(rest: str) -> tuple[dict[str, dict[str, str]], str]:
    """The structured data at the beginning of a text, and the message behind it; a text that does
    not begin with any is all message."""
    if rest == "-" or rest.startswith("- "):
        return {}, rest[2:]
    data: dict[str, dict[str, str]] = {}
    at = 0
    while element := _SD_ID.match(rest, at):
        parameters, at = _parameters(rest, element.end())
        if not rest.startswith("]", at):
            return {}, rest
        data.setdefault(element[1], {}).update(parameters)
        at += 1
    if data and at < len(rest) and rest[at] != " ":
        return {}, rest
    return data, rest[at:].removeprefix(" ") if data else rest


def _parameters(rest: str, at: int) -> tuple[dict[str, str], int]:
    found: dict[str, list[str]] = {}  # a name may come more than once
    while parameter := _SD_PARAM.match(rest, at):
        found.setdefault(parameter[1], []).append(_SD_ESCAPE.sub(r"\1", parameter[2]))
        at = parameter.end()
    return {name: ", ".join(values) for name, values in found.items()}, at


def refused(_: Request, problem: Problem) -> Answer:
    """As at `/ingest`."""
    return problem_answer(problem)
