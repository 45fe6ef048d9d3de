"""The distributor: `/subscribe`, the live stream, `/ack` for consumer groups, and `/events`, the
history."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from logpipe.answers import Answers, StreamedResponse
from logpipe.auth import is_known
from logpipe.continuity import Cursor
from logpipe.distributor.ack import Acknowledged, Bodies, reading
from logpipe.event import NOT_DECODED
from logpipe.fanout.history import PAGE_BYTES, History
from logpipe.fanout.hub import Hub
from logpipe.fanout.streaming import HEADERS, StreamResponse, encoder_for
from logpipe.fanout.subscription import HubSubscription
from logpipe.filters import PARAMETERS as FILTER_PARAMETERS
from logpipe.filters import Filter, FilterError
from logpipe.groups import Groups, OtherFilterError, TooManyGroupsError
from logpipe.groups.member import (
    DEFAULT_IN_FLIGHT,
    MAX_ACK_WAIT_MS,
    MAX_IN_FLIGHT,
    MIN_ACK_WAIT_MS,
    Member,
    is_member_id,
)
from logpipe.groups.shared import SharedSubscription
from logpipe.ids import StreamId, parse_id
from logpipe.limits import FairSeats, Seats, requester_of
from logpipe.messages import Start, Subscription, full
from logpipe.origins import allowed_origins, require_known_origin
from logpipe.parameters import (
    ACK,
    EVENTS,
    MAX_LIMIT,
    SHARED,
    SUBSCRIBE,
    chosen_filter,
    chosen_start,
    duration_ms,
    last_event_id,
    number,
    one_of,
    reject_unknown,
    span,
)
from logpipe.problems import Problem, Unavailable, bad_parameter
from logpipe.settings import Settings
from logpipe.subapp import sub_app
from logpipe.subscribers import Listed, subscribers
from logpipe.tokens import NO_LONGER_ALLOWED, Tokens

MAX_GROUP_NAME = 128

ACKS_AT_ONCE = 2
"""Requests to `/ack` whose ids are looked up in Redis at a time, of each client in turn."""

FUTURE_MS = 60_000
"""How far ahead a client's clock may be before its `since` is refused."""

SIGNED_OUT = "/signed-out"
MAX_SIGN_OUT_BYTES = 65_536
"""Of a request with sessions that were signed out: 1,300 of them (`signed_out.SENT_AT_ONCE`)."""
MAX_SIGN_OUTS_BYTES = 524_288
"""Of the bodies of all such requests under way in a process."""
SIGN_OUTS_AT_ONCE = 1
"""Of such requests, that are read, stored and answered at a time, of each client in turn."""

_sessions = msgspec.json.Decoder(
    dict[Annotated[str, Meta(pattern="^[0-9a-f]{32}$")], Annotated[int, Meta(ge=0)]]
)

HEADERS_ALLOWED = ("Authorization", "Last-Event-ID", "Cache-Control", "X-Request-ID")
"""What a browser on another origin may send besides the headers that need no permission."""


def create(
    settings: Settings, tokens: Tokens, hub: Hub, groups: Groups, seats: Seats, answers: Answers
) -> Starlette:
    """The distributor's sub-app over the hub and the consumer groups of this process."""
    endpoints = _Distributor(settings, tokens, hub, groups, seats, answers)
    routes = [
        Route("/subscribe", endpoints.subscribe),
        Route("/ack", endpoints.ack, methods=["POST"]),
        Route("/events", endpoints.events),
        Route("/subscribers", endpoints.subscribers),
        Route(SIGNED_OUT, endpoints.signed_out, methods=["POST"]),
    ]
    cors = {
        "allow_origins": allowed_origins(settings, "read"),
        "allow_methods": ("GET", "POST"),
        "allow_headers": HEADERS_ALLOWED,
    }
    return sub_app(routes, cors)


