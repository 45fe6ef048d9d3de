"""The page itself, and what holds for all its routes."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount, Route

from logpipe.metrics import Metrics
from logpipe.settings import load
from logpipe.tokens import Tokens
from logpipe.ui import app as page_app
from logpipe.ui.security import HEADERS
from tests.hostile import HOSTILE
from tests.servers import Service, Valkey, serving
from tests.ui.pieces import COMPOSITIONS, FORM, Seen, page_at, streaming

# -- every route ------------------------------------------------------------------------------


class Guard(NamedTuple):
    """What a route asks for, and whether it is refused to other sites."""

    asks: str
    own_origin: bool = False


GUARDS = {
    "GET /": Guard("sign in"),
    "GET /ui/stream": Guard("read"),
    "GET /ui/rows": Guard("read"),
    "GET /ui/filter": Guard("read"),
    "GET /ui/volume": Guard("read"),
    "POST /ui/details": Guard("read"),  # changes nothing: its answer is made of the question
    "GET /ui/download": Guard("read"),
    "POST /ui/send": Guard("send", own_origin=True),
    "GET /status": Guard("sign in"),
    "GET /ui/status": Guard("read"),
    "GET /login": Guard("nothing"),
    "POST /login": Guard("nothing", own_origin=True),
    "POST /ui/logout": Guard("nothing", own_origin=True),
    "GET /static": Guard("nothing"),
}
"""All that the page answers. A route that is missing here, or here alone, fails a test."""


def routes() -> Iterator[str]:
    """The methods and paths that the sub-app has."""
    unused: Any = None
    made: list[Starlette] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_app, "with_cookies", lambda app: app)
        patch.setattr(page_app, "secured", lambda app, _: made.append(app))
        settings = load({}, {})
        tokens = Tokens(settings)
        page = page_app.Page(
            settings, tokens, _Named(), unused, Metrics(), unused, unused, unused, unused
        )
        page_app.create(page)
    for route in made[0].routes:
        if isinstance(route, Mount):
            yield f"GET {route.path}"
        else:
            assert isinstance(route, Route)
            yield from (f"{method} {route.path}" for method in (route.methods or ()))


class _Named:
    name = "none"
    now_ms = 0
    tail: Any = None
    history: Any = None


def test_every_route_has_its_guard_in_the_table() -> None:
    found = [each for each in routes() if not each.startswith("HEAD ")]
    assert sorted(found) == sorted(GUARDS)


async def ask(service: Service, route: str, **headers: str) -> httpx.Response:
    method, _, path = route.partition(" ")
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    if path == "/static":
        path = "/static/page.css"
    if path == "/ui/stream":
        path = "/ui/stream?once=1"
    form = {**FORM, "event": "{}", "token": "wrong"} if method == "POST" else None
    return await service.http.request(method, path, data=form, headers=names)


@pytest.mark.parametrize("route", GUARDS)
async def test_without_its_token_a_route_gives_nothing(valkey: Valkey, route: str) -> None:
    asks = GUARDS[route].asks
    async with serving(redis_addr=valkey.url, read_tokens="r", ingest_tokens="w") as service:
        none = await ask(service, route)
        wrong = await ask(service, route, Authorization="Bearer x")
        other = {"read": "w", "sign in": "w", "send": "r"}.get(asks, "w")
        others = await ask(service, route, Authorization=f"Bearer {other}")
        own = await ask(service, route, Authorization=f"Bearer {'w' if asks == 'send' else 'r'}")
        statuses = [answer.status_code for answer in (none, wrong, others, own)]
        if asks == "nothing":
            assert {401} & set(statuses) == set()
        elif asks == "sign in":
            assert statuses == [303, 303, 303, 200]
            assert none.headers["location"].partition("?")[0] == "/login"
        else:
            assert statuses == [401, 403, 403, 200]
            assert none.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("route", [route for route in GUARDS if route.startswith("POST")])
async def test_what_changes_something_is_refused_to_other_sites(valkey: Valkey, route: str) -> None:
    async with serving(redis_addr=valkey.url, host="0.0.0.0") as service:
        for headers in ({"Origin": "http://evil.example"}, {"Sec_Fetch_Site": "cross-site"}):
            answer = await ask(service, route, **headers)
            assert (answer.status_code == 403) is GUARDS[route].own_origin
            if GUARDS[route].own_origin:
                assert "another site" in answer.text
                assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("tokens", ["", "r"])
@pytest.mark.parametrize("route", [*GUARDS, "GET /ui/nothing", "GET /ui/send", "PUT /", "GET /ui"])
async def test_every_answer_has_the_security_headers(
    valkey: Valkey, route: str, tokens: str
) -> None:
    async with serving(redis_addr=valkey.url, read_tokens=tokens) as service:
        answer = await ask(service, route)
        assert answer.status_code < 500
        for name, value in HEADERS.items():
            assert answer.headers.get_list(name) == [value]
        policy = HEADERS["Content-Security-Policy"]
        assert "default-src 'self'" in policy
        assert "unsafe" not in policy
        for part in ("frame-ancestors 'none'", "base-uri 'none'", "form-action 'self'"):
            assert part in policy
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("route", GUARDS)
async def test_no_route_is_a_fault_with_redis_away(own_valkey: Valkey, route: str) -> None:
    async with serving(redis_addr=own_valkey.url, heartbeat_s=0.2) as service:
        own_valkey.kill()
        assert (await ask(service, route)).status_code in (200, 303, 403, 503)


async def test_a_fault_of_the_page_has_the_headers_too_and_tells_nothing(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logpipe.ui.app.parsed_filter", lambda *_: 1 / 0)
    async with serving(redis_addr=valkey.url) as service:
        answer = await service.http.get("/")
        assert answer.status_code == 500
        assert "content-security-policy" in answer.headers
        assert "ZeroDivision" not in answer.text


# -- the page ---------------------------------------------------------------------------------


@pytest.mark.parametrize("composition", COMPOSITIONS)
async def test_the_page_has_the_form_the_stream_and_the_buttons(
    valkey: Valkey, composition: str
) -> None:
    async with page_at(composition, valkey) as (page, others):
        answer = await page.http.get("/")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert answer.headers["cache-control"] == "no-store"
        html = answer.text
        for name in ("source", "level", "message", "key", "value", "count"):
            assert re.search(rf'<(input|select|textarea|button)[^>]* name="{name}"', html)
        for button in ("Send", "Connect", "Disconnect", "Filter"):
            assert re.search(rf"<button[^>]*>{button}</button>", html)
        assert 'hx-sse:connect="/ui/stream"' in html
        assert 'action="/ui/logout"' not in html
        assert "://" not in html.replace("http://127.0.0.1", "")
        name = "this process (" if composition == "together" else f"distributor {others.url}"
        assert f'data-from="{name}' in html


async def test_all_that_the_page_loads_is_its_own_and_kept_for_good(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        html = (await service.http.get("/")).text
        urls = set(re.findall(r'(?:src|href)="(/static/[^"]+)"', html))
        assert len(urls) == 6
        for url in urls:
            answer = await service.http.get(url)
            assert answer.status_code == 200
            assert "immutable" in answer.headers["cache-control"]
            other = await service.http.get(url.partition("?")[0] + "?v=old")
            assert other.headers["cache-control"] == "no-cache"
            again = await service.http.get(url, headers={"If-None-Match": answer.headers["etag"]})
            assert again.status_code == 304


@pytest.mark.parametrize("path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static/", "/ui"])
async def test_nothing_else_is_served(valkey: Valkey, path: str) -> None:
    async with serving(redis_addr=valkey.url) as service:
        assert (await service.http.get(path)).status_code in (404, 405)


async def test_the_filters_of_the_url_come_back_in_the_inputs_and_reach_the_stream(
    valkey: Valkey,
) -> None:
    async with serving(redis_addr=valkey.url) as service:
        query = "level=%3E%3DWARN&source=api*&text=a%26b&since=1h&cols=n&other=1"
        html = (await service.http.get(f"/?{query}")).text
        assert 'name="level" value="&gt;=WARN"' in html
        assert re.search(r'<input name="source"[^>]* value="api\*"', html)
        assert 'value="a&amp;b"' in html
        assert '<option value="1h" selected>' in html
        (url,) = re.findall(r'hx-sse:connect="([^"]+)"', html)
        wanted = "/ui/stream?level=%3E%3DWARN&source=api%2A&text=a%26b&cols=n"
        assert url.replace("&amp;", "&") == wanted
        await service.post(
            [
                {"source": "api-1", "level": level, "message": message}
                for level in ("INFO", "ERROR")
                for message in ("a&b", "c")
            ]
        )
        async with streaming(service, f"{wanted}&since=earliest") as bundles:
            await bundles.read(4)
            assert bundles.messages == ["a&b"]
        odd = (await service.http.get("/?level=AUDIT,ERROR&since=1710000000000-0")).text
        assert 'name="level" value="AUDIT,ERROR"' in odd
        assert '<option value="1710000000000-0" selected>' in odd


class Elements(Seen):
    """The elements of a page, without its texts."""

    def handle_data(self, data: str) -> None:
        pass

    @property
    def kinds(self) -> set[tuple[str, frozenset[str]]]:
        """Each with the names of its attributes."""
        return {(tag, frozenset(attributes)) for tag, attributes in self.elements}


async def test_hostile_text_in_the_url_stays_text(valkey: Valkey) -> None:
    names = ("q", "level", "source", "text", "since", "cols")
    plain: tuple[dict[str, str], ...] = (
        {"text": "x"}, {"q": "level: x"}, {"level": "A", "since": "1-1"}, {"q": "x"}, {}
    )  # fmt: skip
    async with serving(redis_addr=valkey.url) as service:
        known: set[tuple[str, frozenset[str]]] = set()
        for query in plain:
            known |= Elements((await service.http.get("/", params=query)).text).kinds
        for text in HOSTILE:
            query = dict.fromkeys(names, text) | {"<b>": text}
            for given in (query, {"source": text}, {"q": text}, {"level": text}, {"since": text}):
                answer = await service.http.get("/", params=given)
                assert answer.status_code in (200, 400)
                page = Elements(answer.text)
                assert page.kinds <= known
                if "source" in given and len(given) == 1:
                    found = [a for _, a in page.elements if a.get("name") == "source"]
                    assert found[-1]["value"] == text.strip()


@pytest.mark.parametrize(
    "query",
    ["level=%3E%3Dbananas", "since=yesterday", "to=x", "q=level:%20x", "cols=1,2,3,4,5,6,7,8,9"],
)
async def test_what_is_wrong_with_the_url_is_told_on_the_page(valkey: Valkey, query: str) -> None:
    async with serving(redis_addr=valkey.url) as service:
        answer = await service.http.get(f"/?{query}")
        assert answer.status_code == 400
        assert 'role="alert"' in answer.text


# -- what a filter says -----------------------------------------------------------------------


async def said(service: Service, **query: str) -> str:
    answer = await service.http.get("/ui/filter", params=query)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    return answer.text.strip()


async def test_a_filter_is_said_in_words_or_its_error_at_its_place(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        assert await said(service) == await said(service, q=" ") == ""
        takes = await said(service, q='"<b>"', level="ERROR")
        assert "Shows events where the message contains" in takes
        assert "&lt;b&gt;" in takes
        wrong = await said(service, q=' a level: "<b>" ')
        assert "<code>a level<mark>:</mark> &#34;&lt;b&gt;&#34;</code>" in wrong
        assert "quote it" in wrong
        at_the_end = await said(service, q="(a")
        assert "<mark> </mark></code>" in at_the_end
        elsewhere = await said(service, level=">=bananas")
        assert elsewhere.startswith('<p class="error" role="alert">level: ')
        assert 'class="place"' not in elsewhere
        many = await said(service, q=" ".join("abcdefgh" * 8), text="one more")
        assert "at most 64 terms" in many
