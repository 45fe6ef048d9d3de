"""The operator's page over HTTP, in both compositions, and the pure parts of it."""

import asyncio
import contextlib
import re
import threading
from array import array
from collections.abc import AsyncIterator, Sequence
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest

from logpipe import watch
from logpipe.client.process import RemoteProcess
from logpipe.metrics import Metrics
from logpipe.samples import Point, Sample, read_sample
from logpipe.settings import Settings, fields, load, without_credentials
from logpipe.ui import figures
from logpipe.ui.charts import HEIGHT, SPAN_S, WIDTH, Line, sparkline
from logpipe.ui.tables import settings_in_force
from logpipe.watch import Health, Seen, Watch, Watched, look_here
from tests.helpers import wait_until
from tests.impostor import Impostor
from tests.servers import Service, Valkey, free_port, serving, subscribed

EVENT = {"source": "api", "message": "m"}
SECRET = "p/a#s@s?w:rd"


class Document(HTMLParser):
    """The page as a reader sees it: tiles by their label, tables as rows of texts by heading."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.ids: list[str] = []
        self.attributes: set[str] = set()
        self.tiles: dict[str, list[str]] = {}
        self.tables: dict[str, list[list[str]]] = {}
        self._texts: list[str] = []
        self._heading = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.attributes |= set(given)
        if name := given.get("id"):
            self.ids.append(name)
        if tag in ("h2", "h3", "th", "td", "p", "title", "desc"):
            self._texts = []
        if tag == "tr":
            self.tables.setdefault(self._heading, []).append([])

    def handle_data(self, data: str) -> None:
        self._texts.append(data)

    def handle_endtag(self, tag: str) -> None:
        text = " ".join("".join(self._texts).split())
        if tag in ("h2", "h3"):
            self._heading = text
            if tag == "h3":
                self.tiles[text] = []
        elif tag in ("th", "td"):
            self.tables[self._heading][-1].append(text)
        elif tag == "p" and self._heading in self.tiles:
            self.tiles[self._heading].append(text)

    def rows(self, table: str) -> list[list[str]]:
        """The rows of a table, without its headings."""
        return self.tables[table][1:]


async def status(service: Service, path: str = "/ui/status", **headers: str) -> Document:
    answer = await service.http.get(path, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    document = Document(answer.text)
    assert len(document.ids) == len(set(document.ids))
    assert "style" not in document.attributes
    assert not any(name.startswith("on") for name in document.attributes)
    return document


async def until_shown(service: Service, *texts: str) -> Document:
    """Asks again and again until the page holds these texts."""
    found: list[Document] = []

    async def shown() -> bool:
        found.append(await status(service))
        return all(text in found[-1].html for text in texts)

    try:
        await wait_until(shown, f"{texts} are shown")
    except AssertionError:
        print(found[-1].html)
        raise
    return found[-1]


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks at everything whenever it is asked to."""
    monkeypatch.setattr(watch, "EVERY_S", 0.05)


# -- figures and charts -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "value", "text"),
    [
        (figures.number, None, "not known"),
        (figures.number, 0.0, "0"),
        (figures.number, 0.44, "0.4"),
        (figures.number, 9.97, "10"),
        (figures.number, 3.0, "3"),
        (figures.number, 1234567.0, "1,234,567"),
        (figures.per_second, 12.6, "13/s"),
        (figures.per_second, None, "not known"),
        (figures.size, 0.0, "0 B"),
        (figures.size, 1023.0, "1,023 B"),
        (figures.size, 1023.9, "1.0 KiB"),
        (figures.size, 1536.0, "1.5 KiB"),
        (figures.size, 300 * 2.0**20, "300 MiB"),
        (figures.size, 5000 * 2.0**40, "5,000 TiB"),
        (figures.size, None, "not known"),
        (figures.size_per_second, 2048.0, "2.0 KiB/s"),
        (figures.size_per_second, None, "not known"),
        (figures.latency, 0.00035, "350 µs"),
        (figures.latency, 0.0012, "1.2 ms"),
        (figures.latency, 0.048, "48 ms"),
        (figures.latency, 0.9999, "1.0 s"),
        (figures.latency, 12.0, "12 s"),
        (figures.latency, 90.0, "1 min 30 s"),
        (figures.latency, None, "not known"),
        (figures.lag, 0.0, "none"),
        (figures.lag, 0.5, "500 ms"),
        (figures.lag, None, "not known"),
        (figures.span, 0.4, "0 s"),
        (figures.span, 59.0, "59 s"),
        (figures.span, 3600.0, "1 h"),
        (figures.span, 273_900.0, "3 d 4 h"),
        (figures.span, -5.0, "0 s"),
        (figures.span, None, "not known"),
        (figures.share, 0.034, "3.4 %"),
        (figures.share, 0.97, "97 %"),
        (figures.share, None, "not known"),
    ],
)
def test_figures_have_units_and_what_is_not_known_is_said(
    shown: Any, value: float | None, text: str
) -> None:
    assert shown(value) == text


