"""Who may use the page: tokens, the cookie for them, and what has neither."""

import asyncio
import time
from http.cookies import SimpleCookie
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from logpipe.attempts import ATTEMPTS, Attempts
from logpipe.parts import Durations
from logpipe.problems import Problem
from logpipe.settings import load
from logpipe.signed_out import SignedOut
from logpipe.stream.sign_outs import MAX_AHEAD_S
from logpipe.tokens import Tokens
from logpipe.ui import session as sessions
from logpipe.ui.session import (
    LIFE_S,
    SESSION_S,
    SLACK_S,
    Cookie,
    Session,
    cookie_in,
    cookie_name,
)
from tests.helpers import wait_until
from tests.servers import Service, Valkey, serving, subscribed
from tests.ui.pieces import FORM, stored

ID = "a" * 22


def cookie_for(tokens: list[str], id_: str, end: int, begun: int | None = None) -> Cookie:
    """A session that began a whole life before its end, unless that is said."""
    return sessions.cookie_for(tokens, id_, end - int(LIFE_S) if begun is None else begun, end)


def name_at(service: Service) -> str:
    return f"logpipe-{service.url.rpartition(':')[2]}"


def cookie_of(answer: httpx.Response) -> Any:
    """The one cookie that an answer sets."""
    (cookie,) = SimpleCookie(answer.headers["set-cookie"]).values()
    return cookie


def with_cookie(service: Service, value: str) -> dict[str, str]:
    return {"Cookie": f"{name_at(service)}={value}"}


async def signed_in(service: Service, *tokens: str) -> httpx.Response:
    for token in tokens:
        answer = await service.http.post("/login", data={"token": token})
        assert answer.headers["set-cookie"]
    return answer


async def test_without_tokens_all_is_open_and_there_is_nothing_to_sign_in_for(
    valkey: Valkey,
) -> None:
    async with serving(redis_addr=valkey.url) as service:
        answer = await service.http.get("/login")
        assert (answer.status_code, answer.headers["location"]) == (303, "/")


async def test_with_tokens_the_page_is_no_way_around_them(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, read_tokens="r", ingest_tokens="w") as service:
        page = await service.http.get("/?level=ERROR")
        assert (page.status_code, page.headers["location"]) == (303, "/login?level=ERROR")
        stream = await service.http.get("/ui/stream")
        assert stream.status_code == 401
        assert stream.headers["www-authenticate"].startswith("Bearer")
        sent = await service.http.post("/ui/send", data=FORM)
        assert sent.status_code == 401
        assert "/login" in sent.text
        assert (await service.http.get("/?token=r")).status_code == 400
        assert (await service.http.get("/ui/stream?token=r")).status_code == 400
        wrong = {"Authorization": "Bearer x"}
        assert (await service.http.get("/ui/stream", headers=wrong)).status_code == 403
        assert (await service.http.post("/ui/send", data=FORM, headers=wrong)).status_code == 403
        assert stored(valkey) == []


@pytest.mark.parametrize(
    ("settings", "tokens", "reads", "sends"),
    [
        ({"read_tokens": "r"}, [], False, True),
        ({"read_tokens": "r"}, ["r"], True, True),
        ({"ingest_tokens": "w"}, [], True, False),
        ({"ingest_tokens": "w"}, ["w"], True, True),
        ({"read_tokens": "r", "ingest_tokens": "w"}, [], False, False),
        ({"read_tokens": "r", "ingest_tokens": "w"}, ["r"], True, False),
        ({"read_tokens": "r", "ingest_tokens": "w"}, ["w"], False, True),
        ({"read_tokens": "r", "ingest_tokens": "w"}, ["w", "r"], True, True),
        ({"read_tokens": "a,both", "ingest_tokens": "b,both"}, ["both"], True, True),
        ({"read_tokens": "a,both", "ingest_tokens": "b,both"}, ["a", "b"], True, True),
        ({"read_tokens": "schlüssel"}, ["schlüssel"], True, True),
    ],
)
async def test_who_may_read_and_who_may_send(
    valkey: Valkey, settings: dict[str, str], tokens: list[str], reads: bool, sends: bool
) -> None:
    async with serving(redis_addr=valkey.url, **settings) as service:
        if tokens:
            await signed_in(service, *tokens)
        page = await service.http.get("/")
        assert (page.status_code == 200) is reads
        assert (await service.http.head("/ui/stream")).is_success is reads
        assert (await service.http.post("/ui/send", data=FORM)).is_success is sends
        if reads:
            assert ('id="send"' in page.text) is sends
            assert 'action="/ui/logout"' in page.text


