"""Sends a page's events to the collector: the twin of `collector.submit`."""

import uuid

import httpx

from logpipe.client.connection import bearer, shown
from logpipe.event import Stored
from logpipe.problems import Problem
from logpipe.settings import Settings

CUT_OFF = (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)
"""The collector may have had the request: it is sent once more, with the same key."""


class RemoteCollector:
    """Sends events as JSON to COLLECTOR_URL."""

    def __init__(self, settings: Settings, http: httpx.AsyncClient) -> None:
        self._url = f"{settings.collector_url.rstrip('/')}/ingest"
        self._headers = {"Content-Type": "application/json", **bearer(settings.ingest_tokens)}
        self._http = http

    async def __call__(self, events: bytes) -> Stored:
        """What was stored of them. Raises a `Problem`: the collector's own, a 502 or a 503."""
        headers = {**self._headers, "Idempotency-Key": str(uuid.uuid4())}
        try:
            try:
                answer = await self._http.post(self._url, content=events, headers=headers)
            except CUT_OFF:
                answer = await self._http.post(self._url, content=events, headers=headers)
        except httpx.HTTPError as error:
            detail = f"The collector cannot be reached: {shown(error)}"
            raise Problem(503, detail, headers={"Retry-After": "1"}) from None
        return _stored(answer)


def _stored(answer: httpx.Response) -> Stored:
    status = answer.status_code
    if status in (401, 403):
        # Not passed on: it is about this process's token, not about the user's.
        raise Problem(502, f"The collector refuses this page's token ({status}): INGEST_TOKENS.")
    try:
        document = answer.json()
        if status == 202:
            first = str(document.get("id") or document["first_id"])
            return Stored(document.get("accepted", 1), first, document.get("last_id", first))
        detail, errors = str(document["detail"]), document.get("errors", [])
    except (ValueError, LookupError, TypeError):
        raise Problem(502, f"What answers as the collector is none ({status}).") from None
    passed_on = {k: v for k, v in answer.headers.items() if k == "retry-after"}
    raise Problem(status if status >= 400 else 502, detail, headers=passed_on, errors=errors)