def points(*values: float | None) -> list[Point]:
    return [Point(at * 10.0, value) for at, value in enumerate(values)]


def test_a_chart_is_drawn_to_its_highest_point_with_holes_where_nothing_is_known() -> None:
    svg = str(sparkline("k", [Line(points(0, 10, None, 5))], 30.0, "Rate", "peak 10/s"))
    assert svg.count('class="area"') == 1  # a point alone has none
    assert svg.count('class="curve"') == svg.count('class="curve dot"') == 1
    first = WIDTH * (1 - 30 / SPAN_S)
    assert f"M{first:.1f} {HEIGHT - 1}.0L{first + 10 * WIDTH / SPAN_S:.1f} 2.0" in svg
    assert svg.endswith(f'd="M{WIDTH}.0 22.5h.01"/></svg>')
    assert 'role="img" aria-labelledby="k-title k-desc"' in svg
    assert "style" not in svg


def test_a_chart_leaves_out_what_is_older_and_is_there_without_a_point() -> None:
    old = [Point(0.0, 1000.0), Point(SPAN_S, 1.0), Point(SPAN_S + 1, 1.0)]
    assert "M0" not in str(sparkline("k", [Line(old)], SPAN_S + 1, "", "")).partition("base")[2][8:]
    for nothing in ([], points(None), points(0, 0)):
        assert "nan" not in str(sparkline("k", [Line(nothing)], 10.0, "", ""))


def test_a_chart_escapes_its_words() -> None:
    svg = str(sparkline("k", [], 0.0, "<b>", '"><script>'))
    assert "<b>" not in svg
    assert "<script>" not in svg


# -- settings ---------------------------------------------------------------------------------


def shown_settings(settings: Settings) -> dict[str, str]:
    return {row.variable: row.value for row in settings_in_force(settings)}


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (f"redis://user:{SECRET}@db.example:6380/2", "redis://db.example:6380/2"),
        (f"rediss://:{SECRET}@db.example", "rediss://db.example:6379/0"),
        (f"unix://user:{SECRET}@/run/redis.sock", "unix:///run/redis.sock"),
        ("embedded:///srv/logpipe", "the embedded engine"),
        ("", "the embedded engine"),
    ],
)
def test_the_address_of_redis_is_shown_without_its_password(address: str, shown: str) -> None:
    given = shown_settings(load({"redis_addr": address}, {}))
    assert given["REDIS_ADDR"] == shown
    assert SECRET not in str(given)
    assert "user" not in given["REDIS_ADDR"]


def test_secrets_are_shown_as_set_or_not_set() -> None:
    given = shown_settings(load({"ingest_tokens": "t0ken,other", "role": "ui"}, {}))
    assert (given["INGEST_TOKENS"], given["READ_TOKENS"]) == ("set", "not set")
    assert given["REDIS_ADDR"] == "not used"
    secrets = {field.variable for field in fields() if field.secret}
    assert all(given[name] in ("set", "not set") for name in secrets - {"REDIS_ADDR"})


def test_every_setting_is_there_with_the_value_in_force() -> None:
    given = shown_settings(load({"role": "collector", "cors_allow_origins": "a://b, c://d"}, {}))
    assert list(given) == [field.variable for field in fields()]
    assert given["PORT"] == "8081"
    assert given["CORS_ALLOW_ORIGINS"] == "a://b, c://d"
    assert given["DATA_DIR"].endswith("logpipe")
    rows = {row.variable: row for row in settings_in_force(load({"block_ms": 5000}, {}))}
    assert (rows["BLOCK_MS"].given, rows["BATCH_COUNT"].given) == (True, False)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({}, "none but its own"),
        ({"host": "0.0.0.0"}, "*"),
        ({"read_tokens": "r", "ingest_tokens": "w"}, "*"),
        ({"read_tokens": "r"}, "none but its own to send, * to read"),
    ],
)
def test_the_origins_in_force_are_shown(given: dict[str, str], shown: str) -> None:
    assert shown_settings(load(given, {}))["CORS_ALLOW_ORIGINS"] == shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://logs.example:8082", "http://logs.example:8082"),
        (f"https://user:{SECRET}@logs.example/at", "https://logs.example/at"),
    ],
)
def test_a_url_is_shown_without_its_credentials(url: str, shown: str) -> None:
    assert without_credentials(url) == shown


