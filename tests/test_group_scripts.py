"""The scripts of consumer groups, each alone: what they return, and what they leave in Redis."""

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from logpipe.ids import START, StreamId
from logpipe.problems import Unavailable
from logpipe.stream import NoGroupError, Stream
from logpipe.stream.failovers import failovers_key
from logpipe.stream.groups import FilterChangedError, Moved, StreamGroups
from logpipe.stream.scripts import companion_key
from tests.servers import Valkey
from tests.streams import NAME, address_of, event, stream_at

GROUP = "workers"
LOSSES = companion_key(NAME, "lost", GROUP)
MEMBER = "member-0123456789abcdef"
HOUR_MS = 3_600_000


@pytest.fixture
async def stream(valkey: Valkey) -> AsyncIterator[Stream]:
    async with stream_at(address_of(valkey)) as made:
        yield made


@pytest.fixture
def groups(stream: Stream) -> StreamGroups:
    return stream.groups


def put(valkey: Valkey, *ms: int) -> list[StreamId]:
    """Appends an entry at each of these milliseconds."""
    for each in ms:
        valkey.client.xadd(NAME, {"event": event(each)}, id=f"{each}-0")
    return [StreamId(each, 0) for each in ms]


def trim(valkey: Valkey, kept: int) -> None:
    valkey.client.xtrim(NAME, maxlen=kept, approximate=False)


def about(valkey: Valkey, group: str = GROUP) -> dict[str, Any]:
    """What Redis says of a group: `last-delivered-id`, `entries-read`, `lag`, `pending`."""
    found: Any = valkey.client.xinfo_groups(NAME)
    return next(each for each in found if each["name"] == group.encode())


def reached(valkey: Valkey, group: str = GROUP) -> tuple[str, int | None]:
    """How far a group has read, and how many entries Redis counts up to there."""
    found = about(valkey, group)
    return found["last-delivered-id"].decode(), found["entries-read"]


def is_now(ms: float | None) -> bool:
    """Whether a unix time is that of this minute."""
    return ms is not None and abs(ms - time.time() * 1000) < 60_000


def losses(valkey: Valkey) -> set[str]:
    """The recorded losses; each was given to a process just now, and is kept for a week."""
    found: Any = valkey.client.hgetall(LOSSES)
    now = time.time() * 1000
    assert all(now - 60_000 < int(at) < now + 60_000 for at in found.values())
    assert not found or 604_700 < valkey.client.ttl(LOSSES) <= 604_800
    return {record.decode() for record in found}


def pending(valkey: Valkey, group: str = GROUP) -> dict[str, tuple[str, int, int]]:
    """Of each pending entry: its consumer, its idle time in ms, and how often it was delivered."""
    rows: Any = valkey.client.xpending_range(NAME, group, "-", "+", 1000)
    return {
        each["message_id"].decode(): (
            each["consumer"].decode(),
            each["time_since_delivered"],
            each["times_delivered"],
        )
        for each in rows
    }


def owners(valkey: Valkey) -> list[str]:
    """The consumers of the pending entries, in the order of the entries."""
    return [consumer for consumer, _, _ in pending(valkey).values()]


def idle(valkey: Valkey) -> list[bool]:
    """Which of the pending entries any consumer may claim, in order."""
    return [ms > HOUR_MS for _, ms, _ in pending(valkey).values()]


# -- making a group --------------------------------------------------------------------------------


async def test_a_new_group_knows_how_many_entries_are_before_it(
    valkey: Valkey, groups: StreamGroups
) -> None:
    await groups.create("empty", None)
    assert reached(valkey, "empty") == ("0-0", 0)
    put(valkey, 1, 2, 3, 4, 5)
    trim(valkey, 3)
    await groups.create("newest", None)
    await groups.create("kept", START)
    await groups.create("before", StreamId(2, 0))
    await groups.create("all", START, from_the_first=True)
    await groups.create("between", StreamId(3, 0))
    assert reached(valkey, "newest") == ("5-0", 5)
    assert reached(valkey, "kept") == ("0-0", 2)
    assert reached(valkey, "before") == ("2-0", 2)
    assert reached(valkey, "all") == ("0-0", 0)
    assert reached(valkey, "between") == ("3-0", None)
    trim(valkey, 0)
    await groups.create("none", START)
    assert reached(valkey, "none") == ("0-0", 5)


