"""Tokens as senders carry them; what they are compared with is `auth`'s."""

import base64
import binascii
from collections.abc import Mapping


def token_of(headers: Mapping[str, str], *schemes: str) -> str | None:
    """The token of an Authorization header: Bearer, Basic, or one of the protocol's own schemes."""
    scheme, _, rest = headers.get("authorization", "").partition(" ")
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
