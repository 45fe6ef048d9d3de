"""Older rows, rows around an event, and the volume."""

import html
import json
import re
from typing import Any

import pytest

from logpipe.ids import END
from logpipe.problems import Problem
from logpipe.ui import reading
from logpipe.ui.reading import CONTEXT_ROWS, PAGE_ROWS, ROWS_BYTES, columns_of
from tests.helpers import retry_after
from tests.servers import Service, Valkey, free_port, serving
from tests.ui.pieces import (
    COMPOSITIONS,
    Seen,
    ids_of,
    messages_of,
    numbered,
    page_at,
    stored,
)

PAGES = pytest.mark.parametrize("composition", COMPOSITIONS)


def edge_of(fragment: str) -> tuple[str | None, str]:
    """Where the next page begins, and what the row above the oldest says."""
    (row,) = re.findall(r'<div class="edge".*?</div>', fragment)
    assert fragment.startswith(row)
    upto = re.search(r'data-upto="([\d-]+)"', row)
    return upto[1] if upto else None, Seen(row).texts["edge"]


async def rows(service: Service, **query: str) -> str:
    answer = await service.http.get("/ui/rows", params=query)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    return answer.text


async def all_older(service: Service, **query: str) -> list[str]:
    """The messages of all pages, from the oldest, and that each page goes on where it should."""
    found: list[str] = []
    upto: dict[str, str] = {}
    while True:
        fragment = await rows(service, **{**query, **upto})
        found = messages_of(fragment) + found
        following, _ = edge_of(fragment)
        if following is None:
            return found
        upto = {"upto": following}
        query.pop("before", None)


# -- older rows -------------------------------------------------------------------------------


@PAGES
async def test_page_by_page_one_gets_to_the_beginning_with_each_event_once(
    valkey: Valkey, composition: str
) -> None:
    async with page_at(composition, valkey) as (page, others):
        await others.post(numbered(0, 350))
        newest = await rows(page)
        assert messages_of(newest) == [str(n) for n in range(350 - PAGE_ROWS, 350)]
        assert await all_older(page) == [str(n) for n in range(350)]
        ids = [id_ for id_, _ in stored(valkey)]
        assert await all_older(page, before=ids[200]) == [str(n) for n in range(200)]
        assert await all_older(page, upto=ids[200]) == [str(n) for n in range(201)]
        assert await all_older(page, since=ids[100], before=ids[330]) == [
            str(n) for n in range(100, 330)
        ]
        assert await all_older(page, since=ids[7], to=ids[9]) == ["7", "8", "9"]
        assert await all_older(page, since=ids[7], to=ids[300], upto=ids[8]) == ["7", "8"]
        assert await all_older(page, since="latest") == []


@PAGES
async def test_above_the_oldest_stands_that_there_is_nothing_older(
    valkey: Valkey, composition: str
) -> None:
    async with page_at(composition, valkey) as (page, others):
        assert edge_of(await rows(page)) == (None, "The stream keeps nothing older.")
        await others.post(numbered(0, 3))
        assert edge_of(await rows(page)) == (None, "The stream keeps nothing older.")
        assert edge_of(await rows(page, since="1h")) == (None, "Nothing older in this span.")
        assert edge_of(await rows(page, before="0-0")) == (None, "The stream keeps nothing older.")


@PAGES
async def test_exactly_one_page_has_no_page_before_it(valkey: Valkey, composition: str) -> None:
    async with page_at(composition, valkey) as (page, others):
        await others.post(numbered(0, PAGE_ROWS))
        assert edge_of(await rows(page))[0] is None
        first = (await others.post({"source": "a", "message": "more"})).json()["id"]
        assert edge_of(await rows(page))[0] == stored(valkey)[0][0]
        assert edge_of(await rows(page, before=first))[0] is None