class _Distributor:
    def __init__(
        self,
        settings: Settings,
        tokens: Tokens,
        hub: Hub,
        groups: Groups,
        seats: Seats,
        answers: Answers,
    ) -> None:
        self._settings = settings
        self._tokens = tokens
        self._hub = hub
        self._groups = groups
        self._seats = seats
        self._answers = answers
        self._acks = Bodies()
        self._acking = FairSeats(ACKS_AT_ONCE)
        self._sign_outs = Bodies(MAX_SIGN_OUTS_BYTES, MAX_SIGN_OUT_BYTES, "sessions")
        self._signing_out = FairSeats(SIGN_OUTS_AT_ONCE)

    async def subscribe(self, request: Request) -> Response:
        """The stream, as SSE or NDJSON."""
        token = self._require("subscribe", request, self._tokens.readers)
        query = request.query_params
        reject_unknown(query, SUBSCRIBE, "/subscribe")
        chosen = await chosen_filter(query, self._seats.parsing_for(request.scope))
        encoder = encoder_for(request.headers.get("accept", ""))
        delivery = one_of(query, "delivery", self._settings.delivery, "broadcast", "shared")
        group = self._group(query, delivery)
        if group is not None:
            require_known_origin(request.scope, self._settings.cors_allow_origins)
        resumed = last_event_id(query, request.headers.get("last-event-id"))
        start = chosen_start(query, resumed, self._hub.stream.now_ms)
        if not resumed:
            await self._require_known(start)
        subscription: Subscription
        if group is None:
            subscription = HubSubscription(self._hub, start, chosen)
        else:
            member = self._member(query)
            shared: Filter | None = None
            client = requester_of(request.scope)
            if limit := self._seats.lacking(client):
                self._hub.metrics.count_limited({limit: 1})
                return Response(
                    encoder.message(full(self._seats.why(limit))),
                    headers=HEADERS,
                    media_type=encoder.media_type,
                )
            try:
                if request.method == "GET":  # HEAD is to change nothing
                    shared = await self._admitted(query, group, chosen, client)
                subscription = SharedSubscription(self._groups, group, start, shared, member)
            except TooManyGroupsError as error:
                self._hub.metrics.count_limited({"groups": 1})
                return Response(
                    encoder.message(full(str(error))),
                    headers=HEADERS,
                    media_type=encoder.media_type,
                )
        allowed = partial(self._may_read, token)
        return StreamResponse(
            subscription,
            encoder,
            self._hub.metrics,
            self._seats,
            lambda end: self._tokens.revoking(allowed, partial(end, NO_LONGER_ALLOWED)),
        )

    async def _admitted(
        self, query: Mapping[str, str], group: str, chosen: Filter, client: str
    ) -> Filter | None:
        """The filter of a group for one more member; None where it is not known. Raises a 409
        `Problem` where the member's own is another one."""
        replace = one_of(query, "filter", "", "", "replace") == "replace"
        own = chosen if any(query.get(name) for name in FILTER_PARAMETERS) else None
        try:
            return await self._groups.admit(group, own, replace=replace, client=client)
        except OtherFilterError as error:
            raise Problem(
                409,
                f"The members of the group {group} share the filter {error.query or 'none'}, and"
                f" this subscriber sends {chosen.query or 'none'}: leave the filter out to take the"
                " group's, or add filter=replace to change it for all members.",
                group=group,
                group_filter=error.query,
                filter=chosen.query,
            ) from None
        except FilterError as error:
            raise Problem(
                409,
                f"This version does not understand the filter of the group {group}: {error}."
                " filter=replace sets another for all members.",
                group=group,
            ) from None

    async def ack(self, request: Request) -> Response:
        """Acknowledges what a member of a consumer group holds, at whatever replica it is."""
        require_known_origin(request.scope, self._settings.cors_allow_origins)
        self._require("ack", request, self._tokens.readers)
        query = request.query_params
        reject_unknown(query, ACK, "/ack")
        group, member = self._group(query, "shared"), query.get("member", "")
        if not is_member_id(member):
            raise bad_parameter(
                "member", "must be the member id that the subscription's hello event has"
            )
        ids: list[StreamId] = []
        async with self._received(self._acks, request) as body:
            await self._seats.parsing_for(request.scope)(reading(body, ids))
            async with self._acking.seat(requester_of(request.scope)):
                done = await self._groups.acknowledge(group or "", member, ids)
        return Response(
            msgspec.json.encode(Acknowledged(done, len(ids) - done)),
            headers={"Cache-Control": "no-store"},
            media_type="application/json",
        )

    def _require(self, route: str, request: Request, allowed: Sequence[str]) -> str | None:
        authorization = request.headers.get("authorization")
        return self._tokens.require(request.scope, route, authorization, allowed)

    def _may_read(self, token: str | None) -> bool:
        return token is None or is_known(token, self._tokens.readers)

    async def _require_known(self, start: Start) -> None:
        """Raises a 400 `Problem` for a parameter that names what this stream never had.

        A header is never refused, because that would end an EventSource for good: the reader gets
        a `gap`.
        """
        with contextlib.suppress(Unavailable):
            if start.since and start.since.ms > self._hub.stream.now_ms + FUTURE_MS:
                last = (await self._hub.bounds()).last
                if start.since > last:
                    raise bad_parameter("since", "lies in the future")
            if start.resume:
                page = await self._hub.stream.read(Cursor(start.resume), 1)
                last = (await self._hub.bounds()).last
                if start.resume > last or (page.gap and page.gap.reason == "reset"):
                    raise bad_parameter(
                        "last_event_id",
                        f"this stream, whose last id is {last}, has never had it: it lies in the"
                        " future, or is from before a flush; start anew with since=earliest",
                    )

    async def subscribers(self, request: Request) -> Response:
        """Who reads from this process."""
        self._require("subscribers", request, self._tokens.operators)
        listed = await subscribers(self._hub, self._groups)
        return Response(
            msgspec.json.encode(Listed(listed)),
            headers={"Cache-Control": "no-store"},
            media_type="application/json",
        )

    async def signed_out(self, request: Request) -> Response:
        """Takes sessions that were signed out at a page which runs alone, and returns all."""
        if not self._tokens.page_tokens:
            raise Problem(
                404,
                "This process has no tokens, and so no sessions: a page that has tokens and runs"
                " alone needs a distributor that has the same.",
            )
        self._require("signed-out", request, self._tokens.page_tokens)
        # No page of another origin may send this type without asking before.
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            raise Problem(415, "This takes application/json.")
        async with (
            self._received(self._sign_outs, request) as body,
            self._signing_out.seat(requester_of(request.scope)),
        ):
            known = await self._exchange(body)
        return Response(known, headers={"Cache-Control": "no-store"}, media_type="application/json")

    @asynccontextmanager
    async def _received(self, bodies: Bodies, request: Request) -> AsyncIterator[bytes]:
        """The body of a request, counted until the end of the context, as are the limits for which
        it is refused."""
        with bodies.body(requester_of(request.scope)) as body:
            try:
                await body.receive(request.stream())
            except Problem as problem:
                self._hub.metrics.count_limited(problem.hits)
                raise
            yield bytes(body.content)

    async def _exchange(self, body: bytes) -> bytes:
        try:
            sessions = _sessions.decode(body)
        except NOT_DECODED as error:
            raise Problem(400, f"The body must be sessions and their ends: {error}") from None
        return msgspec.json.encode(await self._hub.stream.sign_outs.exchange(sessions))

    def _group(self, query: Mapping[str, str], delivery: str) -> str | None:
        """The consumer group to read; None for broadcast. Raises a 400 `Problem`."""
        if delivery == "broadcast":
            for name in SHARED:
                if name in query:
                    raise bad_parameter(
                        name, "has no effect on delivery=broadcast; add delivery=shared"
                    )
            return None
        group = query.get("group") or self._settings.consumer_group
        if len(group) > MAX_GROUP_NAME:
            raise bad_parameter("group", f"must be a text of up to {MAX_GROUP_NAME} characters")
        return group

    def _member(self, query: Mapping[str, str]) -> Member | None:
        """The state of a subscriber that acknowledges for itself. Raises a 400 `Problem`."""
        if one_of(query, "ack", "", "", "client") != "client":
            for name in ("ack_wait", "max_in_flight"):
                if name in query:
                    raise bad_parameter(name, "has no effect without ack=client")
            return None
        default = min(self._settings.pending_idle_ms, MAX_ACK_WAIT_MS)
        wait_ms = duration_ms(query, "ack_wait", default, MIN_ACK_WAIT_MS, MAX_ACK_WAIT_MS)
        most = number(query, "max_in_flight", DEFAULT_IN_FLIGHT, 1, MAX_IN_FLIGHT)
        return Member(wait_ms / 1000, most or DEFAULT_IN_FLIGHT)

    async def events(self, request: Request) -> Response:
        """A page of the history as JSON."""
        self._require("events", request, self._tokens.readers)
        query = request.query_params
        reject_unknown(query, EVENTS, "/events")
        chosen = await chosen_filter(query, self._seats.parsing_for(request.scope))
        newest_first = one_of(query, "order", "desc", "asc", "desc") == "desc"
        low, high = _page_span(query, self._hub.stream.now_ms, newest_first=newest_first)
        limit = number(query, "limit", 100, 1, MAX_LIMIT) or 100
        self._hub.scan_seats.require()
        scan = self._hub.scan(chosen, low, high, newest_first=newest_first)
        headers = {"Cache-Control": "no-store"}
        return StreamedResponse(_page(scan, limit), self._answers, headers, "application/json")


