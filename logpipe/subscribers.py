"""Who reads from this process: what an operator sees at `/subscribers`."""

from datetime import UTC, datetime

import msgspec

from logpipe.continuity import Bounds
from logpipe.fanout.hub import Hub
from logpipe.fanout.subscription import HubSubscription
from logpipe.groups import Groups
from logpipe.groups.shared import SharedSubscription
from logpipe.ids import START, StreamId
from logpipe.messages import Delivery, Subscription


class Subscriber(msgspec.Struct, frozen=True):
    """One subscriber of this process.

    `cursor` is the id up to which it was written, None before it has begun. `lag` counts the
    entries that are newer, with `shared` those that its group has not read yet; `lag_s` is the time
    in seconds between its cursor and the newest entry. Both are None where that is not known.
    `in_flight` counts the entries that a shared subscriber was given and that are not acknowledged,
    and `in_flight_s` is for how many seconds it has had the first of them.
    """

    client: str
    delivery: Delivery
    group: str | None
    filter: str
    reads: str
    cursor: str | None
    lag: int | None
    lag_s: float | None
    in_flight: int | None
    in_flight_s: float | None
    connected_at: str


class Listed(msgspec.Struct, frozen=True):
    """What /subscribers answers."""

    subscribers: list[Subscriber]


async def subscribers(hub: Hub, groups: Groups) -> list[Subscriber]:
    """All of them, the longest connected first."""
    newest = await hub.bounds()
    everyone = sorted([*hub.subscribers, *groups.subscribers], key=lambda one: one.connected_ms)
    return [_listed(subscription, newest) for subscription in everyone]


def _listed(subscription: Subscription, newest: Bounds) -> Subscriber:
    group: str | None = None
    cursor: StreamId | None = None
    lag: int | None = None
    in_flight: int | None = None
    in_flight_s: float | None = None
    chosen = subscription.filter
    match subscription:
        case SharedSubscription():
            group, cursor, lag = subscription.name, subscription.cursor, subscription.lag
            chosen = subscription.chosen
            in_flight = subscription.share.in_flight
            in_flight_s = round(subscription.share.in_flight_s, 3)
        case HubSubscription():
            cursor, lag = subscription.reached, subscription.behind(newest)
    return Subscriber(
        client=subscription.client,
        delivery="broadcast" if group is None else "shared",
        group=group,
        filter=chosen.query,
        reads=chosen.explain(),
        cursor=str(cursor) if cursor else None,
        lag=lag,
        lag_s=_lag_s(cursor, lag, newest),
        in_flight=in_flight,
        in_flight_s=in_flight_s,
        connected_at=datetime.fromtimestamp(subscription.connected_ms / 1000, UTC).isoformat(),
    )


def _lag_s(cursor: StreamId | None, lag: int | None, newest: Bounds) -> float | None:
    if lag == 0:
        return 0.0
    if cursor is None or cursor == START:
        return None
    return max(0, newest.last.ms - cursor.ms) / 1000
