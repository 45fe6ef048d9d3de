"""The events of a benchmark, and how what arrives is compared and looked through."""

import contextlib
import json
import socket
from collections.abc import Iterator, Sequence
from itertools import pairwise, zip_longest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logpipe.bench.events import Mark, Marks, Template
from logpipe.bench.reference import Reference, Subscriber

RUN = "0123abcd"
OTHER_RUN = "ffffffff"
DUE_US = 1_700_000_000_000_000


def lines(events: Sequence[bytes]) -> bytes:
    return b"\n".join(events)


def request(number: int, *, run: str = RUN, per_request: int = 1, size: int = 200) -> bytes:
    template = Template(run, lines, per_request=per_request, size=size)
    return template.request(number, DUE_US + number)


def event(number: int, *, run: str = RUN) -> bytes:
    """An event as a subscription sends it."""
    return b"id: %d-0\ndata: %b\n\n" % (number, request(number, run=run, size=120))


def mark(number: int) -> Mark:
    return Mark(number, DUE_US + number)


def split(data: bytes, cuts: list[int]) -> list[memoryview]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [memoryview(data[left:right]) for left, right in pairwise(edges)]


cuts = st.lists(st.integers(0, 100_000), max_size=12)


# -- requests ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [150, 200, 1000])
def test_each_event_is_json_of_the_size_that_was_asked_for(size: int) -> None:
    events = request(7, per_request=3, size=size).split(b"\n")
    assert [len(each) for each in events] == [size] * 3
    for each in events:
        parsed = json.loads(each)
        assert (parsed["source"], parsed["level"]) == ("bench", "INFO")


def test_a_size_that_is_too_small_for_the_mark_is_exceeded() -> None:
    (small,) = request(1, size=1).split(b"\n")
    assert json.loads(small)["message"].startswith(f"bench {RUN} ")
    assert Marks(RUN).find(small) == [(len(small) - 2, mark(1))]


def test_a_request_is_as_long_whatever_its_number_and_time() -> None:
    template = Template(RUN, lines, per_request=2)
    found = {len(template.request(n, t)) for n in (0, 9, 99_999_999) for t in (0, DUE_US)}
    assert len(found) == 1


def test_the_events_of_requests_are_numbered_on_and_carry_the_time_of_their_request() -> None:
    template = Template(RUN, lines, per_request=3)
    sent = template.request(0, DUE_US) + template.request(1, DUE_US + 5)
    found = [each for _, each in Marks(RUN, 3).find(sent)]
    assert [each.number for each in found] == [0, 1, 2, 3, 4, 5]
    assert [each.due_us - DUE_US for each in found] == [0, 0, 0, 5, 5, 5]


# -- marks -------------------------------------------------------------------------------------


def test_a_mark_is_found_when_it_is_whole_and_not_before() -> None:
    text = event(3)
    ((end, found),) = Marks(RUN).find(text)
    assert found == mark(3)
    assert text[end - Marks.LENGTH : end].startswith(b"bench ")
    assert Marks(RUN).find(text[: end - 1]) == []
    assert Marks(RUN).find(text[:end]) == [(end, found)]


def test_a_mark_that_begins_before_the_start_is_not_found_again() -> None:
    text = event(1) + event(2)
    first, second = Marks(RUN).find(text)
    assert Marks(RUN).find(text, first[0]) == [second]
    assert Marks(RUN).find(text, first[0] - Marks.LENGTH) == [first, second]
    assert Marks(RUN).find(text, first[0] - Marks.LENGTH + 1) == [second]


def test_the_marks_of_other_runs_are_none() -> None:
    text = event(1, run=OTHER_RUN) + event(2) + event(3, run=OTHER_RUN)
    assert [found for _, found in Marks(RUN).find(text)] == [mark(2)]


# -- what arrives ------------------------------------------------------------------------------


class Following:
    """Subscribers of one reference, judged as a process of readers judges its own."""

    def __init__(self) -> None:
        self.marks = Marks(RUN)
        self.reference = Reference(self.marks)
        self.subscribers: list[Subscriber] = []
        self._sockets: list[socket.socket] = []

    def subscriber(self, *, timed: bool = False) -> Subscriber:
        sock = socket.socket()
        self._sockets.append(sock)
        one = Subscriber(sock, self.reference, self.marks, http=False, timed=timed)
        self.subscribers.append(one)
        return one

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()


@pytest.fixture
def following() -> Iterator[Following]:
    with contextlib.closing(Following()) as made:
        yield made


def take(one: Subscriber, *pieces: bytes | memoryview, now_us: int = 0) -> None:
    for piece in pieces:
        one.take(memoryview(piece), now_us)


def numbers(one: Subscriber) -> list[int]:
    """What it has had, from the reference and by itself."""
    shared = [
        found.number
        for end, found in zip(one.reference.ends, one.reference.marks, strict=True)
        if end <= one.offset
    ]
    return shared + [found.number for _, found in one.own]


@given(st.lists(st.sampled_from([RUN, OTHER_RUN]), max_size=6), cuts)
def test_a_reference_sees_each_mark_once_wherever_the_stream_is_cut(
    runs: list[str], places: list[int]
) -> None:
    stream = b": hello\n\n" + b"".join(event(n, run=run) for n, run in enumerate(runs))
    reference = Reference(Marks(RUN))
    for piece in split(stream, places):
        reference.extend(piece)
        reference.let_go(reference.end)
    assert reference.marks == [mark(n) for n, run in enumerate(runs) if run == RUN]
    assert reference.end == len(stream)
    for end in reference.ends:
        assert stream[:end].endswith(b" ")