async def test_a_deletion_by_hand_leaves_a_new_group_without_a_count(
    valkey: Valkey, groups: StreamGroups
) -> None:
    put(valkey, 1, 2, 3, 4, 5, 6)
    valkey.client.xdel(NAME, "2-0")
    await groups.create(GROUP, START)
    assert reached(valkey) == ("0-0", None)
    trim(valkey, 3)
    await groups.read(GROUP, "one", 1)
    assert await groups.lag(GROUP) == 2


async def test_a_group_of_logpipe_is_noted_once_and_a_lasting_one_not(
    valkey: Valkey, groups: StreamGroups
) -> None:
    made = groups.records.made
    await groups.create(GROUP, None)
    assert valkey.client.zscore(made, GROUP) is None
    await groups.create("ends", None, may_end=True)
    assert is_now(valkey.client.zscore(made, "ends"))
    valkey.client.zadd(made, {"ends": 1})
    await groups.create("ends", None, may_end=True)
    assert valkey.client.zscore(made, "ends") == 1
    await groups.create("ends", None)
    assert valkey.client.zscore(made, "ends") is None


async def test_the_record_of_a_group_that_was_made_is_kept(
    valkey: Valkey, groups: StreamGroups
) -> None:
    await groups.records.enter(GROUP, "p", 1000, None)
    assert 1000 < valkey.client.pttl(groups.records.key(GROUP)) <= 2000
    await groups.create(GROUP, None)
    assert valkey.client.pttl(groups.records.key(GROUP)) == -1


async def test_only_a_group_that_has_read_further_goes_back(
    valkey: Valkey, groups: StreamGroups
) -> None:
    one, two, three, four = put(valkey, 1, 2, 3, 4)
    await groups.create("another", four)
    await groups.create(GROUP, two)
    await groups.create(GROUP, three, go_back=True)
    await groups.create(GROUP, None, go_back=True)
    await groups.create(GROUP, one)
    assert reached(valkey)[0] == "2-0"
    await groups.create(GROUP, one, go_back=True)
    assert (reached(valkey)[0], reached(valkey, "another")[0]) == ("1-0", "4-0")


async def test_a_group_that_ended_goes_on_with_its_count(
    valkey: Valkey, groups: StreamGroups
) -> None:
    put(valkey, 1, 2, 3)
    ended = groups.records.ended
    kept = {"a": "2-0 2 7 source:x", "b": "2-0 - 7 ", "c": "3-0 3 7 ", "d": "1-0 1 7 "}
    valkey.client.hset(ended, mapping=kept)  # type: ignore[arg-type]
    for name in "abc":
        assert await groups.create(name, START, may_end=True) == []
    assert [reached(valkey, name) for name in "abc"] == [("2-0", 2), ("2-0", None), ("3-0", 3)]
    assert set(valkey.client.hgetall(ended)) == {b"d"}


async def test_a_flush_since_a_group_ended_is_recorded_as_a_loss(
    valkey: Valkey, groups: StreamGroups
) -> None:
    put(valkey, 5, 6)
    valkey.client.hset(groups.records.ended, GROUP, "7-0 2 7 ")
    record = "7-0 5-0 unknown reset"
    assert await groups.create(GROUP, None) == [record]
    assert losses(valkey) == {record}
    assert reached(valkey) == ("0-0", None)
    assert await groups.create(GROUP, None) == []


async def test_no_loss_is_recorded_where_the_stream_is_empty(
    valkey: Valkey, groups: StreamGroups
) -> None:
    for name in ("a", GROUP):
        valkey.client.hset(groups.records.ended, name, "7-0 2 7 ")
    assert await groups.create(GROUP, None) == []
    put(valkey, 5)
    trim(valkey, 0)
    assert await groups.create("a", None) == []
    assert losses(valkey) == set()


