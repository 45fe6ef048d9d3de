"""The distributor: `/subscribe`, the live stream, and `/events`, the history."""

import contextlib
from collections.abc import Mapping
from functools import partial

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from logpipe import auth
from logpipe.distributor.sources import Source
from logpipe.fanout.streaming import HEADERS, StreamResponse
from logpipe.groups import TooManyGroupsError
from logpipe.limits import Seats
from logpipe.messages import full
from logpipe.parameters import MAX_LIMIT, chosen_filter, number, one_of
from logpipe.problems import Problem, bad_parameter
from logpipe.settings import Settings
from logpipe.subapp import sub_app
from logpipe.subscribers import Listed
from logpipe.tokens import Tokens

MAX_GROUP_NAME = 128

HEADERS_ALLOWED = ("Authorization", "Last-Event-ID", "Cache-Control", "X-Request-ID")
"""What a browser on another origin may send besides the headers that need no permission."""


def create(settings: Settings, tokens: Tokens, source: Source, seats: Seats) -> Starlette:
    """The distributor's sub-app."""
    endpoints = _Distributor(settings, tokens, source, seats)
    routes = [
        Route("/subscribe", endpoints.subscribe),
        Route("/events", endpoints.events),
        Route("/subscribers", endpoints.subscribers),
    ]
    cors = {
        "allow_origins": settings.cors_allow_origins,
        "allow_methods": ("GET",),
        "allow_headers": HEADERS_ALLOWED,
    }
    return sub_app(routes, cors)


class _Distributor:
    def __init__(self, settings: Settings, tokens: Tokens, source: Source, seats: Seats) -> None:
        self._settings = settings
        self._tokens = tokens
        self._source = source
        self._seats = seats

    async def subscribe(self, request: Request) -> Response:
        """The stream, as SSE or NDJSON."""
        authorization = request.headers.get("authorization")
        auth.require(authorization, self._tokens.readers)
        query = request.query_params
        chosen = chosen_filter(query)
        source = self._source
        encoder = source.encoder_for(request.headers.get("accept", ""))
        delivery = one_of(query, "delivery", self._settings.delivery, "broadcast", "shared")
        group = self._group(query) if delivery == "shared" else None
        last_event_id = request.headers.get("last-event-id")
        try:
            subscription = await source.subscription(query, last_event_id, chosen, group)
        except TooManyGroupsError as error:
            source.metrics.count_limited({"groups": 1})
            return Response(
                encoder.message(full(str(error))), headers=HEADERS, media_type=encoder.media_type
            )
        allowed = partial(self._may_read, authorization)
        return StreamResponse(
            subscription,
            encoder,
            source.metrics,
            self._seats,
            partial(self._tokens.revoking, allowed),
        )

    def _may_read(self, authorization: str | None) -> bool:
        with contextlib.suppress(Problem):
            auth.require(authorization, self._tokens.readers)
            return True
        return False

    async def subscribers(self, request: Request) -> Response:
        """Who reads from this process."""
        auth.require(request.headers.get("authorization"), self._tokens.operators)
        listed = await self._source.subscribers()
        return Response(
            msgspec.json.encode(Listed(listed)),
            headers={"Cache-Control": "no-store"},
            media_type="application/json",
        )

    def _group(self, query: Mapping[str, str]) -> str:
        group = query.get("group") or self._settings.consumer_group
        if len(group) > MAX_GROUP_NAME:
            raise bad_parameter("group", f"must be a text of up to {MAX_GROUP_NAME} characters")
        return group

    async def events(self, request: Request) -> Response:
        """A page of the history as JSON."""
        auth.require(request.headers.get("authorization"), self._tokens.readers)
        query = request.query_params
        chosen = chosen_filter(query)
        newest_first = one_of(query, "order", "desc", "asc", "desc") == "desc"
        low, high = self._source.span(query, newest_first=newest_first)
        limit = number(query, "limit", 100, 1, MAX_LIMIT) or 100
        page = await self._source.history(chosen, low, high, limit, newest_first=newest_first)
        body = b",".join([entry.json for entry in page.entries])
        following = b'"%b"' % str(page.next).encode() if page.next else b"null"
        return Response(
            b'{"events":[%b],"next":%b}' % (body, following),
            headers={"Cache-Control": "no-store"},
            media_type="application/json",
        )
