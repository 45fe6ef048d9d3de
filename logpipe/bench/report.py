"""What was measured, for people."""

from collections.abc import Iterable, Iterator

from logpipe.bench.measures import FanOut, Ingest, Measure, Spread, Used


def lines(measures: Iterable[Measure]) -> Iterator[str]:
    """A few lines a measurement."""
    for measure in measures:
        match measure:
            case Ingest():
                yield from _ingest(measure)
            case FanOut():
                yield from _fan_out(measure)


def whole(measures: Iterable[Measure]) -> bool:
    """Whether every event was taken, and arrived once at each reader."""
    return not any(troubles(measure) for measure in measures)


def title(measure: Measure) -> str:
    """What was measured, in a few words."""
    if isinstance(measure, Ingest):
        kind = "single posts" if measure.per_request == 1 else f"batches of {measure.per_request:,}"
        return f"{kind}, {measure.connections} connections"
    return f"{measure.readers:,} readers x {measure.rate:,.0f} events/s"


def troubles(measure: Measure) -> list[str]:
    """What went wrong, in a few words each."""
    wrong = [f"{count:,} refused: {why}" for why, count in measure.refused.items()]
    if isinstance(measure, Ingest):
        return wrong
    if measure.connected < measure.readers:
        wrong.append(f"{measure.readers - measure.connected:,} readers did not connect")
    if measure.missing:
        wrong.append(f"{measure.missing:,} MISSING")
    if measure.doubled:
        wrong.append(f"{measure.doubled:,} doubled")
    wrong += [f"{count:,} readers broken: {why}" for why, count in measure.broken.items()]
    return wrong


def _ingest(measure: Ingest) -> Iterator[str]:
    yield f"{title(measure):<36} {measure.events_per_s:>12,.0f} events/s"
    yield _detail(f"answered after {_spread(measure.answer_ms)}", _used(measure.used))
    yield from map(_detail, troubles(measure))


def _fan_out(measure: FanOut) -> Iterator[str]:
    yield f"{title(measure):<36} {measure.delivered_per_s:>12,.0f} delivered/s"
    memory = (
        f"{measure.bytes_a_reader / 1000:,.0f} kB a reader"
        if measure.bytes_a_reader is not None
        else ""
    )
    yield _detail(f"{_spread(measure.latency_ms)} from when it was due", _used(measure.used))
    yield _detail(f"{measure.connects_per_s:,.0f} connects/s", memory)
    whole_ = "every event arrived once at every reader"
    yield from map(_detail, troubles(measure) or [whole_])


def _spread(spread: Spread) -> str:
    return f"p50 {spread.p50:,.1f} ms, p99 {spread.p99:,.1f} ms, max {spread.max:,.1f} ms"


def _used(used: Used) -> str:
    if used.cores is None or used.rss_bytes is None:
        return ""
    return f"{used.cores:.2f} cores, {used.rss_bytes / 1e6:,.0f} MB"


def _detail(*parts: str) -> str:
    return "  " + "; ".join(part for part in parts if part)
