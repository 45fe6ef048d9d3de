"""The judge of `make chaos` on histories made by hand, its table, and one short trial."""

import asyncio
import contextlib
import socket
from collections import Counter

import pytest

from tests.chaos.crowds import namespaces_missing, other_host
from tests.chaos.judge import Evidence, Record, Seen, Terms, of_record, offences
from tests.chaos.oracle import event, seen
from tests.chaos.scenarios import SCENARIOS
from tests.chaos.trial import tried
from tests.soak.judge import Gap

ACKED = {0: (1, 0), 1: (1, 1), 2: (2, 0)}
ALL = [Seen(id_, number) for number, id_ in ACKED.items()]
NO_GAPS = Terms()
RESET = Terms(frozenset({"reset"}))
GAP = Gap("reset", (1, 0), (2, 0), None)


def evidence(
    received: list[Seen] = ALL,
    held: list[Seen] = ALL,
    gaps: tuple[Gap, ...] = (),
    fresh_s: float | None = 0.1,
    answers: Counter[str] | None = None,
) -> Evidence:
    return Evidence(3, ACKED, received, gaps, held, fresh_s, answers or Counter())


def kinds(found: Evidence, terms: Terms = NO_GAPS) -> set[str]:
    return {offence.kind for offence in offences(found, terms)}


def test_a_trial_in_which_all_arrived_is_well() -> None:
    assert not kinds(evidence(answers=Counter({"202": 3, "503": 2, "none": 1})))


def test_an_event_that_was_acknowledged_and_not_delivered_is_lost() -> None:
    assert kinds(evidence(received=ALL[:2])) == {"lost"}


def test_an_event_that_was_acknowledged_and_is_not_in_the_stream_is_lost() -> None:
    assert kinds(evidence(held=ALL[1:])) == {"lost"}


def test_a_gap_that_the_fault_may_cause_excuses_what_it_tells_and_no_more() -> None:
    told = evidence(received=[ALL[0], ALL[2]], held=[ALL[2]], gaps=(GAP,))
    assert not kinds(told, RESET)
    assert kinds(told._replace(received=[ALL[2]]), RESET) == {"lost"}


def test_a_gap_that_the_fault_may_not_cause_excuses_nothing() -> None:
    told = evidence(received=[ALL[0], ALL[2]], gaps=(GAP,))
    assert kinds(told) == {"lost", "gap"}


def test_an_event_twice_in_the_stream_is_doubled() -> None:
    again = Seen((3, 0), 1)
    assert kinds(evidence(held=[*ALL, again])) == {"doubled"}
    assert kinds(evidence(received=[*ALL, again])) == {"doubled"}


def test_an_event_that_comes_twice_under_its_id_is_out_of_order() -> None:
    assert kinds(evidence(received=[*ALL, ALL[2]])) == {"disorder"}
    assert kinds(evidence(received=[ALL[1], ALL[0], ALL[2]])) == {"disorder"}


def test_an_event_that_nobody_issued_or_that_was_changed_is_forged() -> None:
    assert kinds(evidence(received=[*ALL, Seen((3, 0), 3)])) == {"forged"}
    assert kinds(evidence(held=[*ALL[:2], ALL[2]._replace(intact=False)])) == {"forged"}


@pytest.mark.parametrize("fresh_s", [None, 2.1])
def test_a_fresh_event_that_comes_late_or_never_is_found(fresh_s: float | None) -> None:
    assert kinds(evidence(fresh_s=fresh_s)) == {"stale"}


def test_an_answer_other_than_202_and_503_is_found() -> None:
    assert kinds(evidence(answers=Counter({"500": 1}))) == {"answer"}


def test_tracebacks_floods_of_words_and_growing_memory_are_found() -> None:
    quiet = Record("collector", "a line\n" * 5, 1, 10)
    assert not [*of_record(quiet)]
    for bad in (
        quiet._replace(log="Traceback (most recent call last)"),
        quiet._replace(log="a line\n" * 50),
        quiet._replace(growth=100_000_000),
    ):
        assert len([*of_record(bad)]) == 1


def test_an_event_follows_from_its_number_and_any_change_shows() -> None:
    told = {"id": "7-1", **event(3)}
    assert seen(dict(told)) == Seen((7, 1), 3)
    assert not seen({**told, "message": "another"}).intact
    assert not seen({**told, "more": 1}).intact


def test_every_scenario_has_a_control_that_must_fail() -> None:
    for name, scenario in SCENARIOS.items():
        assert scenario.says, name
        if scenario.breaks is None:
            assert SCENARIOS[scenario.control].breaks is not None, name
        else:
            assert not scenario.control, name


async def test_of_two_trials_at_once_each_has_another_host_that_reaches_this_one() -> None:
    """With the same addresses for both, answers to the second went to the first."""
    if why := namespaces_missing():
        pytest.skip(why)
    listener = socket.create_server(("0.0.0.0", 0))
    listener.settimeout(10)
    with listener, contextlib.ExitStack() as stack:
        hosts = [stack.enter_context(other_host()) for _ in range(2)]
        for host in hosts:
            stack.enter_context(host.reading(f"http://{host.near}:{listener.getsockname()[1]}/"))
            connection, (address, _) = await asyncio.to_thread(listener.accept)
            connection.close()
            assert address == host.far


async def test_a_kill_of_the_distributor_is_survived_and_its_control_is_noticed() -> None:
    kill = SCENARIOS["kill-distributor"]
    control = SCENARIOS[kill.control]
    good, bad = await asyncio.gather(tried(kill, 1, 1), tried(control, control.times, 1))
    assert not good.found, good.log
    assert good.acked > 0
    assert control.breaks in {offence.kind for offence in bad.found}