async def test_the_cookie_is_strict_and_holds_no_token(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, read_tokens="secret-token") as service:
        answer = await service.http.post("/login?level=ERROR", data={"token": " secret-token "})
        assert (answer.status_code, answer.headers["location"]) == (303, "/?level=ERROR")
        cookie = cookie_of(answer)
        assert cookie.key == name_at(service)
        assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "strict", "/")
        assert cookie["max-age"] == str(12 * 3600)
        assert not cookie["domain"]
        assert "secret-token" not in answer.headers["set-cookie"]
        held = cookie_in(cookie.value)
        assert held is not None
        assert held == cookie_for(["secret-token"], held.id, held.end, held.begun)
        assert held != cookie_for(["secret-tokem"], held.id, held.end, held.begun)


async def test_a_token_taken_off_the_list_ends_its_cookie(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, read_tokens="new") as service:
        old = with_cookie(service, cookie_for(["old"], ID, int(time.time()) + 60).text)
        page = await service.http.get("/", headers=old)
        assert page.status_code == 303
        assert cookie_of(page)["max-age"] == "0"  # so that the browser no longer sends it
        assert (await service.http.get("/ui/stream", headers=old)).status_code == 403


@pytest.mark.parametrize(
    "cookie",
    ["", ".", "....", "x" * 4000, "new", "r.r.r.r.r", f"{ID}.1", f"{ID}.1.1", f"{ID}.1.{'0' * 64}",
     f"{ID}.1.1.{'0' * 64}", f"{ID}.1.{10**11}.{'0' * 64}", f"{ID}.1.9999999999999.{'0' * 64}",
     f"{ID}.9999999999999.1.{'0' * 64}", f"{ID}.1.1.{'0' * 63}g"],
)  # fmt: skip
async def test_a_made_up_cookie_opens_nothing(valkey: Valkey, cookie: str) -> None:
    async with serving(redis_addr=valkey.url, read_tokens="r") as service:
        answer = await service.http.get("/", headers=with_cookie(service, cookie))
        assert answer.status_code == 303


@pytest.mark.parametrize("after_s", [-1, LIFE_S + 1000])
async def test_nobody_chooses_the_end_of_a_session(valkey: Valkey, after_s: float) -> None:
    """Not even who has the token, as after it was copied from a backup."""
    async with serving(redis_addr=valkey.url, read_tokens="r") as service:
        given = cookie_for(["r"], ID, int(time.time() + after_s))
        answer = await service.http.get("/", headers=with_cookie(service, given.text))
        assert answer.status_code == 303
        right = cookie_for(["r"], ID, int(time.time()) + 100)
        later = right._replace(end=right.end + 100)
        assert (await service.http.get("/", headers=with_cookie(service, right.text))).is_success
        answer = await service.http.get("/", headers=with_cookie(service, later.text))
        assert answer.status_code == 303


async def test_guessing_by_cookies_is_as_slow_as_by_tokens(valkey: Valkey) -> None:
    durations = Durations(attempt_s=3600)
    async with serving(redis_addr=valkey.url, read_tokens="r", durations=durations) as service:
        end = int(time.time()) + 60
        for number in range(ATTEMPTS + 1):
            guess = cookie_for([f"guess-{number}"], ID, end).text
            answer = await service.http.get("/ui/rows", headers=with_cookie(service, guess))
        assert answer.status_code == 429


