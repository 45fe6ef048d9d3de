"""What the facts mean: a table of small judgements, each with its remedy. Pure."""

from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import msgspec

from logpipe.client.connection import MISDIRECTED, MISDIRECTED_REMEDY
from logpipe.doctor.look import KEPT, Answer, Facts
from logpipe.doctor.senders import SENDERS
from logpipe.samples import Sample

State = Literal["ok", "warning", "wrong"]

SLOW_HELLO_S = 1.0
"""A hello that takes longer was held back on its way."""
SKEW_MS = 1_000
"""Beyond it times of events and of ids tell another story."""
MAX_SKEW_MS = 60_000
"""Beyond it `since` with a time of this machine is refused as of the future."""
REFUSED = (401, 403)
TOO_MANY = 429

EVICTS = "logpipe_redis_evicts"
LIMIT = "logpipe_redis_max_memory_bytes"


class Finding(msgspec.Struct, frozen=True):
    """One line: what was looked at, how it is, in words, and what to do where it is not well."""

    check: str
    state: State
    detail: str
    remedy: str = ""


Judged = tuple[State, str, str]


def _ok(detail: str) -> Judged:
    return "ok", detail, ""


def alive(facts: Facts) -> Iterator[Judged]:
    """/livez of each process."""
    for url, answer in facts.alive.items():
        if answer.status == 200:
            yield _ok(f"{url}/livez answers")
        elif answer.status:
            yield "wrong", f"{url}/livez: {answer}", "is this URL logpipe's, or a proxy's to it?"
        else:
            yield (
                "wrong",
                f"{url}: {answer}",
                "start `logpipe serve` there, or give its URL; look at firewall and proxy",
            )


def ready(facts: Facts) -> Iterator[Judged]:
    """/healthz of each process that lives, with its roles."""
    for url in (url for url, answer in facts.alive.items() if answer.status):
        health = facts.health[url]
        roles = ", ".join(map(str, health.get("roles") or ()))
        if health.get("status") == "ok":
            yield _ok(f"{url}: {roles} (logpipe {health.get('version')})")
        elif "roles" in health:
            detail = f"{url}: {roles}: {health.get('detail')}"
            yield "wrong", detail, "mend what it names; its log has the address"
        else:
            yield "wrong", f"{url}/healthz is not logpipe's", "let the proxy pass /healthz on"


def tokens(facts: Facts) -> Iterator[Judged]:
    """Own tokens are taken, others are not."""
    if facts.ways:
        yield _way(facts, "send", "INGEST_TOKENS", "--ingest-token")
        yield _way(facts, "read", "READ_TOKENS", "--token")


def _way(facts: Facts, way: str, setting: str, option: str) -> Judged:
    own, none, wrong = (facts.ways[way, name] for name in ("own", "none", "wrong"))
    if own.status in REFUSED:
        return "wrong", f"to {way}: refused ({own.status})", f"{option} with one of {setting}"
    if own.status == MISDIRECTED:
        return "wrong", f"to {way}: {own}", MISDIRECTED_REMEDY
    if own.status == TOO_MANY:
        return "warning", f"to {way}: {own}", _LATER
    if not 200 <= own.status < 300 and own.status != 400:
        remedy = f"is the {'collector' if way == 'send' else 'distributor'} there?"
        return "wrong", f"to {way}: {own}", remedy
    if none.status not in REFUSED:
        return "warning", f"to {way}: none is asked for", f"set {setting} where others may come"
    if none.status != 401 or wrong.status not in (403, 429):  # 429: after many wrong ones
        detail = f"to {way}: {none.status} without one, {wrong.status} with a wrong one"
        return "warning", detail, "a proxy answers in logpipe's place: 401 and 403 are wanted"
    return _ok(f"to {way}: taken; 401 without, 403 with a wrong one")


