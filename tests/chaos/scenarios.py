"""The table of trials: what is done, to what, on which terms, and the control that must fail."""

from collections.abc import Callable
from typing import NamedTuple

from tests.chaos import controls, crowds, faults, limits, redis_faults
from tests.chaos.faults import Fault
from tests.chaos.judge import Kind, Terms
from tests.chaos.stage import FORGETFUL, Setup
from tests.soak.readers import Plan


class Scenario(NamedTuple):
    """One row. Of a control, `breaks` is the kind of offence that the judge must find.

    `lanes` pipelines share the cycles of a long one; `times` is how often a short one is repeated.
    """

    says: str
    fault: Fault
    control: str = ""
    setup: Setup = Setup()
    terms: Terms = Terms()
    lanes: int = 0
    times: int = 1
    breaks: Kind | None = None
    missing: Callable[[], str] = str


WHOLE = Setup(whole=True)
PAGE = Setup(ui=True)
PROXIED = Setup(proxied=True)
RESET = Terms(frozenset({"reset"}))
LOGIN = Terms(frozenset(), 6.0)
"""A refused login is tried again every five seconds only."""
SMALL = Setup(rate=1_000, environ={"SUBSCRIBER_QUEUE_LEN": "200"})

SCENARIOS: dict[str, Scenario] = {
    # Two hundred times, or as often as is asked for.
    "kill-collector": Scenario(
        "kill -9 of the collector, again and again",
        faults.killed("collector"), "early-202", lanes=2,
    ),
    "kill-distributor": Scenario(
        "kill -9 of the distributor, again and again",
        faults.killed("distributor"), "catch-up-broken", lanes=2,
    ),
    "kill-all-in-one": Scenario(
        "kill -9 of all roles in one process, whose engine dies with it",
        faults.killed("all"), "early-202", WHOLE, lanes=2,
    ),
    "kill-embedded-engine": Scenario(
        "kill -9 of the embedded engine, which logpipe starts again",
        faults.engine_killed, "nothing-on-disk", WHOLE, Terms(frozenset(), 3.0), lanes=6,
    ),
    # Processes.
    "kill-redis": Scenario(
        "kill -9 of Redis with appendfsync always",
        faults.redis_killed, "nothing-on-disk", times=10,
    ),
    "kill-ui": Scenario("kill -9 of the ui", faults.killed("ui"), "page-gone", PAGE, times=3),
    "term-collector": Scenario(
        "SIGTERM of the collector under load",
        faults.terminated("collector"), "early-202", times=3,
    ),
    "term-distributor": Scenario(
        "SIGTERM of the distributor under load",
        faults.terminated("distributor"), "catch-up-broken", times=3,
    ),
    "term-ui": Scenario(
        "SIGTERM of the ui", faults.terminated("ui"), "page-gone", PAGE, times=2
    ),
    "term-all-in-one": Scenario(
        "SIGTERM of all roles in one process, and of the engine with it",
        faults.terminated("all"), "nothing-on-disk", WHOLE, times=3,
    ),
    "freeze-collector": Scenario(
        "SIGSTOP of the collector for 3 s", faults.frozen("collector"), "never-continued"
    ),
    "freeze-distributor": Scenario(
        "SIGSTOP of the distributor for 3 s", faults.frozen("distributor"), "never-continued"
    ),
    "freeze-ui": Scenario(
        "SIGSTOP of the ui for 3 s", faults.frozen("ui"), "page-gone", PAGE
    ),
    "freeze-redis": Scenario("SIGSTOP of Redis for 3 s", faults.redis_frozen, "keyless"),
    "freeze-embedded-engine": Scenario(
        "SIGSTOP of the embedded engine for 3 s", faults.engine_frozen, "keyless", WHOLE
    ),
    # Redis.
    "redis-comes-late": Scenario(
        "logpipe starts without Redis",
        redis_faults.comes_late, "never-continued", Setup(redis_runs=False),
    ),
    "redis-restarted": Scenario(
        "Redis is stopped and started", redis_faults.restarted, "nothing-on-disk", times=5
    ),
    "redis-flushed": Scenario(
        "FLUSHALL under load: a gap of reason reset tells it",
        redis_faults.flushed, "gap-ignored", terms=RESET, times=3,
    ),
    "redis-loading": Scenario(
        "Redis restarts with data that takes seconds to load",
        redis_faults.loading, "nothing-on-disk",
        Setup(options=redis_faults.SLOW_TO_LOAD),
    ),
    "redis-full": Scenario("Redis is out of memory (OOM)", redis_faults.full, "removed"),
    "redis-read-only": Scenario(
        "Redis becomes a read-only replica for a while", redis_faults.read_only, "removed"
    ),
    "redis-wrong-type": Scenario(
        "the stream's key holds a string for a while", redis_faults.wrong_type, "removed"
    ),
    "redis-wrong-password": Scenario(
        "logpipe starts with a password that Redis refuses",
        redis_faults.wrong_password, "never-continued",
        Setup(user=redis_faults.IN_URL), LOGIN,
    ),
    "redis-rights-lost": Scenario(
        "the user's rights are taken away and given back",
        redis_faults.rights_lost, "removed", Setup(user=redis_faults.IN_URL), LOGIN,
    ),
    "redis-maxclients": Scenario(
        "Redis takes no connections (maxclients)", redis_faults.no_connection_left, "removed"
    ),
    "redis-closes-idle": Scenario(
        "Redis closes all connections, twenty times", redis_faults.idle_closed, "keyless"
    ),
    # The way there.
    "replies-lost": Scenario(
        "thirty appends are done and nobody hears of it",
        redis_faults.replies_lost, "keyless", PROXIED,
    ),
    "replies-delayed": Scenario(
        "each answer of Redis takes 300 ms longer", redis_faults.delayed, "keyless", PROXIED
    ),
    "connections-cut": Scenario(
        "all connections to Redis are cut forty times", redis_faults.cut, "keyless", PROXIED
    ),
    "black-hole": Scenario(
        "connections to Redis stand for 3 s and nothing passes",
        redis_faults.black_hole, "keyless", PROXIED,
    ),
    # Limits and clocks.
    "disk-full": Scenario(
        "the embedded engine's disk is full", limits.disk_full, "nothing-on-disk",
        Setup(whole=True, around=limits.small_disk, rate=100), Terms(frozenset(), 3.0),
        missing=limits.root_missing,
    ),
    "descriptors-gone": Scenario(
        "more idle connections than a process may open files (ulimit -n)",
        limits.descriptors_gone, "never-continued",
        Setup(prefix=("sh", "-c", f'ulimit -n {limits.DESCRIPTORS}; exec "$0" "$@"')),
    ),
    "clock-ahead": Scenario(
        "Redis gave ids of an hour ahead", redis_faults.clock_ahead, "tampered"
    ),
    "clock-steps": Scenario(
        "the clock of logpipe and its engine goes forward, back and forward by an hour",
        limits.clock_steps, "tampered", Setup(whole=True, around=limits.own_clock),
        missing=limits.faketime_missing,
    ),
    # Readers.
    "half-open-readers": Scenario(
        "the host of three readers is gone without a word (limit made 3 s)",
        crowds.half_open, "half-open-kept",
        Setup(altered="impatient", environ={"HOST": "0.0.0.0"}),
        missing=crowds.namespaces_missing,
    ),
    "stalled-readers": Scenario(
        "twenty readers take nothing for 4 s", crowds.stalled, "catch-up-broken", SMALL
    ),
    "reconnect-storm": Scenario(
        "500 readers come back at once after a kill -9 of the distributor",
        crowds.storm, "position-forgotten", Setup(rate=40), Terms(frozenset(), 5.0),
    ),
    # Controls.
    "early-202": Scenario(
        "a collector that acknowledges before Redis confirms",
        controls.acknowledged_too_early, setup=Setup(altered="early"), breaks="lost",
    ),
    "keyless": Scenario(
        "a collector that forgets idempotency keys, when replies are lost",
        redis_faults.replies_lost, setup=Setup(altered="keyless", proxied=True), breaks="doubled",
    ),
    "catch-up-broken": Scenario(
        "a distributor that jumps to the newest without a word",
        faults.killed("distributor"), setup=Setup(altered="catch-up"), times=2, breaks="lost",
    ),
    "nothing-on-disk": Scenario(
        "a Redis that keeps nothing, killed",
        controls.nothing_on_disk, setup=Setup(options=FORGETFUL), breaks="lost",
    ),
    "gap-ignored": Scenario(
        "a subscriber that does not listen to gaps, when Redis is flushed",
        redis_faults.flushed, times=3, breaks="lost",
    ),
    "removed": Scenario(
        "an entry removed from the stream behind logpipe's back", controls.removed, breaks="lost"
    ),
    "tampered": Scenario(
        "an event in the stream that is not as it was issued", controls.tampered, breaks="forged"
    ),
    "never-continued": Scenario(
        "a collector that is stopped and never continued",
        controls.never_continued, terms=Terms(frozenset(), 1.0), breaks="stale",
    ),
    "page-gone": Scenario(
        "a ui that is killed and not started again",
        controls.page_gone, setup=PAGE, breaks="stale",
    ),
    "position-forgotten": Scenario(
        "a subscriber that comes back without its position",
        controls.position_forgotten,
        setup=Setup(plan=Plan({}, bool, leaves=False)), breaks="lost",
    ),
    "half-open-kept": Scenario(
        "the host of three readers is gone, and the limit is the usual minute",
        crowds.half_open, setup=Setup(environ={"HOST": "0.0.0.0"}), breaks="other",
        missing=crowds.namespaces_missing,
    ),
    "noisy": Scenario(
        "a collector with a traceback for every append",
        controls.nothing, setup=Setup(altered="noisy"), breaks="log",
    ),
}  # fmt: skip
