"""What other senders would say: a request of each protocol, and the probes before it. Pure."""

import base64
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

SOURCE = "doctor"

Headers = Mapping[str, str]


class Sender(NamedTuple):
    """A protocol as one sender speaks it: `status` is the answer that it takes for a success,
    `body` is an event with this text, and `shown` how it shows a token."""

    path: str
    status: int
    content_type: str
    body: Callable[[str], bytes]
    shown: Callable[[str], Headers]


class Probe(NamedTuple):
    """A request before the first event, and the status that is wanted."""

    protocol: str
    method: str
    path: str
    status: int = 200


def bearer(token: str) -> Headers:
    """As most show a token."""
    return {"Authorization": f"Bearer {token}"}


def _basic(token: str) -> Headers:
    packed = base64.b64encode(f"any:{token}".encode()).decode()
    return {"Authorization": f"Basic {packed}"}


def _splunk(token: str) -> Headers:
    return {"Authorization": f"Splunk {token}"}


def _datadog(token: str) -> Headers:
    return {"DD-API-KEY": token}


def _firehose(token: str) -> Headers:
    return {"X-Amz-Firehose-Access-Key": token}


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _event(text: str) -> bytes:
    return _json({"source": SOURCE, "message": text})


def _loki_push(text: str) -> bytes:
    values = [[str(time.time_ns()), text]]
    return _json({"streams": [{"stream": {"service_name": SOURCE}, "values": values}]})


def _otlp_export(text: str) -> bytes:
    name = {"key": "service.name", "value": {"stringValue": SOURCE}}
    logs = [{"logRecords": [{"body": {"stringValue": text}, "severityNumber": 9}]}]
    return _json({"resourceLogs": [{"resource": {"attributes": [name]}, "scopeLogs": logs}]})


def _bulk(text: str) -> bytes:
    document = {"message": text, "service.name": SOURCE}
    return b'{"create":{"_index":"logpipe"}}\n' + _json(document) + b"\n"


def _hec(text: str) -> bytes:
    return _json({"event": text, "source": SOURCE})


def _line(text: str) -> bytes:
    return text.encode()


def _datadog_log(text: str) -> bytes:
    return _json([{"message": text, "service": SOURCE, "status": "info"}])


def _gelf(text: str) -> bytes:
    return _json({"version": "1.1", "host": SOURCE, "short_message": text, "level": 6})


def _rfc5424(text: str) -> bytes:
    return f"<14>1 - - {SOURCE} - - - {text}".encode()


def _frame(text: str) -> bytes:
    line = f"<14>1 - - {SOURCE} - - {text}".encode()
    return b"%d %b" % (len(line), line)


def _records(text: str) -> bytes:
    data = base64.b64encode(_event(text)).decode()
    return _json({"requestId": text, "timestamp": 0, "records": [{"data": data}]})


_JSON, _LINES = "application/json", "application/x-ndjson"

SENDERS: Mapping[str, Sender] = {
    "ingest": Sender("/ingest", 202, _JSON, _event, bearer),
    "json": Sender("/ingest/json", 202, _LINES, _event, bearer),
    "loki": Sender("/loki/api/v1/push", 204, _JSON, _loki_push, _basic),
    "otlp": Sender("/v1/logs", 200, _JSON, _otlp_export, bearer),
    "elasticsearch": Sender("/elasticsearch/_bulk", 200, _LINES, _bulk, _basic),
    "splunk": Sender("/services/collector/event/1.0", 200, "", _hec, _splunk),
    "splunk-raw": Sender(f"/services/collector/raw?source={SOURCE}", 200, "", _line, _splunk),
    "datadog": Sender("/api/v2/logs", 202, _JSON, _datadog_log, _datadog),
    "datadog-v1": Sender("/v1/input", 200, _JSON, _datadog_log, _datadog),
    "gelf": Sender("/gelf", 202, _JSON, _gelf, bearer),
    "logplex": Sender("/logplex", 204, "application/logplex-1", _frame, _basic),
    "firehose": Sender("/firehose", 200, _JSON, _records, _firehose),
    "syslog": Sender("/syslog", 204, "application/syslog", _rfc5424, bearer),
}
"""By the protocol's name in the collector's metrics; `ingest` is logpipe's own."""

PROBES = (
    Probe("json", "HEAD", "/ingest/json"),
    Probe("loki", "GET", "/ready"),
    Probe("elasticsearch", "GET", "/elasticsearch/"),
    Probe("elasticsearch", "HEAD", "/elasticsearch/"),
    Probe("elasticsearch", "GET", "/elasticsearch/_license"),
    Probe("elasticsearch", "GET", "/elasticsearch/_cluster/health"),
    Probe("splunk", "GET", "/services/collector/health/1.0"),
    Probe("splunk", "OPTIONS", "/services/collector/event/1.0"),
    Probe("datadog", "GET", "/api/v1/validate"),
    Probe("gelf", "OPTIONS", "/gelf", 204),
)
"""What senders ask before they send. Docker's OPTIONS comes without a token."""