async def test_a_group_that_another_program_made_again_has_no_loss(
    valkey: Valkey, groups: StreamGroups
) -> None:
    put(valkey, 5, 6)
    valkey.client.hset(groups.records.ended, GROUP, "7-0 2 7 ")
    valkey.client.xgroup_create(NAME, GROUP, "5-0")
    assert await groups.create(GROUP, None, may_end=True) == []
    assert (losses(valkey), reached(valkey)[0]) == (set(), "5-0")
    assert valkey.client.hlen(groups.records.ended) == 1
    assert valkey.client.zcard(groups.records.made) == 0


async def test_a_group_is_not_made_in_a_full_redis(valkey: Valkey, groups: StreamGroups) -> None:
    put(valkey, 1)
    valkey.client.config_set("maxmemory", "1")
    with pytest.raises(Unavailable):
        await groups.create(GROUP, None)
    valkey.client.config_set("maxmemory", "0")
    assert valkey.client.xinfo_groups(NAME) == []


# -- reading ---------------------------------------------------------------------------------------


async def test_each_group_is_reported_its_own_exact_loss(
    valkey: Valkey, groups: StreamGroups
) -> None:
    await groups.create("a", None)
    await groups.create("b", None)
    put(valkey, 1, 2, 3)
    await groups.read("a", "one", 2)
    await groups.read("b", "one", 1)
    put(valkey, 4, 5, 6)
    trim(valkey, 2)
    for name, record in (("b", "1-0 5-0 3"), ("a", "2-0 5-0 2")):
        read = await groups.read(name, "one", 1)
        assert ([*read.losses], read.end, read.lag) == ([record], StreamId(5, 0), 1)
        assert reached(valkey, name) == ("5-0", 5)
        read = await groups.read(name, "one", 1)
        assert ([*read.losses], read.end, read.lag) == ([], StreamId(6, 0), 0)


async def test_a_loss_is_recorded_before_it_is_returned(
    valkey: Valkey, groups: StreamGroups
) -> None:
    await groups.create(GROUP, None)
    put(valkey, 1, 2, 3)
    trim(valkey, 1)
    assert [*(await groups.read(GROUP, "one", 9)).losses] == ["0-0 3-0 2"]
    assert losses(valkey) == {"0-0 3-0 2"}


async def test_a_deletion_by_hand_makes_no_exact_count(
    valkey: Valkey, groups: StreamGroups
) -> None:
    await groups.create(GROUP, None)
    put(valkey, 1, 2, 3, 4, 5, 6)
    valkey.client.xdel(NAME, "5-0")
    trim(valkey, 3)
    read = await groups.read(GROUP, "one", 1)
    assert [*read.losses] == ["0-0 3-0 unknown"]
    assert reached(valkey) == ("3-0", None)


async def test_a_group_of_another_program_has_no_loss_without_a_trim(
    valkey: Valkey, groups: StreamGroups
) -> None:
    put(valkey, 1, 2, 3)
    valkey.client.xgroup_create(NAME, GROUP, "0")
    read = await groups.read(GROUP, "one", 2)
    assert ([*read.losses], read.end) == ([], StreamId(2, 0))


async def test_ids_are_compared_by_number(valkey: Valkey, groups: StreamGroups) -> None:
    await groups.create(GROUP, None)
    texts = ("8-0", "9-0", "10-9", "10-10", "11-0", "11-1")
    for each in texts:
        valkey.client.xadd(NAME, {"event": event()}, id=each)
    await groups.read(GROUP, "one", 1)
    trim(valkey, 4)
    assert [*(await groups.read(GROUP, "one", 1)).losses] == ["8-0 10-9 1"]
    await groups.create("other", StreamId(9, 0))
    trim(valkey, 1)
    assert reached(valkey, "other") == ("9-0", 2)
    assert [*(await groups.read("other", "one", 1)).losses] == ["9-0 11-1 3"]
    await groups.create("between", StreamId(11, 0))
    assert reached(valkey, "between") == ("11-0", 5)
    assert [*(await groups.read("between", "one", 1)).losses] == []


async def test_trimming_before_a_group_began_is_no_loss(
    valkey: Valkey, groups: StreamGroups
) -> None:
    put(valkey, 1, 2, 3, 4)
    trim(valkey, 2)
    await groups.create(GROUP, START)
    assert [*(await groups.read(GROUP, "one", 9)).losses] == []
    await groups.create("between", StreamId(3, 0))
    assert [*(await groups.read("between", "one", 9)).losses] == []


