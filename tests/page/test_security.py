"""Log text never becomes markup; who may open the page, and what it lets a browser do."""

import contextlib
from typing import Any

from playwright.async_api import Browser

from tests.helpers import wait_until
from tests.hostile import HOSTILE
from tests.page.window import BROWSER, Window, window
from tests.servers import Service, Valkey, free_port, serving

pytestmark = BROWSER

# The elements and attributes below one, as a sorted list without doubles.
MARKUP = (
    "below => [...new Set([...below.querySelectorAll('*')].flatMap(e =>"
    " [e.tagName, ...e.getAttributeNames().map(n => '@' + n)]))].sort()"
)
ROWS = ["@class", "@data-clock", "@data-event", "@data-id", "@data-ms", "@hidden", "@href"]
ROWS += [
    "@role",
    "@title",
    "A",
    "B",
    "BUTTON",
    "DIV",
    "SPAN",
    "@aria-expanded",
    "@type",
    "@data-upto",
]
DETAILS = ["@aria-label", "@class", "@data-do", "@data-text", "@href", "@title", "@type"]
DETAILS += ["A", "BUTTON", "LI", "P", "SPAN", "UL"]


async def _post_all(service: Service) -> None:
    events: list[dict[str, Any]] = [
        {
            "source": text[:256],
            "level": text[:32],
            "message": text,
            "metadata": {text: text, "nested": [{text: [text]}], "value": text},
        }
        for text in HOSTILE
    ]
    answer = await service.post(events)
    assert answer.json()["rejected"] == 0


def _harmless(shown: Window, service: Service) -> None:
    assert shown.dialogs == []
    assert [url for url in shown.requests if not url.startswith(service.url)] == []


async def test_there_are_enough_hostile_texts() -> None:
    assert len(HOSTILE) >= 200


async def _rows(shown: Window, wanted: int) -> None:
    """Scrolls up until at least this many rows are there.

    A page of a search that takes long has fewer rows than others.
    """

    async def there() -> bool:
        if await shown["#rows > .row"].count() >= wanted:
            return True
        await shown["#log"].evaluate(
            "async log => { log.scrollTop = 900;"
            " await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));"
            " log.scrollTop = 0; }"
        )
        return False

    await wait_until(there, f"{wanted} rows", 30)


async def test_hostile_text_shows_as_text_in_rows_live_and_older_and_in_details(
    service: Service, browser: Browser
) -> None:
    async with window(browser, service.url) as shown:
        await shown.state("connected")
        title = await shown.page.title()
        await _post_all(service)
        await shown.has("#rows > .row", len(HOSTILE))
        live = await shown["#rows"].inner_html()
        assert set(await shown["#rows"].evaluate(MARKUP)) <= set(ROWS)
        await shown.page.reload()
        await _rows(shown, len(HOSTILE))
        assert set(await shown["#rows"].evaluate(MARKUP)) <= set(ROWS)
        # What is hidden and folded is there in full: the texts themselves, all of them.
        texts = "\0".join(await shown.messages())
        plain = [text for text in HOSTILE if text.isprintable() and len(text) < 1000]
        assert len(plain) > 150
        assert [text for text in plain if text not in texts] == []
        await shown["#rows"].evaluate(
            "rows => rows.querySelectorAll(':scope > .row').forEach(row => row.click())"
        )
        await shown.has("#rows > .details > .tree", len(HOSTILE))
        found: list[str] = await shown["#rows"].evaluate(
            "rows => [...new Set([...rows.querySelectorAll('.details *')].flatMap(e =>"
            " [e.tagName, ...e.getAttributeNames().map(n => '@' + n)]))].sort()"
        )
        assert set(found) <= set(DETAILS)
        assert "alert(1)" in live
        assert (await shown.page.title()).endswith(title)
        _harmless(shown, service)


async def test_hostile_text_is_only_marked_where_a_filter_finds_it(
    service: Service, browser: Browser
) -> None:
    await _post_all(service)
    query = "q=/[%3C%3E%26%22'=a-m]%2B/"
    async with window(browser, f"{service.url}/?{query}") as shown:
        await shown["#rows mark"].first.wait_for()
        await _rows(shown, 200)
        assert set(await shown["#rows"].evaluate(MARKUP)) <= {*ROWS, "MARK"}
        _harmless(shown, service)


async def test_hostile_names_may_have_columns(service: Service, browser: Browser) -> None:
    await _post_all(service)
    names = [text for text in HOSTILE if len(text) < 100 and "," not in text and "<" in text]
    async with window(browser, f"{service.url}/?cols=value") as shown:
        await shown["#rows .column"].first.wait_for()
        for at in range(0, 24, 8):
            await shown.page.evaluate(
                "names => { history.pushState(null, '', '/?' + new URLSearchParams("
                "{cols: names.join(',')})); dispatchEvent(new PopStateEvent('popstate')); }",
                names[at : at + 8],
            )
            await shown.has("#columns button", 8)
            await shown["#rows .column"].first.wait_for()
            markup = set(await shown["#rows"].evaluate(MARKUP))
            assert markup <= {*ROWS, "@data-key"}
            assert await shown["#columns"].evaluate(MARKUP) == ["@title", "@type", "BUTTON"]
        _harmless(shown, service)


