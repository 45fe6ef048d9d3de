"""The doctor's requests are those of the collector's table."""

from typing import Any, cast

from starlette.routing import Match, Route

from logpipe.collector.receivers.intake import Process
from logpipe.collector.receivers.table import PROTOCOLS, routes
from logpipe.doctor.senders import PROBES, SENDERS
from logpipe.settings import Settings


def served(method: str, path: str) -> bool:
    """Whether a collector has a route for it."""
    nothing = cast("Any", None)
    made = routes(cast("Any", Process(cast("Any", Settings()), nothing, nothing, nothing)))
    scope = {"type": "http", "method": method, "path": path.partition("?")[0], "headers": []}
    return any(isinstance(r, Route) and r.matches(scope)[0] is Match.FULL for r in made)


def test_there_is_a_sender_for_every_protocol() -> None:
    assert set(SENDERS) == {*PROTOCOLS, "ingest"}
    assert all(served("POST", each.path) for name, each in SENDERS.items() if name != "ingest")


def test_probes_are_those_that_a_collector_answers() -> None:
    assert {probe.protocol for probe in PROBES} <= set(PROTOCOLS)
    assert [probe for probe in PROBES if not served(probe.method, probe.path)] == []
