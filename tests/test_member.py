from logpipe.groups.member import HEAD_START_S, Member, Members, is_member_id
from logpipe.ids import StreamId


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def ids(*seconds: int) -> list[StreamId]:
    return [StreamId(second, 0) for second in seconds]


def test_a_member_has_an_id_of_its_own_that_can_be_told_from_names() -> None:
    one, two = Member(1), Member(1)
    assert one.id != two.id
    assert is_member_id(one.id)
    assert not any(map(is_member_id, ("", "dist-1", "member-", one.id + "0", f"x{one.id}")))


def test_a_member_has_room_for_what_it_does_not_hold() -> None:
    member = Member(30, 3)
    assert member.room == 3
    member.hold(ids(1, 2))
    assert member.room == 1
    member.hold(ids(3, 4))
    assert member.room == 0
    member.let_go(ids(1, 3, 9))
    assert member.room == 1
    assert [*member.held] == ids(2, 4)


def test_entries_are_overdue_once_their_time_has_passed() -> None:
    clock = Clock()
    member = Member(10, now=clock)
    member.hold(ids(1))
    clock.now += 5
    member.hold(ids(2))
    assert member.overdue() == []
    assert not member.late
    assert member.next_end_s == 5
    clock.now += 5
    assert member.overdue() == ids(1)
    clock.now += 5
    assert member.overdue() == ids(1, 2)


def test_a_member_knows_for_how_long_it_has_held_its_first_entry() -> None:
    clock = Clock()
    member = Member(10, now=clock)
    assert member.held_s == 0
    member.hold(ids(1))
    clock.now += 5
    member.hold(ids(2))
    clock.now += 5
    assert member.held_s == 10
    member.let_go(ids(1))
    assert member.held_s == 5
    member.let_go(ids(2))
    assert member.held_s == 0


def test_a_member_that_was_late_comes_last_for_a_while() -> None:
    clock = Clock()
    member = Member(10, now=clock)
    member.hold(ids(1))
    clock.now += 10
    member.overdue()
    assert member.late
    clock.now += HEAD_START_S
    assert not member.late


def test_members_of_a_process_share_what_they_may_hold() -> None:
    members = Members(most=10)
    one, two = Member(30, 100), Member(30, 100)
    members.add(one)
    members.add(two)
    one.hold(ids(*range(8)))
    assert (members.held, one.room, two.room) == (8, 92, 100)
    two.hold(ids(8, 9))
    assert (members.held, one.room, two.room) == (10, 0, 3)
    one.let_go(ids(*range(8)))
    assert (members.held, one.room, two.room) == (2, 100, 98)
    members.remove(two)
    assert (members.held, len(members), two.room) == (0, 1, 98)
    assert members.get(one.id) is one
    assert members.get(two.id) is None
