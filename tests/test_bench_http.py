"""Of HTTP what a benchmark sees: answers, endless bodies, and one GET."""

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from logpipe.bench.http import Address, Answer, Answers, Body, BrokenError, connect, get
from logpipe.bench.target import address_of
from logpipe.bench.target import get as get_request
from tests.servers import Valkey, free_port, serving

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n"


def accepted(body: bytes) -> bytes:
    return b"HTTP/1.1 202 Accepted\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[left:right] for left, right in pairwise(edges)]


cuts = st.lists(st.integers(0, 100_000), max_size=12)


# -- answers -----------------------------------------------------------------------------------


def test_an_answer_that_comes_byte_by_byte_is_given_when_it_is_whole() -> None:
    answers = Answers()
    whole = accepted(b"abc")
    given_ = [answers.feed(whole[at : at + 1]) for at in range(len(whole))]
    assert given_ == [None] * (len(whole) - 1) + [Answer(202, b"abc")]


def test_of_two_answers_in_one_read_the_second_is_given_with_the_next() -> None:
    answers = Answers()
    assert answers.feed(accepted(b"1") + accepted(b"2")) == Answer(202, b"1")
    assert answers.feed(b"") == Answer(202, b"2")
    assert answers.feed(b"") is None


def test_an_answer_without_content_needs_no_length() -> None:
    assert Answers().feed(b"HTTP/1.1 204 No Content\r\n\r\n") == Answer(204, b"")


def test_an_answer_without_a_length_is_not_understood() -> None:
    with pytest.raises(BrokenError, match="without Content-Length"):
        Answers().feed(CHUNKED)


@pytest.mark.parametrize(
    "said",
    [b"-ERR unknown command\r\n\r\n", b"HTTP/2 200\r\n\r\n", b"HTTP/1.1 two\r\n\r\n", b"\r\n\r\n"],
)
def test_what_is_not_http_is_not_understood(said: bytes) -> None:
    with pytest.raises(BrokenError, match="not HTTP"):
        Answers().feed(said)


# -- bodies ------------------------------------------------------------------------------------


def body_of(*pieces: bytes, http: bool = True) -> bytes:
    body = Body(http=http)
    return b"".join(bytes(part) for piece in pieces for part in body.feed(memoryview(piece)))


chunks = st.lists(st.binary(min_size=1, max_size=40), max_size=6)
extensions = st.sampled_from([b"", b";a=b", b"; name=a-value-longer-than-what-is-looked-at", b" "])


@given(chunks, extensions, cuts)
@example([b"\r\n", b"0\r\n\r\n"], b"", list(range(100)))
def test_a_chunked_body_is_joined_again_wherever_it_is_cut(
    parts: list[bytes], extension: bytes, places: list[int]
) -> None:
    sent = CHUNKED + b"".join(b"%x%b\r\n%b\r\n" % (len(p), extension, p) for p in parts)
    assert body_of(*split(sent, places)) == b"".join(parts)


@given(st.binary(max_size=60), cuts)
def test_a_body_without_chunks_is_what_follows_the_head(sent: bytes, places: list[int]) -> None:
    assert body_of(*split(HEAD + sent, places)) == sent


@given(st.binary(max_size=60), cuts)
def test_what_is_not_http_has_no_head(sent: bytes, places: list[int]) -> None:
    assume(b"PING" not in sent)
    assert body_of(*split(sent, places), http=False) == sent


def test_what_a_broker_asks_each_client_in_turn_is_no_part_of_what_it_sends() -> None:
    pieces = [b"MSG 1\r\nPING\r\nMSG 2\r\n", b"PING\r\n", b"MSG 3\r\n"]
    assert body_of(*pieces, http=False) == b"MSG 1\r\nMSG 2\r\nMSG 3\r\n"


def test_a_body_has_begun_when_its_head_is_whole() -> None:
    body = Body()
    assert body.feed(memoryview(HEAD[:-1])) == []
    assert not body.begun
    assert body.feed(memoryview(HEAD[-1:])) == []
    assert body.begun


@pytest.mark.parametrize("status", ["401 Unauthorized", "503 Service Unavailable", "204 No"])
def test_a_body_with_another_status_is_broken_and_says_it(status: str) -> None:
    body = Body()
    with pytest.raises(BrokenError, match=status):
        body.feed(memoryview(f"HTTP/1.1 {status}\r\n\r\n".encode()))
    assert not body.begun


