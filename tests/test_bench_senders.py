"""The sending side of a benchmark: what is taken, refused, dropped, and left without an answer."""

import asyncio
import contextlib
import itertools
import json
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from logpipe.bench import senders
from logpipe.bench.events import Template
from logpipe.bench.http import Address
from logpipe.bench.senders import Recipe, Sender, Sent, sender
from logpipe.bench.target import address_of, posts
from tests.servers import Service, Valkey, free_port, serving

RUN = "0123abcd"
ACCEPTED = b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\n{}"
END = b'x"}'
IN_TIME_S = 5
"""Far above what is needed, and far below what a sender waits for at the most."""


def recipe_for(service: Service, *, per_request: int = 1, token: str = "") -> Recipe:
    address = address_of(service.url)
    media_type = "application/json" if per_request == 1 else "application/x-ndjson"
    wrap = posts(address, media_type, b"\n", token)
    return Recipe(address, Template(RUN, wrap, per_request=per_request))


async def sent_by(
    recipe: Recipe, run: Callable[[Sender], Sent], connections: int = 2, first: int = 0
) -> Sent:
    """What a sender says in the end, which runs in a thread while logpipe serves in this loop."""

    def send() -> Sent:
        with sender(recipe, connections, first) as made:
            return run(made)

    return await asyncio.to_thread(send)


Script = Callable[[socket.socket, int], None]
"""What a server does with a connection, by its number."""


def answers_all(connection: socket.socket, number: int) -> None:
    while request(connection):
        connection.sendall(ACCEPTED)


def takes_one(connection: socket.socket, number: int) -> None:
    request(connection)


def answers_one(connection: socket.socket, number: int) -> None:
    request(connection)
    connection.sendall(ACCEPTED)


def hears_all(connection: socket.socket, number: int) -> None:
    while connection.recv(1 << 20):
        pass


def request(connection: socket.socket) -> bytes:
    """The next request, which ends as an event does; nothing at the end."""
    got = b""
    while not got.endswith(END):
        more = connection.recv(65_536)
        if not more:
            return b""
        got += more
    return got


@contextlib.contextmanager
def scripted(script: Script) -> Iterator[Address]:
    """A server that does to each connection what the script says, and closes it."""
    threads: list[threading.Thread] = []

    def serve(connection: socket.socket, number: int) -> None:
        with connection, contextlib.suppress(ConnectionError):
            script(connection, number)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connection.settimeout(10)
                threads.append(threading.Thread(target=serve, args=(connection, len(threads))))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield Address("127.0.0.1", listener.getsockname()[1])
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join(10)
            for thread in threads:
                thread.join(10)


async def test_a_batch_that_is_too_large_says_what_is_accepted(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, trim_maxlen=1_000) as service:
        recipe = recipe_for(service, per_request=251)
        sent = await sent_by(recipe, lambda sender: sender.at_pace(20, 0.1))
    (reason,) = sent.refused
    assert reason.startswith("413 Event 250 is one too many: a request may have 250 events")
    assert sent.max_events == 250
    assert sent.events == 0


def says_too_large(connection: socket.socket, number: int) -> None:
    while request(connection):
        connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\n--")


async def test_a_proxy_s_413_is_shown_by_its_status() -> None:
    with scripted(says_too_large) as address:
        recipe = Recipe(address, Template(RUN, posts(address, "application/json", b"\n")))
        sent = await sent_by(recipe, lambda sender: sender.at_pace(20, 0.1))
    assert list(sent.refused) == ["413"]


@contextlib.contextmanager
def mute() -> Iterator[Address]:
    """A server that takes every connection and does nothing with it."""
    with contextlib.ExitStack() as kept:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    kept.enter_context(listener.accept()[0])

        with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
            thread = threading.Thread(target=accept)
            thread.start()
            try:
                yield Address("127.0.0.1", listener.getsockname()[1])
            finally:
                listener.shutdown(socket.SHUT_RDWR)
                thread.join(10)


def recipe(address: Address, *, answers: bool = True) -> Recipe:
    return Recipe(address, Template(RUN, b"".join), answers)


# -- to logpipe --------------------------------------------------------------------------------


