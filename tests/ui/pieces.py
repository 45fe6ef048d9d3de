"""What the tests of the page share: a parser of its HTML, and its stream as bundles."""

import contextlib
import json
import re
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from typing import Any

import msgspec

from logpipe import sse
from logpipe.event import Entry, read_entry
from logpipe.ids import StreamId
from tests.servers import Reader, Service, Valkey, serving

ID = StreamId(1710000000000, 3)
FORM = {"source": "form", "level": "WARN", "message": "hello"}


class Seen(HTMLParser):
    """What a parser of HTML sees in a fragment: elements, and the text of each class."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self.original = ""
        """The text with the visible escapes turned back."""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "input"):  # those that have no end
            self._open.append(dict(attrs).get("class") or tag)

    def handle_endtag(self, tag: str) -> None:
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for name in self._open:
            self.texts[name] = self.texts.get(name, "") + data
        hidden = self._open[-1:] == ["hidden"]
        self.original += _turned_back(data) if hidden else data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    def handle_decl(self, decl: str) -> None:
        assert decl == "doctype html"

    handle_pi = unknown_decl = handle_comment


def _turned_back(escapes: str) -> str:
    return "".join(chr(int(each[1:], 16)) for each in escapes.split("\\")[1:])


def entry(id_: StreamId = ID, **event: Any) -> Entry:
    """An entry as another writer may have stored it."""
    found = read_entry(id_, json.dumps({"source": "s", "message": "m", **event}).encode())
    assert found is not None
    return found


class Bundles:
    """The page's stream as the page has it: rows, tallies, and what else is told."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.rows = ""
        self.tallies: list[dict[str, Any]] = []
        self.told: list[sse.ServerSentEvent] = []
        self.cursors: list[StreamId] = []

    async def next(self) -> sse.ServerSentEvent:
        """The next event."""
        event = await self.reader.next()
        if event.id:
            ms, _, seq = event.id.partition("-")
            self.cursors.append(StreamId(int(ms), int(seq)))
        if event.event == "message":
            self.rows += event.data
        elif event.event == "tally":
            self.tallies.append(json.loads(event.data))
        else:
            self.told.append(event)
        return event

    async def until(self, name: str) -> sse.ServerSentEvent:
        """The next event of a name."""
        while (event := await self.next()).event != name:
            pass
        return event

    async def read(self, count: int) -> None:
        """Goes on until so many events were read."""
        while self.total("read") < count:
            await self.until("tally")

    async def end(self) -> None:
        """Goes on until the stream ends."""
        with contextlib.suppress(StopAsyncIteration):
            while True:
                await self.next()

    def total(self, name: str) -> int:
        """The sum of one figure of all tallies."""
        return sum(tally[name] for tally in self.tallies)

    @property
    def messages(self) -> list[str]:
        """The messages of the rows, without their markup."""
        return messages_of(self.rows)


def messages_of(html: str) -> list[str]:
    """The messages of the rows of a fragment, long ones unfolded."""
    unfolded = re.sub(r'<button type="button" class="more".*?</button>', "", html)
    found = re.findall(r'class="message">(.*?)</span></div>', unfolded, re.DOTALL)
    return [Seen(each).original for each in found]


def ids_of(html: str) -> list[str]:
    """The ids of the rows of a fragment."""
    return re.findall(r' data-id="([\d-]+)"', html)


@contextlib.asynccontextmanager
async def streaming(
    service: Service, path: str = "/ui/stream?since=earliest", **headers: str
) -> AsyncIterator[Bundles]:
    """The page's stream, from its beginning or another path."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    async with service.http.stream("GET", path, headers=names, timeout=30) as response:
        assert response.status_code == 200
        yield Bundles(Reader(response))


def stored(valkey: Valkey) -> list[tuple[str, dict[str, Any]]]:
    """The ids and the events of the stream."""
    rows: Any = valkey.client.xrange("logs")
    return [(id_.decode(), msgspec.json.decode(fields[b"event"])) for id_, fields in rows]


def numbered(first: int, last: int, **more: Any) -> list[dict[str, Any]]:
    """Events whose messages are numbers."""
    return [{"source": "a", "message": str(n), **more} for n in range(first, last)]


COMPOSITIONS = ("together", "apart")


@contextlib.asynccontextmanager
async def page_at(
    composition: str, valkey: Valkey, **settings: object
) -> AsyncIterator[tuple[Service, Service]]:
    """The page, and the service that has the collector: the same one, or one elsewhere."""
    async with serving(redis_addr=valkey.url, **settings) as others:
        if composition == "together":
            yield others, others
            return
        places = {"distributor_url": others.url, "collector_url": others.url}
        async with serving(role="ui", **places, **settings) as page:
            yield page, others
