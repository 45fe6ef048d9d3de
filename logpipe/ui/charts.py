"""Small charts as SVG: geometry in attributes and colours by class, since the page's policy allows
no style of their own."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from markupsafe import Markup

from logpipe.samples import Point, runs

WIDTH, HEIGHT = 240, 44
SPAN_S = 240.0
"""The time that a chart shows, up to now."""

_CHART = Markup(
    '<svg class="spark" viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img"'
    ' aria-labelledby="{key}-title {key}-desc"><title id="{key}-title">{title}</title>'
    '<desc id="{key}-desc">{text}</desc><path class="base" d="M0 {height}H{width}"/>{lines}</svg>'
)
_PATH = Markup('<path class="{kind}" d="{shape}"/>')


class Line(NamedTuple):
    """A curve and its class: `curve`, which is filled, or `second`."""

    points: Sequence[Point]
    kind: str = "curve"


def sparkline(key: str, lines: Sequence[Line], now: float, title: str, text: str) -> Markup:
    """The curves over the last `SPAN_S`, from zero to the highest of them; `key` is unique on its
    page, `text` says in words what is to be seen."""
    shown = [line._replace(points=_recent(line.points, now)) for line in lines]
    top = peak([point for line in shown for point in line.points], now) or 1.0
    paths = Markup("").join(path for line in shown for path in _paths(line, now, top))
    return _CHART.format(width=WIDTH, height=HEIGHT, key=key, title=title, text=text, lines=paths)


def peak(points: Sequence[Point], now: float) -> float | None:
    """The highest value of the last `SPAN_S`."""
    return max((p.value for p in _recent(points, now) if p.value is not None), default=None)


def _recent(points: Sequence[Point], now: float) -> list[Point]:
    return [point for point in points if now - SPAN_S <= point.at <= now]


def _paths(line: Line, now: float, top: float) -> Iterator[Markup]:
    for run in runs(line.points):
        places = [_place(at, value, now, top) for at, value in run]
        shape = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        if line.kind == "curve" and len(places) > 1:
            area = f"{shape}V{HEIGHT}H{places[0][0]:.1f}Z"
            yield _PATH.format(kind="area", shape=area)
        if len(places) > 1:
            yield _PATH.format(kind=line.kind, shape=shape)
        else:  # a line of no length, which its round ends make a dot
            yield _PATH.format(kind=f"{line.kind} dot", shape=f"{shape}h.01")


def _place(at: float, value: float, now: float, top: float) -> tuple[float, float]:
    """Where a value is drawn; the highest keeps clear of the edge by the width of its line."""
    return WIDTH * (1 - (now - at) / SPAN_S), HEIGHT - (HEIGHT - 3) * value / top - 1