async def test_an_unread_stream_that_was_trimmed_is_counted_later(
    valkey: Valkey, groups: StreamGroups
) -> None:
    await groups.create(GROUP, None)
    put(valkey, 1, 2, 3)
    trim(valkey, 0)
    read = await groups.read(GROUP, "one", 9)
    assert (read.entries, [*read.losses], read.lag) == ([], [], 0)
    put(valkey, 4)
    assert [*(await groups.read(GROUP, "one", 9)).losses] == ["0-0 4-0 3"]


async def test_a_wrong_count_is_put_right_once_all_was_read(
    valkey: Valkey, groups: StreamGroups
) -> None:
    put(valkey, 1, 2, 3, 4)
    await groups.create(GROUP, START)
    valkey.client.xgroup_setid(NAME, GROUP, "2-0", entries_read=1)
    read = await groups.read(GROUP, "one", 1)
    assert reached(valkey) == ("3-0", 2)  # not all
    read = await groups.read(GROUP, "one", 9)
    assert (reached(valkey), read.lag) == (("4-0", 4), 0)
    valkey.client.xgroup_setid(NAME, GROUP, "4-0", entries_read=1)
    read = await groups.read(GROUP, "one", 9)
    assert (reached(valkey), read.lag, read.end) == (("4-0", 4), 0, StreamId(4, 0))


async def test_two_failovers_before_a_read_are_two_losses(
    valkey: Valkey, groups: StreamGroups
) -> None:
    await groups.create(GROUP, None)
    put(valkey, 1, 2, 3, 4, 5)
    await groups.read(GROUP, "one", 1)
    ends = ("1-0 1", "9-0 2", "0-5 3", "2-5 4", "2-5 5", "4-0 6", "5-0 7")
    valkey.client.rpush(failovers_key(NAME), *ends)
    found = ["1-0 2-0 unknown reset", "2-5 3-0 unknown reset", "4-0 5-0 unknown reset"]
    read = await groups.read(GROUP, "one", 9)
    assert [*read.losses] == found
    assert losses(valkey) == {*found}
    assert [*(await groups.read(GROUP, "one", 9)).losses] == []
    put(valkey, 6)
    assert [*(await groups.read(GROUP, "one", 9)).losses] == ["5-0 6-0 unknown reset"]


async def test_with_ack_replicas_a_failover_costs_a_group_nothing(valkey: Valkey) -> None:
    async with stream_at(address_of(valkey), ack_replicas=1) as stream:
        await stream.groups.create(GROUP, None)
        put(valkey, 1, 2)
        valkey.client.rpush(failovers_key(NAME), "1-0 1")
        read = await stream.groups.read(GROUP, "one", 9)
        assert (len(read.entries), [*read.losses]) == (2, [])


async def test_nothing_is_read_by_a_filter_that_was_changed(
    valkey: Valkey, groups: StreamGroups
) -> None:
    await groups.create(GROUP, None)
    put(valkey, 1)
    entered = await groups.records.enter(GROUP, "p", 1000, "source:x")
    for generation in ("0", "2"):
        with pytest.raises(FilterChangedError):
            await groups.read(GROUP, "one", 9, generation)
        with pytest.raises(FilterChangedError):
            await groups.claim(GROUP, "one", 0, 9, generation=generation)
    assert len((await groups.read(GROUP, "one", 9, entered.generation)).entries) == 1
    claimed = await groups.claim(GROUP, "two", 0, 9, generation=entered.generation)
    assert len(claimed.entries) == 1
    with pytest.raises(NoGroupError):
        await groups.read("none", "one", 9)


async def test_a_full_redis_reads_on_past_a_loss(valkey: Valkey, groups: StreamGroups) -> None:
    await groups.create(GROUP, None)
    put(valkey, 1, 2, 3, 4)
    await groups.read(GROUP, "dead", 1)
    trim(valkey, 2)
    valkey.client.config_set("maxmemory", "1")
    read = await groups.read(GROUP, "one", 9)
    claimed = await groups.claim(GROUP, "one", 0, 9)
    assert [*read.losses] == ["1-0 3-0 1"]
    assert [entry.id.ms for entry in read.entries] == [3, 4]
    assert claimed.lost == [StreamId(1, 0)]


