"""Bearer tokens: who may send and who may read."""

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


def require(authorization: str | None, tokens: Sequence[str]) -> None:
    """Checks an Authorization header. No tokens: open to all. Raises a 401 or 403 `Problem`."""
    if not tokens:
        return
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Problem(401, "This needs a bearer token.", headers=CHALLENGE)
    admit(token.strip(), tokens)


def kept(authorization: str | None, tokens: Sequence[str]) -> str | None:
    """What a stream keeps of an Authorization header that `require` has accepted: no more than its
    token, and nothing where none was needed."""
    if not tokens:
        return None
    scheme, _, token = (authorization or "").partition(" ")
    return f"{scheme} {token.strip()}"


def admit(token: str, tokens: Sequence[str]) -> None:
    """Checks a token as a header had it. Raises a 403 `Problem`."""
    # Servers decode headers as Latin-1; a token beyond ASCII was sent as UTF-8.
    if not is_known(token.encode("latin-1", "replace").decode("utf-8", "replace"), tokens):
        raise Problem(403, "This token is not allowed here.")