# -- watching ---------------------------------------------------------------------------------


class Clock:
    """A look at a process whose time the test sets, and how often it was looked at."""

    def __init__(self) -> None:
        self.at = 0.0
        self.looks: list[bool] = []

    async def __call__(self, closely: bool) -> Seen:
        self.looks.append(closely)
        await asyncio.sleep(0)
        return Seen("it", ["ui"], sample=Sample(self.at, {}, []))


async def test_those_who_watch_at_the_same_time_share_one_look() -> None:
    clock = Clock()
    watching = Watch([clock])
    await asyncio.gather(*[watching.now() for _ in range(20)])
    await watching.now()
    assert clock.looks == [True]


async def test_samples_too_close_to_each_other_are_not_kept_and_old_ones_leave() -> None:
    clock = Clock()
    watched = Watched(clock)
    for at in (0.0, 0.1, watch.EVERY_S, watch.EVERY_S + 0.1):
        clock.at = at
        await watched.refresh(False)
    assert [sample.at for sample in watched.samples] == [0.0, watch.EVERY_S]
    for number in range(2 * watch.MAX_SAMPLES):
        clock.at = 100.0 + watch.EVERY_S * number
        await watched.refresh(False)
    assert len(watched.samples) == watch.MAX_SAMPLES
    assert watched.samples[-1].at == clock.at


async def test_samples_that_are_kept_share_their_names_and_labels() -> None:
    """A page that ran for twenty minutes had grown by the samples of three processes: 15 MB."""
    expositions = ['a 1\nb{c="d"} 2\n', 'a 3\nb{c="d"} 4\n', 'a 5\nb{c="other"} 6\n']
    looks = iter([read_sample(text, watch.EVERY_S * n) for n, text in enumerate(expositions)])

    async def look(_: bool) -> Seen:
        return Seen("it", ["ui"], sample=next(looks))

    watched = Watched(look)
    for _ in expositions:
        await watched.refresh(False)
    first, second, third = watched.samples
    assert second.series is first.series
    assert [each.value("a") for each in watched.samples] == [1, 3, 5]
    assert [each.by("b", "c") for each in (second, third)] == [{"d": 4}, {"other": 6}]


async def test_metrics_that_cannot_be_read_are_told_and_end_nothing() -> None:
    """The files of several workers go with a worker that dies."""

    class Gone(Metrics):
        def exposition(self) -> bytes:
            raise FileNotFoundError(2, "gone")

    seen = await look_here(lambda: Health("ok", ["ui"], "ok", "1"), Gone(), None, None)(True)
    assert seen.sample is None
    assert seen.trouble == "its metrics: [Errno 2] gone"


async def test_metrics_that_take_too_long_are_not_blamed_on_redis(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "LOOK_S", 0.01)
    late = threading.Event()

    class Slow(Metrics):
        def exposition(self) -> bytes:
            late.wait(10)
            return b""

    try:
        seen = await look_here(lambda: Health("ok", ["ui"], "ok", "1"), Slow(), None, None)(True)
    finally:
        late.set()
    assert seen.trouble == "its metrics: not read within 0.01 s"


async def test_there_is_a_past_though_nobody_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "IDLE_S", 0.01)
    clock = Clock()
    watching = Watch([clock])
    task = asyncio.create_task(watching.run())
    await wait_until(lambda: len(clock.looks) > 3, "it is looked at")
    assert not any(clock.looks)
    task.cancel()
    await asyncio.wait([task])


# -- everything in one process ----------------------------------------------------------------