async def test_a_full_redis_hands_out_losses_and_lets_them_go(
    valkey: Valkey, groups: StreamGroups
) -> None:
    await groups.create(GROUP, None)
    ids = put(valkey, 1, 2)
    await groups.read(GROUP, "one", 9)
    trim(valkey, 1)
    await groups.hand_back(GROUP, ["0-5"])
    valkey.client.config_set("maxmemory", "1")
    assert [*(await groups.claim(GROUP, "two", 60_000, 9)).losses] == ["0-5"]
    await groups.lose(GROUP, ids[:1])
    assert [*pending(valkey)] == ["2-0"]


async def test_a_group_that_is_not_there_is_an_error_of_its_own(
    valkey: Valkey, groups: StreamGroups
) -> None:
    with pytest.raises(NoGroupError):
        await groups.read(GROUP, "one", 9)
    await groups.records.enter(GROUP, "p", 1000, "source:x")
    put(valkey, 1)
    with pytest.raises(NoGroupError):
        await groups.read(GROUP, "one", 9)


# -- what is pending -------------------------------------------------------------------------------


async def test_keeping_and_releasing_change_neither_order_nor_count(
    valkey: Valkey, groups: StreamGroups
) -> None:
    await groups.create(GROUP, None)
    ids = put(valkey, 1, 2, 3)
    await groups.read(GROUP, "one", 9)
    await groups.release(GROUP, "one", ids[:2])
    assert idle(valkey) == [True, True, False]
    await groups.keep(GROUP, "two", ids[1:])
    assert idle(valkey) == [True, False, False]
    assert owners(valkey) == ["one", "two", "two"]
    assert {count for _, _, count in pending(valkey).values()} == {1}


async def test_what_a_member_holds_is_not_kept_for_its_process(
    valkey: Valkey, groups: StreamGroups
) -> None:
    await groups.create(GROUP, None)
    names = (MEMBER, "member-0123456789abcdeg", "member-01", "x" * 23)
    ids = put(valkey, 1, 2, 3, 4)
    for name in names:
        await groups.read(GROUP, name, 1)
    await groups.release(GROUP, "one", ids[:1])
    assert idle(valkey)[0] is False
    await groups.keep(GROUP, "one", ids)
    assert owners(valkey) == [MEMBER, "one", "one", "one"]


async def test_what_is_trimmed_or_acknowledged_is_not_kept(
    valkey: Valkey, groups: StreamGroups
) -> None:
    await groups.create(GROUP, None)
    ids = put(valkey, 1, 2, 3)
    await groups.read(GROUP, "one", 9)
    await groups.acknowledge(GROUP, ids[1:2])
    trim(valkey, 2)
    await groups.keep(GROUP, "two", ids)
    assert owners(valkey) == ["one", "two"]


async def test_a_loss_that_one_process_sends_is_not_claimed_by_another(
    valkey: Valkey, groups: StreamGroups
) -> None:
    await groups.create(GROUP, None)
    put(valkey, 1, 2)
    await groups.hand_back(GROUP, ["1-5"])
    first = await groups.claim(GROUP, "one", 60_000, 9)
    assert [*first.losses] == ["1-5"]
    assert losses(valkey) == {"1-5"}
    second = await groups.claim(GROUP, "two", 60_000, 9)
    assert [*second.losses] == []
    await groups.told(GROUP, ["1-5"])
    assert [*(await groups.claim(GROUP, "one", 0, 9)).losses] == []


async def test_trimmed_entries_that_are_claimed_are_recorded(
    valkey: Valkey, groups: StreamGroups
) -> None:
    await groups.create(GROUP, None)
    ids = put(valkey, 1, 2, 3)
    await groups.read(GROUP, "dead", 9)
    trim(valkey, 1)
    claimed = await groups.claim(GROUP, "one", 0, 9)
    assert (claimed.lost, [entry.id for entry in claimed.entries]) == (ids[:2], ids[2:])
    assert losses(valkey) == {"1-0", "2-0"}
    assert owners(valkey) == ["one"]
    with pytest.raises(NoGroupError):
        await groups.claim("none", "one", 0, 9)


