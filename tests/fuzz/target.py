"""The process under test, looked at from outside: log, memory, event loop, whether it lives."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.soak.measures import resident_bytes
from tests.soak.processes import Child

SETTINGS = {
    "MAX_BODY_BYTES": "262144",
    "MAX_MESSAGE_BYTES": "8192",
    "MAX_BATCH_EVENTS": "2000",
    "MAX_METADATA_KEYS": "100",
    "TRIM_MAXLEN": "1000",
    "LOG_FORMAT": "json",
    "COVERAGE_PROCESS_CONFIG": "",
}
"""Bounds that small cases reach as well, a stream that stays small; and no coverage is measured,
which would take three times as long."""

TRACE_LINES = 8
"""Of a traceback, as a finding repeats it."""

_NUMBERS = re.compile(r"0x[0-9a-f]+|Task-\d+")


class Told(NamedTuple):
    """What a process says of itself: the longest that its loop was held up, by the bound of a
    bucket, and how many answers of 5xx it has counted."""

    held_s: float
    faults: int


class Target:
    """A logpipe with all roles in a process of its own, started as `python -m MODULE serve`."""

    def __init__(self, redis: str, folder: Path, module: str) -> None:
        self._log = folder / "logpipe.log"
        given = {**SETTINGS, "REDIS_ADDR": redis}
        self._child = Child("all", module, given, self._log)
        self._said_at_start = 0

    @property
    def place(self) -> tuple[str, int]:
        """Host and port."""
        url = urlsplit(self._child.url)
        assert url.hostname is not None and url.port is not None
        return url.hostname, url.port

    async def start(self) -> None:
        """Returns when it serves."""
        await self._child.start()
        await self._child.ready()
        self._said_at_start = self._log.stat().st_size

    async def kill(self) -> None:
        """Ends it."""
        await self._child.kill()

    @property
    def memory(self) -> int:
        """Bytes that it holds; 0 when it is gone."""
        try:
            return resident_bytes(self._child.pid)
        except OSError:
            return 0

    def said(self) -> Counter[str]:
        """What it has logged since it was ready, and how often. Of that nothing is expected but the
        sums of rejected events: what a client does wrong is answered."""
        lines = self._log.read_bytes()[self._said_at_start :].decode(errors="replace").splitlines()
        return Counter(told for line in lines if (told := _told(line)))

    async def told(self) -> Told:
        """From its metrics."""
        async with httpx.AsyncClient(base_url=self._child.url, trust_env=False, timeout=30) as http:
            text = (await http.get("/metrics")).text
        held_s, faults = 0.0, 0
        for family in text_string_to_metric_families(text):
            below = 0.0
            for name, labels, value, *_ in family.samples:
                if name == "logpipe_event_loop_lag_seconds_bucket" and value > below:
                    held_s, below = float(labels["le"]), value
                if labels.get("status", "").startswith("5"):
                    faults += int(value)
        return Told(held_s, faults)

    async def is_well(self) -> str:
        """Why it is not: not ready, or a good event does not go in and come out; else nothing."""
        event = {"source": "fuzz", "message": "at the end", "metadata": {"well": "yes"}}
        try:
            async with httpx.AsyncClient(
                base_url=self._child.url, trust_env=False, timeout=30
            ) as http:
                health = await http.get("/healthz")
                stored = await http.post("/ingest", json=event)
                read = await http.get("/events", params={"q": "metadata.well:yes", "limit": 1})
        except httpx.HTTPError as error:
            return f"it does not answer: {error!r}"
        if health.status_code != 200 or stored.status_code != 202:
            return f"{health.text} {stored.text}"
        came = [each["id"] for each in read.json()["events"]]
        return (
            ""
            if came == [stored.json()["id"]]
            else f"an event that was stored is not there: {came}"
        )


def _told(line: str) -> str:
    """A line of the log in short, with the end of its traceback; empty where it tells of ordinary
    work, such as a consumer group that begins to be read, or sums rejected events."""
    try:
        record = json.loads(line)
        if record["level"] == "INFO" or record["metadata"]["logger"] == "logpipe.receivers":
            return ""
        trace = record["metadata"].get("exception", "").splitlines()
        text = "\n".join([record["message"][:400], *trace[-TRACE_LINES:]])
        return _NUMBERS.sub("…", text)
    except (ValueError, KeyError, TypeError, AttributeError):
        return line[:2_000]
