import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from logpipe.health import check, local_url
from logpipe.settings import load
from tests.servers import free_port


@contextmanager
def answering(data: bytes) -> Iterator[str]:
    """A server that says the same to everyone."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(data)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(5)


def http(status: str, body: bytes, *lines: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *lines]
    return "\r\n".join([*head, "", ""]).encode() + body


def test_a_ready_service_says_its_roles() -> None:
    with answering(http("200 OK", b'{"status": "ok", "roles": ["collector", "ui"]}')) as url:
        assert check(url + "/", 2) == (True, "ready: collector, ui")


def test_a_service_that_is_not_ready_says_why() -> None:
    told = b'{"status": "unavailable", "detail": "Redis: cannot be reached"}'
    with answering(http("503 Service Unavailable", told)) as url:
        assert check(url, 2) == (False, "Redis: cannot be reached")


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"\xff", b'{"detail": ""}'])
def test_an_error_without_a_reason_is_told_by_its_status(body: bytes) -> None:
    with answering(http("502 Bad Gateway", body)) as url:
        assert check(url, 2) == (False, "HTTP 502")


@pytest.mark.parametrize(
    "data",
    [
        http("200 OK", b"<html>"),
        http("200 OK", b"[]"),
        http("200 OK", b"null"),
        http("200 OK", b'{"roles": 3}'),
        http("200 OK", b"\xff\xfe"),
        b"-ERR unknown command\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{",
        b"\x00" * 100,
    ],
    ids=lambda data: repr(data[:12] + data[-8:]),
)
def test_what_does_not_answer_as_logpipe_is_not_ready(data: bytes) -> None:
    with answering(data) as url:
        ready, word = check(url, 2)
    assert not ready
    assert word
    assert "\n" not in word


def test_a_service_that_is_not_there_is_told_by_the_systems_word() -> None:
    ready, word = check(f"http://127.0.0.1:{free_port()}", 2)
    assert not ready
    assert "refused" in word


def test_a_service_that_does_not_answer_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ready, word = check(f"http://127.0.0.1:{listener.getsockname()[1]}", 0.1)
    assert not ready
    assert "timed out" in word


@pytest.mark.parametrize(
    "url", ["", "localhost:8080", "http://", "ftp://x", "http://[::1", "http://a b", "http://\n"]
)
def test_what_is_no_url_is_not_ready(url: str) -> None:
    ready, word = check(url, 0.5)
    assert not ready
    assert word


@pytest.mark.parametrize(
    ("options", "url"),
    [
        ({}, "http://127.0.0.1:8080"),
        ({"host": "0.0.0.0", "role": "collector"}, "http://127.0.0.1:8081"),
        ({"host": "::", "port": 99}, "http://[::1]:99"),
        ({"host": "::1", "port": 99}, "http://[::1]:99"),
        ({"host": "10.0.0.5", "role": "distributor"}, "http://10.0.0.5:8082"),
        ({"host": "localhost", "role": "ui,collector"}, "http://localhost:8080"),
    ],
)
def test_the_service_of_this_machine_is_found_by_its_settings(
    options: dict[str, object], url: str
) -> None:
    assert local_url(load(options, {})) == url