def probes(facts: Facts) -> Iterator[Judged]:
    """What senders ask before they send: one line for all that is well, one a protocol for what is
    not. What the token alone stands in the way of says nothing."""
    bad: dict[str, list[str]] = {}
    for probe, answer in facts.probes.items():
        if answer.status in (*REFUSED, MISDIRECTED) and _refused(facts, "send"):
            continue
        failed = bad.setdefault(probe.protocol, [])
        if answer.status != probe.status:
            failed.append(f"{probe.method} {probe.path}: {answer}")
    for name, failed in bad.items():
        if failed:
            yield "wrong", f"{name}: {'; '.join(failed)}", "let the proxy pass path and method on"
    if good := [name for name, failed in bad.items() if not failed]:
        yield _ok(", ".join(good))


def _refused(facts: Facts, way: str) -> bool:
    """Whether it fails for the token or the host name, which is reported once."""
    answer = facts.ways.get((way, "own"))
    return answer is not None and answer.status in (*REFUSED, MISDIRECTED)


def stream(facts: Facts) -> Iterator[Judged]:
    """/subscribe says hello at once."""
    answer, hello_s = facts.stream, facts.hello_s
    if not facts.ways or answer.status in REFUSED:
        return
    if answer.status in (404, 405):
        remedy = "--distributor-url, or let the proxy pass /subscribe on to one"
        yield "wrong", f"no distributor at {facts.target.distributor}: {answer}", remedy
    elif answer.status not in (0, 200):
        yield "wrong", f"/subscribe: {answer}", "see /healthz of the distributor"
    elif hello_s is None:
        yield "wrong", _silence(facts), _UNBUFFERED
    elif hello_s > SLOW_HELLO_S:
        yield "warning", f"the hello of /subscribe took {hello_s:.1f} s", _UNBUFFERED
    else:
        yield _ok(f"/subscribe says hello after {hello_s * 1000:.0f} ms")


_UNBUFFERED = "switch buffering off: nginx `proxy_buffering off`, no compression of event streams"


def _silence(facts: Facts) -> str:
    plain = facts.ways["read", "own"].status
    if plain == 200:
        return "/subscribe gives nothing though plain requests answer: a proxy buffers the stream"
    return "/subscribe gives nothing"


def protocols(facts: Facts) -> Iterator[Judged]:
    """An event by each protocol and back: one line for all that went alike."""
    if not facts.sent or _refused(facts, "send"):
        return
    alike: dict[Judged, list[str]] = {}
    for name in SENDERS:
        alike.setdefault(_journey(facts, name), []).append(name)
    for (state, detail, remedy), names in alike.items():
        yield state, f"{', '.join(names)}: {detail}", remedy


def compression(facts: Facts) -> Iterator[Judged]:
    """A body packed by gzip."""
    if facts.sent and not _refused(facts, "send"):
        state, detail, remedy = _journey(facts, "gzip")
        yield state, f"gzip: {detail}", remedy


def _journey(facts: Facts, name: str) -> Judged:
    """How an event went in and came out."""
    answer = facts.sent[name].answer
    wanted = SENDERS["json" if name == "gzip" else name].status
    if answer.status != wanted:
        return _unwanted(answer, wanted)
    if name in facts.arrived:
        return _ok("taken, and came out of the stream")
    if _refused(facts, "read"):
        return _ok("taken; not read back, for want of a token")
    stored = name in facts.stored
    where = "it is stored" if stored else "it is not found among what is stored"
    if facts.hello_s is not None:
        return "wrong", f"taken, and did not come out of the stream; {where}", _ONE_REDIS
    remedy = "the stream is what has to be mended" if stored else _ONE_REDIS
    return "warning", f"taken; {where}; the stream told nothing", remedy


_LATER = "the rate of this sender (RATE_PER_TOKEN) is used up, or it sent wrong tokens: try later"
_ONE_REDIS = "do collector and distributor have the same REDIS_ADDR and STREAM_NAME?"


def _unwanted(answer: Answer, wanted: int) -> Judged:
    if answer.status == TOO_MANY:
        return "warning", str(answer), _LATER
    remedy = {
        0: "look at the proxy's time limits and the collector's log",
        404: "let the proxy pass the protocol's path on to the collector",
        413: "raise the proxy's limit of a body (nginx `client_max_body_size`)",
        503: "see /healthz of the collector: Redis",
    }.get(answer.status, "its senders take that for a failure: does a proxy answer?")
    return "wrong", f"{answer}, {wanted} is wanted", remedy