streams = st.lists(st.integers(0, 5), max_size=6)


@given(streams, st.data(), cuts, cuts)
def test_each_subscriber_sees_its_own_marks_once_wherever_it_is_cut_and_where_it_differs(
    leading: list[int], data: st.DataObject, places: list[int], others: list[int]
) -> None:
    same = data.draw(st.integers(0, len(leading)))
    second = leading[:same] + data.draw(streams)
    at_once = data.draw(st.booleans(), label="at once")
    with contextlib.closing(Following()) as following:
        leader, follower = following.subscriber(), following.subscriber()
        turns = [
            [(one, piece) for piece in split(b"".join(map(event, wanted)), cut_at)]
            for one, wanted, cut_at in ((leader, leading, places), (follower, second, others))
        ]
        order = zip_longest(*turns) if at_once else iter(turns)
        for one, piece in (turn for both in order for turn in both if turn):
            one.take(piece, 0)
            following.reference.let_go(min(leader.needs, follower.needs))
        assert numbers(leader) == leading
        assert numbers(follower) == second


def test_subscribers_with_equal_bytes_need_one_copy_of_them(following: Following) -> None:
    stream = event(0) + event(1)
    first, second = following.subscriber(), following.subscriber()
    take(first, stream)
    take(second, stream[:50], stream[50:])
    assert bytes(following.reference.data) == stream
    assert not first.differs and not second.differs
    assert first.own == second.own == []
    assert numbers(first) == numbers(second) == [0, 1]


def test_whoever_is_ahead_extends_the_reference(following: Following) -> None:
    first, second = following.subscriber(), following.subscriber()
    take(first, event(0))
    take(second, event(0) + event(1))
    take(first, event(1) + event(2))
    assert numbers(first) == [0, 1, 2]
    assert numbers(second) == [0, 1]
    assert not first.differs and not second.differs


def test_one_that_lost_an_event_is_looked_through_by_itself(following: Following) -> None:
    first, second = following.subscriber(), following.subscriber()
    take(first, *(event(n) for n in range(4)))
    take(second, event(0), event(2), event(3))
    assert (first.differs, second.differs) == (False, True)
    assert numbers(first) == [0, 1, 2, 3]
    assert numbers(second) == [0, 2, 3]


def test_one_that_got_an_event_twice_is_looked_through_by_itself(following: Following) -> None:
    first, second = following.subscriber(), following.subscriber()
    take(first, event(0) + event(1) + event(2))
    take(second, event(0) + event(1) + event(1) + event(2))
    assert second.differs
    assert numbers(second) == [0, 1, 1, 2]


def test_a_mark_is_seen_where_a_subscriber_leaves_in_the_middle_of_it(
    following: Following,
) -> None:
    first, second = following.subscriber(), following.subscriber()
    one, other = event(0) + event(11), event(0) + event(12)
    ((_, _), (end, _)) = Marks(RUN).find(other)
    take(first, one)
    take(second, other[: end - 20], other[end - 20 :])
    assert second.differs
    assert numbers(second) == [0, 12]


def test_a_mark_is_seen_once_where_a_subscriber_leaves_right_behind_it(
    following: Following,
) -> None:
    first, second = following.subscriber(), following.subscriber()
    same = event(0)
    ((end, _),) = Marks(RUN).find(same)
    take(first, same + event(1))
    take(second, same[:end], same[end:] + event(2))
    assert second.differs
    assert numbers(second) == [0, 2]


def test_what_is_timed_is_when_each_piece_came(following: Following) -> None:
    first, second = following.subscriber(timed=True), following.subscriber()
    take(first, event(0), now_us=5)
    take(first, event(1), now_us=9)
    take(second, event(0), now_us=7)
    assert first.timed == [(5, len(event(0))), (9, len(event(0) + event(1)))]
    assert second.timed is None


def test_a_reference_lets_go_only_what_all_have_had(following: Following) -> None:
    first, second = following.subscriber(), following.subscriber()
    stream = b"".join(event(n) for n in range(100))
    take(first, stream)
    take(second, event(0))
    following.reference.let_go(min(first.needs, second.needs))
    assert len(following.reference.data) > len(stream) - len(event(0))
    take(second, stream[len(event(0)) :])
    following.reference.let_go(min(first.needs, second.needs))
    assert len(following.reference.data) <= Marks.LENGTH
    assert following.reference.end == len(stream)
    assert numbers(first) == numbers(second) == list(range(100))


def test_one_that_differs_needs_nothing_of_the_reference(following: Following) -> None:
    first, second = following.subscriber(), following.subscriber()
    take(first, event(0) + event(1))
    take(second, event(1))
    take(first, event(2))
    assert second.needs == following.reference.end
    assert first.needs == following.reference.end - Marks.LENGTH


def test_letting_go_what_is_gone_does_nothing(following: Following) -> None:
    one = following.subscriber()
    take(one, event(0) + event(1))
    following.reference.let_go(one.needs)
    kept = bytes(following.reference.data)
    following.reference.let_go(0)
    assert bytes(following.reference.data) == kept
