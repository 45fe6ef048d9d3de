"""A batch until it was taken: what is tried again, split, counted and told."""

import math
import time
from collections.abc import Callable
from threading import Event

from logpipe.client.ingest import Later, Never, Taken, TooLarge, Verdict
from logpipe.handler.retry import Backoff
from logpipe.send.batch import REQUEST_EVENTS, Batch, parts
from logpipe.send.progress import Totals
from logpipe.terminal import seconds

Post = Callable[[bytes, str, int], Verdict]


class UndeliverableError(Exception):
    """Nothing more can be sent; the words name the remedy."""


class StoppedError(Exception):
    """The time for the last lines is over."""


class Delivery:
    """Posts batches, one at a time. `patience_s` is how long it tries in vain, counted from
    `patient_until` at the earliest, or from the first failure."""

    def __init__(
        self,
        post: Post,
        url: str,
        tell: Callable[[str], None],
        totals: Totals,
        *,
        stop: Event,
        patience_s: float,
        patient_until: Callable[[], float] = lambda: -math.inf,
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._post = post
        self._url = url
        self._tell = tell
        self._totals = totals
        self._stop = stop
        self._patience_s = patience_s
        self._patient_until = patient_until
        self._now = clock
        self._backoff = backoff or Backoff()
        self._trouble_since: float | None = None

    def deliver(self, batch: Batch) -> None:
        """Returns when each of its events is stored or refused for good.

        Raises `UndeliverableError`, and `StoppedError` when it is to end and would have to wait.
        """
        if batch.events > REQUEST_EVENTS:
            for part in parts(batch, math.ceil(batch.events / REQUEST_EVENTS)):
                self.deliver(part)
            return
        match self._insist(batch):
            case Taken() as taken:
                self._count(batch, taken)
            case TooLarge():
                for half in parts(batch, 2):
                    self.deliver(half)
            case Never(reason, remedy):
                raise UndeliverableError(f"{self._url} {reason}: {remedy}")

    def _count(self, batch: Batch, taken: Taken) -> None:
        self._totals.sent += taken.accepted
        self._totals.refused += taken.rejected
        for each in taken.refused:
            self._tell(f"{batch.place(each.index)}: refused: {each.error}")
        if untold := taken.rejected - len(taken.refused):
            self._tell(f"{untold:,} more were refused, and the collector does not say which")

    def _insist(self, batch: Batch) -> Verdict:
        while isinstance(verdict := self._post(batch.body, batch.key, batch.events), Later):
            self._on_trouble(verdict)
            if self._stop.wait(self._pause_s(verdict)):
                raise StoppedError
        self._on_word()
        return verdict

    def _on_trouble(self, verdict: Later) -> None:
        if self._trouble_since is None:
            self._trouble_since = self._now()
            self._tell(f"{self._url} {verdict.reason}; trying again")

    def _on_word(self) -> None:
        self._backoff.reset()
        if self._trouble_since is not None:
            passed = seconds(self._now() - self._trouble_since)
            self._tell(f"{self._url} answers again after {passed}")
            self._trouble_since = None

    def _pause_s(self, verdict: Later) -> float:
        """How long to wait: no less than was asked for, and no longer than its patience."""
        began = max(self._trouble_since or 0.0, self._patient_until())
        left = began + self._patience_s - self._now()
        if left <= 0 or verdict.after_s > left:
            raise UndeliverableError(
                f"{self._url} {verdict.reason}: given up with a patience of"
                f" {seconds(self._patience_s)}: --url names another, --patience waits longer"
            )
        return max(verdict.after_s, min(self._backoff.pause_s(), left))
