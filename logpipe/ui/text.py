"""Log text as HTML.

Log text is hostile: it reaches the page through `shown` and `message` alone, which leave it no
markup of its own and make what could disguise it visible. What `message` adds is colour, where the
text asks for it as terminals do, and marks, where a filter has found something.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise

from markupsafe import escape

from logpipe.filters import Highlight

# Control characters except tab and line feed; marks that reorder, join or hide text (bidi, zero
# width, tags, line separators, soft hyphens); lone surrogates, which have no UTF-8.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\U000e0000-\U000e007f\ud800-\udfff]+"
)
# Select Graphic Rendition (ECMA-48, 8.3.117), as programs write it for a terminal.
_SGR = re.compile(r"\x1b\[([0-9;]{0,48})m")
MAX_SGR = 51
"""Characters of the longest sequence that is obeyed."""

MAX_STYLES = 2_000
"""Changes of colour in one message that are obeyed; what follows is shown as its escape."""

_FLAGS = {1: "bold", 2: "dim", 3: "italic", 4: "underline", 7: "inverse", 9: "strike"}
_FLAGS_OFF = {22: ("bold", "dim"), 23: ("italic",), 24: ("underline",), 27: ("inverse",),
              29: ("strike",)}  # fmt: skip
_CUBE = (0, 95, 135, 175, 215, 255)

Style = tuple[int, str]
"""Where in a text a style begins, and the CSS classes that it has."""


def shown(text: str) -> str:
    """Text as HTML that displays it and nothing else; hidden characters as visible escapes."""
    return _escaped(text.replace("\r\n", "\n"))


def _escaped(text: str) -> str:
    """As `shown`, of text whose line ends are LF alone."""
    html = str(escape(text))
    return html if html.isprintable() else _HIDDEN.sub(_visible, html)


def message(text: str, found: Highlight | None = None) -> str:
    """A message as HTML: as `shown`, with its ANSI colours and the places that a filter found."""
    text = text.replace("\r\n", "\n")
    styles: Sequence[Style] = ()
    if "\x1b[" in text:
        text, styles = styled(text)
    spans = found(text) if found is not None else ()
    if not styles and not spans:
        return _escaped(text)
    return "".join(_pieces(text, styles, spans))


def _visible(match: re.Match[str]) -> str:
    """One element for a run of them: a message of nothing else has 64 thousand."""
    escapes = "".join([f"\\x{n:02x}" if n < 256 else f"\\u{n:04x}" for n in map(ord, match[0])])
    return f'<span class="hidden">{escapes}</span>'


def _pieces(text: str, styles: Sequence[Style], spans: Sequence[tuple[int, int]]) -> Iterator[str]:
    """The text cut where a style or a mark begins or ends."""
    starts = [at for at, _ in styles]
    marked = {at for span in spans for at in range(*span)} if spans else frozenset()
    edges = {0, len(text), *starts, *(edge for span in spans for edge in span)}
    for low, high in pairwise(sorted(edges)):
        html = _escaped(text[low:high])
        if at := bisect_right(starts, low):
            classes = styles[at - 1][1]
            html = f'<span class="{classes}">{html}</span>' if classes else html
        yield f"<mark>{html}</mark>" if low in marked else html


# -- colours ----------------------------------------------------------------------------------


def styled(text: str) -> tuple[str, list[Style]]:
    """A text without its SGR sequences, and what they asked for."""
    plain: list[str] = []
    styles: list[Style] = []
    state: dict[str, str] = {}
    at = length = 0
    for match in islice(_SGR.finditer(text), MAX_STYLES):
        plain.append(text[at : match.start()])
        length += match.start() - at
        at = match.end()
        _obey([int(code or 0) for code in match[1].split(";")], state)
        styles.append((length, " ".join(sorted(state.values()))))
    plain.append(text[at:])
    return "".join(plain), styles


def _obey(codes: list[int], state: dict[str, str]) -> None:
    """Applies one sequence to the state: an attribute or a ground, and its class."""
    while codes:
        code = codes.pop(0)
        if code == 0:
            state.clear()
        elif code in _FLAGS:
            state[_FLAGS[code]] = _FLAGS[code]
        elif code in _FLAGS_OFF:
            for flag in _FLAGS_OFF[code]:
                state.pop(flag, None)
        elif code in (38, 48):
            _colour("fg" if code == 38 else "bg", _extended(codes), state)
        else:
            _basic(code, state)


def _basic(code: int, state: dict[str, str]) -> None:
    """One of the sixteen colours of a terminal, or its own."""
    for ground, first in (("fg", 30), ("bg", 40)):
        if first <= code <= first + 7:
            state[ground] = f"{ground}{code - first}"
        elif first + 60 <= code <= first + 67:
            state[ground] = f"{ground}{code - first - 60 + 8}"
        elif code == first + 9:
            state.pop(ground, None)


def _colour(ground: str, number: int | None, state: dict[str, str]) -> None:
    if number is not None:
        state[ground] = f"{ground}{number}"


def _extended(codes: list[int]) -> int | None:
    """One of the 256 or 16 million colours, as the nearest of the sixteen that the page has."""
    kind = codes.pop(0) if codes else 0
    if kind == 5 and codes:
        number = codes.pop(0)
        if number < 16:
            return number
        if number < 232:
            cube = number - 16
            return _nearest(_CUBE[cube // 36], _CUBE[cube // 6 % 6], _CUBE[cube % 6])
        return _nearest(*[8 + 10 * min(number - 232, 23)] * 3)
    if kind == 2 and len(codes) >= 3:
        red, green, blue = (codes.pop(0) for _ in range(3))
        return _nearest(red, green, blue)
    return None


def _nearest(red: int, green: int, blue: int) -> int:
    """By hue: which of the three are strong, and whether the strongest is bright."""
    strongest = max(red, green, blue)
    if strongest < 48:
        return 0
    bits = sum(bit for bit, part in ((1, red), (2, green), (4, blue)) if part > strongest * 0.6)
    return bits + (8 if strongest > 200 else 0)
