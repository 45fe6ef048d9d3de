"""Events as lines for people: columns, colours, wrapping, and nothing that a terminal obeys.

Pure: an entry and a width in, lines out. All text of others passes `printable` on its way.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal

from wcwidth import clip, iter_graphemes, ljust, width, wrap

from logpipe.continuity import Gap, Reason
from logpipe.event import Entry, StoredEvent

Cell = Literal["time", "meta", "source", "gap", "day"]

# From the part of the 256 colours that no theme changes, of a lightness that reads on black and on
# white alike: a contrast of at least 3.3 to both (WCAG asks 3 for what is more than fine print).
LEVEL_STYLES = {
    "TRACE": "2",
    "DEBUG": "38;5;31",
    "INFO": "38;5;28",
    "WARN": "1;38;5;130",
    "ERROR": "1;38;5;160",
    "FATAL": "1;38;5;231;48;5;160",
}
STYLES: dict[Cell, str] = {
    "time": "2",
    "meta": "2",
    "source": "38;5;30",
    "gap": "1;38;5;163",
    "day": "2",
}

MIN_WIDTH = 20
"""Narrower terminals are taken for one of this width."""
MIN_ROOM = 20
"""Columns that a message has at least beside the other columns; else it goes beneath them."""
NARROW_INDENT = 4
LEVEL_WIDTHS = (5, 8)
SOURCE_WIDTHS = (8, 24)
"""Columns that the level and the source take: at first, and grown to what was seen at most."""
TAB = 4
LONG_WORD = 200
"""Characters without a space from which a word is cut by hand: `wrap` takes a time that grows with
the square of its length, 2 s for the longest."""

_JOINED = re.compile(
    "(?<=[\u2190-\u2bff\ufe0f\U0001f000-\U0001faff])\u200d(?=[\u2190-\u2bff\U0001f000-\U0001faff])"
)
"""A joiner between two pictures, which makes them one. Elsewhere it makes widths a guess."""
_LONG_WORD = re.compile(rf"(\S{{{LONG_WORD},}})")
_BARE = re.compile(r"[^\s\"'=\\]+")
_LINE_END = re.compile(r"\r?\n")

REASONS: dict[Reason, str] = {
    "trimmed": "trimmed before they could be read",
    "slow": "skipped, this reader was too slow",
    "reset": "the stream was emptied or replaced",
}


def printable(text: str) -> str:
    """The text with all that is no visible character shown as its escape: controls, line ends,
    bidirectional overrides, invisible and unassigned characters. What stays takes its width."""
    if text.isprintable():
        return text
    return "\u200d".join(map(_escaped, _JOINED.split(text)))


def _escaped(text: str) -> str:
    return "".join(
        c if c.isprintable() or unicodedata.category(c) == "Zs" else _escape(c) for c in text
    )


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def printable_json(text: str) -> str:
    """The same JSON value, with what is no visible character as JSON's own escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _json_escape(c) for c in text)


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def message_lines(message: str) -> list[str]:
    """The lines of a message, each `printable`; tabs are spaces, blank lines at its end are cut."""
    if message.isprintable():
        return [message]
    lines = _LINE_END.split(message.rstrip("\r\n"))
    return [printable(line.expandtabs(TAB)) for line in lines]


def metadata_text(metadata: dict[str, Any]) -> str:
    """`key=value` pairs with a space between; dots descend as in a filter."""
    return " ".join(f"{_word(key)}={value}" for key, value in _pairs(metadata))


