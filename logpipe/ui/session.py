"""Who may use the page: a bearer token in the header, or the cookie that /login gives for one.

The cookie holds no token but proofs of some, HMACs keyed by a token over the session's id and its
end: it opens the page and nothing else, and ends when it is signed out, when it was not used for
`LIFE_S`, and when its tokens are taken off the lists.
"""

import asyncio
import hashlib
import hmac
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
RENEWED_PART = 1 / 12
"""Of its life, after which a session that is used is renewed."""
STREAM_PART = 1 / 2
"""Of its life, after which a stream ends for the page to connect again, and so to be renewed."""
SLACK_S = 120
"""For how long a session that was signed out is remembered beyond its life: another process may
have renewed it until it knew."""
RENEWED = "the page's session is renewed"

PROOF_CHARACTERS = 64
"""Of SHA-256, in hexadecimal."""
MAX_PROOFS = 4
"""Tokens that one cookie stands for: one that may read, one that may send, an operator's, and one
that was replaced."""

_COOKIE = re.compile(
    rf"([\w-]{{22}})\.(\d{{1,12}})((?:\.[0-9a-f]{{{PROOF_CHARACTERS}}}){{1,{MAX_PROOFS}}})",
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
    """What a browser holds: the session's id, its end as a unix time in seconds, and proofs."""

    id: str
    end: int
    proofs: tuple[str, ...]

    @property
    def text(self) -> str:
        """The cookie's value."""
        return ".".join((self.id, str(self.end), *self.proofs))

    @property
    def digest(self) -> str:
        """By what the session is known once it is signed out: nothing that opens the page."""
        return hashlib.sha256(self.id.encode()).hexdigest()[:32]


def cookie_for(tokens: Sequence[str], id_: str, end: int) -> Cookie:
    """The cookie of a session that holds some tokens."""
    return Cookie(id_, end, tuple(_proof(token, id_, end) for token in tokens[:MAX_PROOFS]))


def cookie_in(text: str) -> Cookie | None:
    """The cookie of a value; None where it is none."""
    found = _COOKIE.fullmatch(text)
    return Cookie(found[1], int(found[2]), tuple(found[3][1:].split("."))) if found else None


def cookie_name(request: Request) -> str:
    """The name for the port by which the browser knows this page, so that several services of one
    host, which share their cookies, have each its own. Over https no other host can set it
    (`__Host-`, RFC 6265bis 4.1.3.2)."""
    secure = request.url.scheme == "https"
    port = re.search(r":(\d{1,5})$", request.headers.get("host", ""))
    return f"{'__Host-' if secure else ''}logpipe-{port[1] if port else 443 if secure else 80}"


def _proof(token: str, id_: str, end: int) -> str:
    return hmac.digest(token.encode(), f"logpipe page\n{id_}\n{end}".encode(), "sha256").hex()


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
                after = STREAM_PART * max(0.0, held.cookie.end - self._now())
                timer = asyncio.get_running_loop().call_later(after, end, RENEWED)
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
        held = self._held(request)
        id_ = held.cookie.id if held.cookie else secrets.token_urlsafe(16)
        tokens = (token, *(old for old in held.of_session if old != token))[:MAX_PROOFS]
        cookie = self._give(request, id_, tokens)
        return self._access(_Held(cookie=cookie, of_session=tokens))

    def sign_out(self, request: Request) -> None:
        """Ends the session of a request, also that of copies of its cookie, and its streams."""
        held = self._held(request)
        if held.cookie is not None:
            until = int(self._now() + self._life_s + SLACK_S)
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
        if not attempts.passes(request.scope, _ROUTE, cookie.text, lambda: bool(tokens)):
            _take_back(request)
            return held
        if cookie.end - self._now() < (1 - RENEWED_PART) * self._life_s:
            cookie = self._give(request, cookie.id, tokens)
        return held._replace(cookie=cookie, of_session=tokens)

    def _cookie(self, request: Request) -> Cookie | None:
        """The cookie of a session whose end has not come, and which was not signed out."""
        cookie = cookie_in(request.cookies.get(cookie_name(request), ""))
        if cookie is None or cookie.digest in self._signed_out:
            return None
        return cookie if self._now() < cookie.end <= self._now() + self._life_s + SLACK_S else None

    def _proved(self, cookie: Cookie) -> tuple[str, ...]:
        """The tokens of which a cookie has proofs; all are compared, so that the time tells nothing
        of them."""
        known = dict.fromkeys((*self._tokens.ingest, *self._tokens.read, *self._tokens.admin))
        return tuple(
            token
            for token in known
            if is_known(_proof(token, cookie.id, cookie.end), cookie.proofs)
        )

    def _give(self, request: Request, id_: str, tokens: Sequence[str]) -> Cookie:
        cookie = cookie_for(tokens, id_, int(self._now() + self._life_s))
        response = Response()
        response.set_cookie(
            cookie_name(request),
            cookie.text,
            max_age=int(self._life_s),
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
