"""What facts mean, where no deployment of a test is like that."""

from collections.abc import Iterator

import pytest

from logpipe.doctor.checks import Finding, Judged, clock, compression, probes, redis, stream, tokens
from logpipe.doctor.look import Answer, Facts, Sent, Target
from logpipe.doctor.report import MAX_DETAIL, lines, sound
from logpipe.doctor.senders import Probe
from logpipe.samples import read_sample

HERE = "http://127.0.0.1:8080"


def facts() -> Facts:
    """Of a deployment that answers and takes both tokens."""
    found = Facts(Target(HERE, HERE, "t", "t"))
    for way in ("send", "read"):
        answers = zip(("own", "none", "wrong"), (200, 401, 403), strict=True)
        found.ways |= {(way, name): Answer(status) for name, status in answers}
    found.stream, found.hello_s = Answer(200), 0.01
    return found


@pytest.mark.parametrize(
    ("ms", "state", "words"),
    [
        (1_000_050, "ok", "agree"),
        (1_000_000 - 900, "ok", "agree"),
        (1_000_100 + 5_000, "warning", "5.0 s ahead of"),
        (1_000_000 - 5_000, "warning", "5.0 s behind"),
        (1_000_100 + 90_000, "wrong", "90.0 s ahead of"),
    ],
)
def test_clocks_differ_by_what_lies_outside_of_the_request(ms: int, state: str, words: str) -> None:
    found = facts()
    found.sent["json"] = Sent(Answer(202), 1_000_000, 1_000_100)
    found.arrived["json"] = ms
    ((judged, detail, _),) = clock(found)
    assert judged == state
    assert words in detail


def test_a_late_hello_is_a_warning_and_other_statuses_are_wrong() -> None:
    found = facts()
    found.hello_s = 2.0
    assert _only(stream(found))[:2] == ("warning", "the hello of /subscribe took 2.0 s")
    found.stream = Answer(503)
    assert _only(stream(found))[:2] == ("wrong", "/subscribe: status 503")
    found.stream, found.hello_s = Answer(0, "gone"), None
    found.ways["read", "own"] = Answer(0, "gone")
    assert _only(stream(found))[:2] == ("wrong", "/subscribe gives nothing")


def test_a_proxy_that_answers_for_tokens_is_told() -> None:
    found = facts()
    found.ways["send", "none"] = Answer(403)
    assert next(tokens(found))[0] == "warning"
    found.ways["send", "own"] = Answer(502)
    assert next(tokens(found))[:2] == ("wrong", "to send: status 502")


def test_an_unknown_host_name_is_shown_once_with_its_remedy() -> None:
    found = facts()
    found.ways["send", "own"] = found.ways["read", "own"] = Answer(421)
    assert ["ALLOWED_HOSTS" in remedy for *_, remedy in tokens(found)] == [True, True]
    found.probes = {Probe("loki", "GET", "/ready", 200): Answer(421)}
    assert list(probes(found)) == []


def test_a_wrong_token_that_has_to_wait_is_refused_as_well() -> None:
    found = facts()
    found.ways["read", "wrong"] = Answer(429)
    assert [state for state, *_ in tokens(found)] == ["ok", "ok"]


def test_a_body_that_is_refused_says_what_limits_it() -> None:
    found = facts()
    found.sent["gzip"] = Sent(Answer(413), 0, 0)
    state, detail, remedy = _only(compression(found))
    assert (state, detail) == ("wrong", "gzip: status 413, 202 is wanted")
    assert "client_max_body_size" in remedy


def test_a_redis_that_does_not_tell_is_a_warning() -> None:
    found = facts()
    assert _only(redis(found))[:2] == ("warning", "/metrics cannot be seen")
    text = "logpipe_redis_append_only NaN\nlogpipe_redis_evicts NaN\n"
    found.metrics = read_sample(text, 0)
    assert _only(redis(found))[:2] == ("warning", "its policy cannot be seen")
    found.metrics = read_sample(text.replace("NaN", "1"), 0)
    assert [state for state, *_ in redis(found)] == ["warning", "ok"]


@pytest.mark.parametrize(
    ("replicas", "sentinels", "states"),
    [
        (2, 3, ["ok", "ok"]),
        (0, 3, ["warning", "ok"]),
        (1, 2, ["ok", "warning"]),
    ],
)
def test_the_servers_that_stand_by_are_named(
    replicas: int, sentinels: int, states: list[str]
) -> None:
    found = facts()
    text = f"""logpipe_redis_append_only 1
logpipe_redis_evicts 0
logpipe_redis_primary_info{{node="10.0.0.1:6379"}} 0
logpipe_redis_primary_info{{node="10.0.0.2:6379"}} 1
logpipe_redis_replicas_in_sync {replicas}
logpipe_redis_sentinels 3
logpipe_redis_sentinels_reachable {sentinels}
"""
    found.metrics = read_sample(text, 0)
    *_, primary, asked = redis(found)
    assert [primary[0], asked[0]] == states
    assert f"10.0.0.2:6379; replicas in sync: {replicas}" in primary[1]
    assert f"{sentinels} of 3 Sentinels" in asked[1]


def test_a_line_obeys_nobody_and_ends() -> None:
    findings = [Finding("ready", "wrong", "\x1b[2J" + "x" * 1000, "look")]
    (line,) = lines(findings, color=False)
    assert "\x1b" not in line
    assert len(line) < MAX_DETAIL + 50
    assert line.endswith(" → look")
    assert not sound(findings)


def _only(found: Iterator[Judged]) -> Judged:
    (judged,) = found
    return judged