def tried_out(tokens: Tokens, address: str) -> None:
    """Has an address send wrong tokens until it has to wait."""
    scope: dict[str, Any] = {"type": "http", "client": (address, 1)}
    for number in range(ATTEMPTS):
        assert not tokens.attempts.passes(scope, "events", f"wrong-{number}", lambda: False)


class Browser:
    """One that keeps the cookie that it is given, at a page whose clock stands still."""

    def __init__(self, signed_out: SignedOut, **settings: str) -> None:
        self.clock = 1_000_000.0
        self.tokens = Tokens(load(settings, {}), Attempts(wait_s=3600))
        self.session = Session(self.tokens, signed_out, LIFE_S, lambda: self.clock)
        self.cookie = ""

    def request(self) -> Request:
        headers = [(b"host", b"localhost"), (b"cookie", f"logpipe-80={self.cookie}".encode())]
        scope = {"type": "http", "scheme": "http", "path": "/", "server": ("s", 80)}
        return request_of({**scope, "headers": headers, "client": ("192.0.2.1", 1)})

    def keep(self, request: Request) -> None:
        if "logpipe.session" in request.scope:
            (cookie,) = SimpleCookie(request.scope["logpipe.session"]).values()
            self.cookie = cookie.value

    def sign_in(self, token: str) -> None:
        request = self.request()
        assert self.session.passes(request, token)
        self.session.sign_in(request, token)
        self.keep(request)

    def reads(self) -> bool:
        request = self.request()
        may = self.session.access(request).read
        self.keep(request)
        return may


async def test_a_session_that_began_here_is_never_slowed() -> None:
    browser = Browser(SignedOut(), read_tokens="r,other")
    browser.sign_in("r")
    tried_out(browser.tokens, "192.0.2.1")
    for _ in range(3):
        before = browser.cookie
        browser.clock += LIFE_S / 6
        assert browser.reads()  # and is renewed
        assert browser.reads()
        assert browser.cookie != before


async def test_a_right_sign_in_is_not_refused_for_the_cookie_of_before() -> None:
    browser = Browser(SignedOut(), read_tokens="r")
    browser.sign_in("r")
    browser.cookie = cookie_for(["old"], ID, int(browser.clock) + 60).text
    tried_out(browser.tokens, "192.0.2.1")
    browser.sign_in("r")
    assert browser.reads()
    held = cookie_in(browser.cookie)
    assert held is not None
    assert held.id != ID


async def test_a_cookie_that_proves_a_guess_waits_like_the_guess() -> None:
    """Else an answer at once would show that a guess is right."""
    browser = Browser(SignedOut(), read_tokens="r")
    browser.cookie = cookie_for(["r"], ID, int(browser.clock) + 60).text
    tried_out(browser.tokens, "192.0.2.1")
    with pytest.raises(Problem) as caught:
        browser.reads()
    assert caught.value.status == 429


async def test_a_proof_is_no_token(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, read_tokens="r") as service:
        (proof,) = cookie_for(["r"], ID, 1).proofs
        bearer = {"Authorization": f"Bearer {proof}"}
        assert (await service.http.get("/ui/stream", headers=bearer)).status_code == 403
        assert (await service.http.post("/login", data={"token": proof})).status_code == 403


@pytest.mark.parametrize("token", ["", "wrong-token", "<script>alert(1)</script>", "r,w", "\x00"])
async def test_an_unknown_token_is_told_and_not_repeated(valkey: Valkey, token: str) -> None:
    async with serving(redis_addr=valkey.url, read_tokens="r", ingest_tokens="w") as service:
        answer = await service.http.post("/login", data={"token": token})
        assert answer.status_code == 403
        assert "not known here" in answer.text
        assert "set-cookie" not in answer.headers
        assert not token or token not in answer.text


