"""What requests to all roles have in common."""

from collections.abc import Sequence

import httpx

from logpipe import request_ids

CONNECT_TIMEOUT_S = 3.0


def http_client() -> httpx.AsyncClient:
    """One pool of connections, without a limit: each open page holds one."""
    return httpx.AsyncClient(
        limits=httpx.Limits(max_connections=None),
        timeout=httpx.Timeout(10.0, connect=CONNECT_TIMEOUT_S),
        trust_env=False,
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
