import pytest

from logpipe.collector.receivers.rejections import Rejections
from logpipe.problems import Problem
from tests.helpers import wait_until

ONE, TWO = Problem(400, "one"), Problem(400, "two")


async def test_the_first_are_logged_at_once_and_others_together(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rejections = Rejections("loki", interval_s=0.2)
    rejections.add([])
    assert caplog.messages == []
    rejections.add([ONE])
    rejections.add([TWO, ONE])
    rejections.add([ONE] * 3)
    rejections.add([])
    assert caplog.messages == ["loki: events rejected: 1; the first: one"]
    await wait_until(lambda: len(caplog.messages) == 2, "the interval is over")
    assert caplog.messages[1] == "loki: events rejected: 5; the first: two"


async def test_after_a_quiet_interval_they_are_logged_at_once_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rejections = Rejections("loki", interval_s=0.01)
    rejections.add([ONE])
    await wait_until(lambda: rejections._timer is None, "the interval is over")
    assert len(caplog.messages) == 1
    rejections.add([TWO])
    assert caplog.messages[1:] == ["loki: events rejected: 1; the first: two"]


async def test_protocols_are_logged_apart(caplog: pytest.LogCaptureFixture) -> None:
    for name in ("loki", "otlp"):
        Rejections(name).add([ONE])
    assert [each.partition(":")[0] for each in caplog.messages] == ["loki", "otlp"]
