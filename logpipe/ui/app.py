"""The page."""

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette

from logpipe.filters import Filter
from logpipe.messages import Start, Subscription
from logpipe.metrics import Metrics
from logpipe.settings import Settings

Tail = Callable[[Start, Filter], Subscription]
"""Opens a subscription to the live stream, of this process or of a remote distributor."""
Submit = Callable[[bytes], Awaitable[str]]
"""Takes one event's JSON; returns the id of the stored event, or raises a `Problem`."""


def create(settings: Settings, tail: Tail, submit: Submit, metrics: Metrics) -> Starlette:
    """The page's sub-app."""
    return Starlette()