def _pairs(metadata: dict[str, Any], before: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    for key, value in metadata.items():
        if isinstance(value, dict) and value and depth < 8:
            yield from _pairs(value, f"{before}{key}.", depth + 1)
        else:
            yield before + key, _value(value)


def _value(value: Any) -> str:
    if isinstance(value, str):
        return _word(value)
    try:
        return printable(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
    except RecursionError:
        return "…"


def _word(text: str) -> str:
    """A text as it is, or in quotes where its end would not be seen."""
    return printable(text if _BARE.fullmatch(text) else json.dumps(text, ensure_ascii=False))


@lru_cache(maxsize=256)
def _day_and_second(seconds: int) -> tuple[str, str]:
    try:
        moment = datetime.fromtimestamp(seconds)  # noqa: DTZ006 - local time is what people read
    except (ValueError, OverflowError, OSError):
        return "????-??-??", "??:??:??"
    return moment.strftime("%Y-%m-%d"), moment.strftime("%H:%M:%S")


def local_time(entry: Entry) -> tuple[str, str]:
    """The day and the time with milliseconds; that of the id where the event names none."""
    ms = entry.event.ts_unix_ms
    return local_time_of(entry.id.ms if ms is None else ms)


def local_time_of(unix_ms: int) -> tuple[str, str]:
    seconds, rest = divmod(unix_ms, 1000)
    day, time = _day_and_second(seconds)
    return day, f"{time}.{rest:03d}"


class _Column:
    """A column that grows with what was seen, up to a bound."""

    def __init__(self, least: int, most: int) -> None:
        self.width = least
        self._most = most

    def grow(self, texts: Iterable[str]) -> None:
        self.width = min(self._most, max(self.width, *map(width, texts)))

    def fit(self, text: str, most: int | None) -> str:
        """The text, padded; cut at the column's edge where there is a `most`, else never."""
        found = width(text)
        room = self.width if most is None else min(self.width, most)
        if found <= room:
            return text + " " * (room - found)
        return text if most is None else cut(text, room)


class Printer:
    """Turns what a subscription gives into lines; keeps the widths of columns and the last day.

    `cut` gives an event one line. On a terminal a day has a line of its own, and elsewhere, where
    a line must say all by itself, it is in each.
    """

    def __init__(self, *, color: bool = False, cut: bool = False) -> None:
        self._color = color
        self._cut = cut
        self._level = _Column(*LEVEL_WIDTHS)
        self._source = _Column(*SOURCE_WIDTHS)
        self._day = datetime.now().strftime("%Y-%m-%d")  # noqa: DTZ005 - as above

    def entries(self, entries: Sequence[Entry], columns: int | None) -> str:
        """The lines of events, each with its line end; `columns` is None for no terminal."""
        lines: list[str] = []
        # First all of them, so that what comes together is aligned.
        self._level.grow({printable(entry.event.level) for entry in entries})
        self._source.grow({printable(entry.event.source) for entry in entries})
        for entry in entries:
            lines += self._entry(entry, columns)
        lines.append("")
        return "\n".join(lines)

    def gap(self, gap: Gap, columns: int | None) -> str:
        lines = wrapped(gap_text(gap), max(columns, MIN_WIDTH)) if columns else [gap_text(gap)]
        return "".join(f"{self._paint(line, STYLES['gap'])}\n" for line in lines)

    def _entry(self, entry: Entry, columns: int | None) -> Iterator[str]:
        day, time = local_time(entry)
        if columns is None:
            yield from self._unwrapped(entry.event, f"{day} {time}")
            return
        columns = max(columns, MIN_WIDTH)
        if day != self._day:
            self._day = day
            yield self._paint(f"── {day} ──", STYLES["day"])
        head, indent = self._head(entry.event, time, max(SOURCE_WIDTHS[0], columns // 5))
        if self._cut:
            yield cut(head + self._one_line(entry.event, columns), columns)
        elif columns - indent >= MIN_ROOM:
            yield from self._beside(head, indent, entry.event, columns - indent)
        else:
            yield cut(head.rstrip(), columns)
            beneath = " " * NARROW_INDENT
            yield from self._beside(beneath, NARROW_INDENT, entry.event, columns - NARROW_INDENT)

    def _head(self, event: StoredEvent, time: str, most: int | None) -> tuple[str, int]:
        """The columns before the message, and their width."""
        level = self._level.fit(printable(event.level), most)
        source = self._source.fit(printable(event.source), most)
        indent = len(time) + 3 + width(level) + width(source)
        style = LEVEL_STYLES.get(event.level, "")
        name = level.rstrip()
        level = self._paint(name, style) + level[len(name) :]
        painted = self._paint(time, STYLES["time"]), level, self._paint(source, STYLES["source"])
        return f"{' '.join(painted)} ", indent

    def _unwrapped(self, event: StoredEvent, time: str) -> Iterator[str]:
        head, indent = self._head(event, time, None)
        if self._cut:
            yield head + self._one_line(event, None)
            return
        first, *rest = message_lines(event.message)
        beneath = "\n" + " " * indent
        text = beneath.join([first, *rest])
        yield head + self._with_metadata(text, event, beneath if rest else "  ")

    def _beside(self, head: str, indent: int, event: StoredEvent, room: int) -> Iterator[str]:
        """The message in lines of `room` columns, the metadata after it or, if need be, beneath."""
        source_lines = message_lines(event.message)
        lines = [part for line in source_lines for part in wrapped(line, room)]
        metadata = metadata_text(event.metadata) if event.metadata else ""
        if metadata:
            used = width(lines[-1])
            if len(source_lines) == 1 and used + 2 + width(metadata) <= room:
                lines[-1] += f"{'  ' if used else ''}{self._paint(metadata, STYLES['meta'])}"
            else:
                lines += [self._paint(part, STYLES["meta"]) for part in wrapped(metadata, room)]
        yield head + lines[0]
        beneath = " " * indent
        for line in lines[1:]:
            yield beneath + line if line else ""

    def _one_line(self, event: StoredEvent, columns: int | None) -> str:
        message = printable(event.message.rstrip("\r\n").replace("\t", " " * TAB))
        if columns is not None:
            message = message[: 16 * columns]  # enough for all that can be seen, and quick
        return self._with_metadata(message, event, "  ")

    def _with_metadata(self, text: str, event: StoredEvent, between: str) -> str:
        if not event.metadata:
            return text
        metadata = self._paint(metadata_text(event.metadata), STYLES["meta"])
        return f"{text}{between}{metadata}" if text else metadata

    def _paint(self, text: str, style: str) -> str:
        return f"\x1b[{style}m{text}\x1b[0m" if self._color and style and text else text


def wrapped(text: str, room: int) -> list[str]:
    """A `printable` text in lines of at most `room` columns; one empty line for an empty text."""
    if width(text) <= room:
        return [text]
    lines: list[str] = []
    for part in _LONG_WORD.split(text):
        if len(part) >= LONG_WORD and _LONG_WORD.fullmatch(part):
            lines += _sliced(part, room)
        elif part:
            lines += wrap(part, room, break_on_hyphens=False)
    return lines or [""]


def _sliced(word: str, room: int) -> Iterator[str]:
    if word.isascii():
        yield from (word[at : at + room] for at in range(0, len(word), room))
        return
    line, used = "", 0
    for grapheme in iter_graphemes(word):
        wide = width(grapheme)
        if used + wide > room:
            yield line
            line, used = "", 0
        line += grapheme
        used += wide
    yield line


def cut(text: str, columns: int) -> str:
    """A line of ours, colours and all, in at most so many columns; `…` stands for the rest."""
    return text if width(text) <= columns else f"{clip(text, 0, columns - 1)}…"


def gap_text(gap: Gap) -> str:
    """What is missing, and why, in one sentence."""
    if gap.count is None:
        what = "an unknown number of events is missing"
    else:
        what = f"{gap.count:,} {'event is' if gap.count == 1 else 'events are'} missing"
    why = REASONS.get(gap.reason) or printable(gap.reason)
    return f"── {what}: {why} ({gap.after} … {gap.before}) ──"


def caret_lines(query: str, position: int) -> list[str]:
    """A query and a caret beneath the character at `position`."""
    before = printable(query[: max(0, position)])
    return [printable(query), f"{ljust('', width(before))}^"]


def counted(count: int, word: str) -> str:
    """`1 line`, `1,234 lines`."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def seconds(passed: float) -> str:
    """`1.2 s`, `1,234 s`."""
    return f"{passed:.1f} s" if passed < 10 else f"{passed:,.0f} s"


def bar(part: float) -> str:
    """How much is done, from 0 to 1, in 30 columns."""
    return f"{'#' * round(part * 30):.<30}"