async def test_a_token_that_may_only_send_is_kept_and_another_is_asked_for(
    valkey: Valkey,
) -> None:
    async with serving(redis_addr=valkey.url, read_tokens="r", ingest_tokens="w") as service:
        answer = await service.http.post("/login", data={"token": "w"})
        assert answer.status_code == 403
        assert "To read needs another" in answer.text
        await signed_in(service, "r")
        assert 'id="send"' in (await service.http.get("/")).text


async def test_signing_out_forgets_the_tokens(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, read_tokens="r") as service:
        await signed_in(service, "r")
        assert (await service.http.get("/")).status_code == 200
        assert (await service.http.post("/ui/logout")).status_code == 303
        assert (await service.http.get("/")).status_code == 303


async def test_the_cookie_stays_small_however_often_one_signs_in(valkey: Valkey) -> None:
    tokens = [f"t{n}" for n in range(10)]
    async with serving(redis_addr=valkey.url, read_tokens=",".join(tokens)) as service:
        await signed_in(service, *tokens, *tokens)
        assert len(service.http.cookies[name_at(service)]) < 320
        assert (await service.http.get("/")).status_code == 200


# -- how long a session lasts -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "scheme", "name"),
    [
        ("localhost:8080", "http", "logpipe-8080"),
        ("localhost:9090", "http", "logpipe-9090"),
        ("[::1]:8080", "http", "logpipe-8080"),
        ("logs.example", "http", "logpipe-80"),
        ("logs.example", "https", "__Host-logpipe-443"),
        ("logs.example:8443", "https", "__Host-logpipe-8443"),
        ("[::1]", "http", "logpipe-80"),
        ("a:1;b=2", "http", "logpipe-80"),
    ],
)
def test_the_cookie_has_a_name_of_its_own_at_each_port(host: str, scheme: str, name: str) -> None:
    headers = [(b"host", host.encode())]
    scope = {"type": "http", "scheme": scheme, "path": "/", "headers": headers, "server": ("s", 1)}
    assert cookie_name(request_of(scope)) == name


def request_of(scope: dict[str, Any]) -> Request:
    return Request(scope)


async def test_over_https_the_cookie_is_of_this_host_alone(valkey: Valkey) -> None:
    async with serving(
        redis_addr=valkey.url, read_tokens="r", forwarded_allow_ips="127.0.0.1"
    ) as service:
        by_https = {"X-Forwarded-Proto": "https", "Host": "logs.example"}
        answer = await service.http.post("/login", data={"token": "r"}, headers=by_https)
        cookie = cookie_of(answer)
        assert (cookie.key, cookie["secure"], cookie["path"]) == ("__Host-logpipe-443", True, "/")
        held = {**by_https, "Cookie": f"{cookie.key}={cookie.value}"}
        assert (await service.http.get("/ui/rows", headers=held)).status_code == 200
        out = cookie_of(await service.http.post("/ui/logout", headers=held))
        assert (out.key, out["secure"], out["max-age"]) == (cookie.key, True, "0")


async def test_a_session_that_is_used_is_renewed_and_another_ends(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, read_tokens="r", ingest_tokens="w") as service:
        now = int(time.time())
        fresh = cookie_for(["r"], ID, now + int(LIFE_S) - 60)
        used = cookie_for(["r"], ID, now + 60)
        for path in (
            "/",
            "/ui/rows",
            "/ui/filter",
            "/ui/volume",
            "/ui/status",
            "/ui/stream?once=1",
        ):
            answer = await service.http.get(path, headers=with_cookie(service, fresh.text))
            assert answer.status_code == 200
            assert "set-cookie" not in answer.headers, path
            answer = await service.http.get(path, headers=with_cookie(service, used.text))
            renewed = cookie_in(cookie_of(answer).value)
            assert renewed is not None
            assert renewed.id == ID, path
            assert renewed.end >= now + LIFE_S, path
            assert renewed == cookie_for(["r"], ID, renewed.end, used.begun)


