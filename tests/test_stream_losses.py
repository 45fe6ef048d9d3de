"""What a stream reads while losses of its end become known, and on the way over them."""

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from logpipe.continuity import Bounds, Cursor, Gap
from logpipe.event import Entry, StoredEvent
from logpipe.ids import START, StreamId
from logpipe.redis_address import RedisAddress
from logpipe.stream import Page, Stream
from logpipe.stream.failovers import failovers_key
from logpipe.stream.stream import _located
from tests.servers import Valkey
from tests.streams import MAXLEN, NAME, address_of, event, stream_at


def an_id(ms: int) -> StreamId:
    return StreamId(ms, 0)


# -- while something is read -----------------------------------------------------------------------


class ChangingStream(Stream):
    """A stream of which something becomes known during a read, as a test says; without a server."""

    def __init__(self) -> None:
        super().__init__(RedisAddress(socket="/nowhere"), NAME, maxlen=MAXLEN)
        self.changes: list[Callable[[], object]] = []
        self.can_note = True
        self.notes = 0
        self.reads = 0

    async def _note(self) -> tuple[int, int]:
        self.notes += 1
        if self.can_note:
            self._noted = self._generation
        return self._generation

    async def found(self) -> int:
        """Which read it was."""
        self.reads += 1
        if self.changes:
            self.changes.pop(0)()
        return self.reads

    def lose_the_end(self) -> None:
        self._failovers._lows.append(an_id(5))

    def meet_another_primary(self) -> None:
        self._failovers.generation += 1


@pytest.fixture
async def changing() -> AsyncIterator[ChangingStream]:
    stream = ChangingStream()
    yield stream
    await stream.aclose()


async def test_what_was_read_while_nothing_changed_is_read_once(changing: ChangingStream) -> None:
    assert await changing._steadily(changing.found) == (1, 0)
    assert changing.notes == 1


async def test_what_was_read_while_a_loss_became_known_is_read_again(
    changing: ChangingStream,
) -> None:
    changing.changes = [changing.lose_the_end, changing.lose_the_end]
    assert await changing._steadily(changing.found) == (3, 2)


async def test_what_was_read_while_the_primary_changed_is_read_again(
    changing: ChangingStream,
) -> None:
    changing.changes = [changing.meet_another_primary]
    assert await changing._steadily(changing.found) == (2, 0)
    assert changing._noted == changing._generation


async def test_what_could_not_be_noted_before_a_read_is_noted_after_it(
    changing: ChangingStream,
) -> None:
    changing.can_note = False
    assert await changing._steadily(changing.found) == (1, 0)
    assert changing.notes == 2


async def test_the_newest_entry_that_was_read_is_the_witness_of_its_era(
    changing: ChangingStream,
) -> None:
    entry = Entry(an_id(7), b"{}", StoredEvent())

    async def read() -> Page:
        await changing.found()
        return Page(None, Cursor(START), Cursor(an_id(8)), [entry], 1)

    async def read_nothing() -> Page:
        return Page(None, Cursor(an_id(9)), Cursor(an_id(9)), [], 0)

    changing.changes = [changing.lose_the_end]
    assert (await changing._page_read_by(read)).failover_era == 1
    await changing._page_read_by(read_nothing)
    assert changing._failovers._witness == an_id(8)


# -- on the way over a loss ------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def a_stream(
    valkey: Valkey, *entries: int, ends: tuple[int, ...] = (), **more: Any
) -> AsyncIterator[Stream]:
    """A stream with an entry a millisecond, whose end was lost behind some of them."""
    for ms in entries:
        valkey.client.xadd(NAME, {"event": event(ms)}, id=f"{ms}-0")
    for end in ends:
        valkey.client.rpush(failovers_key(NAME), f"{end}-0 1")
    async with stream_at(address_of(valkey), **more) as stream:
        yield stream


def lose(valkey: Valkey, stream: Stream, end: int) -> None:
    """Another process notices a loss behind an entry, which the monitor hears of."""
    valkey.client.rpush(failovers_key(NAME), f"{end}-0 1")
    recorded: Any = valkey.client.lrange(failovers_key(NAME), 0, -1)
    stream._failovers.heard(recorded)


def a_gap(after: int, before: int) -> Gap:
    return Gap("reset", an_id(after), an_id(before), None, an_id(before).before())


def ids(page: Page) -> list[int]:
    return [entry.id.ms for entry in page.entries]


async def test_a_page_ends_at_a_loss_and_its_gap_begins_the_next(
    valkey: Valkey,
) -> None:
    async with a_stream(valkey, 1, 2, 3, 7, 8, ends=(3,)) as stream:
        first = await stream.read(Cursor(START, 0), 10)
        assert (first.gap, ids(first), first.end) == (None, [1, 2, 3], Cursor(an_id(3), 3))
        second = await stream.read(first.end, 10, failover_era=first.failover_era)
        assert (second.gap, ids(second)) == (a_gap(3, 7), [7, 8])
        assert second.end == Cursor(an_id(8))  # how many were lost is not known
        third = await stream.read(second.end, 10, failover_era=second.failover_era)
        assert (third.gap, ids(third)) == (None, [])


