import asyncio
from typing import cast

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from logpipe.wire import Wire


class Cycle:
    """Stands in for uvicorn's cycle of a request."""

    disconnected = False

    def __init__(self, method: str) -> None:
        self.scope = {"method": method}


class Written:
    """Stands in for a transport, and keeps the cycle, as the task of a request does."""

    def __init__(self, cycle: Cycle) -> None:
        self.cycle = cycle
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def close(self) -> None:
        self.closed = True

    def get_extra_info(self, name: str) -> None:
        """It is not encrypted."""

    def is_closing(self) -> bool:
        return self.closed

    def set_write_buffer_limits(self, high: int) -> None:
        assert high == 0


def a_wire(method: str = "GET") -> tuple[Written, Wire]:
    cycle = Cycle(method)
    written = Written(cycle)
    wire = Wire(cast(RequestResponseCycle, cycle), cast(asyncio.Transport, written))
    return written, wire


def test_the_head_of_a_response_and_its_body_are_one_write() -> None:
    """Each write is a system call of its own, and half of what a small answer costs."""
    written, wire = a_wire()
    for data in (b"HTTP/1.1 200 OK\r\n\r\n", b"first", b"second"):
        wire.write(data)
    assert written.writes == [b"HTTP/1.1 200 OK\r\n\r\nfirst", b"second"]


def test_what_may_not_wait_for_a_body_does_not() -> None:
    written, wire = a_wire()
    wire.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    wire.write(b"HTTP/1.1 200 OK\r\n\r\n")
    assert written.writes == [b"HTTP/1.1 100 Continue\r\n\r\n"]
    wire.begin_stream()
    wire.write(b"later")
    assert written.writes[1:] == [b"HTTP/1.1 200 OK\r\n\r\n", b"later"]


def test_a_stream_whose_reader_has_left_before_its_head_writes_nothing() -> None:
    """A write to a transport that is closed is an error."""
    written, wire = a_wire()
    wire.write(b"HTTP/1.1 200 OK\r\n\r\n")
    written.close()
    wire.begin_stream()
    assert written.writes == []


def test_a_response_that_breaks_off_behind_its_head_still_shows_it() -> None:
    written, wire = a_wire()
    wire.write(b"HTTP/1.1 200 OK\r\n\r\n")
    wire.close()
    assert written.writes == [b"HTTP/1.1 200 OK\r\n\r\n"]
    assert written.closed


def test_a_response_to_head_does_not_wait_for_a_body() -> None:
    written, wire = a_wire("HEAD")
    wire.write(b"HTTP/1.1 200 OK\r\n\r\n")
    assert written.writes == [b"HTTP/1.1 200 OK\r\n\r\n"]


def test_nothing_is_written_to_a_connection_that_is_gone() -> None:
    written, wire = a_wire()
    written.closed = True
    wire.write(b"HTTP/1.1 200 OK\r\n\r\n")
    wire.write(b"body")
    wire.respond(202, b"text/plain", b"body")
    wire.close()
    assert written.writes == []
