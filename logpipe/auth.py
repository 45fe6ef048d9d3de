"""Tokens as requests carry them, and whether they are among those that are allowed."""

import base64
import binascii
import hmac
import re
from collections.abc import Sequence

from logpipe.problems import Problem

CHALLENGE = {"WWW-Authenticate": 'Bearer realm="logpipe"'}

IN_URL = re.compile(rb"(?:^|&)(?:access_)?token=", re.IGNORECASE)
"""A parameter that holds a token (the longer name is that of RFC 6750). Other shippers' protocols
have theirs."""


def is_known(token: str, tokens: Sequence[str]) -> bool:
    """Whether a token is among those allowed, in a time that tells nothing about them."""
    given = token.encode("utf-8", "surrogatepass")
    found = False
    for allowed in tokens:
        found |= hmac.compare_digest(given, allowed.encode())
    return found


def token_of(authorization: str | None, *schemes: str) -> str | None:
    """The token of an Authorization header: Bearer, Basic, ApiKey, or one of `schemes`."""
    scheme, _, rest = (authorization or "").partition(" ")
    scheme, rest = scheme.lower(), rest.strip()
    if scheme == "basic":
        return _secret(rest)
    if scheme == "apikey":
        return _secret(rest) or rest or None
    return rest or None if scheme in ("bearer", *schemes) else None


def _secret(packed: str) -> str | None:
    """The password of Basic's `user:password`; the user where there is none."""
    try:
        text = base64.b64decode(packed, validate=True).decode("latin-1")
    except (ValueError, binascii.Error):
        return None
    user, _, password = text.partition(":")
    return password or user or None


def decoded(token: str) -> str:
    """A token as it is meant: servers decode headers as Latin-1, and one beyond ASCII was sent as
    UTF-8."""
    return token.encode("latin-1", "replace").decode("utf-8", "replace")


def missing(what: str = "bearer token") -> Problem:
    """The refusal of a request without a token."""
    return Problem(401, f"This needs a {what}.", headers=CHALLENGE)


def forbidden() -> Problem:
    """The refusal of a token that is wrong, or of another scope."""
    return Problem(403, "This token is not allowed here.")
