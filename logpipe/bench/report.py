"""The results of a benchmark as lines of text."""

from collections.abc import Iterator

from logpipe.bench.measures import Ingest, Measure, Spread


def title(measure: Measure) -> str:
    """What was measured, in a few words."""
    if isinstance(measure, Ingest):
        kind = "single posts" if measure.per_request == 1 else f"batches of {measure.per_request:,}"
        return f"{kind}, {measure.connections} connections"
    return f"{measure.readers:,} readers x {measure.rate:,.0f} events/s"


def troubles(measure: Measure) -> list[str]:
    """What went wrong, in a few words each; empty where every event was accepted and arrived once
    at each reader."""
    wrong = [f"{count:,} refused: {why}" for why, count in measure.refused.items()]
    if isinstance(measure, Ingest):
        return wrong
    if measure.connected < measure.readers:
        wrong.append(f"{measure.readers - measure.connected:,} readers did not connect")
    if measure.missing:
        wrong.append(f"{measure.missing:,} MISSING")
    if measure.doubled:
        wrong.append(f"{measure.doubled:,} doubled")
    return wrong + [f"{count:,} readers broken: {why}" for why, count in measure.broken.items()]


def lines(measure: Measure) -> Iterator[str]:
    """A few lines for a measurement."""
    cores, rss_bytes = measure.used.cores, measure.used.rss_bytes
    used = (
        ""
        if cores is None or rss_bytes is None
        else f"; {cores:.2f} cores, {rss_bytes / 1e6:,.0f} MB"
    )
    if isinstance(measure, Ingest):
        yield f"{title(measure):<36} {measure.events_per_s:>12,.0f} events/s"
        yield f"  answered after {_spread(measure.answer_ms)}{used}"
        fine: list[str] = []
    else:
        yield f"{title(measure):<36} {measure.delivered_per_s:>12,.0f} delivered/s"
        yield f"  {_spread(measure.latency_ms)} from when it was due{used}"
        each = measure.bytes_a_reader
        memory = "" if each is None else f"; {each / 1000:,.0f} kB a reader"
        yield f"  {measure.connects_per_s:,.0f} connects/s{memory}"
        fine = ["every event arrived once at every reader"]
    yield from (f"  {words}" for words in troubles(measure) or fine)


def _spread(spread: Spread) -> str:
    return f"p50 {spread.p50:,.1f} ms, p99 {spread.p99:,.1f} ms, max {spread.max:,.1f} ms"