def clock(facts: Facts) -> Iterator[Judged]:
    """The ids' milliseconds, which are Redis' clock, against own."""
    skews = [_skew(facts, name, ms) for name, ms in facts.arrived.items() if name in facts.sent]
    if not skews:
        return
    skew = min(skews, key=abs)
    words = f"Redis is {abs(skew) / 1000:.1f} s {'ahead of' if skew > 0 else 'behind'} this machine"
    remedy = "synchronise both clocks (NTP)"
    if abs(skew) > MAX_SKEW_MS:
        yield "wrong", words, remedy
    elif abs(skew) > SKEW_MS:
        yield "warning", words, remedy
    else:
        yield _ok("Redis and this machine agree within a second")


def _skew(facts: Facts, name: str, ms: int) -> float:
    """By how much an id is outside of the time in which it was made; negative: before it."""
    sent = facts.sent[name]
    return min(ms - sent.from_ms, 0) or max(ms - sent.to_ms, 0)


def redis(facts: Facts) -> Iterator[Judged]:
    """Eviction and persistence, as the distributor's metrics tell them."""
    sample = facts.metrics
    if sample is None or KEPT not in sample.series:
        if facts.stream.status == 200:
            yield (
                "warning",
                "/metrics cannot be seen",
                "ask from where /metrics may be read, with ADMIN_TOKENS if there are any",
            )
        return
    evicts, kept, limit = (sample.value(name) for name in (EVICTS, KEPT, LIMIT))
    if evicts is None or kept is None:
        if facts.stream.status == 200:
            yield "warning", "its policy cannot be seen", "let logpipe's user call INFO"
        return
    yield _policy(evicts, limit)
    yield _persistence(kept)
    yield from _servers(sample)


def _servers(sample: Sample) -> Iterator[Judged]:
    """The servers that stand by, where there are several."""
    nodes = sample.by("logpipe_redis_primary_info", "node")
    if node := next((node for node, is_now in nodes.items() if is_now), None):
        replicas = sample.value("logpipe_redis_replicas_in_sync") or 0
        words = f"its primary is {node}; replicas in sync: {replicas:.0f}"
        if replicas:
            yield _ok(words)
        else:
            yield "warning", words, "nothing can take over from it: see to its replicas"
    if number := sample.value("logpipe_redis_sentinels"):
        reachable = sample.value("logpipe_redis_sentinels_reachable") or 0
        words = f"{reachable:.0f} of {number:.0f} Sentinels say where it is"
        if reachable == number:
            yield _ok(words)
        else:
            remedy = "the log of the distributor names the others: are they up, and named rightly?"
            yield "warning", words, remedy


def _policy(evicts: float, limit: float | None) -> Judged:
    remedy = "CONFIG SET maxmemory-policy noeviction, and TRIM_MAXLEN to bound the stream"
    if evicts and limit:
        return "wrong", "it may evict the whole stream when memory is short", remedy
    if evicts:
        return "warning", "its policy would evict the stream, once it has a maxmemory", remedy
    return _ok("it does not evict the stream")


def _persistence(kept: float) -> Judged:
    if kept:
        return _ok("it has an append-only file")
    remedy = "CONFIG SET appendonly yes, unless what it confirmed may be lost"
    return "warning", "no append-only file: a crash loses what it has confirmed", remedy


CHECKS: Mapping[str, Callable[[Facts], Iterator[Judged]]] = {
    "alive": alive,
    "ready": ready,
    "tokens": tokens,
    "probes": probes,
    "stream": stream,
    "protocols": protocols,
    "compression": compression,
    "clock": clock,
    "redis": redis,
}


def judge(facts: Facts) -> list[Finding]:
    """All findings, in the table's order."""
    return [Finding(name, *judged) for name, check in CHECKS.items() for judged in check(facts)]