async def _page(scan: History, limit: int) -> AsyncGenerator[bytes, None]:
    """The JSON of a page of up to `limit` events, as they are found. Where Redis goes away in the
    middle, the page ends there, with `next`."""
    before = b'{"events":['
    left = PAGE_BYTES
    while limit > 0 and left > 0 and not scan.over:
        try:
            found = await scan.step(limit, left)
        except Unavailable:
            if scan.searched_to is None:
                raise
            break
        if not found:
            continue
        piece = before + b",".join([entry.json for entry in found])
        limit -= len(found)
        left -= len(piece)
        before = b","
        del found
        yield piece
        del piece
    head = before if left == PAGE_BYTES else b""
    yield b'%b],"next":%b,"searched_to":%b}' % (head, _id(scan.next), _id(scan.searched_to))


def _id(id_: StreamId | None) -> bytes:
    return b'"%b"' % str(id_).encode() if id_ is not None else b"null"


def _page_span(
    query: Mapping[str, str], now_ms: int, *, newest_first: bool
) -> tuple[StreamId, StreamId]:
    """The first and the last id of a page of the history. Raises a 400 `Problem`."""
    low, high = span(query, now_ms=now_ms)
    if cursor := query.get("cursor"):
        try:
            at = parse_id(cursor)
        except ValueError as error:
            raise bad_parameter("cursor", str(error)) from None
        low, high = (low, min(high, at)) if newest_first else (max(low, at), high)
    return low, high
