"""Who may use the page: a bearer token in the header, or the cookie that /login gives for one.

The cookie holds no token but proofs of some, HMACs keyed by a token over the session's id, its
beginning and its end: it opens the page and nothing else, and ends when it is signed out, when it
was not used for `LIFE_S`, `SESSION_S` after it began, and when its tokens are taken off the lists.
"""

import asyncio
import hashlib
import hmac
import math
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from logpipe.auth import CHALLENGE, decoded, is_known
from logpipe.fanout.streaming import Revoking
from logpipe.problems import Problem
from logpipe.signed_out import SignedOut
from logpipe.tokens import NO_LONGER_ALLOWED, Tokens

LIFE_S = 12 * 3600.0
"""How long a session lasts after its last use."""
SESSION_S = 7 * 86_400
"""The longest life of a session, however often it is renewed. That it was signed out is remembered
for as long, so that no copy of its cookie outlasts that."""
RENEWED_PART = 1 / 12
"""Of its life, after which a session that is used is renewed."""
STREAM_PART = 1 / 2
"""Of its life, after which a stream ends for the page to connect again, and so to be renewed."""
SLACK_S = 120
"""How far the clocks of processes may differ."""
RENEWED = "the page's session is renewed"
ENDED = "the page's session has ended"

PROOF_CHARACTERS = 64
"""Of SHA-256, in hexadecimal."""
MAX_PROOFS = 4
"""Tokens that one cookie stands for: one that may read, one that may send, an operator's, and one
that was replaced."""

_COOKIE = re.compile(
    rf"([\w-]{{22}})\.(\d{{1,12}})\.(\d{{1,12}})((?:\.[0-9a-f]{{{PROOF_CHARACTERS}}}){{1,{MAX_PROOFS}}})",
    re.ASCII,
)
_CHANGED = "logpipe.session"
"""Key of a scope: the Set-Cookie header that its response gets."""
_ROUTE = "page"
"""As which wrong tokens and cookies are counted."""


class Access(NamedTuple):
    """What a request may do; a token in several lists allows all of that."""

    read: bool
    send: bool
    operate: bool


class Cookie(NamedTuple):
    """What a browser holds: the session's id, when it began and when it ends unless it is renewed,
    both as unix times in seconds, and proofs."""

    id: str
    begun: int
    end: int
    proofs: tuple[str, ...]

    @property
    def text(self) -> str:
        """The cookie's value."""
        return ".".join((self.id, str(self.begun), str(self.end), *self.proofs))

    @property
    def digest(self) -> str:
        """By what the session is known once it is signed out: nothing that opens the page."""
        return hashlib.sha256(self.id.encode()).hexdigest()[:32]


def cookie_for(tokens: Sequence[str], id_: str, begun: int, end: int) -> Cookie:
    """The cookie of a session that holds some tokens."""
    proofs = tuple(_proof(token, id_, begun, end) for token in tokens[:MAX_PROOFS])
    return Cookie(id_, begun, end, proofs)


def cookie_in(text: str) -> Cookie | None:
    """The cookie of a value; None where it is none."""
    found = _COOKIE.fullmatch(text)
    if found is None:
        return None
    return Cookie(found[1], int(found[2]), int(found[3]), tuple(found[4][1:].split(".")))


def cookie_name(request: Request) -> str:
    """The name for the port by which the browser knows this page, so that several services of one
    host, which share their cookies, have each its own. Over https no other host can set it
    (`__Host-`, RFC 6265bis 4.1.3.2)."""
    secure = request.url.scheme == "https"
    port = re.search(r":(\d{1,5})$", request.headers.get("host", ""))
    return f"{'__Host-' if secure else ''}logpipe-{port[1] if port else 443 if secure else 80}"


def _proof(token: str, id_: str, begun: int, end: int) -> str:
    text = f"logpipe page\n{id_}\n{begun}\n{end}"
    return hmac.digest(token.encode(), text.encode(), "sha256").hex()


class _Held(NamedTuple):
    """The known tokens of a request: its own, and those that its session has proofs of."""

    bearer: tuple[str, ...] = ()
    cookie: Cookie | None = None
    of_session: tuple[str, ...] = ()