async def test_lost_entries_are_recorded_and_no_longer_pending(
    valkey: Valkey, groups: StreamGroups
) -> None:
    await groups.create(GROUP, None)
    ids = put(valkey, 1, 2, 3, 4)
    await groups.read(GROUP, "one", 9)
    await groups.lose(GROUP, ids[:3])
    assert losses(valkey) == {"1-0", "2-0", "3-0"}
    assert [*pending(valkey)] == ["4-0"]


async def test_only_what_a_consumer_has_is_moved(valkey: Valkey, groups: StreamGroups) -> None:
    await groups.create(GROUP, None)
    ids = put(valkey, *range(1, 8))
    await groups.read(GROUP, "one", 5)
    await groups.read(GROUP, "two", 1)
    valkey.client.xdel(NAME, "2-0", "4-0")
    moved = await groups.move(GROUP, "one", MEMBER, ids)
    assert moved == Moved([ids[0], ids[2], ids[4]], [ids[1], ids[3]])
    assert losses(valkey) == {"2-0", "4-0"}
    assert owners(valkey) == [MEMBER, MEMBER, MEMBER, "two"]
    assert idle(valkey) == [False] * 4
    assert await groups.move(GROUP, "one", "two", ids) == Moved([], [])
    await groups.move(GROUP, MEMBER, "one", ids[2:], idle=True)
    assert owners(valkey) == [MEMBER, "one", "one", "two"]
    assert idle(valkey) == [False, True, True, False]
    assert {count for _, _, count in pending(valkey).values()} == {1}


async def test_a_consumer_acknowledges_what_is_its_own(
    valkey: Valkey, groups: StreamGroups
) -> None:
    await groups.create(GROUP, None)
    ids = put(valkey, 1, 2, 3)
    await groups.read(GROUP, MEMBER, 2)
    await groups.read(GROUP, "two", 1)
    assert await groups.acknowledge_of(GROUP, MEMBER, [*reversed(ids)]) == [ids[1], ids[0]]
    assert owners(valkey) == ["two"]


def consumers(valkey: Valkey) -> set[str]:
    found: Any = valkey.client.xinfo_consumers(NAME, GROUP)
    return {each["name"].decode() for each in found}


async def test_idle_consumers_without_entries_are_removed(
    valkey: Valkey, groups: StreamGroups
) -> None:
    await groups.create(GROUP, None)
    put(valkey, 1)
    await groups.read(GROUP, "holds", 1)
    for name in ("one", "two", "three"):
        await groups.read(GROUP, name, 1)
    assert await groups.sweep(GROUP, "one", HOUR_MS) == 0
    assert await groups.sweep(GROUP, "one", 0) == 2
    assert consumers(valkey) == {"holds", "one"}
    await groups.leave(GROUP, "holds")
    assert consumers(valkey) == {"holds", "one"}
    await groups.read(GROUP, "two", 1)
    await groups.leave(GROUP, "one")
    assert consumers(valkey) == {"holds", "two"}
    assert await groups.sweep("none", "one", 0) == 0


# -- names -----------------------------------------------------------------------------------------


async def test_a_name_is_given_back_by_its_holder_alone(
    valkey: Valkey, groups: StreamGroups
) -> None:
    key = companion_key(NAME, "consumer", "dist")
    assert await groups.hold("dist", "p", 60_000)
    assert 50_000 < valkey.client.pttl(key) <= 60_000
    assert await groups.hold("dist", "p", 90_000)
    assert valkey.client.pttl(key) > 60_000
    assert not await groups.hold("dist", "q", 60_000)
    await groups.let_go("dist", "q")
    assert not await groups.hold("dist", "q", 60_000)
    await groups.let_go("dist", "p")
    assert await groups.hold("dist", "q", 60_000)


# -- records ---------------------------------------------------------------------------------------


