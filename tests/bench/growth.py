"""How cost grows with readers, rate, event size and filters: four small pictures."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from logpipe.bench.deployment import get
from logpipe.bench.measures import FanOut, fan_out
from tests.bench import servers
from tests.bench.servers import Measured

READERS = (100, 300, 1000, 3000, 9000)
RATES = (10, 100, 1000, 2000, 3000)
SIZES = (200, 1_000, 4_000, 16_000, 64_000)
FILTERS = (0, 1, 10, 100)

PICTURE = "growth.png"


class Point(NamedTuple):
    """One measurement of a row."""

    x: float
    cores: float
    p50: float
    p99: float
    rss_mb: float
    whole: bool


class Row(NamedTuple):
    """What was varied, and what came of it."""

    title: str
    points: list[Point]


async def run(folder: Path, seconds: float, say: Callable[[str], None]) -> None:
    """Measures and draws."""
    with servers.a_valkey() as valkey:
        rows = []
        for title, values, measure in (
            ("500 events/s to so many readers", READERS, _readers),
            ("so many events/s to 1,000 readers", RATES, _rate),
            ("100 events of so many bytes a second to 100 readers", SIZES, _size),
            ("1,000 events/s to 1,000 readers with so many filters", FILTERS, _filters),
        ):
            points = []
            for value in values:
                valkey.reset()
                async with servers.logpipe(valkey) as logpipe:
                    found = await measure(logpipe, value, seconds)
                points.append(_point(value, found))
                say(f"{title}: {points[-1]}")
            rows.append(Row(title, points))
    draw(rows, folder / PICTURE)


async def _readers(logpipe: Measured, value: int, seconds: float) -> FanOut:
    return await _fan_out(logpipe, seconds, readers=value, rate=500)


async def _rate(logpipe: Measured, value: int, seconds: float) -> FanOut:
    return await _fan_out(logpipe, seconds, readers=1000, rate=value)


async def _size(logpipe: Measured, value: int, seconds: float) -> FanOut:
    return await _fan_out(logpipe, seconds, readers=100, rate=100, size=value)


async def _filters(logpipe: Measured, value: int, seconds: float) -> FanOut:
    return await _fan_out(
        logpipe, seconds, readers=1000, rate=1000, requests=filtered(logpipe, value)
    )


def filtered(logpipe: Measured, count: int) -> list[bytes]:
    """So many subscriptions with different filters, each of which takes every event."""
    address = logpipe.target.distributor
    assert address is not None
    url = f"http://{address.host}:{address.port}"
    queries = (f'level>=info source:bench -"word {number}"' for number in range(count))
    return [get(url, f"/subscribe?q={quote(query)}") for query in queries]


async def _fan_out(
    logpipe: Measured,
    seconds: float,
    *,
    readers: int,
    rate: float,
    size: int = 200,
    requests: Sequence[bytes] = (),
) -> FanOut:
    return await fan_out(
        logpipe.target,
        readers=readers,
        rate=rate,
        size=size,
        seconds=seconds,
        requests=requests,
        meter=logpipe.at_givers,
    )


def _point(value: float, found: FanOut) -> Point:
    assert found.used.cores is not None and found.used.rss_bytes is not None
    return Point(
        value,
        found.used.cores,
        found.latency_ms.p50,
        found.latency_ms.p99,
        found.used.rss_bytes / 1e6,
        not (found.missing or found.doubled or found.broken),
    )


def draw(rows: Sequence[Row], path: Path) -> None:
    """One panel a row: cores to the left, milliseconds to the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 2, figsize=(10, 6.4), constrained_layout=True)
    for row, panel in zip(rows, panels.flat, strict=True):
        _panel(row, panel)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _panel(row: Row, panel: Any) -> None:
    at = [max(point.x, 0.5) for point in row.points]
    cores = [point.cores for point in row.points]
    (used,) = panel.plot(at, cores, "o-", color="#1f5fbf", label="cores of the distributor")
    panel.set_xscale("log")
    panel.set_xticks(at, [_short(point.x) for point in row.points])
    panel.minorticks_off()
    panel.set_ylim(0, max(1.0, max(cores) * 1.1))
    panel.set_title(row.title, fontsize=10)
    panel.set_ylabel("cores")
    panel.grid(alpha=0.25)
    late = panel.twinx()
    drawn = [
        late.plot(at, [getattr(p, name) for p in row.points], style, color="#c2571a", label=label)
        for name, style, label in (("p50", "s-", "p50 latency"), ("p99", "s:", "p99 latency"))
    ]
    late.set_yscale("log")
    late.set_ylim(1, 1000)
    late.set_yticks([1, 10, 100, 1000], ["1", "10", "100", "1,000"])
    late.minorticks_off()
    late.set_ylabel("ms")
    panel.legend(handles=[used, *(line for (line,) in drawn)], fontsize=7, loc="upper left")


def _short(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"
