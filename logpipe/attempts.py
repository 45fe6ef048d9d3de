"""Wrong tokens: counted, logged, and slowed by the address that they come from.

A right token is accepted at once from an address from which it was accepted before. Any other is
refused with 429 while its address has no attempt left; an address gets one attempt each `wait_s`. A
wrong token that an address repeats, as a misconfigured sender does, never takes the last attempt,
so that a right token of the same address does not wait for it.
"""

import asyncio
import contextvars
import hashlib
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from starlette.types import Scope

from logpipe.limits import requester_of
from logpipe.problems import Problem

log = logging.getLogger("logpipe")

ATTEMPTS = 10
"""Wrong tokens that an address may send at once."""
WAIT_S = 1.0
"""Seconds for each one after that: a token of 8 random letters or digits would take 45,000
years to guess."""
LOG_S = 1.0
"""Between two lines of the log."""

MAX_ADDRESSES = 10_000
"""Addresses whose wrong tokens are remembered; those that sent one longest ago are forgotten."""
MAX_RIGHT = 10_000
"""Pairs of an address and a token that was right, likewise."""
MAX_WRONG = 8
"""Wrong tokens of an address that are known when they come again."""


class _Address:
    """How many attempts an address has left, as of when; whether it has to be slowed until it has
    all of them again; digests of its last wrong tokens."""

    __slots__ = ("at", "left", "slowed", "wrong")

    def __init__(self, at: float) -> None:
        self.left = float(ATTEMPTS)
        self.at = at
        self.slowed = False
        self.wrong: list[bytes] = []


class Attempts:
    """The attempts of all addresses.

    `wrong` is called for each wrong token with its route, `limited` for each 429.
    """

    def __init__(
        self,
        wrong: Callable[[str], None] = lambda _: None,
        limited: Callable[[Mapping[str, int]], None] = lambda _: None,
        *,
        wait_s: float = WAIT_S,
        log_s: float = LOG_S,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._count = wrong
        self._limited = limited
        self._wait_s = wait_s
        self._log_s = log_s
        self._now = now
        self._addresses: OrderedDict[str, _Address] = OrderedDict()
        self._right: dict[tuple[str, str], None] = {}
        self._logged_at = -math.inf
        self._unlogged = 0
        self._last = ("", "")

    def passes(self, scope: Scope, route: str, token: str, is_right: Callable[[], bool]) -> bool:
        """Whether a token is right; a wrong one is noted.

        Raises a 429 `Problem`, without a look at the token, where its address has to wait.
        """
        client = requester_of(scope)
        pair = (client, token)
        if pair not in self._right:
            self._require_attempt(client, token)
        if is_right():
            self._remember(pair)
            return True
        self._right.pop(pair, None)
        self._spend(client, token)
        self.note(scope, route)
        return False

    def passes_proof(self, scope: Scope, route: str, text: str, tokens: Sequence[str]) -> bool:
        """Whether a text proves any token, where `tokens` are the right ones that it proves.

        As `passes`; it is accepted at once where one of these tokens was right from its address
        before, whatever the text is. Any other may be the proof of a guess: a guess that is right
        makes a text that is right, so that it has to wait as well.
        """
        client = requester_of(scope)
        pairs = [(client, token) for token in tokens]
        if not any(pair in self._right for pair in pairs):
            self._require_attempt(client, text)
        for pair in pairs:
            self._remember(pair)
        if not pairs:
            self._spend(client, text)
            self.note(scope, route)
        return bool(pairs)

    def note(self, scope: Scope, route: str) -> None:
        """Counts and logs a refusal of a token: a wrong one, or one of another scope."""
        self._count(route)
        client = scope.get("client")
        self._last = (route, client[0] if client else "an unknown address")
        if self._now() - self._logged_at >= self._log_s and not self._unlogged:
            self._log("A wrong token was sent to %s by %s", *self._last)
            return
        self._unlogged += 1
        if self._unlogged == 1:
            after = max(0.0, self._logged_at + self._log_s - self._now())
            # Not in the context of this request, whose id the line would have.
            apart = contextvars.Context()
            asyncio.get_running_loop().call_later(after, self._log_the_rest, context=apart)

    def _log_the_rest(self) -> None:
        count, self._unlogged = self._unlogged, 0
        words = "Wrong tokens were sent %d more times, the last one to %s by %s"
        self._log(words, count, *self._last)

    def _log(self, words: str, *values: object) -> None:
        self._logged_at = self._now()
        log.warning(words, *values)

    def _require_attempt(self, client: str, token: str) -> None:
        address = self._addresses.get(client)
        if address is None:
            return
        now = self._now()
        address.left = min(float(ATTEMPTS), address.left + (now - address.at) / self._wait_s)
        address.at = now
        if address.left == ATTEMPTS:
            address.slowed = False
        repeated = address.slowed and _digest(token) in address.wrong
        missing = (2.0 if repeated else 1.0) - address.left
        if missing <= 1e-6:
            return
        address.slowed = True
        self._limited({"wrong_tokens": 1})
        raise Problem(
            429,
            "Too many wrong tokens came from this address; send the right one after the seconds of"
            " Retry-After.",
            headers={"Retry-After": str(max(1, math.ceil(missing * self._wait_s)))},
        )

    def _spend(self, client: str, token: str) -> None:
        address = self._addresses.get(client)
        if address is None:
            address = self._addresses[client] = _Address(self._now())
            if len(self._addresses) > MAX_ADDRESSES:
                self._addresses.popitem(last=False)
        self._addresses.move_to_end(client)
        address.left -= 1
        digest = _digest(token)
        if digest not in address.wrong:
            address.wrong = [*address.wrong, digest][-MAX_WRONG:]

    def _remember(self, pair: tuple[str, str]) -> None:
        self._right[pair] = None
        if len(self._right) > MAX_RIGHT:
            del self._right[next(iter(self._right))]


def _digest(token: str) -> bytes:
    return hashlib.blake2b(token.encode("utf-8", "surrogatepass"), digest_size=16).digest()
