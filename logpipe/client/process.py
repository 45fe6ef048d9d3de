"""Another process of logpipe over HTTP, as an operator sees it: the twin of `watch.look_here`."""

import asyncio
import time
from collections.abc import Mapping, Sequence

import httpx
import msgspec

from logpipe.client.connection import bearer, shown
from logpipe.event import NOT_DECODED
from logpipe.samples import Sample, read_sample
from logpipe.settings import without_credentials
from logpipe.subscribers import Listed, Subscriber
from logpipe.watch import LOOK_S, Health, Seen

MAX_ANSWER = 8 * 2**20
"""Bytes of an answer: 30,000 subscribers."""


class NotUnderstoodError(Exception):
    """An answer that is none of logpipe's; the message says so."""


class RemoteProcess:
    """Looks at the process at a URL. `roles` are those that it should have; without `tokens` (an
    empty list is one) it is not asked for its subscribers. An operator's token, of `admin`, is
    shown where there is one."""

    def __init__(
        self,
        url: str,
        http: httpx.AsyncClient,
        roles: Sequence[str],
        tokens: Sequence[str] | None = None,
        admin: Sequence[str] = (),
    ) -> None:
        self._url = url.rstrip("/")
        self._http = http
        self._tokens = tokens
        self._admin = admin
        self._unseen = Seen(without_credentials(self._url), roles)

    async def __call__(self, closely: bool) -> Seen:
        """What the process says of itself, as far as it says anything."""
        seen = self._unseen
        try:
            async with asyncio.timeout(LOOK_S):
                health = await self._health()
                seen = seen._replace(health=health, roles=health.roles)
                seen = seen._replace(sample=await self._sample())
                if closely and self._tokens is not None:
                    seen = seen._replace(subscribers=await self._subscribers(self._tokens))
        except NotUnderstoodError as error:
            return seen._replace(trouble=str(error))
        except TimeoutError:
            return seen._replace(trouble=f"no answer within {LOOK_S:g} s")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return seen._replace(trouble=f"cannot be reached: {shown(error)}")
        return seen

    async def _health(self) -> Health:
        status, body = await self._get("/healthz")
        try:
            return msgspec.json.decode(body, type=Health)
        except NOT_DECODED:
            raise NotUnderstoodError(f"what answers there is not logpipe ({status})") from None

    async def _sample(self) -> Sample:
        status, body = await self._get("/metrics", bearer(self._admin))
        if status in (401, 403):
            raise NotUnderstoodError(f"it refuses this page its /metrics ({status}): ADMIN_TOKENS")
        try:
            return read_sample(body.decode(), time.monotonic())
        except ValueError:  # UnicodeDecodeError included
            raise NotUnderstoodError(f"its /metrics are not understood ({status})") from None

    async def _subscribers(self, tokens: Sequence[str]) -> list[Subscriber]:
        status, body = await self._get("/subscribers", bearer(self._admin or tokens))
        if status in (401, 403):
            wanted = "ADMIN_TOKENS" if self._admin else "READ_TOKENS"
            raise NotUnderstoodError(f"it refuses this page's token ({status}): {wanted}")
        try:
            return msgspec.json.decode(body, type=Listed).subscribers
        except NOT_DECODED:
            raise NotUnderstoodError(f"it lists no subscribers ({status})") from None

    async def _get(self, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
        body = bytearray()
        async with self._http.stream("GET", self._url + path, headers=headers) as answer:
            async for part in answer.aiter_bytes():
                body += part
                if len(body) > MAX_ANSWER:
                    raise NotUnderstoodError("its answer is too large")
        return answer.status_code, bytes(body)
