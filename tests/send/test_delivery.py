"""A batch until it was taken, against a collector that answers by a script."""

import math
import threading
from collections.abc import Callable

import pytest

from logpipe.client.ingest import Later, Never, Refused, Taken, TooLarge, Verdict
from logpipe.handler.retry import Backoff
from logpipe.send.batch import REQUEST_EVENTS
from logpipe.send.delivery import Delivery, StoppedError, UndeliverableError
from logpipe.send.progress import Totals
from tests.send.test_batch import built


class Script:
    """Gives its verdicts in turn, the last one for ever."""

    def __init__(self, *verdicts: Verdict) -> None:
        self.verdicts = list(verdicts)
        self.keys: list[str] = []
        self.events: list[int] = []
        self.told: list[str] = []
        self.totals = Totals()
        self.stop = threading.Event()
        self._now = 0.0

    def clock(self) -> float:
        """A time that goes on by a hundredth of a second with each look."""
        self._now += 0.01
        return self._now

    def post(self, _body: bytes, key: str, events: int) -> Verdict:
        self.keys.append(key)
        self.events.append(events)
        return self.verdicts.pop(0) if len(self.verdicts) > 1 else self.verdicts[0]

    def delivery(
        self, patience_s: float = 60.0, until: Callable[[], float] = lambda: -math.inf
    ) -> Delivery:
        return Delivery(
            self.post,
            "there",
            self.told.append,
            self.totals,
            stop=self.stop,
            patience_s=patience_s,
            patient_until=until,
            backoff=Backoff(0.001, 0.001),
            clock=self.clock,
        )


def test_a_batch_is_retried_under_one_key_and_reported_once() -> None:
    script = Script(Later("is away"), Later("answers 503"), Taken(1))
    script.delivery().deliver(batch := built(b"a"))
    assert script.keys == [batch.key] * 3
    assert script.totals.sent == 1
    assert script.told[0] == "there is away; trying again"
    assert script.told[1].startswith("there answers again after 0.")
    assert len(script.told) == 2


def test_it_is_halved_until_its_parts_are_taken() -> None:
    script = Script(TooLarge("big"), TooLarge("big"), Taken(1), Taken(1), Taken(2))
    script.delivery().deliver(batch := built(b"a", b"b", b"c", b"d"))
    assert [key.removeprefix(batch.key) for key in script.keys] == ["", ".0", ".0.0", ".0.1", ".1"]
    assert script.totals.sent == 4


def test_a_batch_of_over_a_thousand_goes_in_several_requests() -> None:
    script = Script(Taken(700))
    script.delivery().deliver(batch := built(*[b"a"] * (2 * REQUEST_EVENTS + 100)))
    assert script.keys == [f"{batch.key}.{part}" for part in range(3)]
    assert script.totals.sent == 2 * REQUEST_EVENTS + 100
    assert max(script.events) <= REQUEST_EVENTS


def test_rejected_lines_are_reported_as_far_as_known() -> None:
    script = Script(Taken(1, 3, [Refused(1, "odd"), Refused(7, "lost")]))
    script.delivery().deliver(built(b"a", b"b", b"c", b"d"))
    assert script.told == [
        "log:2: refused: odd",
        "?: refused: lost",
        "1 more were refused, and the collector does not say which",
    ]
    assert (script.totals.sent, script.totals.refused) == (1, 3)


def test_what_will_never_be_taken_ends_it_with_the_remedy() -> None:
    with pytest.raises(UndeliverableError, match="there answers 401: a token"):
        Script(Never("answers 401", "a token")).delivery().deliver(built(b"a"))


def test_its_patience_ends() -> None:
    script = Script(Later("is away"))
    with pytest.raises(UndeliverableError, match="there is away: given up"):
        script.delivery(patience_s=0.05).deliver(built(b"a"))
    assert len(script.keys) > 2


def test_no_wait_is_begun_that_is_longer_than_the_patience() -> None:
    script = Script(Later("is busy", 61.0))
    with pytest.raises(UndeliverableError, match="--patience waits longer"):
        script.delivery().deliver(built(b"a"))
    assert len(script.keys) == 1


def test_patience_counts_only_when_nothing_else_is_to_do() -> None:
    script = Script(*[Later("is away")] * 20, Taken(1))
    script.delivery(0.0, until=lambda: math.inf).deliver(built(b"a"))
    assert script.totals.sent == 1


def test_told_to_end_it_waits_no_longer() -> None:
    script = Script(Later("is busy", 30.0))
    script.stop.set()
    with pytest.raises(StoppedError):
        script.delivery().deliver(built(b"a"))