async def test_two_losses_with_nothing_between_them_are_one_gap(valkey: Valkey) -> None:
    async with a_stream(valkey, 1, 9, ends=(1, 5)) as stream:
        page = await stream.read(Cursor(an_id(1), 1), 10)
        assert (page.gap, ids(page)) == (a_gap(1, 9), [9])


async def test_a_loss_right_before_the_next_entry_costs_nothing(valkey: Valkey) -> None:
    valkey.client.xadd(NAME, {"event": event(1)}, id="1-1")
    async with a_stream(valkey) as stream:
        lost = StreamId(1, 0)
        valkey.client.rpush(failovers_key(NAME), f"{lost} 1")
        page = await stream.read(Cursor(lost), 10)
        assert (page.gap, [entry.id for entry in page.entries]) == (None, [StreamId(1, 1)])


@pytest.mark.parametrize("verb", ["read", "follow"])
async def test_a_reader_of_what_was_lost_goes_on_behind_the_end(valkey: Valkey, verb: str) -> None:
    """The entry of its cursor is there again, with the same id, and is another one."""
    async with a_stream(valkey, 1, 2, 3) as stream:
        page = await stream.follow(Cursor(an_id(2), 2), 10)
        assert ids(page) == [3]
        lose(valkey, stream, 2)
        valkey.client.xadd(NAME, {"event": event(4)}, id="4-0")
        after = Cursor(an_id(3), 3)
        if verb == "read":
            page = await stream.read(after, 10, failover_era=page.failover_era)
        else:
            page = await stream.follow(after, 10)
        assert (page.gap, ids(page)) == (a_gap(3, 3), [3, 4])
        assert page.failover_era == 1
        assert page.end == Cursor(an_id(4))
        again = await stream.read(page.end, 10, failover_era=page.failover_era)
        assert (again.gap, ids(again)) == (None, [])


@pytest.mark.parametrize(("after", "era"), [(2, 0), (1, 0), (3, 1), (3, None)])
async def test_a_reader_that_had_nothing_of_what_was_lost_goes_on_from_its_entry(
    valkey: Valkey, after: int, era: int | None
) -> None:
    async with a_stream(valkey, 1, 2, 3, 4) as stream:
        await stream.bounds()
        lose(valkey, stream, 2)
        page = await stream.read(Cursor(an_id(after), after), 1, failover_era=era)
        if after == 2:
            assert (page.gap, ids(page)) == (a_gap(2, 3), [3])
        else:
            assert (page.gap, ids(page)) == (None, [after + 1])
            assert page.end.position == after + 1


async def test_behind_a_loss_an_empty_stream_proves_nothing(valkey: Valkey) -> None:
    async with a_stream(valkey, 1, 2) as stream:
        await stream.bounds()
        lose(valkey, stream, 2)
        after = Cursor(an_id(5), 5)
        page = await stream.read(after, 10, failover_era=0)
        assert (page.gap, page.end, page.entries) == (None, after, [])


async def test_an_id_that_was_lost_is_told_from_one_of_another_stream(valkey: Valkey) -> None:
    async with a_stream(valkey, 1, 2, 8, 9, ends=(2,)) as stream:
        lost = await stream.read(Cursor(an_id(5)), 10)
        assert (lost.gap, ids(lost)) == (a_gap(5, 8), [8, 9])
        early = await stream.read(Cursor(StreamId(1, 5)), 10)
        assert early.gap == Gap("reset", StreamId(1, 5), an_id(1), None, an_id(1).before())


async def test_with_replicas_that_confirm_nothing_is_lost(valkey: Valkey) -> None:
    async with a_stream(valkey, 1, 2, 8, ends=(2,), ack_replicas=1) as stream:
        page = await stream.read(Cursor(an_id(1), 1), 10)
        assert (page.gap, ids(page)) == (None, [2, 8])


@pytest.mark.parametrize(
    ("after", "until", "lost"), [(1, 8, True), (2, 8, True), (2, 2, False), (8, 9, False)]
)
async def test_entries_may_be_lost_where_an_end_lies_between(
    valkey: Valkey, after: int, until: int, lost: bool
) -> None:
    async with a_stream(valkey, 1, 2, 8, 9, ends=(2,)) as stream:
        assert await stream.lost_between(an_id(after), an_id(until)) is lost


@pytest.mark.parametrize(
    ("had", "ends", "same"),
    [
        (8, (2,), 8),
        (5, (2,), 2),
        (5, (), 5),
        (12, (), 9),
        (12, (2, 9), 9),
        (5, (2, 3), 2),
        (1, (), 1),
    ],
)
async def test_up_to_where_a_stream_is_the_same(
    valkey: Valkey, had: int, ends: tuple[int, ...], same: int
) -> None:
    async with a_stream(valkey, 1, 2, 8, 9, ends=ends) as stream:
        assert await stream.same_until(an_id(had)) == an_id(same)