@PAGES
async def test_rare_matches_over_a_long_stream_are_all_found(
    valkey: Valkey, composition: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logpipe.fanout.history.PAGE_SCAN", 100)
    async with page_at(composition, valkey) as (page, others):
        await others.post([*numbered(0, 5), *numbered(5, 1_500), *numbered(1_500, 1_503)])
        fragment = await rows(page, q="*3 source:a", text="13")
        assert edge_of(fragment)[0]
        wanted = [str(n) for n in range(1_503) if "13" in str(n)]
        assert await all_older(page, text="13") == wanted


async def test_rows_are_shown_with_their_marks_and_columns(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        await service.post({"source": "a", "message": "slow", "metadata": {"n": 1, "b": 2}})
        fragment = await rows(service, q="sl", cols="n,n,,m")
        assert "<mark>sl</mark>ow" in fragment
        assert re.findall(r'data-key="(\w+)">(\d*)<', fragment) == [("n", "1"), ("m", "")]


async def test_of_large_events_a_page_has_fewer_and_none_is_missing(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        large = "x" * 60_000
        await service.post([{"source": "a", "message": f"{n} {large}"} for n in range(50)])
        fragment = await rows(service)
        assert 1 <= len(ids_of(fragment)) <= ROWS_BYTES // 60_000
        assert [m.split()[0] for m in await all_older(service)] == [str(n) for n in range(50)]
        middle = stored(valkey)[25][0]
        around = ids_of(await rows(service, at=middle))
        assert middle in around
        assert len(around) <= 2 * (ROWS_BYTES // 60_000) + 1


# -- rows around an event ---------------------------------------------------------------------


@PAGES
async def test_an_event_is_shown_with_those_around_it(valkey: Valkey, composition: str) -> None:
    async with page_at(composition, valkey) as (page, others):
        await others.post(numbered(0, 200))
        ids = [id_ for id_, _ in stored(valkey)]
        fragment = await rows(page, at=ids[100])
        assert ids_of(fragment) == ids[100 - CONTEXT_ROWS : 101 + CONTEXT_ROWS]
        assert edge_of(fragment)[0] == ids[99 - CONTEXT_ROWS]
        assert ids_of(await rows(page, at=ids[0])) == ids[: 1 + CONTEXT_ROWS]
        assert ids_of(await rows(page, at=ids[-1])) == ids[-1 - CONTEXT_ROWS :]
        assert edge_of(await rows(page, at=ids[3]))[0] is None


@PAGES
async def test_an_event_that_the_filter_rejects_is_shown_all_the_same(
    valkey: Valkey, composition: str
) -> None:
    async with page_at(composition, valkey) as (page, others):
        await others.post(numbered(0, 30))
        ids = [id_ for id_, _ in stored(valkey)]
        fragment = await rows(page, at=ids[10], text="5")
        assert messages_of(fragment) == ["5", "10", "15", "25"]
        assert messages_of(await rows(page, at=ids[29], text="5")) == ["5", "15", "25", "29"]
        assert messages_of(await rows(page, at=ids[15], text="5")) == ["5", "15", "25"]
        assert messages_of(await rows(page, at=ids[3], text="never")) == ["3"]


@PAGES
async def test_around_an_event_that_is_no_longer_kept_the_others_are_shown(
    valkey: Valkey, composition: str
) -> None:
    async with page_at(composition, valkey) as (page, others):
        await others.post(numbered(0, 10))
        ids = [id_ for id_, _ in stored(valkey)]
        valkey.client.xdel("logs", ids[4])
        assert ids_of(await rows(page, at=ids[4])) == ids[:4] + ids[5:]
        valkey.client.xtrim("logs", maxlen=2, approximate=False)
        assert ids_of(await rows(page, at=ids[4])) == ids[8:]
        assert ids_of(await rows(page, at="0-0")) == ids[8:]
        assert ids_of(await rows(page, at=str(END))) == ids[8:]
        valkey.client.delete("logs")
        assert ids_of(await rows(page, at=ids[4])) == []


# -- volume -----------------------------------------------------------------------------------


async def volume(service: Service, **query: str) -> dict[str, Any]:
    answer = await service.http.get("/ui/volume", params=query)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    found: dict[str, Any] = json.loads(answer.text)
    return found


def count_of(counted: dict[str, Any]) -> int:
    return sum(sum(counts) for _, counts in counted["volume"])


@PAGES
async def test_the_volume_counts_all_that_matches(valkey: Valkey, composition: str) -> None:
    async with page_at(composition, valkey) as (page, others):
        assert await volume(page) == {
            "step_ms": 1000,
            "kinds": ["TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL", "other"],
            "volume": [],
            "sources": [],
            "complete": True,
            "from": None,
        }
        await others.post([*numbered(0, 300), *numbered(300, 330, source="b", level="ERROR")])
        ids = [id_ for id_, _ in stored(valkey)]
        counted = await volume(page)
        assert (count_of(counted), counted["complete"]) == (330, True)
        assert counted["sources"] == ["a", "b"]
        assert sum(counts[4] for _, counts in counted["volume"]) == 30
        assert count_of(await volume(page, level="ERROR")) == 30
        assert count_of(await volume(page, upto=ids[9])) == 10
        assert (await volume(page, level="ERROR"))["sources"] == ["b"]


async def test_a_volume_of_too_much_says_that_it_is_not_complete(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MAX_COUNTED", 100)
    async with serving(redis_addr=valkey.url) as service:
        await service.post(numbered(0, 300))
        counted = await volume(service)
        assert (count_of(counted), counted["complete"]) == (100, False)
        assert counted["from"] == stored(valkey)[-100][0]


async def test_a_volume_of_rare_matches_says_how_far_it_has_looked(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "VOLUME_SCAN", 100)
    async with serving(redis_addr=valkey.url) as service:
        await service.post(numbered(0, 300))
        counted = await volume(service, text="299")
        assert (count_of(counted), counted["complete"]) == (1, False)
        assert counted["from"] == stored(valkey)[-100][0]


# -- parameters and trouble -------------------------------------------------------------------


def test_columns_are_names_of_metadata() -> None:
    assert columns_of({}) == columns_of({"cols": ",,"}) == ()
    assert columns_of({"cols": "a,b.c,a,é"}) == ("a", "b.c", "é")
    for bad in (",".join(map(str, range(9))), "x" * 101, "a," * 8 + "x" * 60_000):
        with pytest.raises(Problem) as refused:
            columns_of({"cols": bad})
        assert refused.value.status == 400


@pytest.mark.parametrize("path", ["/ui/rows", "/ui/rows?at=1-1&", "/ui/volume", "/ui/download"])
@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("q=level:%20x", "q"),
        ("level=%3E%3Dbananas", "level"),
        ("source=,", "source"),
        ("upto=x", "upto"),
        ("before=5-", "before"),
        ("at=99999999999999999999999", "at"),
        ("since=yesterday", "since"),
        ("to=x", "to"),
        ("cols=1,2,3,4,5,6,7,8,9", "cols"),
        ("format=xml", "format"),
    ],
)
async def test_a_wrong_parameter_is_named(
    valkey: Valkey, path: str, query: str, parameter: str
) -> None:
    taken = {
        "/ui/rows": ("q", "level", "source", "upto", "before", "at", "since", "to", "cols"),
        "/ui/rows?at=1-1&": ("q", "level", "source", "at", "cols"),
        "/ui/volume": ("q", "level", "source", "upto"),
        "/ui/download": ("q", "level", "source", "since", "to", "format"),
    }[path]
    async with serving(redis_addr=valkey.url) as service:
        answer = await service.http.get(f"{path}{'' if '?' in path else '?'}{query}")
        if parameter in taken:
            assert answer.status_code == 400
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["parameter"] == parameter
        else:
            assert answer.status_code == 200


@PAGES
@pytest.mark.parametrize(
    "path", ["/ui/rows", "/ui/rows?at=1-1", "/ui/volume", "/ui/download", "/ui/download?format=csv"]
)
async def test_redis_away_is_a_503_with_its_reason(
    own_valkey: Valkey, composition: str, path: str
) -> None:
    async with page_at(composition, own_valkey) as (page, _):
        own_valkey.kill()
        answer = await page.http.get(path)
        assert answer.status_code == 503
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["retry-after"] in retry_after(1)
        assert answer.json()["detail"].startswith("Redis:")


async def test_a_distributor_away_is_a_503() -> None:
    away = f"http://127.0.0.1:{free_port()}"
    async with serving(role="ui", distributor_url=away, collector_url=away) as page:
        for path in ("/ui/rows", "/ui/volume", "/ui/download"):
            answer = await page.http.get(path)
            assert answer.status_code == 503
            assert "cannot be reached" in answer.json()["detail"]


# -- details ----------------------------------------------------------------------------------


@PAGES
async def test_a_row_has_what_its_details_need(valkey: Valkey, composition: str) -> None:
    metadata = {"n": 123456789012345678901234567890, "é\"'&<": ["\u202e", {"a": None}], "b": "\n"}
    event = {"source": "s<", "level": "AUDIT", "message": "m", "metadata": metadata}
    async with page_at(composition, valkey) as (page, others):
        assert (await others.post(event)).status_code == 202
        fragment = await rows(page)
        facts = html.unescape(fragment.partition('data-event="')[2].partition('"')[0])
        answer = await page.http.post("/ui/details", data={"event": facts})
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-store"
        seen = Seen(answer.text)
        assert "123456789012345678901234567890" in seen.texts["value json"]
        assert "é\"'&<" in seen.texts["key"]
        assert ids_of(fragment)[0] in str(seen.elements)


@pytest.mark.parametrize(
    ("form", "status"),
    [({}, 422), ({"event": "[]"}, 422), ({"event": "x" * 500_000}, 413), ({"event": "{}"}, 200)],
)
async def test_what_is_no_row_has_no_details(
    valkey: Valkey, form: dict[str, str], status: int
) -> None:
    async with serving(redis_addr=valkey.url) as service:
        answer = await service.http.post("/ui/details", data={"x": "y", **form})
        assert answer.status_code == status


async def test_the_largest_event_has_details(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        event = {"source": "s", "message": "", "metadata": {"k": '"é\u0001' * 6_000}}
        assert (await service.post(event)).status_code == 202
        fragment = await rows(service)
        facts = html.unescape(fragment.partition('data-event="')[2].partition('"')[0])
        assert len(facts) > 50_000
        answer = await service.http.post("/ui/details", data={"event": facts})
        assert answer.status_code == 200