def test_a_session_ends_when_it_was_not_used_for_its_life() -> None:
    clock = [1_000_000.0]
    tokens = Tokens(load({"read_tokens": "r"}, {}))
    session = Session(tokens, SignedOut(), 100.0, lambda: clock[0])
    text = cookie_for(["r"], ID, 1_000_100).text
    scope: dict[str, Any] = {"type": "http", "scheme": "http", "path": "/", "server": ("s", 80)}
    scope["headers"] = [(b"host", b"localhost"), (b"cookie", f"logpipe-80={text}".encode())]
    assert session.access(request_of(scope)).read
    clock[0] += 99
    assert session.access(request_of(scope)).read
    clock[0] += 1
    assert not session.access(request_of(scope)).read


async def test_a_stream_ends_in_time_for_its_session_to_be_renewed(valkey: Valkey) -> None:
    durations = Durations(session_s=6.0)
    async with serving(redis_addr=valkey.url, read_tokens="r", durations=durations) as service:
        await signed_in(service, "r")
        answer = await service.http.get("/ui/stream")
        assert "event: bye" in answer.text
        assert "the page's session is renewed" in answer.text
        assert (await service.http.get("/ui/rows")).status_code == 200


async def test_a_session_ends_a_week_after_it_began_however_it_is_used() -> None:
    browser = Browser(SignedOut(), read_tokens="r")
    browser.sign_in("r")
    begun = browser.clock
    while browser.clock < begun + SESSION_S:
        assert browser.reads()
        held = cookie_in(browser.cookie)
        assert held is not None
        assert held.end <= held.begun + SESSION_S
        browser.clock += LIFE_S / 4
    assert not browser.reads()
    browser.sign_in("r")
    assert browser.reads()


async def test_a_session_that_nears_its_end_is_not_renewed_in_vain() -> None:
    browser = Browser(SignedOut(), read_tokens="r")
    end = int(browser.clock) + 100
    browser.cookie = text = cookie_for(["r"], ID, end, end - SESSION_S).text
    assert browser.reads()
    assert browser.cookie == text


@pytest.mark.parametrize(
    ("begun", "end"), [(-SESSION_S, 1), (SLACK_S + 1, SLACK_S + 2), (0, SESSION_S + 1)]
)
async def test_no_session_is_longer_than_a_week(begun: int, end: int) -> None:
    browser = Browser(SignedOut(), read_tokens="r")
    now = int(browser.clock)
    browser.cookie = sessions.cookie_for(["r"], ID, now + begun, now + end).text
    assert not browser.reads()


async def test_a_stream_ends_with_a_session_that_cannot_be_renewed(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, read_tokens="r") as service:
        end = int(time.time()) + 3
        held = with_cookie(service, cookie_for(["r"], ID, end, end - SESSION_S).text)
        answer = await service.http.get("/ui/stream", headers=held)
        assert "the page's session has ended" in answer.text
        assert (await service.http.get("/ui/rows", headers=held)).status_code == 403


# -- signing out ------------------------------------------------------------------------------


async def test_signing_out_ends_copies_of_the_cookie_and_open_streams(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, read_tokens="r") as service:
        await signed_in(service, "r")
        held = with_cookie(service, service.http.cookies[name_at(service)])
        service.http.cookies.clear()
        await service.http.post("/login", data={"token": "r"})
        other = with_cookie(service, service.http.cookies[name_at(service)])
        service.http.cookies.clear()
        async with service.http.stream("GET", "/ui/stream", headers=held) as stream:
            assert (await service.http.post("/ui/logout", headers=held)).status_code == 303
            async with asyncio.timeout(10):
                text = "".join([part async for part in stream.aiter_text()])
        assert "this token is no longer allowed" in text
        assert (await service.http.get("/ui/rows", headers=held)).status_code == 403
        assert (await service.http.get("/ui/rows", headers=other)).status_code == 200


async def signed_out_soon(service: Service, held: dict[str, str]) -> None:
    async def is_out() -> bool:
        return (await service.http.get("/ui/rows", headers=held)).status_code == 403

    await wait_until(is_out, "the session has ended there as well")


