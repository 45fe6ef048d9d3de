"""What a comparison has found, as a table of medians."""

import statistics
from collections.abc import Iterator, Sequence

from logpipe.bench.measures import FanOut, Ingest, Measure
from logpipe.bench.report import troubles

HEAD = (
    "server",
    "single POST/s",
    "batches, events/s",
    "1,000 x 1,000/s: delivered/s",
    "cores",
    "100 x 1,000/s: p50 / p99 ms",
    "100 x 10/s: p50 / p99 ms",
    "RSS",
)


def key(measure: Measure) -> str:
    """Which column a measurement belongs to."""
    if isinstance(measure, Ingest):
        return "single" if measure.per_request == 1 else "batch"
    return f"{measure.readers}x{measure.rate:.0f}"


def rows(measures: Sequence[Measure]) -> Iterator[tuple[str, ...]]:
    """A row a server, in the order in which they were measured."""
    for name in dict.fromkeys(measure.target for measure in measures):
        mine = [measure for measure in measures if measure.target == name]
        by_key: dict[str, list[Measure]] = {}
        for measure in mine:
            by_key.setdefault(key(measure), []).append(measure)
        rss = [measure.used.rss_bytes for measure in mine if measure.used.rss_bytes]
        yield (
            name,
            _rate(by_key.get("single", [])),
            _rate(by_key.get("batch", [])),
            *_fan_out(by_key.get("1000x1000", [])),
            _latency(by_key.get("100x1000", [])),
            _latency(by_key.get("100x10", [])),
            f"{max(rss) / 1e6:,.0f} MB" if rss else "",
        )


def median(measures: Sequence[Measure]) -> float:
    """Of the rates: events a second in, or delivered."""
    return statistics.median(
        each.events_per_s if isinstance(each, Ingest) else each.delivered_per_s for each in measures
    )


def _rate(measures: Sequence[Measure]) -> str:
    if not measures:
        return ""
    lost = "" if not any(map(troubles, measures)) else " (refused some)"
    return f"{median(measures):,.0f}{lost}"


def _fan_out(measures: Sequence[Measure]) -> tuple[str, str]:
    fans = [each for each in measures if isinstance(each, FanOut)]
    if not fans:
        return "", ""
    expected = sum(each.sent * each.readers for each in fans)
    part = sum(each.delivered for each in fans) / expected if expected else 0.0
    cores = [each.used.cores for each in fans if each.used.cores is not None]
    whole = "" if part >= 1 else f" ({part:.0%} delivered)"
    return f"{median(fans):,.0f}{whole}", f"{statistics.median(cores):.2f}" if cores else ""


def _latency(measures: Sequence[Measure]) -> str:
    fans = [each for each in measures if isinstance(each, FanOut)]
    if not fans:
        return ""
    p50 = statistics.median(each.latency_ms.p50 for each in fans)
    p99 = statistics.median(each.latency_ms.p99 for each in fans)
    return f"{p50:.1f} / {p99:.1f}"


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table as Markdown has it, aligned for those who read it as text."""
    widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(head))]

    def row(cells: Sequence[str]) -> str:
        return (
            "| " + " | ".join(cell.ljust(w) for cell, w in zip(cells, widths, strict=True)) + " |"
        )

    return "\n".join([row(head), row(["-" * width for width in widths]), *map(row, lines)])