async def test_the_page_is_there_before_anything_has_happened(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        document = await status(service, "/status")
    assert 'hx-get="/ui/status"' in document.html
    assert document.rows("Processes")[0][:2] == ["this process", "collector, distributor, ui"]
    assert "Nobody reads." in document.html
    assert "No group is read here." in document.html
    assert len(document.rows("Settings in force")) == len(list(fields()))
    assert document.tiles["Events in"][0] == "measuring…"
    assert list(document.tiles) == [
        "Events in",
        "Append latency, p99",
        "Delivered",
        "Feed lag",
        "Bytes in",
        "Bytes out",
        "Stream entries",
        "Redis memory",
    ]


async def test_what_goes_through_is_shown(valkey: Valkey, brisk: None) -> None:
    valkey.client.config_set("maxmemory", str(2**30))
    async with (
        serving(redis_addr=valkey.url, trim_maxlen=20_000) as service,
        subscribed(service.url, q="level>=info") as reader,
    ):
        await reader.named("hello")
        await status(service)
        await service.post([EVENT] * 40)
        await service.post([{"source": ""}])
        await reader.until(40)
        document = await until_shown(service, "40 accepted · 1 rejected", "of about 20,000 · ")
        await until_shown(service, "of 1.0 GiB (maxmemory)")
    assert document.tiles["Stream entries"][0] == "40"
    assert document.tiles["Delivered"][1] == "to 1 subscriber"
    assert document.tiles["Feed lag"][:2] == ["none", "0 entries behind"]
    assert re.fullmatch(r"[\d.]+ (µs|ms)", document.tiles["Append latency, p99"][0])
    assert "peak" in document.tiles["Events in"][2]
    [row] = document.rows("Subscribers")
    assert row[:5] == ["127.0.0.1", "broadcast", "level>=INFO", "0", "none"]


async def test_a_group_is_shown_with_what_is_pending_claimed_and_lost(
    valkey: Valkey, brisk: None
) -> None:
    async with serving(redis_addr=valkey.url, pending_idle_ms=60_000) as service:
        valkey.client.xgroup_create("logs", "workers", "0", mkstream=True)
        await service.post([EVENT] * 5)
        valkey.client.xreadgroup("workers", "slow", {"logs": ">"}, 3)
        async with subscribed(service.url, delivery="shared", group="workers") as worker:
            await worker.until(2)
            document = await until_shown(service, 'data-label="Pending" class="num">3<')
            assert document.rows("Consumer groups") == [
                ["workers", "1", "3", "0", "none", "0", "0", "0"]
            ]
            assert document.rows("Subscribers")[0][1] == "shared: workers"
        document = await until_shown(service, "Nobody reads.")
        [row] = document.rows("Consumer groups")
        assert (row[0], row[1], row[6:]) == ("workers", "0", ["0", "0"])


async def test_only_those_furthest_behind_are_listed(
    valkey: Valkey, brisk: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logpipe.ui.status.MAX_SUBSCRIBERS", 2)
    async with serving(redis_addr=valkey.url) as service, contextlib.AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(subscribed(service.url)) for _ in range(5)]
        for reader in readers:
            await reader.named("hello")
        document = await until_shown(service, "And 3 more, none of them further behind.")
        assert len(document.rows("Subscribers")) == 2


async def test_a_slow_subscriber_stands_out(valkey: Valkey, brisk: None) -> None:
    async with (
        serving(redis_addr=valkey.url, max_message_bytes=200_000) as service,
        subscribed(service.url) as quick,
        subscribed(service.url, q="level>=info") as slow,
    ):
        await quick.named("hello")
        await slow.named("hello")
        sent = 0

        async def behind() -> bool:
            nonlocal sent
            await service.post([{**EVENT, "message": "x" * 150_000}] * 50)
            sent += 50
            await quick.until(50)
            return '<tr class="behind">' in (await status(service)).html

        await wait_until(behind, "its lag is shown")
        assert (await status(service)).rows("Subscribers")[0][2] == "level>=INFO"


async def test_redis_away_is_told_and_the_rest_still_shows(own_valkey: Valkey, brisk: None) -> None:
    async with serving(redis_addr=own_valkey.url) as service:
        await service.post([EVENT] * 3)
        await until_shown(service, "of about 50,000 · ")
        own_valkey.kill()
        document = await until_shown(service, "Redis: cannot be reached", "as last seen")
        assert document.rows("Processes")[0][2] == "not ready Redis: cannot be reached"
        assert document.tiles["Stream entries"][:2] == ["3", "as last seen"]
        assert "Not everything serves." in document.html
        own_valkey.start()
        await until_shown(service, "All roles serve.")


async def test_a_redis_that_hangs_holds_the_page_up_no_longer_than_a_look(
    own_valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "LOOK_S", 0.1)
    async with serving(redis_addr=own_valkey.url) as service:
        own_valkey.signal(19)
        try:
            document = await until_shown(service, "its subscribers: Redis does not answer")
            assert "Not known: the distributor did not list them." in document.html
        finally:
            own_valkey.signal(18)


async def test_a_user_that_may_not_ask_for_memory_is_not_harmed(
    valkey: Valkey, brisk: None
) -> None:
    rules = ["on", f">{SECRET}", "~*", "+@all", "-memory", "-info"]
    client: Any = valkey.client
    client.execute_command("ACL", "SETUSER", "frugal", *rules)
    address = f"unix://frugal:{SECRET}@{valkey.socket}"
    try:
        async with serving(redis_addr=address) as service:
            await service.post([EVENT] * 3)
            document = await until_shown(service, "of about 50,000</p>")
            page = await status(service, "/status")
    finally:
        client.execute_command("ACL", "DELUSER", "frugal")
    assert document.tiles["Stream entries"][:2] == ["3", "of about 50,000"]
    assert document.tiles["Redis memory"][0] == "not known"
    assert "All roles serve." in page.html
    assert SECRET not in page.html
    assert "frugal" not in page.html


# -- access -----------------------------------------------------------------------------------


async def test_with_read_tokens_the_page_needs_one(valkey: Valkey) -> None:
    async with serving(
        redis_addr=valkey.url, read_tokens="r3ad-t0ken", ingest_tokens="s3nd-t0ken"
    ) as service:
        page = await service.http.get("/status")
        assert (page.status_code, page.headers["location"]) == (303, "/login?then=status")
        part = await service.http.get("/ui/status")
        assert part.status_code == 401
        assert part.headers["hx-redirect"] == "/login?then=status"
        assert part.headers["www-authenticate"].startswith("Bearer")
        wrong = await service.http.get("/ui/status", headers={"Authorization": "Bearer s3nd-t0ken"})
        assert (wrong.status_code, wrong.headers["hx-redirect"]) == (403, "/login?then=status")
        signed_in = await service.http.post("/login?then=status", data={"token": "r3ad-t0ken"})
        assert (signed_in.status_code, signed_in.headers["location"]) == (303, "/status")
        document = await status(service, "/status")
    assert "t0ken" not in document.html
    assert 'action="/ui/logout"' in document.html
    values = {row[0]: row[1] for row in document.rows("Settings in force")}
    assert values["READ_TOKENS"] == values["INGEST_TOKENS"] == "set given"


async def test_the_page_has_the_security_headers_and_changes_nothing(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        for path in ("/status", "/ui/status"):
            answer = await service.http.get(path)
            assert "unsafe" not in answer.headers["content-security-policy"]
            assert (await service.http.post(path)).status_code == 405
        assert (await service.http.get("/static/status.css")).status_code == 200


async def test_hostile_names_stay_text(valkey: Valkey, brisk: None) -> None:
    name = '<img src=x onerror=alert(1)>"'
    async with (
        serving(redis_addr=valkey.url) as service,
        subscribed(service.url, delivery="shared", group=name, q='"<script>"') as reader,
    ):
        await reader.named("hello")
        document = await until_shown(service, "shared: &lt;img")
        assert "<img src=x" not in document.html
        assert "<script>" not in document.html
        assert document.rows("Subscribers")[0][1:3] == [f"shared: {name}", '"<script>"']


# -- a ui alone -------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def apart(valkey: Valkey, **more: str) -> AsyncIterator[tuple[Service, Service, Service]]:
    """A collector, a distributor and a ui, each by itself."""
    async with (
        serving(role="collector", redis_addr=valkey.url, **more) as collector,
        serving(role="distributor", redis_addr=valkey.url, **more) as distributor,
        serving(
            role="ui", collector_url=collector.url, distributor_url=f"{distributor.url}/", **more
        ) as page,
    ):
        yield collector, distributor, page


async def test_a_ui_alone_shows_the_processes_behind_it(valkey: Valkey, brisk: None) -> None:
    async with (
        apart(valkey, read_tokens="r") as (collector, distributor, page),
        subscribed(distributor.url, {"Authorization": "Bearer r"}, q="level>=info") as reader,
    ):
        await reader.named("hello")
        await page.http.post("/login", data={"token": "r"})
        await collector.post([EVENT] * 7)
        await reader.until(7)
        document = await until_shown(page, "7 accepted", "of about 50,000 · ")
        rows = [row[:4] for row in document.rows("Processes")]
        assert rows == [
            ["this process", "ui", "ready", "not used"],
            [collector.url, "collector", "ready", "ok"],
            [distributor.url, "distributor", "ready", "ok"],
        ]
        [row] = document.rows("Subscribers")
        assert row[1:3] == ["broadcast", "level>=INFO"]
        assert "All roles serve." in document.html


async def test_a_process_that_is_away_is_shown_with_the_reason_and_the_rest_still_shows(
    valkey: Valkey, brisk: None
) -> None:
    nowhere = f"http://user:{SECRET}@127.0.0.1:{free_port()}"
    async with (
        serving(role="distributor", redis_addr=valkey.url) as distributor,
        serving(role="ui", collector_url=nowhere, distributor_url=distributor.url) as page,
    ):
        document = await until_shown(page, "Nobody reads.")
        whole = await status(page, "/status")
    away = document.rows("Processes")[1]
    assert away[:2] == [without_credentials(nowhere), "collector"]
    assert away[2].startswith("away cannot be reached: ")
    assert away[3:] == ["not known"] * 5
    assert document.tiles["Events in"][0] == "not known"
    assert document.tiles["Feed lag"][0] == "none"
    assert "Not everything serves." in document.html
    assert SECRET not in whole.html


async def test_one_process_for_both_roles_is_shown_once(valkey: Valkey) -> None:
    async with (
        serving(role="collector,distributor", redis_addr=valkey.url) as both,
        serving(role="ui", collector_url=both.url, distributor_url=both.url) as page,
    ):
        rows = (await status(page)).rows("Processes")
    assert [row[1] for row in rows] == ["ui", "collector, distributor"]


async def test_a_token_that_is_refused_is_told(valkey: Valkey, brisk: None) -> None:
    async with (
        serving(role="distributor", redis_addr=valkey.url, read_tokens="r") as distributor,
        serving(role="ui", collector_url=distributor.url, distributor_url=distributor.url) as page,
    ):
        refused = "it refuses this page&#39;s token (401): READ_TOKENS"
        document = await until_shown(page, refused, "ready, in part", "0 entries behind")
        assert document.rows("Processes")[1][2].startswith("ready, in part ")
        assert document.tiles["Feed lag"][0] == "none"


def answering(body: str, status: str = "200 OK") -> str:
    head = f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n{body}"


NESTED = '{"other":' + "[" * 4_000
HEALTHY = answering('{"status":"ok","roles":["distributor"],"redis":"ok","version":"9"}')


@pytest.mark.parametrize(
    ("answers", "trouble"),
    [
        ([answering("<html>", "502 Bad Gateway")], "what answers there is not logpipe (502)"),
        ([answering('{"status":"ok"}')], "what answers there is not logpipe (200)"),
        ([HEALTHY, answering("<html>")], "its /metrics are not understood (200)"),
        ([answering(NESTED)], "what answers there is not logpipe (200)"),
        ([HEALTHY, answering("n 1"), answering("{}")], "it lists no subscribers (200)"),
        ([HEALTHY, answering("n 1"), answering(NESTED)], "it lists no subscribers (200)"),
        ([HEALTHY, answering("n" * 5000)], "its answer is too large"),
    ],
)
async def test_whatever_answers_it_is_told_and_never_raised(
    answers: Sequence[str], trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logpipe.client.process.MAX_ANSWER", 4096)
    async with httpx.AsyncClient(trust_env=False) as http, Impostor(*answers) as impostor:
        seen = await RemoteProcess(impostor.url, http, ["distributor"], ["r"])(True)
    assert seen.trouble == trouble
    assert (seen.health is not None) is (len(answers) > 1)


async def test_a_process_that_says_nothing_is_waited_for_no_longer_than_a_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("logpipe.client.process.LOOK_S", 0.1)
    async with Impostor("[wait]") as silent, httpx.AsyncClient(trust_env=False) as http:
        seen = await RemoteProcess(silent.url, http, ["collector"])(True)
    assert seen == Seen(silent.url, ["collector"], trouble="no answer within 0.1 s")


def test_a_sample_of_nothing_is_empty() -> None:
    assert read_sample("", 1.0) == Sample(1.0, {}, array("d"))
