"""Sources that begin with `logpipe` are rejected, whatever the protocol of the sender."""

import pytest

from logpipe.doctor import senders
from logpipe.event import is_reserved
from tests.collector.receivers.samples import collecting, outcomes, stored
from tests.collector.receivers.test_syslog_tcp import listener_of, rejected, sent
from tests.helpers import wait_until
from tests.servers import Valkey

RESERVED = "LogPipe-shop"
WHY = 'must not begin with "logpipe"'


@pytest.mark.parametrize("source", ["logpipe", "logpipe.canary", "logpipe-shop", "LOGPIPEx"])
def test_a_source_with_this_prefix_is_reserved(source: str) -> None:
    assert is_reserved(source)


@pytest.mark.parametrize("source", ["", "l", "logpip", "log-pipe", " logpipe", "my-logpipe"])
def test_other_sources_are_free(source: str) -> None:
    assert not is_reserved(source)


@pytest.mark.parametrize("name", [name for name in senders.SENDERS if name != "ingest"])
async def test_each_protocol_rejects_and_counts_it(
    name: str, valkey: Valkey, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sender = senders.SENDERS[name]
    path = sender.path.replace(senders.SOURCE, RESERVED)
    monkeypatch.setattr(senders, "SOURCE", RESERVED)
    async with collecting(valkey) as service:
        body, headers = sender.body("hello"), {"Content-Type": sender.content_type}
        answer = await service.http.post(path, content=body, headers=headers)
        assert answer.status_code < 500
        assert await outcomes(service, name) == {"rejected": 1}
    assert stored(valkey) == []
    assert WHY in caplog.text


async def test_of_a_batch_the_others_are_taken(valkey: Valkey) -> None:
    lines = b'{"source":"a","message":"1"}\n{"source":"logpipe","message":"2"}\n{"message":"3"}'
    async with collecting(valkey) as service:
        answer = await service.http.post("/ingest/json", content=lines)
    assert answer.status_code == 202
    assert answer.json()["rejected"] == 1
    assert WHY in answer.json()["errors"][0]["error"]
    assert [event["message"] for event in stored(valkey)] == ["1", "3"]


async def test_syslog_over_tcp_counts_and_logs_it(
    valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    async with collecting(valkey, syslog_tcp=0) as service:
        await sent(listener_of(service).port, b"<14>1 - h logpipe-x - - - one\n")
        await wait_until(lambda: rejected(service, 1), "it is counted")
    assert stored(valkey) == []
    assert f"syslog-tcp: events rejected: 1; the first: The source {WHY}" in caplog.text
