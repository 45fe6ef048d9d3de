"""Sessions that were signed out, exchanged with a distributor: the twin of `stream.sign_outs`."""

from collections.abc import Mapping

import httpx
import msgspec

from logpipe.client.connection import away, bearer, refusal, stranger
from logpipe.event import NOT_DECODED
from logpipe.tokens import Tokens

PATH = "/signed-out"

_sessions = msgspec.json.Decoder(dict[str, int])


class RemoteSignOuts:
    """The sessions at a distributor's base URL, asked for with the first of the tokens that may."""

    def __init__(self, url: str, http: httpx.AsyncClient, tokens: Tokens) -> None:
        self._url = url.rstrip("/") + PATH
        self._http = http
        self._tokens = tokens

    async def exchange(self, sessions: Mapping[str, int]) -> Mapping[str, int]:
        """Adds sessions; returns all. Raises a `Problem`."""
        headers = {"Content-Type": "application/json", **bearer(self._tokens.page_tokens)}
        content = msgspec.json.encode(sessions)
        try:
            answer = await self._http.post(self._url, content=content, headers=headers)
        except httpx.HTTPError as error:
            raise away("distributor", error) from None
        if answer.status_code != 200:
            raise refusal("distributor", "the distributor needs the page's tokens", answer)
        try:
            return _sessions.decode(answer.content)
        except NOT_DECODED:
            raise stranger("distributor", 200) from None
