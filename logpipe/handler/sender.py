"""The handler's thread: takes batches from the outbox and sends each until it has an answer."""

import http.client
import logging
import sys
import threading
import time

from logpipe.handler.outbox import Batch, Outbox, batch
from logpipe.handler.record import counted, notice_of
from logpipe.handler.retry import Backoff
from logpipe.handler.transport import Answer, Transport

BACKOFF_S = 0.25
MAX_BACKOFF_S = 30.0
"""The first and the longest pause between two attempts, up to a third more by chance."""

TOO_LARGE = 413


class Here(threading.local):
    """What the calling thread is in: `sending` for the transport, `depth` of records in records."""

    sending = False
    depth = 0


here = Here()


class Sender:
    """Empties an outbox; `source` is that of the events which tell a loss."""

    def __init__(self, outbox: Outbox, transport: Transport, source: str | None) -> None:
        self.outbox = outbox
        self.transport = transport
        self._source = source
        self._trouble = ""

    def run(self) -> None:
        """Until the outbox is closed and empty, or abandoned."""
        here.sending = True
        try:
            while (taken := self.outbox.take()) is not None:
                self._send(taken)
        finally:
            here.sending = False
            self.transport.close()

    def run_until(self, deadline: float) -> None:
        """The same in the caller's thread, of a closed outbox; what is left then, stays."""
        self.outbox.deadline = deadline
        self.transport.timeout = max(0.01, min(self.transport.timeout, deadline - time.monotonic()))
        self.run()

    def _send(self, taken: Batch) -> None:
        waiting = [taken]
        while waiting:
            part = waiting.pop(0)
            try:
                answer = self._answered(part)
            except Exception as error:  # noqa: BLE001 - the thread has to live on, whatever it is
                self._dropped(part, f"{type(error).__name__}: {error}")
                continue
            if answer is None:
                return
            if answer.status == TOO_LARGE and len(part.events) > 1:
                # Each half has a key of its own: nothing of the whole was stored.
                middle = len(part.events) // 2
                first, second = part.events[:middle], part.events[middle:]
                waiting[:0] = [batch(first, part.losses), batch(second, [])]
            elif answer.stored:
                self._stored(part, answer)
            else:
                self._dropped(part, f"refused by the collector ({_shown(answer)})")

    def _answered(self, part: Batch) -> Answer | None:
        """The first answer that is final, or None when the outbox was abandoned before."""
        notices = [
            notice_of(loss.events, loss.reason, self._source, loss.since_ms) for loss in part.losses
        ]
        body = b"\n".join([*part.events, *notices])
        backoff = Backoff(BACKOFF_S, MAX_BACKOFF_S)
        while not self.outbox.abandoned:
            try:
                answer = self.transport.post(body, part.key)
                if not answer.transient:
                    return answer
                trouble = f"the collector answers {_shown(answer)}"
                asked = answer.retry_after
            except (OSError, http.client.HTTPException) as error:
                trouble, asked = f"{type(error).__name__}: {error}", None
            self.outbox.flowing = False
            self._complain(f"waits: {trouble}")
            # A `flush` cuts a long pause short, but not one that the collector has asked for.
            if asked is not None or self.outbox.pause(backoff.pause_s(), hurry=True):
                backoff.reset()
                self.outbox.pause((asked or 0.0) + backoff.pause_s(), hurry=False)
        return None

    def _stored(self, part: Batch, answer: Answer) -> None:
        self._trouble = ""
        self.outbox.flowing = True
        if answer.rejected:
            reason = f"refused by the collector ({answer.detail})"
            self.outbox.drop(reason, min(answer.rejected, len(part.events)))
        self.outbox.settle(part.events)

    def _dropped(self, part: Batch, reason: str) -> None:
        """Counted, and told with the next events: what was just refused might be refused again."""
        self.outbox.flowing = False
        self.outbox.untold(part.losses)
        if part.events:
            self.outbox.drop(reason, len(part.events))
            self.outbox.settle(part.events)
            self._complain(f"dropped {counted(len(part.events))}: {reason}")

    def _complain(self, trouble: str) -> None:
        """On stderr, where logging reports handlers in trouble; once until all is well again."""
        if not self._trouble and not self.outbox.abandoned:
            complain(trouble)
        self._trouble = trouble


def complain(trouble: str) -> None:
    """A line on stderr, unless `logging.raiseExceptions` is off."""
    if logging.raiseExceptions and sys.stderr:
        try:
            sys.stderr.write(f"logpipe handler: {_visible(trouble)}\n")
        except (OSError, ValueError):
            return  # there is nobody left to tell


def _visible(text: str) -> str:
    """The text on one line and with nothing that a terminal obeys: a server may have written it."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _shown(answer: Answer) -> str:
    return f"{answer.status} {answer.detail}".strip()
