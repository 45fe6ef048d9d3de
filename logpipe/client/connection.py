"""What requests to all roles have in common."""

import os
import ssl
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import httpx
import msgspec

from logpipe import request_ids
from logpipe.event import NOT_DECODED
from logpipe.problems import Problem
from logpipe.settings import BadSettingsError

CONNECT_TIMEOUT_S = 3.0

MISDIRECTED = 421
"""A process on loopback does not know the host name by which it was asked."""
MISDIRECTED_REMEDY = "ask it by an address or localhost, or add the name to its ALLOWED_HOSTS"


def trusted() -> ssl.SSLContext:
    """Whose certificates are accepted: those of SSL_CERT_FILE or SSL_CERT_DIR where that is set,
    else of the usual authorities. Raises `BadSettingsError`."""
    try:
        return httpx.create_ssl_context()
    except OSError as error:  # ssl.SSLError included
        path = os.environ.get("SSL_CERT_FILE", "")
        reason = (
            "holds no certificate in PEM" if isinstance(error, ssl.SSLError) else error.strerror
        )
        raise BadSettingsError([f"SSL_CERT_FILE={path}: {reason}"]) from None


def http_client() -> httpx.AsyncClient:
    """One pool of connections, without a limit: each open page holds one."""
    return httpx.AsyncClient(
        limits=httpx.Limits(max_connections=None),
        timeout=httpx.Timeout(10.0, connect=CONNECT_TIMEOUT_S),
        trust_env=False,
        verify=trusted(),
        event_hooks={"request": [_pass_on]},
    )


async def _pass_on(request: httpx.Request) -> None:
    """What is asked of another role for a request is logged there under the same id."""
    if id_ := request_ids.current():
        request.headers.setdefault(request_ids.HEADER, id_)


def bearer(tokens: Sequence[str]) -> dict[str, str]:
    """The header that shows the first token; none where there is no token."""
    return {"Authorization": f"Bearer {tokens[0]}"} if tokens else {}


def shown(error: Exception) -> str:
    """The words of an error; its kind where it has none, as httpx's time limits."""
    return str(error) or type(error).__name__


def base_url(text: str) -> str:
    """A base URL without its last slash; http where it names no scheme. Raises ValueError."""
    url = text.strip()
    if "://" not in url:
        url = f"http://{url}"
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(str(error)) from None
    if parts.scheme not in ("http", "https") or not parts.host:
        raise ValueError("must be a URL like http://127.0.0.1:8080")
    return url.rstrip("/")


class _Error(msgspec.Struct, omit_defaults=True):
    error: str
    index: int | None = None
    field: str | None = None


class _Document(msgspec.Struct):
    detail: str
    errors: list[_Error] = []


_document = msgspec.json.Decoder(_Document)


def away(role: str, error: httpx.HTTPError) -> Problem:
    detail = f"The {role} cannot be reached: {shown(error)}"
    return Problem(503, detail, headers={"Retry-After": "1"})


def stranger(role: str, status: int) -> Problem:
    """Something else answers where the role should be."""
    return Problem(502, f"What answers as the {role} is none ({status}).")


def refusal(role: str, tokens: str, answer: httpx.Response) -> Problem:
    """What a role refuses, in its own words; `tokens` names the setting that it may be about."""
    status = answer.status_code
    if status in (401, 403):
        # Not passed on: it is about this process's token, not about the user's.
        return Problem(502, f"The {role} refuses this page's token ({status}): {tokens}.")
    try:
        document = _document.decode(answer.content)
        HTTPStatus(status)
    except (*NOT_DECODED, ValueError):
        return stranger(role, status)
    if status < 400:
        return stranger(role, status)
    members: dict[str, Any] = {"errors": msgspec.to_builtins(document.errors)}
    # In lower case, by which `Problem.answered_headers` does not add to it what the role has added.
    passed_on = {k: v for k, v in answer.headers.items() if k == "retry-after"}
    return Problem(status, document.detail, headers=passed_on, **members if document.errors else {})
