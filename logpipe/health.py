"""Asks a running service whether it is ready, with the standard library alone: it runs often."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import IO

from logpipe.settings import Settings

MAX_ANSWER = 65_536
"""Bytes of an answer that are read."""


def local_url(settings: Settings) -> str:
    """Where a service with these settings listens, as seen from its own machine."""
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "") else settings.host  # noqa: S104
    host = "[::1]" if host == "::" else f"[{host}]" if ":" in host else host
    return f"{settings.scheme}://{host}:{settings.listen_port}"


def check(url: str, timeout: float, certificate: str = "") -> tuple[bool, str]:
    """Whether `/healthz` says ready, and its word for it or the reason why not. A `certificate` is
    that of a service on this machine, which no name has to fit."""
    try:
        handlers = [urllib.request.ProxyHandler({}), *_trusting(certificate)]
        opener = urllib.request.build_opener(*handlers)
        with opener.open(f"{url.rstrip('/')}/healthz", timeout=timeout) as answer:
            body = answer.read(MAX_ANSWER)
    except urllib.error.HTTPError as error:
        with error:
            return False, _detail(error) or f"HTTP {error.code}"
    except (OSError, ValueError, http.client.HTTPException) as error:
        return False, " ".join(str(getattr(error, "reason", error)).split()) or repr(error)
    try:
        roles = ", ".join(json.loads(body)["roles"])
    except (ValueError, KeyError, TypeError):
        return False, "what answers there is not logpipe"
    return True, f"ready: {roles}"


def _trusting(certificate: str) -> Iterator[urllib.request.BaseHandler]:
    if certificate:
        from logpipe.tls import own_context

        yield urllib.request.HTTPSHandler(context=own_context(certificate))


def _detail(answer: IO[bytes]) -> str:
    try:
        return str(json.loads(answer.read(MAX_ANSWER))["detail"])
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
        return ""