async def test_hostile_urls_are_shown_as_text_by_the_server_and_by_the_page(
    service: Service, browser: Browser
) -> None:
    """Each text in each parameter: the document has no markup that it has not for a plain one."""
    markup_of = (
        "async ([names, texts]) => { const found = {};"
        " for (const text of texts) {"
        "  const query = new URLSearchParams(names.map(name => [name, text]));"
        "  const html = await (await fetch('/?' + query)).text();"
        "  const page = new DOMParser().parseFromString(html, 'text/html');"
        "  found[[...page.querySelectorAll('body *')].flatMap(e => [e.tagName,"
        "   ...e.getAttributeNames().map(n => '@' + n)]).filter((e, n, all) =>"
        "   all.indexOf(e) == n).sort().join()] = text; }"
        " return found; }"
    )
    names = ["q", "level", "source", "text", "since", "to", "at", "cols"]
    async with window(browser, service.url, quiet=False) as shown:
        await shown.state("connected")
        plain = await shown.page.evaluate(markup_of, [names, ["x", "(", "1-0", "level>=warn"]])
        hostile = await shown.page.evaluate(markup_of, [names, list(HOSTILE)])
        known = {each for key in plain for each in key.split(",")}
        new = {each: text for key, text in hostile.items() for each in key.split(",")}
        assert {each: text for each, text in new.items() if each not in known} == {}
        # The page itself takes them from its fields.
        before = await shown["body"].evaluate(MARKUP)
        for text in HOSTILE[::12]:
            await shown.page.evaluate(
                "text => { const form = document.getElementById('filters');"
                " form.elements.q.value = form.elements.source.value = text;"
                " form.requestSubmit(); document.getElementById('save').click(); }",
                text,
            )
        await shown["#filter-said > *"].first.wait_for()
        await shown.has("#saved-list li", len({*HOSTILE[::12]}), 5)
        new_markup = set(await shown["body"].evaluate(MARKUP)) - set(before)
        # The row that loads older events has its attribute only until they have come.
        assert new_markup <= {"LI", "P", "CODE", "MARK", "@role", "A", "BUTTON", "@data-upto"}
        _harmless(shown, service)


async def test_hostile_text_in_the_form_and_its_answer_does_nothing(
    service: Service, shown: Window
) -> None:
    for text in HOSTILE[:120:10]:
        await shown["#send-source"].fill(text[:200] or "x")
        await shown["#send-message"].fill(text)
        await shown["#answer"].evaluate("answer => answer.replaceChildren()")
        await shown["#send .primary"].click()
        await shown["#answer .stored"].wait_for()
    await shown.has("#rows > .row", 12)
    assert set(await shown["#rows"].evaluate(MARKUP)) <= set(ROWS)
    _harmless(shown, service)


async def test_nothing_inline_runs_and_nothing_is_evaluated(
    service: Service, browser: Browser
) -> None:
    async with window(browser, service.url, quiet=False) as shown:
        await shown.state("connected")
        answer = await shown.page.request.get(service.url)
        policy = answer.headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        await shown["body"].evaluate(
            "body => { const s = document.createElement('script');"
            " s.textContent = 'window.ran = 1'; body.append(s);"
            " body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran = 1\">');"
            " body.insertAdjacentHTML('beforeend', '<div style=\"position:fixed\" id=st></div>'); }"
        )
        assert await shown.page.evaluate("() => window.ran") is None
        styled = await shown["#st"].evaluate("e => getComputedStyle(e).position")
        assert styled == "static"


async def test_over_plain_http_from_another_machine_the_forms_work(
    valkey: Valkey, browser: Browser
) -> None:
    async with serving(redis_addr=valkey.url, read_tokens="r", ingest_tokens="w") as service:
        url = service.url.replace("127.0.0.1", "logs.test")
        async with window(browser, f"{url}/?level=INFO", quiet=False) as shown:
            await shown["#token"].fill("wrong")
            await shown["text=Sign in"].click()
            await shown["text=not known here"].wait_for()
            for token in ("w", "r"):
                await shown["#token"].fill(token)
                await shown["text=Sign in"].click()
            await shown.state("connected")
            assert "level=INFO" in shown.page.url
            assert not await shown.page.evaluate("() => isSecureContext")
            await shown["#send-message"].fill("from afar")
            await shown["#send .primary"].click()
            await shown.shows(["from afar"])
            (cookie,) = await shown.page.context.cookies()
            assert cookie["httpOnly"]
            assert cookie["sameSite"] == "Strict"
            assert not [each for each in shown.requests if "token" in each]
            await shown["text=Sign out"].click()
            await shown["#token"].wait_for()


async def test_a_session_that_ends_asks_to_sign_in(valkey: Valkey, browser: Browser) -> None:
    port = free_port()
    async with contextlib.AsyncExitStack() as stack:
        async with serving(redis_addr=valkey.url, port=port, read_tokens="old") as service:
            opened = window(browser, service.url, quiet=False)
            shown = await stack.enter_async_context(opened)
            await shown["#token"].fill("old")
            await shown["text=Sign in"].click()
            await shown.state("connected")
        async with serving(redis_addr=valkey.url, port=port, read_tokens="new"):
            await shown.state("refused")
            assert await shown["#connect"].is_hidden()
            assert await shown["#disconnect"].is_hidden()
            await shown["#sign-in"].click()
            await shown["#token"].fill("new")
            await shown["text=Sign in"].click()
            await shown.state("connected")


async def test_another_sites_form_stores_nothing(
    valkey: Valkey, service: Service, browser: Browser
) -> None:
    form = (
        f"<form method=post action={service.url}/ui/send enctype=application/x-www-form-urlencoded>"
        "<input name=source value=evil><input name=message value=m><button>x</button></form>"
    )
    async with window(browser, "about:blank", quiet=False) as shown:
        await shown.page.route(
            "http://evil.test/", lambda route: route.fulfill(body=form, content_type="text/html")
        )
        await shown.page.goto("http://evil.test/")
        async with shown.page.expect_response("**/ui/send") as answering:
            await shown["button"].click()
        assert (await answering.value).status == 403
    assert valkey.client.xlen("logs") == 0