async def test_a_flushed_or_an_empty_stream_is_the_same_from_its_beginning(valkey: Valkey) -> None:
    async with a_stream(valkey) as stream:
        assert await stream.same_until(an_id(5)) == START
        valkey.client.xadd(NAME, {"event": event(9)}, id="9-0")
        assert await stream.same_until(an_id(5)) == START


async def test_what_a_look_at_the_bounds_sees_is_a_witness(valkey: Valkey) -> None:
    async with a_stream(valkey, 1, 2) as stream:
        assert (await stream.bounds()).newest == an_id(2)
        assert stream._failovers._witness == an_id(2)


async def test_how_many_entries_have_left_is_known(valkey: Valkey) -> None:
    async with a_stream(valkey, 1, 2, 3) as stream:
        valkey.client.xtrim(NAME, maxlen=1, approximate=False)
        assert await stream.left() == 2


async def test_what_is_known_of_losses_is_asked_once(valkey: Valkey) -> None:
    async with a_stream(valkey, 1, 2) as stream:
        await stream.read(Cursor(START), 10)
        before = commands(valkey)
        await stream.read(Cursor(an_id(1)), 10)
        await stream.lost_between(an_id(1), an_id(2))
        assert commands(valkey) == before


def commands(server: Valkey) -> int:
    """How many scripts a server has run."""
    counted: Any = server.client.info("commandstats")
    return sum(
        int(counted.get(f"cmdstat_{name}", {"calls": 0})["calls"]) for name in ("eval", "evalsha")
    )


async def test_a_full_redis_is_read_and_asked_again_until_it_can_record(valkey: Valkey) -> None:
    async with a_stream(valkey, 1, 2) as stream:
        valkey.client.config_set("maxmemory", "1mb")
        try:
            assert ids(await stream.read(Cursor(START), 10)) == [1, 2]
            assert stream._noted != stream._generation
        finally:
            valkey.client.config_set("maxmemory", "0")
        await stream.read(Cursor(START), 10)
        assert stream._noted == stream._generation


async def test_a_user_who_may_run_no_script_can_read(valkey: Valkey) -> None:
    users: Any = valkey.client
    users.execute_command("ACL", "SETUSER", "reader", "on", ">pw", "~*", "+@all", "-eval",
                          "-evalsha", "-script")  # fmt: skip
    try:
        async with a_stream(valkey, 1, 2):
            pass
        async with stream_at(address_of(valkey, username="reader", password="pw")) as stream:
            assert ids(await stream.read(Cursor(START), 10)) == [1, 2]
    finally:
        users.execute_command("ACL", "DELUSER", "reader")


# -- the feed's pages ------------------------------------------------------------------------------


async def test_the_feed_asks_for_as_many_entries_as_fit_a_page(valkey: Valkey) -> None:
    """And says where more is there than it asked for."""
    large = b'{"source":"api","message":"%b"}' % (b"x" * 60_000)
    for ms in range(1, 31):
        valkey.client.xadd(NAME, {"event": large if ms <= 20 else event(ms)}, id=f"{ms}-0")
    async with a_stream(valkey) as stream:
        cursor, pages = Cursor(START, 0), list[Page]()
        while cursor.id.ms < 30:
            pages.append(await stream.follow(cursor, 500))
            cursor = pages[-1].end
        assert [id_ for page in pages for id_ in ids(page)] == list(range(1, 31))
        assert cursor == Cursor(an_id(30), 30)
        # The first of 500 ends at its bytes; those behind it ask for as many as fit.
        assert [len(page.entries) for page in pages[:4]] == [5, 4, 4, 4]
        assert all(page.limited for page in pages[:4])
        assert not pages[-1].limited
        assert 1000 < stream._fits < 10_000
        nothing = await stream.follow(cursor, 500)
        assert (nothing.entries, nothing.limited, nothing.end) == ([], False, cursor)


# -- positions -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cursor", "first", "located"),
    [
        (Cursor(an_id(9)), 5, Cursor(an_id(9), 12)),
        (Cursor(an_id(9)), None, Cursor(an_id(9), 12)),
        (Cursor(an_id(4)), 5, Cursor(an_id(4), 9)),
        (Cursor(an_id(5)), 5, Cursor(an_id(5))),
        (Cursor(an_id(6), 2), 5, Cursor(an_id(6), 2)),
        (Cursor(an_id(4), 2), None, Cursor(an_id(4), 2)),
    ],
)
def test_bounds_tell_the_position_of_who_is_at_either_end(
    cursor: Cursor, first: int | None, located: Cursor
) -> None:
    bounds = Bounds(None if first is None else an_id(first), an_id(9), 12, 3, START)
    assert _located(cursor, bounds) == located