@pytest.mark.parametrize("per_request", [1, 10])
async def test_all_that_is_sent_at_full_rate_is_acknowledged_and_stored(
    per_request: int, valkey: Valkey
) -> None:
    async with serving(redis_addr=valkey.url) as service:
        sent = await sent_by(
            recipe_for(service, per_request=per_request), lambda s: s.at_full_rate(0.2)
        )
    assert sent.requests > 0
    assert sorted(sent.numbers) == list(range(sent.requests))
    assert sent.events == sent.requests * per_request == valkey.client.xlen("logs")
    assert len(sent.answer_ms) == sent.requests
    assert sent.refused == {}
    assert sent.seconds >= 0.2
    assert sent.events_per_s == sent.events / sent.seconds
    assert json.loads(sent.last)


async def test_a_pace_is_kept_and_each_request_was_due_at_its_time(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url) as service:
        sent = await sent_by(recipe_for(service), lambda s: s.at_pace(50, 0.4), first=7)
    assert sorted(sent.numbers) == list(range(7, 27))
    assert (sent.requests, sent.events, sent.refused) == (20, 20, {})
    assert sent.seconds >= 0.4
    rows: Any = valkey.client.xrange("logs")
    stored = [json.loads(entry[b"event"]) for _, entry in rows]
    due = sorted(int(each["message"].split()[4]) for each in stored)
    steps = [later - earlier for earlier, later in itertools.pairwise(due)]
    assert all(0 < step < 200_000 for step in steps)
    assert 200_000 < sum(steps) < 1_000_000


async def test_what_is_refused_is_counted_by_its_status(valkey: Valkey) -> None:
    async with serving(redis_addr=valkey.url, ingest_tokens="right") as service:
        wrong = await sent_by(recipe_for(service, token="wrong"), lambda s: s.at_pace(100, 0.1))
        right = await sent_by(recipe_for(service, token="right"), lambda s: s.at_pace(100, 0.1))
    # It closes a connection that it has refused.
    assert wrong.refused.pop("403") == 2
    assert sum(wrong.refused.values()) == 2
    assert (wrong.events, wrong.numbers, wrong.last, wrong.answer_ms) == (0, [], b"", [])
    assert (right.events, right.refused) == (10, {})


@pytest.mark.parametrize("run", [Sender.at_full_rate, lambda s, t, k: s.at_pace(1000, t, k)])
async def test_it_is_told_now_and_then_how_many_events_are_in(
    run: Callable[[Sender, float, Callable[[int], None]], Sent], valkey: Valkey
) -> None:
    told: list[int] = []
    async with serving(redis_addr=valkey.url) as service:
        sent = await sent_by(recipe_for(service), lambda s: run(s, 0.35, told.append))
    assert told == sorted(told)
    assert told
    assert 0 < told[-1] <= sent.events


# -- to servers that misbehave -----------------------------------------------------------------


def test_a_closed_port_is_refused_before_anything_is_sent() -> None:
    with (
        pytest.raises(ConnectionRefusedError),
        sender(recipe(Address("127.0.0.1", free_port())), 2),
    ):
        pass


def test_a_server_that_cannot_be_reached_any_more_leaves_no_connection_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = socket.socketpair()
    found: list[socket.socket | OSError] = [ours, ConnectionRefusedError()]

    def connect(_: Address) -> socket.socket:
        if isinstance(one := found.pop(0), OSError):
            raise one
        return one

    monkeypatch.setattr(senders, "connect", connect)
    with pytest.raises(ConnectionRefusedError), sender(recipe(Address("x", 1)), 2):
        pass
    with theirs:
        assert ours.fileno() == -1


def test_no_request_is_no_rate() -> None:
    assert Sent().events_per_s == 0
    with scripted(answers_all) as address, sender(recipe(address), 1) as made:
        assert made.at_pace(1000, 0).requests == 0


def test_an_answer_that_comes_in_pieces_counts_once() -> None:
    def script(connection: socket.socket, number: int) -> None:
        while request(connection):
            connection.sendall(ACCEPTED[:20])
            time.sleep(0.005)
            connection.sendall(ACCEPTED[20:])

    with scripted(script) as address, sender(recipe(address), 1) as made:
        sent = made.at_pace(50, 0.2)
    assert (sent.events, sent.numbers, sent.refused) == (10, list(range(10)), {})


def test_a_request_whose_connection_closes_is_counted_and_the_others_go_on() -> None:
    def script(connection: socket.socket, number: int) -> None:
        (answers_all if number else takes_one)(connection, number)

    with scripted(script) as address, sender(recipe(address), 2) as made:
        sent = made.at_pace(100, 0.2)
    assert (sent.requests, sent.events, sent.refused) == (20, 19, {"closed": 1})


