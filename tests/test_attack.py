"""The judge of `make attack`, on figures made by hand, and the table of attacks."""

import math

import pytest

from tests.attack.altered import ALTERATIONS
from tests.attack.attacks import ATTACKS, SLICE
from tests.attack.honest import machine_part_s
from tests.attack.judge import (
    GROWTH_MB,
    HEAD,
    LIVEZ_S,
    MEGA,
    Accepted,
    Bound,
    Gap,
    Limits,
    Memory,
    Row,
    Sample,
    Witnessed,
    latency,
    line,
    lost,
    offences,
)

CALM = Memory(60 * MEGA, 70 * MEGA, 65 * MEGA)
LIMITS = Limits(Bound(20, 10))


def samples(*took_s: float) -> list[Sample]:
    return [Sample(float(number), each) for number, each in enumerate(took_s)]


@pytest.fixture
def seen() -> Witnessed:
    """Four events, of which three came in a batch; all were received."""
    return Witnessed(
        livez=samples(0.01, 0.02),
        posts=samples(0.01, 0.02),
        health=samples(0.01),
        accepted=[Accepted((0, 1), (1, 0), (1, 0)), Accepted((1, 4), (2, 0), (2, 2))],
        received=[0, 1, 2, 3],
    )


def found(seen: Witnessed, memory: Memory = CALM, limits: Limits = LIMITS) -> list[str]:
    return [*offences(seen, memory, limits)]


def test_a_server_that_held_has_no_offences(seen: Witnessed) -> None:
    assert found(seen) == []


def test_an_answer_over_its_limit_is_found(seen: Witnessed) -> None:
    seen.livez += samples(0.3)
    seen.posts += samples(1.5)
    assert found(seen) == [
        "/livez: 1 of 3 over 0.25 s, the worst 0.30 s",
        "POST: 1 of 3 over 1 s, the worst 1.50 s",
    ]


def test_a_reader_whose_resume_takes_long_is_found(seen: Witnessed) -> None:
    seen.resumes += samples(9.0)
    assert found(seen) == ["resume: 1 of 1 over 2 s, the worst 9.00 s"]


def test_what_the_machine_took_is_not_the_server_s(seen: Witnessed) -> None:
    seen.livez.append(Sample(3.0, 2.0, 1.9))
    assert found(seen) == []
    assert latency(seen.livez).worst == pytest.approx(0.1)


def test_of_a_process_the_waits_of_two_threads_count() -> None:
    before = [{"1": 1.0, "2": 5.0, "3": 5.0}, {"9": 0.0}]
    after = [{"1": 1.5, "2": 5.1, "3": 5.2, "4": 0.1}, {"9": 1.0}]
    assert machine_part_s(before, after) == pytest.approx(0.5 + 0.2 + 1.0)


def test_some_late_answers_may_be_allowed(seen: Witnessed) -> None:
    seen.livez += samples(0.3, 0.4)
    assert found(seen, limits=LIMITS._replace(late=2)) == []
    seen.livez += samples(0.3)
    assert len(found(seen, limits=LIMITS._replace(late=2))) == 1


def test_an_answer_four_times_too_late_is_never_allowed(seen: Witnessed) -> None:
    seen.livez += samples(LIVEZ_S * 4 + 0.1)
    assert len(found(seen, limits=LIMITS._replace(late=9))) == 1


def test_a_request_that_fails_is_found(seen: Witnessed) -> None:
    seen.health.append(Sample(1.0, 0.1, error="503 Redis"))
    assert found(seen) == ["/healthz: 1 of 2 failed, first: 503 Redis"]


def test_clients_without_any_answer_are_found(seen: Witnessed) -> None:
    seen.livez.clear()
    assert found(seen) == ["an honest client had no answer at all"]
    assert math.isnan(latency(seen.livez).worst)


def test_events_that_no_reader_received_are_lost(seen: Witnessed) -> None:
    seen.received = [0, 2]
    assert lost(seen) == 2
    assert found(seen) == ["2 accepted events were neither received nor told as missing"]


def test_events_within_a_gap_are_not_lost(seen: Witnessed) -> None:
    seen.received = [0]
    seen.gaps = [Gap((1, 0), (3, 0))]
    assert lost(seen) == 0
    seen.gaps = [Gap((2, 2), (3, 0))]
    assert lost(seen) == 3


def test_memory_over_what_the_limits_allow_is_found(seen: Witnessed) -> None:
    most = CALM.before + (20 + GROWTH_MB) * MEGA
    assert found(seen, CALM._replace(peak=most)) == []
    assert found(seen, CALM._replace(peak=most + MEGA)) == [
        f"memory at its peak: {21 + GROWTH_MB} MB more than before, allowed {20 + GROWTH_MB}"
    ]


def test_memory_that_stays_after_the_attack_is_found(seen: Witnessed) -> None:
    kept = CALM.before + (10 + GROWTH_MB) * MEGA
    assert found(seen, Memory(CALM.before, kept, kept)) == []
    assert len(found(seen, Memory(CALM.before, kept + MEGA, kept + MEGA))) == 1


def test_the_99th_percentile_leaves_out_one_of_a_hundred() -> None:
    told = latency(samples(*[0.01] * 99, 5.0))
    assert told.p99 == 0.01
    assert told.worst == 5.0


def test_a_row_of_the_table_says_what_was_measured(seen: Witnessed) -> None:
    row = Row("pipelining", 1_000, 2 * MEGA, {}, seen, CALM, [])
    told = "pipelining 1,000 2.0 20 ms/20 ms 20 ms/20 ms - 60/70/65 ok 0 held"
    assert " ".join(line(row).split()) == told
    assert line(row._replace(found=["late"])).endswith("FAILED")
    assert len(line(row)) <= len(HEAD)


def test_every_alteration_has_an_attack_that_must_notice_it() -> None:
    assert {attack.control for attack in ATTACKS.values()} - {""} == set(ALTERATIONS)


def test_the_slice_names_attacks_that_have_a_control() -> None:
    for name in SLICE:
        assert ATTACKS[name].control, name
