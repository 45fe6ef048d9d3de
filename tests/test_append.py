"""The transaction that appends, as bytes; what Redis does with it is in test_stream."""

from typing import Any

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ResponseError

from logpipe.stream import append as module
from logpipe.stream.append import Append, Appended, Transaction, ids_of, outcomes

stored = st.lists(st.binary(max_size=300), max_size=40)


def commands(packed: bytes) -> list[list[bytes]]:
    reader = hiredis.Reader()
    reader.feed(packed)
    found: list[Any] = []
    while (command := reader.gets()) is not False:
        found.append(command)
    return found


@given(stored, st.text(min_size=1, max_size=20), st.integers(1, 10**12))
def test_a_transaction_is_an_xadd_an_event_and_trims_now_and_then(
    events: list[bytes], stream: str, maxlen: int
) -> None:
    every, module.TRIM_EVERY = module.TRIM_EVERY, 7
    try:
        packed, count = Transaction(stream, maxlen).packed(events)
    finally:
        module.TRIM_EVERY = every
    found = commands(packed)
    key = stream.encode()
    assert len(found) == count
    assert (found[0], found[-1]) == ([b"MULTI"], [b"EXEC"])
    inner = found[1:-1]
    trim = [b"XTRIM", key, b"MAXLEN", b"~", b"%d" % maxlen]
    adds = [command for command in inner if command != trim]
    assert adds == [[b"XADD", key, b"*", b"event", event] for event in events]
    assert inner.count(trim) == -(-len(events) // 7)
    assert not events or inner[-1] == trim


def test_each_request_gets_the_ids_of_its_own_events() -> None:
    requests = [Append([b"a", b"b"], receipt=b"first"), Append([]), Append([b"c"])]
    assert list(outcomes(requests, [b"1-0", b"1-1", b"2-0"])) == [
        Appended("1-0", "1-1", b"first", False),
        Appended("0-0", "0-0", b"", False),
        Appended("2-0", "2-0", b"", False),
    ]


def test_the_reason_of_a_refusal_is_told_and_not_that_there_was_one() -> None:
    full = ResponseError("OOM command not allowed when used memory > 'maxmemory'.")
    aborted = ResponseError("EXECABORT Transaction discarded because of previous errors.")
    wrong = ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value")
    for answers, error in (
        ([b"OK", full, b"QUEUED", aborted], full),
        ([b"OK", b"QUEUED", aborted], aborted),
        ([b"OK", b"QUEUED", [wrong]], wrong),
    ):
        with pytest.raises(ResponseError) as caught:
            ids_of(answers)
        assert caught.value is error
    assert ids_of([b"OK", b"QUEUED", b"QUEUED", [b"1-0", 3]]) == [b"1-0"]
