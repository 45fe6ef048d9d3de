"""What a protocol is made of: pure functions from a request to events and from outcomes to an
answer. The intake does the rest."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from logpipe.collector.answer import Answer
from logpipe.event import Event
from logpipe.problems import Problem
from logpipe.stream import Appended, Once

Item = Event | Problem
"""One event of a request, or why that one was not taken."""

Outcome = Appended | Problem
"""What became of an item."""


class Request(NamedTuple):
    """A request as parsers see it: names of headers in lower case, the body unpacked.

    `path` has what the route's pattern left open, `limit` is what anything in the body may unpack
    to (MAX_BODY_BYTES).
    """

    headers: Mapping[str, str] = {}
    query: Mapping[str, str] = {}
    path: Mapping[str, str] = {}
    body: bytes = b""
    limit: int = 16_777_216
    method: str = "POST"

    def text(self, name: str) -> str:
        """A header as text: servers decode it as Latin-1, and senders write UTF-8."""
        return self.headers.get(name, "").encode("latin-1", "replace").decode(errors="replace")

    @property
    def media_type(self) -> str:
        """The Content-Type without its parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


class Batch(NamedTuple):
    """What a parser makes of a request.

    `items` are made as they are asked for, so that their sum can be bounded. `answer` gets an
    outcome for each, in order, and may raise a `Problem`. `keys`, where there are any: one an
    item, by which this very item is appended once. `digest` is that of what a repetition has in
    common with the request, where that is not the whole body.
    """

    items: Iterable[Item]
    answer: Callable[[Sequence[Outcome]], Answer]
    keys: Sequence[Once | None] = ()
    digest: bytes = b""


class Protocol(NamedTuple):
    """A row of the table.

    `parse` raises a `Problem` and nothing else but what msgspec raises for what is no JSON;
    `refused` is a `Problem` in the protocol's own words; `token` and `key` look where the protocol
    has a token or a key of the request besides the usual headers. A key of the protocol's own with
    another body is another request: such keys are made by programs, and what senders do with a
    refusal loses the events. `tells_packing` says that bodies tell by their first bytes how they
    are packed, where the header does not; `holds_more` says whether a small body may hold much
    because `parse` unpacks it, or items of it: it is then read in a thread. `answers_unavailable`
    says that a batch's `answer` is also asked where Redis has taken nothing, and that senders
    repeat a refused request at once, a few times: a refusal then waits for Redis (`HELD_S`).
    """

    paths: Sequence[str]
    parse: Callable[[Request], Batch]
    refused: Callable[[Request, Problem], Answer]
    token: Callable[[Request], str | None] = lambda _: None
    key: Callable[[Request], str | None] = lambda _: None
    methods: Sequence[str] = ("POST",)
    tells_packing: bool = False
    holds_more: Callable[[Request], bool] = lambda _: False
    answers_unavailable: bool = False


def always(answer: Answer) -> Callable[[Sequence[Outcome]], Answer]:
    """Of protocols that know one success; a `Problem` when nothing at all could be taken."""

    def answered(outcomes: Sequence[Outcome]) -> Answer:
        raise_if_none_taken(outcomes)
        return answer

    return answered


def problems_of(outcomes: Sequence[Outcome]) -> list[tuple[int, Problem]]:
    """What was not taken, by index."""
    return [(i, each) for i, each in enumerate(outcomes) if isinstance(each, Problem)]


def raise_if_none_taken(outcomes: Sequence[Outcome]) -> None:
    """Raises the first item's `Problem` when every item has one."""
    problems = problems_of(outcomes)
    if problems and len(problems) == len(outcomes):
        raise problems[0][1]