class Session:
    """The tokens in force, and what a request that holds some of them may do."""

    def __init__(
        self,
        tokens: Tokens,
        signed_out: SignedOut,
        life_s: float = LIFE_S,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._tokens = tokens
        self._signed_out = signed_out
        self._life_s = life_s
        self._now = now
        self.guarded = bool(tokens.ingest or tokens.read or tokens.admin)
        """Whether any token is set, so that there is something to sign in for."""

    def access(self, request: Request) -> Access:
        """What this request may do. Raises a 429 `Problem` where its address has to wait."""
        return self._access(self._held(request))

    def revoking(self, request: Request) -> Revoking:
        """For a stream that is open as long as this request may read."""
        held = self._held(request)

        @contextmanager
        def revoking(end: Callable[[str], None]) -> Iterator[None]:
            with self._tokens.revoking(
                lambda: self._access(held).read, lambda: end(NO_LONGER_ALLOWED)
            ):
                if held.cookie is None:
                    yield
                    return
                left = max(0.0, held.cookie.end - self._now())
                may_be_renewed = held.cookie.end < held.cookie.begun + SESSION_S
                after, why = (STREAM_PART * left, RENEWED) if may_be_renewed else (left, ENDED)
                timer = asyncio.get_running_loop().call_later(after, end, why)
                try:
                    yield
                finally:
                    timer.cancel()

        return revoking

    def passes(self, request: Request, token: str) -> bool:
        """Whether a text is a token of any scope, as `Attempts.passes`."""
        return self._tokens.attempts.passes(
            request.scope, "login", token, lambda: self._tokens.is_token(token)
        )

    def sign_in(self, request: Request, token: str) -> Access:
        """Adds a token to those that the browser has proofs of; the access that it then has."""
        try:
            held = self._held(request)
        except Problem:  # the cookie of before has to wait, and the token was right
            held = _Held()
        id_ = held.cookie.id if held.cookie else secrets.token_urlsafe(16)
        begun = held.cookie.begun if held.cookie else int(self._now())
        tokens = (token, *(old for old in held.of_session if old != token))[:MAX_PROOFS]
        cookie = self._give(request, id_, begun, tokens)
        return self._access(_Held(cookie=cookie, of_session=tokens))

    def sign_out(self, request: Request) -> None:
        """Ends the session of a request, also that of copies of its cookie, and its streams."""
        held = self._held(request)
        if held.cookie is not None:
            until = held.cookie.begun + SESSION_S + SLACK_S  # no copy lasts longer
            self._signed_out.add(held.cookie.digest, until)
        _take_back(request)

    def _held(self, request: Request) -> _Held:
        if not self.guarded:
            return _Held()
        bearer = _bearer(request)
        attempts = self._tokens.attempts
        is_right = bearer and attempts.passes(
            request.scope, _ROUTE, bearer, lambda: self._tokens.is_token(bearer)
        )
        held = _Held((bearer,) if is_right else ())
        cookie = self._cookie(request)
        if cookie is None:
            return held
        tokens = self._proved(cookie)
        if not attempts.passes_proof(request.scope, _ROUTE, cookie.text, tokens):
            _take_back(request)
            return held
        if self._end(cookie.begun) - cookie.end > RENEWED_PART * self._life_s:
            cookie = self._give(request, cookie.id, cookie.begun, tokens)
        return held._replace(cookie=cookie, of_session=tokens)

    def _end(self, begun: int) -> int:
        """When a session ends that is used now."""
        return min(int(self._now() + self._life_s), begun + SESSION_S)

    def _cookie(self, request: Request) -> Cookie | None:
        """The cookie of a session whose end has not come, and which was not signed out."""
        cookie = cookie_in(request.cookies.get(cookie_name(request), ""))
        if cookie is None or cookie.digest in self._signed_out:
            return None
        now = self._now()
        lasts = now < cookie.end <= now + self._life_s + SLACK_S
        is_possible = cookie.end <= cookie.begun + SESSION_S and cookie.begun <= now + SLACK_S
        return cookie if lasts and is_possible else None

    def _proved(self, cookie: Cookie) -> tuple[str, ...]:
        """The tokens of which a cookie has proofs; all are compared, so that the time tells nothing
        of them."""
        known = dict.fromkeys((*self._tokens.ingest, *self._tokens.read, *self._tokens.admin))
        return tuple(
            token
            for token in known
            if is_known(_proof(token, cookie.id, cookie.begun, cookie.end), cookie.proofs)
        )

    def _give(self, request: Request, id_: str, begun: int, tokens: Sequence[str]) -> Cookie:
        cookie = cookie_for(tokens, id_, begun, self._end(begun))
        response = Response()
        response.set_cookie(
            cookie_name(request),
            cookie.text,
            max_age=math.ceil(cookie.end - self._now()),
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        request.scope[_CHANGED] = response.headers["set-cookie"]
        return cookie

    def _access(self, held: _Held) -> Access:
        out = held.cookie is not None and held.cookie.digest in self._signed_out
        tokens = {*held.bearer, *(() if out else held.of_session)}
        wanted = (self._tokens.readers, self._tokens.ingest, self._tokens.operators)
        return Access(*(not allowed or not tokens.isdisjoint(allowed) for allowed in wanted))


def with_cookies(app: ASGIApp) -> ASGIApp:
    """The application, whose responses set the cookie that a `Session` has given or taken."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start" and _CHANGED in scope:
                MutableHeaders(scope=message).append("set-cookie", scope[_CHANGED])
            await send(message)

        await app(scope, receive, send_with_cookie)

    return answer


def _take_back(request: Request) -> None:
    response = Response()
    response.delete_cookie(
        cookie_name(request),
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    request.scope[_CHANGED] = response.headers["set-cookie"]


def refusal(request: Request, what: str) -> Problem:
    """Why a request may not do `what`, such as "read": 401 without a credential, 403 with a wrong
    one."""
    if _bearer(request) or request.cookies.get(cookie_name(request)):
        return Problem(403, f"This token may not {what} here.")
    return Problem(401, f"To {what} here needs a token: sign in at /login.", headers=CHALLENGE)


def _bearer(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return decoded(token.strip()) if scheme.lower() == "bearer" else ""