def test_a_server_that_answers_no_http_is_counted_by_what_it_said() -> None:
    def script(connection: socket.socket, number: int) -> None:
        request(connection)
        connection.sendall(b"-ERR what?\r\n\r\n")

    with scripted(script) as address, sender(recipe(address), 2) as made:
        sent = made.at_full_rate(IN_TIME_S)
    assert (sent.requests, sent.events) == (2, 0)
    assert sum(sent.refused.values()) == 2
    assert all("not HTTP" in reason for reason in sent.refused)
    assert sent.seconds < IN_TIME_S, "nothing is left to send with"


def test_without_a_connection_left_a_pace_ends() -> None:
    with scripted(takes_one) as address, sender(recipe(address), 2) as made:
        sent = made.at_pace(100, IN_TIME_S)
    assert (sent.requests, sent.events, sent.refused) == (2, 0, {"closed": 2})
    assert sent.seconds < IN_TIME_S


def test_a_connection_that_closes_while_it_is_idle_is_left_and_the_others_go_on() -> None:
    def script(connection: socket.socket, number: int) -> None:
        (answers_all if number else answers_one)(connection, number)

    with scripted(script) as address, sender(recipe(address), 2) as made:
        sent = made.at_pace(20, 0.5)
    assert (sent.requests, sent.events) == (10, 10)
    assert sent.refused == {"closed": 1}
    assert sent.seconds < IN_TIME_S


def test_when_all_have_closed_while_they_were_idle_the_pace_ends_and_says_so() -> None:
    with scripted(answers_one) as address, sender(recipe(address), 1) as made:
        sent = made.at_pace(10, 1)
    assert (sent.requests, sent.events) == (1, 1)
    assert sent.refused == {"closed": 1}
    assert sent.seconds < IN_TIME_S


def test_there_may_be_more_connections_than_select_can_wait_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 1500:
        pytest.skip("NOT TESTED: many connections need as many open files")
    monkeypatch.setattr(senders, "ANSWER_S", 0.1)
    with mute() as address, sender(recipe(address), 600) as made:
        sent = made.at_full_rate(0.1)
    assert (sent.requests, sum(sent.refused.values())) == (600, 600)


def test_a_request_that_cannot_be_written_is_counted() -> None:
    with scripted(answers_all) as address, sender(recipe(address), 1) as made:
        (connection,) = made._idle
        connection.sock.shutdown(socket.SHUT_WR)
        sent = made.at_full_rate(IN_TIME_S)
    assert (sent.requests, sent.events) == (1, 0)
    (reason,) = sent.refused
    assert "Broken pipe" in reason


def test_a_request_that_is_never_answered_is_counted_as_such(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(senders, "ANSWER_S", 0.1)
    done = threading.Event()

    def script(connection: socket.socket, number: int) -> None:
        request(connection)
        done.wait(10)

    with scripted(script) as address:
        with sender(recipe(address), 2) as made:
            sent = made.at_full_rate(0.1)
        done.set()
    assert (sent.requests, sent.events) == (2, 0)
    assert sent.refused == {"no answer within 0 s": 2}


# -- to servers that say nothing ---------------------------------------------------------------


def test_where_nothing_is_answered_what_is_written_is_acknowledged() -> None:
    got: list[bytes] = []

    def script(connection: socket.socket, number: int) -> None:
        connection.sendall(b"INFO {}\r\n")
        while more := request(connection):
            got.append(more)

    with scripted(script) as address, sender(recipe(address, answers=False), 2) as made:
        sent = made.at_pace(100, 0.2)
    assert (sent.requests, sent.events, sent.refused) == (20, 20, {})
    assert b"".join(got).count(f"bench {RUN} ".encode()) == 20


def test_at_full_rate_where_nothing_is_answered_it_ends_in_time() -> None:
    with scripted(hears_all) as address, sender(recipe(address, answers=False), 2) as made:
        sent = made.at_full_rate(0.1)
    assert sent.events == sent.requests > 2
    assert sent.seconds < IN_TIME_S


def test_where_nothing_is_answered_a_connection_that_closes_is_left() -> None:
    with scripted(takes_one) as address, sender(recipe(address, answers=False), 1) as made:
        sent = made.at_pace(20, 0.5)
    assert 1 <= sent.events <= sent.requests < 10
    assert sum(sent.refused.values()) == 1
    assert sent.seconds < IN_TIME_S
