from hypothesis import given
from hypothesis import strategies as st

from logpipe.continuity import Cursor
from logpipe.event import Entry, StoredEvent
from logpipe.fanout import shelf as module
from logpipe.fanout.shelf import KEPT_CHUNKS, Shelf
from logpipe.fanout.streaming import SSE
from logpipe.filters import EVERYTHING
from logpipe.ids import StreamId
from logpipe.messages import Batch


def entry(number: int) -> Entry:
    return Entry(StreamId(number, 0), b"x" * 100, StoredEvent())


def batch(after: int, last: int) -> Batch:
    """The entries behind `after`, up to `last`."""
    entries = [entry(number) for number in range(after + 1, last + 1)]
    return Batch(Cursor(StreamId(after, 0)), Cursor(StreamId(last, 0)), entries)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_page_is_found_by_its_start_and_by_each_of_its_entries_but_the_last() -> None:
    shelf, page = Shelf(), batch(10, 20)
    shelf.put(page)
    assert [n for n in range(30) if shelf.get(StreamId(n, 0)) is page] == list(range(10, 20))


def test_an_id_between_the_entries_of_a_page_may_be_of_another_stream() -> None:
    shelf = Shelf()
    shelf.put(batch(10, 20))
    assert shelf.get(StreamId(15, 7)) is None


def test_what_nobody_asks_for_is_let_go_and_what_is_asked_for_stays() -> None:
    clock = Clock()
    shelf, wanted, other = Shelf(clock), batch(0, 5), batch(5, 9)
    shelf.put(wanted)
    shelf.put(other)
    clock.now = module.KEPT_S - 1
    assert shelf.get(StreamId(0, 0)) is wanted
    clock.now = module.KEPT_S + 1
    shelf.let_go()
    assert shelf.get(StreamId(5, 0)) is None
    assert shelf.get(StreamId(0, 0)) is wanted
    shelf.clear()
    assert (shelf.get(StreamId(0, 0)), shelf.bytes) == (None, 0)


def test_chunks_of_few_pages_are_kept() -> None:
    shelf = Shelf()
    pages = [batch(number, number + 1) for number in range(3 * KEPT_CHUNKS)]
    for page in pages:
        shelf.put(page)
    for page in pages:
        assert page.chunk(SSE, EVERYTHING) is page.chunk(SSE, EVERYTHING)
    assert sum(bool(page._chunks) for page in pages) == KEPT_CHUNKS
    shelf.clear()
    assert not shelf._keepers._batches


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 30)), max_size=30))
def test_its_bytes_are_bounded_and_what_it_gives_follows_the_cursor(
    pages: list[tuple[int, int]],
) -> None:
    shelf = Shelf(max_bytes=8_000)
    for after, count in pages:
        shelf.put(batch(after, after + count))
        assert shelf.bytes <= 8_000
    for number in range(90):
        found = shelf.get(StreamId(number, 0))
        if found is not None:
            assert found.start.id <= StreamId(number, 0) < found.end.id


def test_a_page_that_was_read_again_takes_the_place_of_the_first() -> None:
    shelf, second = Shelf(), batch(10, 14)
    shelf.put(batch(10, 20))
    shelf.put(batch(20, 30))
    shelf.put(second)
    assert shelf.get(StreamId(10, 0)) is second
    assert shelf.get(StreamId(15, 0)) is None
    assert shelf.bytes == second.weight + batch(20, 30).weight
    shelf.clear()
    assert shelf.bytes == 0


def test_pages_are_found_in_whichever_order_they_came() -> None:
    shelf, pages = Shelf(), [batch(after, after + 10) for after in (30, 10, 20)]
    for page in pages:
        shelf.put(page)
    assert [shelf.get(StreamId(number, 0)) for number in (35, 15, 25)] == pages
    assert shelf.get(StreamId(9, 0)) is None
    assert shelf.get(StreamId(40, 0)) is None


def test_the_page_that_was_used_longest_ago_makes_room() -> None:
    pages = [batch(after, after + 10) for after in (10, 20, 30)]
    shelf = Shelf(max_bytes=2 * pages[0].weight)
    for page in pages[:2]:
        shelf.put(page)
    assert shelf.get(StreamId(10, 0)) is pages[0]
    shelf.put(pages[2])
    found = [shelf.get(StreamId(number, 0)) for number in (10, 20, 30)]
    assert found == [pages[0], None, pages[2]]
    assert shelf.bytes == 2 * pages[0].weight


def test_one_page_is_kept_however_large_it_is() -> None:
    shelf, page = Shelf(max_bytes=1), batch(10, 20)
    shelf.put(batch(20, 30))
    shelf.put(page)
    assert shelf.get(StreamId(10, 0)) is page
    assert shelf.get(StreamId(20, 0)) is None


def test_a_page_that_was_just_asked_for_is_not_let_go() -> None:
    clock = Clock()
    shelf, page = Shelf(clock), batch(0, 5)
    shelf.put(page)
    clock.now = module.KEPT_S
    shelf.let_go()
    assert shelf.get(StreamId(0, 0)) is page
    clock.now = 2 * module.KEPT_S
    shelf.let_go()
    assert shelf.get(StreamId(0, 0)) is page
