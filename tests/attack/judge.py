"""The judge of an attack: pure, and ignorant of logpipe's code.

A latency is what a client measured, less what the machine took: the time for which the server, its
Redis and the client itself were ready to run and had no processor, and the latency of a witness,
a server without any work that was asked in the same moment.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

MEGA = 1_000_000

LIVEZ_S = 0.25
POST_S = 1.0
"""The worst latency of `/livez`, and of somebody else's POST: the contract."""
RESUME_S = 2.0
"""The worst time to the first event of a reader that resumes: generous, 0.05 s without attacks."""
HEALTH_S = 5.0
"""The worst latency of `/healthz`, which has to ask Redis."""
GROWTH_MB = 25
"""Memory that is no limit's: buffers of the kernel's size, the allocator's free lists, code that
is used for the first time."""


class Sample(msgspec.Struct, array_like=True, frozen=True):
    """One request of an honest client."""

    began: float
    """On the monotonic clock."""
    took_s: float
    """What the client measured."""
    machine_s: float = 0.0
    """Of that, what the machine took."""
    error: str = ""
    """Why there was no good answer; empty for a good one."""

    @property
    def fair_s(self) -> float:
        """The latency that the server answers for."""
        return max(0.0, self.took_s - self.machine_s)


class Gap(msgspec.Struct, array_like=True, frozen=True):
    """Ids between which a reader was told that something is missing, both exclusive."""

    after: tuple[int, int]
    before: tuple[int, int]


class Accepted(msgspec.Struct, array_like=True, frozen=True):
    """A request that was answered 202: the numbers of its events, its first and last id."""

    numbers: tuple[int, int]
    """The first, and the one after the last."""
    first: tuple[int, int]
    last: tuple[int, int]


class Witnessed(msgspec.Struct, tag=True):
    """What the honest clients saw, from the beginning of the attack on."""

    livez: list[Sample] = []
    posts: list[Sample] = []
    health: list[Sample] = []
    resumes: list[Sample] = []
    syslog: list[Sample] = []
    deliveries: list[Sample] = []
    accepted: list[Accepted] = []
    received: list[int] = []
    gaps: list[Gap] = []


class Memory(NamedTuple):
    """Bytes that the server's process holds: before the attack, at most, and some time after."""

    before: int
    peak: int
    after: int


class Bound(NamedTuple):
    """What the limits that an attack touches add up to, in megabytes above what was there before:
    during the attack, and what may stay."""

    peak: float
    kept: float


class Limits(NamedTuple):
    """What is asked of the server."""

    bound: Bound
    late: int = 0
    """How many answers of each kind may be late, but none by more than four times its limit."""


class Latency(NamedTuple):
    """The 99th percentile and the worst of some samples, in seconds."""

    p99: float
    worst: float


def latency(samples: Sequence[Sample]) -> Latency:
    """Of the good answers, the machine's part taken off; NaN where there were none."""
    good = sorted(sample.fair_s for sample in samples if not sample.error)
    if not good:
        return Latency(math.nan, math.nan)
    return Latency(good[math.ceil(len(good) * 0.99) - 1], good[-1])


def lost(seen: Witnessed) -> int:
    """Events that were accepted, and neither received nor told as missing."""
    received = set(seen.received)
    count = 0
    for accepted in seen.accepted:
        missing = [number for number in range(*accepted.numbers) if number not in received]
        if missing and not _is_told(accepted, seen.gaps):
            count += len(missing)
    return count


def _is_told(accepted: Accepted, gaps: Iterable[Gap]) -> bool:
    return any(gap.after < accepted.last and accepted.first < gap.before for gap in gaps)


def offences(seen: Witnessed, memory: Memory, limits: Limits) -> Iterator[str]:
    """What is wrong with a server under attack; nothing when all held."""
    yield from _late("/livez", seen.livez, LIVEZ_S, limits.late)
    yield from _late("POST", seen.posts, POST_S, limits.late)
    yield from _late("resume", seen.resumes, RESUME_S, limits.late)
    yield from _late("/healthz", seen.health, HEALTH_S, limits.late)
    yield from _late("syslog", seen.syslog, POST_S, limits.late)
    for name, samples in (
        ("/livez", seen.livez),
        ("POST", seen.posts),
        ("/healthz", seen.health),
        ("resume", seen.resumes),
        ("syslog", seen.syslog),
    ):
        errors = [sample.error for sample in samples if sample.error]
        if errors:
            yield f"{name}: {len(errors)} of {len(samples)} failed, first: {errors[0]}"
    if not seen.livez or not seen.posts or not seen.health:
        yield "an honest client had no answer at all"
    if missing := lost(seen):
        yield f"{missing} accepted events were neither received nor told as missing"
    yield from _large(memory, limits.bound)


def _late(name: str, samples: Sequence[Sample], most_s: float, allowed: int) -> Iterator[str]:
    late = [sample.fair_s for sample in samples if not sample.error and sample.fair_s > most_s]
    if len(late) > allowed or any(took_s > 4 * most_s for took_s in late):
        worst = max(late)
        yield f"{name}: {len(late)} of {len(samples)} over {most_s:g} s, the worst {worst:.2f} s"


def _large(memory: Memory, bound: Bound) -> Iterator[str]:
    for name, size, most in (
        ("at its peak", memory.peak, bound.peak),
        ("after the attack", memory.after, bound.kept),
    ):
        growth = (size - memory.before) / MEGA
        if growth > most + GROWTH_MB:
            yield f"memory {name}: {growth:.0f} MB more than before, allowed {most + GROWTH_MB:.0f}"


class Row(NamedTuple):
    """An attack that was played, as the table has it."""

    name: str
    requests: int
    sent: int
    answers: Mapping[str, int]
    """How many of each status the attacker read, and of each of its errors."""
    seen: Witnessed
    memory: Memory
    found: Sequence[str]


HEAD = (
    f"{'attack':<20} {'requests':>9} {'sent MB':>8} {'livez p99/worst':>17} {'POST p99/worst':>17}"
    f" {'resume':>8} {'MB before/peak/after':>21} {'healthz':>7} {'lost':>5}  verdict"
)


def line(row: Row) -> str:
    """A row of the table."""
    livez, posts, resumes = map(latency, (row.seen.livez, row.seen.posts, row.seen.resumes))
    sick = sum(bool(sample.error) for sample in row.seen.health)
    sizes = "/".join(f"{size / MEGA:.0f}" for size in row.memory)
    return (
        f"{row.name:<20} {row.requests:>9,} {row.sent / MEGA:>8.1f}"
        f" {_pair(livez):>17} {_pair(posts):>17} {_ms(resumes.worst):>8} {sizes:>21}"
        f" {f'{sick} bad' if sick else 'ok':>7} {lost(row.seen):>5}"
        f"  {'FAILED' if row.found else 'held'}"
    )


def _pair(of: Latency) -> str:
    return f"{_ms(of.p99)}/{_ms(of.worst)}"


def _ms(seconds: float) -> str:
    return "-" if math.isnan(seconds) else f"{seconds * 1000:.0f} ms"
