"""Batches into a collector: one request, and what its answer means for the sender."""

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import httpx
import msgspec

from logpipe.client.connection import (
    CONNECT_TIMEOUT_S,
    MISDIRECTED,
    MISDIRECTED_REMEDY,
    bearer,
    shown,
    trusted,
)
from logpipe.event import NOT_DECODED
from logpipe.handler.retry import asks_to_retry, retry_after_s

ANSWER_S = 30.0
"""What a collector may take for one request."""

MAX_ANSWER = 1024 * 1024
"""Bytes of an answer that are read; a collector's own spells out a thousand refusals."""


class Refused(msgspec.Struct, frozen=True):
    """An event that was not taken, by its index in the batch, and why."""

    index: int
    error: str


class Taken(NamedTuple):
    """The batch was dealt with: all its events are stored, but for `rejected`."""

    accepted: int
    rejected: int = 0
    refused: Sequence[Refused] = ()
    """Those of the rejected that the collector has spelt out."""


class Later(NamedTuple):
    """It may be taken if it comes again, after as many seconds as the collector asks for."""

    reason: str
    after_s: float = 0.0


class TooLarge(NamedTuple):
    """The batch may be accepted in smaller parts."""

    reason: str


class Never(NamedTuple):
    """Nothing will be taken from this sender, and what to do about it."""

    reason: str
    remedy: str = "--url names a service that runs the collector"


Verdict = Taken | Later | TooLarge | Never


class _Receipt(msgspec.Struct):
    accepted: int
    rejected: int
    errors: list[Refused]


class _Problem(msgspec.Struct):
    detail: str
    rejected: int = 0
    errors: list[Refused] = []


class Collector:
    """Sends to a base URL, with a token if there is one, and keeps the connection."""

    def __init__(self, url: str, token: str = "") -> None:
        self.url = f"{url.rstrip('/').removesuffix('/ingest')}/ingest"
        self._there = False
        self._http = httpx.Client(
            headers={
                "Content-Type": "application/x-ndjson",
                "Content-Encoding": "gzip",
                **bearer([token] if token else []),
            },
            timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_TIMEOUT_S),
            trust_env=False,
            verify=trusted(),
        )

    def close(self) -> None:
        self._http.close()

    def post(self, body: bytes, key: str, events: int) -> Verdict:
        """One request with so many events, as NDJSON in gzip. Not repeated here."""
        request = self._http.build_request(
            "POST", self.url, content=body, headers={"Idempotency-Key": key}
        )
        try:
            answer = self._http.send(request, stream=True)
            with closing(answer):
                verdict = judge(answer.status_code, answer.headers, _start_of(answer), events)
        except httpx.HTTPError as error:
            return Later(f"cannot be reached: {shown(error)}")
        if isinstance(verdict, Never) and self._there and answer.status_code not in (401, 403):
            # A proxy in front of a collector that restarts has answers of its own.
            return Later(verdict.reason)
        self._there = self._there or isinstance(verdict, Taken)
        return verdict


def _start_of(answer: httpx.Response) -> bytes:
    body = b""
    for part in answer.iter_bytes():
        body += part
        if len(body) > MAX_ANSWER:
            break
    return body


def judge(status: int, headers: Mapping[str, str], body: bytes, events: int) -> Verdict:
    """What an answer means for a batch of so many events."""
    if status == 202 and (receipt := _decoded(body, _Receipt)):
        return Taken(receipt.accepted, receipt.rejected, receipt.errors)
    problem = _decoded(body, _Problem)
    told = f"answers {status}{f': {problem.detail}' if problem else ''}"
    if asks_to_retry(status):
        return Later(told, retry_after_s(headers.get("retry-after"), time.time()) or 0.0)
    if status in (401, 403):
        return Never(told, "give a token that may send with --token or INGEST_TOKENS")
    if problem and problem.errors:
        return Taken(0, problem.rejected, problem.errors)
    if status == 413:
        reason = problem.detail if problem else told
        return TooLarge(reason) if events > 1 else Taken(0, 1, [Refused(0, reason)])
    if problem and status in (400, 422):
        return Taken(0, events, [Refused(0, problem.detail)])
    if status == MISDIRECTED:
        return Never(f"answers {status}", MISDIRECTED_REMEDY)
    if location := headers.get("location"):
        return Never(f"{told}, and points to {location}", "give that as --url")
    return Never(told if status != 202 else "is no collector")


def _decoded(body: bytes, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except NOT_DECODED:
        return None
