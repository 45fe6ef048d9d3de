"""Who judges a trial: pure, and ignorant of logpipe's code.

Events are numbered in the order in which they were issued, which need not be that of the stream.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from tests.soak.judge import Gap, Id

Kind = Literal["lost", "doubled", "forged", "disorder", "gap", "stale", "answer", "log", "other"]
MAX_SHOWN = 3
LINES_A_START = 10
LINES_A_SECOND = 3
MAX_GROWTH_BYTES = 64_000_000


class Seen(NamedTuple):
    """An event as a reader got it: its id, its number, and whether it is what was issued."""

    id: Id
    number: int
    intact: bool = True


class Offence(NamedTuple):
    """What is wrong, and how."""

    kind: Kind
    text: str


class Evidence(NamedTuple):
    """What the oracle knows at the end.

    `acked` are the obligations, by number; `received` is what a subscriber got over all its
    connections; `held` is what the stream holds; `fresh_s` how long after the fault's end an event
    took that was issued then.
    """

    issued: int
    acked: dict[int, Id]
    received: Sequence[Seen]
    gaps: Sequence[Gap]
    held: Sequence[Seen]
    fresh_s: float | None
    answers: Counter[str] = Counter()  # noqa: RUF012 - read only


class Terms(NamedTuple):
    """What a fault may cost: the reasons of gaps that it may cause, and how long it may be felt."""

    gaps: frozenset[str] = frozenset()
    fresh_s: float = 2.0


class Record(NamedTuple):
    """What one process has logged and how its memory grew."""

    name: str
    log: str
    starts: int
    seconds: float
    growth: int = 0


def offences(evidence: Evidence, terms: Terms) -> Iterator[Offence]:
    """What is wrong; nothing when the promise was kept."""
    yield from _lost(evidence, terms)
    yield from _doubled(evidence)
    yield from _forged(evidence)
    yield from _disorder(evidence.received)
    yield from _told(evidence.gaps, terms)
    yield from _stale(evidence.fresh_s, terms.fresh_s)
    for answer, count in evidence.answers.items():
        if answer not in ("202", "503", "none"):
            yield Offence("answer", f"{count} requests were answered {answer}")


def _lost(evidence: Evidence, terms: Terms) -> Iterator[Offence]:
    """Acknowledged and not delivered; or not in the stream, though no allowed gap passed it."""
    gaps = [gap for gap in evidence.gaps if gap.reason in terms.gaps]
    received = {(seen.number, seen.id) for seen in evidence.received}
    held = {(seen.number, seen.id) for seen in evidence.held}
    gone = max((gap.before for gap in gaps), default=(0, 0))
    missing = [
        number
        for number, id_ in evidence.acked.items()
        if (number, id_) not in received and not any(g.after < id_ < g.before for g in gaps)
    ]
    if missing:
        yield Offence("lost", f"{_some(missing)} acknowledged and never delivered")
    missing = [n for n, id_ in evidence.acked.items() if id_ >= gone and (n, id_) not in held]
    if missing:
        yield Offence("lost", f"{_some(missing)} acknowledged and not in the stream")


def _doubled(evidence: Evidence) -> Iterator[Offence]:
    """An event that was appended twice, though it always came with the same key."""
    places: list[tuple[str, Sequence[Seen]]] = [("the stream", evidence.held)]
    if not evidence.gaps:  # after a flush the keys are gone, too
        places.append(("what was delivered", evidence.received))
    for where, entries in places:
        ids = Counter(number for number, _ in {(seen.number, seen.id) for seen in entries})
        if twice := [number for number, count in ids.items() if count > 1]:
            yield Offence("doubled", f"{_some(twice)} more than once in {where}")


def _forged(evidence: Evidence) -> Iterator[Offence]:
    entries = (*evidence.received, *evidence.held)
    if unknown := {seen.number for seen in entries if not 0 <= seen.number < evidence.issued}:
        yield Offence("forged", f"{_some(sorted(unknown))} never issued")
    if changed := {seen.number for seen in entries if not seen.intact}:
        yield Offence("forged", f"{_some(sorted(changed))} not as issued")


def _disorder(received: Sequence[Seen]) -> Iterator[Offence]:
    before: Id = (0, 0)
    for seen in received:
        if seen.id <= before:
            yield Offence("disorder", f"{seen.number} ({seen.id}) after {before}")
            return
        before = seen.id


def _told(gaps: Iterable[Gap], terms: Terms) -> Iterator[Offence]:
    for gap in gaps:
        if gap.reason not in terms.gaps:
            yield Offence("gap", f"{gap}, though nothing may be missing")


def _stale(fresh_s: float | None, limit_s: float) -> Iterator[Offence]:
    if fresh_s is None:
        yield Offence("stale", "no fresh event after the fault's end")
    elif fresh_s > limit_s:
        yield Offence("stale", f"a fresh event after {fresh_s:.1f} s, {limit_s:g} allowed")


def of_record(record: Record) -> Iterator[Offence]:
    """What is wrong with what a process has logged, and with its memory."""
    if "Traceback" in record.log:
        yield Offence("log", f"{record.name}: a traceback")
    lines = record.log.count("\n")
    if lines > LINES_A_START * record.starts + LINES_A_SECOND * record.seconds:
        yield Offence("log", f"{record.name}: {lines} lines in {record.seconds:.0f} s")
    if record.growth > MAX_GROWTH_BYTES:
        yield Offence("other", f"{record.name}: {record.growth / 1e6:.0f} MB more memory")


def _some(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:MAX_SHOWN])) + (", …" if len(numbers) > MAX_SHOWN else "")
    return f"{len(numbers)} events ({shown})"