def test_the_end_of_a_chunked_body_is_told() -> None:
    body = Body()
    assert [bytes(p) for p in body.feed(memoryview(CHUNKED + b"2\r\nab\r\n"))] == [b"ab"]
    with pytest.raises(BrokenError, match="ended the stream"):
        body.feed(memoryview(b"0\r\n\r\n"))


@pytest.mark.parametrize("line", [b"data: not a chunk\r\n", b"\r\n", b"-5\r\n"])
def test_a_chunk_without_a_size_is_not_understood(line: bytes) -> None:
    with pytest.raises(BrokenError, match="not a chunk"):
        Body().feed(memoryview(CHUNKED + line))


# -- connections -------------------------------------------------------------------------------


@contextlib.contextmanager
def answering(said: bytes) -> Iterator[tuple[Address, list[bytes]]]:
    """A server that answers one connection with these bytes and closes; what it was sent."""
    heard: list[bytes] = []

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            heard.append(connection.recv(65_536))
            connection.sendall(said)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield Address("127.0.0.1", listener.getsockname()[1]), heard
        finally:
            thread.join(10)


async def test_a_get_is_answered_by_logpipe(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        address = address_of(service.url)
        answer = await asyncio.to_thread(get, address, "/livez")
        assert answer == Answer(200, b'{"status":"ok"}')
        assert (await asyncio.to_thread(get, address, "/nowhere")).status == 404


def test_a_get_sends_its_headers() -> None:
    with answering(accepted(b"")) as (address, heard):
        assert get(address, "/x", "Authorization: Bearer t\r\n") == Answer(202, b"")
    assert heard[0].startswith(b"GET /x HTTP/1.1\r\nHost: 127.0.0.1\r\n")
    assert b"\r\nAuthorization: Bearer t\r\n" in heard[0]


def test_a_get_whose_answer_is_cut_says_so() -> None:
    with (
        answering(accepted(b"abc")[:-1]) as (address, _),
        pytest.raises(BrokenError, match="before its answer was whole"),
    ):
        get(address, "/")


def test_a_get_gives_up_on_a_server_that_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(TimeoutError):
        get(Address("127.0.0.1", listener.getsockname()[1]), "/", timeout=0.05)


def test_a_connection_to_a_closed_port_is_refused() -> None:
    with pytest.raises(ConnectionRefusedError):
        connect(Address("127.0.0.1", free_port()))


def test_a_greeting_is_the_first_that_is_said() -> None:
    with answering(b"PONG") as (address, heard):
        with contextlib.closing(connect(address._replace(greeting=b"CONNECT {}\r\n"))) as sock:
            assert sock.recv(10) == b"PONG"
        assert heard == [b"CONNECT {}\r\n"]


def test_a_server_without_tls_is_not_spoken_to_in_plain() -> None:
    said = b"HTTP/1.1 400 Bad Request\r\n\r\n"
    with answering(said) as (address, heard), pytest.raises(ssl.SSLError):
        connect(address._replace(tls=True))
    assert b"HTTP" not in heard[0]


# -- addresses ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1:8080", Address("127.0.0.1", 8080)),
        ("http://logs.example/", Address("logs.example", 80)),
        ("https://logs.example", Address("logs.example", 443, tls=True)),
        ("https://logs.example:8443", Address("logs.example", 8443, tls=True)),
        ("http://[::1]:8080", Address("::1", 8080)),
    ],
)
def test_a_url_leads_to_an_address(url: str, address: Address) -> None:
    assert address_of(url) == address


@pytest.mark.parametrize("url", ["", "127.0.0.1:8080", "ftp://x", "http://", "http://x:70000"])
def test_a_url_that_leads_nowhere_is_refused(url: str) -> None:
    with pytest.raises(ValueError):
        address_of(url)


def test_a_subscription_is_asked_for_with_its_token() -> None:
    address = Address("h", 1)
    assert get_request(address, "/subscribe") == b"GET /subscribe HTTP/1.1\r\nHost: h:1\r\n\r\n"
    assert b"Host: [::1]:80\r\n" in get_request(address_of("http://[::1]"), "/")
    assert b"\r\nAuthorization: Bearer t\r\n\r\n" in get_request(address, "/subscribe", "t")
