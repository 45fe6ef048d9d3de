"""Who may use the page: tokens, the cookie for them, and what has neither."""

import httpx
import pytest

from logpipe.ui.session import COOKIE, proof
from tests.servers import Service, Valkey, serving
from tests.ui.pieces import FORM, stored


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
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "samesite=strict" in cookie.lower()
        assert "path=/" in cookie.lower()
        assert "secret-token" not in cookie
        assert proof("secret-token") in cookie
        assert proof("secret-token") != proof("secret-tokem")


async def test_a_token_taken_off_the_list_ends_its_cookie(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, read_tokens="new") as service:
        service.http.cookies.set(COOKIE, proof("old"))
        assert (await service.http.get("/")).status_code == 303
        assert (await service.http.get("/ui/stream")).status_code == 403


@pytest.mark.parametrize("cookie", ["", ".", "....", "x" * 4000, "new", "r.r.r.r.r"])
async def test_a_made_up_cookie_opens_nothing(valkey: Valkey, cookie: str) -> None:
    async with serving(redis_addr=valkey.url, read_tokens="r") as service:
        answer = await service.http.get("/", headers={"Cookie": f"{COOKIE}={cookie}"})
        assert answer.status_code == 303


async def test_a_proof_is_no_token(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, read_tokens="r") as service:
        bearer = {"Authorization": f"Bearer {proof('r')}"}
        assert (await service.http.get("/ui/stream", headers=bearer)).status_code == 403
        assert (await service.http.post("/login", data={"token": proof("r")})).status_code == 403


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
        assert len(service.http.cookies[COOKIE]) < 300
        assert (await service.http.get("/")).status_code == 200
