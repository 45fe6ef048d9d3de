"""What is said of Redis, and how often."""

import logging

import pytest

from logpipe.stream import health as module
from logpipe.stream.health import RedisHealth


def test_a_redis_that_serves_now_and_now_not_does_not_fill_the_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With maxclients reached every command may meet another state than the one before."""
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    caplog.set_level(logging.INFO, "logpipe.redis")
    redis = RedisHealth("redis://redis")
    for _ in range(50):
        redis.report("clients", "no connection left (maxclients)")
        redis.report("ok")
    redis.report("clients", "no connection left (maxclients)")
    assert len(caplog.records) == module.LINES_AT_ONCE
    assert redis.kind == "clients"
    assert caplog.records[-1].getMessage() == "Redis is ready"
    now += module.LINE_S
    redis.report("clients", "no connection left (maxclients)")
    assert "no connection left" in caplog.records[-1].getMessage()
    redis.report("clients", "no connection left (maxclients)")
    assert len(caplog.records) == module.LINES_AT_ONCE + 1
