"""Asks a running service whether it is ready, with the standard library alone: it runs often."""

import json
import urllib.error
import urllib.request

from logpipe.settings import Settings


def local_url(settings: Settings) -> str:
    """Where a service with these settings listens, as seen from its own machine."""
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "") else settings.host  # noqa: S104
    host = "[::1]" if host == "::" else f"[{host}]" if ":" in host else host
    return f"http://{host}:{settings.listen_port}"


def check(url: str, timeout: float) -> tuple[bool, str]:
    """Whether `/healthz` says ready, and its word for it or the reason why not."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url.rstrip('/')}/healthz", timeout=timeout) as answer:
            state = json.load(answer)
    except urllib.error.HTTPError as error:
        return False, _detail(error.read()) or f"HTTP {error.code}"
    except (OSError, ValueError) as error:
        return False, str(getattr(error, "reason", error))
    return True, f"ready: {', '.join(state.get('roles', []))}"


def _detail(body: bytes) -> str:
    try:
        return str(json.loads(body).get("detail", ""))
    except (ValueError, AttributeError):
        return ""