async def test_members_of_one_process_keep_the_filter_from_others(
    valkey: Valkey, groups: StreamGroups
) -> None:
    enter, exit_ = groups.records.enter, groups.records.exit
    assert await enter(GROUP, "p", HOUR_MS, "source:a") == (True, "source:a", "1", False)
    assert await enter(GROUP, "q", HOUR_MS, "source:b") == (False, "source:a", "1", True)
    assert await enter(GROUP, "q", HOUR_MS, None) == (True, "source:a", "1", False)
    assert await enter(GROUP, "q", HOUR_MS, "source:a") == (True, "source:a", "1", False)
    await exit_(GROUP, "p")
    assert await enter(GROUP, "r", HOUR_MS, "source:b") == (False, "source:a", "1", True)
    await exit_(GROUP, "q")
    assert await enter(GROUP, "r", HOUR_MS, "source:b") == (True, "source:b", "2", False)
    replaced = await enter(GROUP, "s", HOUR_MS, "source:c", replace=True)
    assert replaced == (True, "source:c", "3", False)
    assert await enter(GROUP, "s", HOUR_MS, "", replace=True) == (True, "", "4", False)


async def test_a_process_counts_until_its_time_is_over(
    valkey: Valkey, groups: StreamGroups
) -> None:
    key = groups.records.key(GROUP)
    await groups.records.enter(GROUP, "p", HOUR_MS, "source:a")
    until: Any = valkey.client.hget(key, "@p")
    assert abs(int(until) - time.time() * 1000 - HOUR_MS) < 60_000
    valkey.client.hset(key, "@p", round(time.time() * 1000) - 1)
    assert (await groups.records.enter(GROUP, "q", HOUR_MS, "source:b")).admitted
    assert set(valkey.client.hgetall(key)) == {b"filter", b"generation", b"@q"}


async def test_a_group_is_known_as_made_by_its_record_or_by_redis(
    valkey: Valkey, groups: StreamGroups
) -> None:
    enter, key = groups.records.enter, groups.records.key(GROUP)
    assert not (await enter(GROUP, "p", 1000, None)).made
    await groups.create("another", None)
    assert not (await enter(GROUP, "p", 1000, None)).made
    assert valkey.client.pttl(key) <= 2000
    valkey.client.persist(key)
    assert (await enter(GROUP, "p", 1000, None)).made
    assert valkey.client.pttl(key) == -1
    assert (await enter("another", "p", 1000, None)).made
    assert valkey.client.pttl(groups.records.key("another")) == -1


async def test_coming_and_going_are_noted_of_groups_of_logpipe_alone(
    valkey: Valkey, groups: StreamGroups
) -> None:
    made = groups.records.made
    valkey.client.zadd(made, {GROUP: 1})
    await groups.records.enter(GROUP, "p", HOUR_MS, None)
    assert is_now(valkey.client.zscore(made, GROUP))
    valkey.client.zadd(made, {GROUP: 1})
    await groups.records.exit(GROUP, "p")
    assert is_now(valkey.client.zscore(made, GROUP))
    await groups.records.enter("other", "p", HOUR_MS, None)
    await groups.records.exit("other", "p")
    assert valkey.client.zcard(made) == 1


async def test_the_filter_of_a_group_that_ended_is_the_first_choice(
    valkey: Valkey, groups: StreamGroups
) -> None:
    for name in ("a", "b"):
        valkey.client.hset(groups.records.ended, name, "1-1 2 3 source:a b")
    taken = await groups.records.enter("a", "p", HOUR_MS, None)
    assert (taken.filter, taken.generation) == ("source:a b", "1")
    chosen = await groups.records.enter("b", "p", HOUR_MS, "source:c")
    assert (chosen.admitted, chosen.filter) == (True, "source:c")


async def test_a_full_redis_admits_by_the_stored_filter(
    valkey: Valkey, groups: StreamGroups
) -> None:
    enter = groups.records.enter
    valkey.client.hset(groups.records.ended, "b", "1-1 2 3 source:b")
    await enter(GROUP, "p", HOUR_MS, "source:a")
    await groups.records.exit(GROUP, "p")
    valkey.client.config_set("maxmemory", "1")
    assert await enter(GROUP, "q", HOUR_MS, "source:b") == (False, "source:a", "1", True)
    assert (await enter(GROUP, "q", HOUR_MS, None)).admitted
    assert (await enter("b", "q", HOUR_MS, None))[:3] == (True, "source:b", "0")


