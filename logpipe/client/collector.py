"""Sends a page's events to the collector: the twin of `collector.submit`."""

import uuid
from collections.abc import Sequence

import httpx
import msgspec

from logpipe.client.connection import away, bearer, refusal, stranger
from logpipe.event import NOT_DECODED, Stored
from logpipe.ids import parse_id

CUT_OFF = (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)
"""The collector may have had the request: it is sent once more, with the same key."""


class RemoteCollector:
    """Sends events as JSON to a collector's base URL, with the first of the tokens."""

    def __init__(self, url: str, http: httpx.AsyncClient, tokens: Sequence[str] = ()) -> None:
        self._url = f"{url.rstrip('/')}/ingest"
        self._tokens = tokens
        self._http = http

    async def __call__(self, events: bytes) -> Stored:
        """What was stored of them. Raises a `Problem`: the collector's own, a 502 or a 503."""
        headers = {"Content-Type": "application/json", **bearer(self._tokens)}
        headers["Idempotency-Key"] = str(uuid.uuid4())
        try:
            try:
                answer = await self._http.post(self._url, content=events, headers=headers)
            except CUT_OFF:
                answer = await self._http.post(self._url, content=events, headers=headers)
        except httpx.HTTPError as error:
            raise away("collector", error) from None
        return _stored(answer)


class _Taken(msgspec.Struct):
    """The collector's answer to one event (`id`) or to more."""

    id: str = ""
    accepted: int = 1
    first_id: str = ""
    last_id: str = ""


_taken = msgspec.json.Decoder(_Taken)


def _stored(answer: httpx.Response) -> Stored:
    if answer.status_code != 202:
        raise refusal("collector", "INGEST_TOKENS", answer)
    try:
        taken = _taken.decode(answer.content)
        first = parse_id(taken.id or taken.first_id)
        return Stored(taken.accepted, str(first), taken.last_id or str(first))
    except (*NOT_DECODED, ValueError):
        raise stranger("collector", 202) from None
