"""Who may use the page: a bearer token in the header, or the cookie that /login gives for one.

The cookie holds no token but a proof of it, an HMAC keyed by the token: it opens the page and
nothing else, and ends when the token is taken off the list.
"""

import hmac
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from logpipe.auth import CHALLENGE, is_known
from logpipe.fanout.streaming import Revoking
from logpipe.problems import Problem
from logpipe.tokens import Tokens

COOKIE = "logpipe"
PROOF_CHARACTERS = 64
"""Of SHA-256, in hexadecimal."""
MAX_PROOFS = 4
"""Tokens that one cookie stands for: one that may read, one that may send, an operator's, and one
that was replaced."""


class Access(NamedTuple):
    """What a request may do; a token in several lists allows all of that."""

    read: bool
    send: bool
    operate: bool


def proof(token: str) -> str:
    """What the cookie holds for a token."""
    return hmac.digest(token.encode(), b"logpipe page", "sha256").hex()


class _Key(NamedTuple):
    """The tokens that allow one thing, and their proofs; no tokens allow it to everyone."""

    tokens: tuple[str, ...]
    proofs: tuple[str, ...]

    def fits(self, bearer: str, proofs: Sequence[str]) -> bool:
        # A list, not a generator: all are compared, so that the time tells nothing.
        held = [is_known(bearer, self.tokens), *[is_known(each, self.proofs) for each in proofs]]
        return not self.tokens or any(held)


class Session:
    """The tokens in force, and what a request that holds some of them may do."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self.guarded = bool(tokens.ingest or tokens.read or tokens.admin)
        """Whether any token is set, so that there is something to sign in for."""

    def access(self, request: Request) -> Access:
        """What this request may do."""
        return self._access(_bearer(request), _proofs(request))

    def revoking(self, request: Request) -> Revoking:
        """For a stream that is open as long as this request may read."""
        bearer, proofs = _bearer(request), _proofs(request)
        if not self.is_token(bearer):
            bearer = ""  # it may be long
        return partial(self._tokens.revoking, lambda: self._access(bearer, proofs).read)

    def is_token(self, text: str) -> bool:
        """Whether a text is one of the tokens."""
        tokens = self._tokens
        return is_known(text, (*tokens.ingest, *tokens.read, *tokens.admin))

    def sign_in(self, request: Request, response: Response, token: str) -> Access:
        """Adds a token to those that the browser has proofs of; the access that it then has."""
        proofs = [proof(token), *(old for old in _proofs(request) if old != proof(token))]
        response.set_cookie(
            COOKIE,
            ".".join(proofs[:MAX_PROOFS]),
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return self._access("", proofs[:MAX_PROOFS])

    def _access(self, bearer: str, proofs: Sequence[str]) -> Access:
        allowed = (self._tokens.readers, tuple(self._tokens.ingest), self._tokens.operators)
        return Access(*(_key(tokens).fits(bearer, proofs) for tokens in allowed))


def sign_out(response: Response) -> None:
    """Takes the cookie back."""
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")


def refusal(request: Request, what: str) -> Problem:
    """Why a request may not do `what`, such as "read": 401 without a credential, 403 with a wrong
    one."""
    if _bearer(request) or _proofs(request):
        return Problem(403, f"This token may not {what} here.")
    return Problem(401, f"To {what} here needs a token: sign in at /login.", headers=CHALLENGE)


@lru_cache(maxsize=8)
def _key(tokens: tuple[str, ...]) -> _Key:
    return _Key(tokens, tuple(map(proof, tokens)))


def _bearer(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _proofs(request: Request) -> list[str]:
    cookie = request.cookies.get(COOKIE, "")
    proofs = cookie.split(".", MAX_PROOFS)[:MAX_PROOFS] if cookie else []
    return [each[:PROOF_CHARACTERS] for each in proofs]