async def test_groups_are_due_by_age_and_by_number(valkey: Valkey, groups: StreamGroups) -> None:
    now = round(time.time() * 1000)
    ages = {"a": 30 * HOUR_MS, "b": 20 * HOUR_MS, "c": 10 * HOUR_MS, "d": 0}
    scores = {name: now - age for name, age in ages.items()}
    valkey.client.zadd(groups.records.made, scores)
    due = groups.records.due
    assert await due(25 * HOUR_MS, 9) == ["a"]
    assert await due(25 * HOUR_MS, 4) == ["a"]
    assert await due(25 * HOUR_MS, 3) == ["a"]
    assert await due(25 * HOUR_MS, 2) == ["a", "b"]
    assert await due(40 * HOUR_MS, 3) == ["a"]
    assert await due(5 * HOUR_MS, 3) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("oldest", "before"),
    [
        ("5-3", "5-2"),
        ("5-10", "5-9"),
        ("5-0", "4-18446744073709551615"),
        ("5-999999999999999", "5-999999999999998"),
        ("5-1000000000000000", "5-0"),
        ("0-1", "0-0"),
        ("999999999999999-0", "999999999999998-18446744073709551615"),
        ("1000000000000000-0", "0-0"),
    ],
)
async def test_a_group_ends_before_its_oldest_pending_entry(
    valkey: Valkey, groups: StreamGroups, oldest: str, before: str
) -> None:
    valkey.client.xadd(NAME, {"event": event()}, id=oldest)
    await groups.create(GROUP, START)
    await groups.read(GROUP, "one", 1)
    assert await groups.records.end(GROUP)
    kept: Any = valkey.client.hget(groups.records.ended, GROUP)
    assert kept.decode().split(" ")[:2] == [before, "-"]


async def test_a_group_that_ends_leaves_its_place_and_filter(
    valkey: Valkey, groups: StreamGroups
) -> None:
    ids = put(valkey, 1, 2, 3)
    await groups.create("a", None)
    await groups.create(GROUP, START, may_end=True)
    await groups.create("z", None)
    await groups.read(GROUP, "one", 2)
    await groups.acknowledge(GROUP, ids)
    await groups.records.enter(GROUP, "p", HOUR_MS, "source:a b")
    assert not await groups.records.end(GROUP)
    await groups.records.exit(GROUP, "p")
    assert await groups.records.end(GROUP)
    kept: Any = valkey.client.hget(groups.records.ended, GROUP)
    after, read, at, chosen = kept.decode().split(" ", 3)
    assert (after, read, chosen) == ("2-0", "2", "source:a b")
    assert abs(int(at) - time.time() * 1000) < 60_000
    assert not valkey.client.exists(groups.records.key(GROUP), groups.records.made)
    assert {each["name"] for each in valkey.client.xinfo_groups(NAME)} == {b"a", b"z"}
    with pytest.raises(NoGroupError):
        await groups.records.end(GROUP)
    valkey.client.xgroup_create(NAME, "unknown", "2-0")
    await groups.records.end("unknown")
    kept = valkey.client.hget(groups.records.ended, "unknown")
    assert kept.decode().startswith("2-0 - ")


async def test_of_many_ended_groups_the_first_to_end_is_forgotten(
    valkey: Valkey, groups: StreamGroups
) -> None:
    ended = groups.records.ended
    valkey.client.hset(ended, mapping={"x": "9-0 9 20 ", "old": "99-0 99 10 ", "y": "1-0 1 30 "})
    put(valkey, 1)
    for name, most in (("a", 4), ("b", 4)):
        await groups.create(name, None)
        assert await groups.records.end(name, most)
        assert (valkey.client.hexists(ended, "old")) is (name == "a")
    assert set(valkey.client.hgetall(ended)) == {b"x", b"y", b"a", b"b"}


async def test_a_group_does_not_end_where_its_place_cannot_be_kept(
    valkey: Valkey, groups: StreamGroups
) -> None:
    await groups.create(GROUP, None, may_end=True)
    valkey.client.config_set("maxmemory", "1")
    with pytest.raises(Unavailable):
        await groups.records.end(GROUP)
    valkey.client.config_set("maxmemory", "0")
    assert [each["name"] for each in valkey.client.xinfo_groups(NAME)] == [GROUP.encode()]
    assert valkey.client.zcard(groups.records.made) == 1
