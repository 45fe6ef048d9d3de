"""A Redis or Valkey with known holes is named, once."""

import logging
from typing import Any

import pytest

from logpipe.stream.floors import FLOORS, hole_in
from logpipe.stream.monitor import Intervals
from tests.helpers import wait_until
from tests.servers import Valkey, serving


@pytest.mark.parametrize("name", FLOORS)
def test_what_is_below_its_lines_floor_is_named_with_the_version_that_is_not(name: str) -> None:
    for (major, minor), patch in FLOORS[name].items():
        key = f"{name.lower()}_version"
        hole = hole_in({key: f"{major}.{minor}.{patch - 1}"})
        assert hole is not None
        assert hole.startswith(f"{name} {major}.{minor}.{patch - 1} ")
        assert f"{major}.{minor}.{patch}" in hole
        assert hole_in({key: f"{major}.{minor}.{patch}"}) is None
        assert hole_in({key: f"{major}.{minor}.{patch + 1}"}) is None


@pytest.mark.parametrize(
    "version", ["7.0.15", "99.0.0", "255.255.255", "", "8", "8.2.x", "unstable"]
)
def test_what_is_not_known_is_not_judged(version: str) -> None:
    assert hole_in({"redis_version": version}) is None
    assert hole_in({}) is None


def test_valkey_is_judged_as_valkey_and_not_by_the_redis_that_it_stands_for() -> None:
    assert hole_in({"redis_version": "7.2.4", "valkey_version": "9.1.2"}) is None


async def test_it_is_said_once_and_the_engine_that_is_shipped_is_well(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[dict[str, Any]] = []

    def hole(info: dict[str, Any]) -> str:
        asked.append(info)
        return "a hole, for the test"

    monkeypatch.setattr("logpipe.stream.monitor.hole_in", hole)
    monkeypatch.setattr("logpipe.stream.monitor.INTERVALS", Intervals(healthy_s=0.01))
    caplog.set_level(logging.INFO, "logpipe.redis")
    async with serving(redis_addr=valkey.url, role="collector"):
        await wait_until(lambda: len(asked) > 3, "it was looked at again")
    assert caplog.text.count("a hole, for the test") == 1
    assert "valkey_version" in asked[0]
    assert hole_in(asked[0]) is None