async def test_signing_out_ends_the_session_in_every_process(valkey: Valkey) -> None:
    durations = Durations(exchange_s=0.05)
    given: dict[str, Any] = {"read_tokens": "r", "durations": durations}
    async with (
        serving(redis_addr=valkey.url, **given) as one,
        serving(redis_addr=valkey.url, **given) as two,
        serving(role="ui", distributor_url=two.url, collector_url=two.url, **given) as three,
        serving(role="ui", distributor_url=one.url, collector_url=one.url, **given) as four,
    ):
        services = (one, two, three, four)
        for leaving in (one, four):
            id_ = str(services.index(leaving)) * 22
            text = cookie_for(["r"], id_, int(time.time()) + 1000).text
            for service in services:
                held = with_cookie(service, text)
                assert (await service.http.get("/ui/rows", headers=held)).status_code == 200
            await leaving.http.post("/ui/logout", headers=with_cookie(leaving, text))
            held = with_cookie(leaving, text)
            assert (await leaving.http.get("/ui/rows", headers=held)).status_code == 403  # at once
            for service in services:
                await signed_out_soon(service, with_cookie(service, text))


async def test_who_signs_out_without_a_session_is_not_remembered(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, read_tokens="r") as service:
        guess = cookie_for(["guess"], ID, int(time.time()) + 1000).text
        answer = await service.http.post("/ui/logout", headers=with_cookie(service, guess))
        assert answer.status_code == 303
        assert not valkey.client.keys("*signed-out*")


async def test_a_page_without_its_distributor_ends_its_own_sessions(valkey: Valkey) -> None:
    durations = Durations(exchange_s=0.05)
    away = "http://127.0.0.1:9"
    async with serving(
        role="ui", distributor_url=away, collector_url=away, read_tokens="r", durations=durations
    ) as service:
        held = with_cookie(service, cookie_for(["r"], ID, int(time.time()) + 1000).text)
        assert (await service.http.get("/", headers=held)).status_code == 200
        await service.http.post("/ui/logout", headers=held)
        assert (await service.http.get("/", headers=held)).status_code == 303


async def test_streams_of_programs_go_on_when_a_session_is_signed_out(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, read_tokens="r") as service:
        bearer = {"Authorization": "Bearer r"}
        async with subscribed(service.url, bearer) as reader:
            await reader.named("hello")
            await signed_in(service, "r")
            await service.http.post("/ui/logout")
            await service.post({"source": "a", "message": "b"})
            assert len(await reader.until(1)) == 1


def test_a_sign_out_is_kept_as_long_as_a_session_may_last() -> None:
    assert SESSION_S + SLACK_S <= MAX_AHEAD_S


async def test_no_copy_outlasts_the_memory_of_its_sign_out() -> None:
    """Also where it was renewed by a process that did not know of it."""
    clock = [1_000_000.0]
    here, elsewhere = SignedOut(now=lambda: clock[0]), SignedOut(now=lambda: clock[0])
    leaving, copying = (Browser(each, read_tokens="r") for each in (here, elsewhere))
    leaving.sign_in("r")
    copying.cookie = leaving.cookie
    leaving.session.sign_out(leaving.request())
    began = clock[0]
    while copying.reads():
        clock[0] = copying.clock = copying.clock + LIFE_S / 4
        leaving.cookie, leaving.clock = copying.cookie, clock[0]
        assert not leaving.reads()
        assert clock[0] <= began + SESSION_S


@pytest.mark.parametrize("scope", ["ingest_tokens", "read_tokens", "admin_tokens"])
async def test_tokens_of_any_scope_are_signed_in_with(valkey: Valkey, scope: str) -> None:
    async with serving(redis_addr=valkey.url, **{scope: "t"}) as service:
        assert (await service.http.get("/login")).status_code == 200
        await signed_in(service, "t")
        assert 'action="/ui/logout"' in (await service.http.get("/")).text
