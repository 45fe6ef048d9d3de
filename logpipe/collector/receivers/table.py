"""The protocols, by name, and the routes of them all."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from logpipe.collector.answer import Answer, give
from logpipe.collector.body import drain
from logpipe.collector.receivers import (
    datadog,
    elasticsearch,
    firehose,
    gelf,
    generic,
    logplex,
    loki,
    otlp,
    splunk,
    syslog,
)
from logpipe.collector.receivers.intake import Process, Receiver, admit, request_of
from logpipe.collector.receivers.protocol import Protocol, Request
from logpipe.problems import Problem

ALIAS = "/insert"
"""All of it is under this prefix, too, for senders that shall not know the root."""

SEGMENTS = (
    "insert", "loki", "api", "ready", "v1", "elasticsearch", "services", "gelf", "logplex",
    "firehose", "syslog",
)  # fmt: skip
"""The first segments of all paths but those of `/ingest`."""

PROTOCOLS: Mapping[str, Protocol] = {
    "json": Protocol(generic.PATHS, generic.parse, generic.refused, methods=("POST", "PUT")),
    "loki": Protocol(loki.PATHS, loki.parse, loki.refused, holds_more=loki.holds_more),
    "otlp": Protocol(otlp.PATHS, otlp.parse, otlp.refused),
    "elasticsearch": Protocol(
        elasticsearch.PATHS,
        elasticsearch.parse,
        elasticsearch.refused,
        methods=elasticsearch.METHODS,
        answers_unavailable=True,
    ),
    "splunk": Protocol(splunk.PATHS, splunk.parse, splunk.refused, splunk.token),
    "splunk-raw": Protocol(splunk.RAW_PATHS, splunk.parse_raw, splunk.refused, splunk.token),
    "datadog": Protocol(datadog.PATHS, datadog.parse, datadog.refused, datadog.token),
    "datadog-v1": Protocol(datadog.V1_PATHS, datadog.parse_v1, datadog.refused, datadog.token),
    "gelf": Protocol(gelf.PATHS, gelf.parse, gelf.refused, tells_packing=True),
    "logplex": Protocol(logplex.PATHS, logplex.parse, logplex.refused, key=logplex.key),
    "firehose": Protocol(
        firehose.PATHS,
        firehose.parse,
        firehose.refused,
        firehose.token,
        firehose.key,
        holds_more=lambda *_: True,
    ),
    "syslog": Protocol(syslog.PATHS, syslog.parse, syslog.refused),
}

HEADERS = ("X-Scope-OrgID", "DD-API-KEY", "X-Splunk-Request-Channel")
"""What browsers may send besides the headers of `/ingest`."""


class Row(NamedTuple):
    """A route."""

    path: str
    endpoint: ASGIApp
    methods: Sequence[str]


def routes(process: Process) -> list[BaseRoute]:
    """Every protocol and every probe, at the root and under the alias."""
    return [
        Route(prefix + row.path, row.endpoint, methods=row.methods)
        for row in (*_receivers(process), *_probes(process))
        for prefix in ("", ALIAS)
    ]


def _receivers(process: Process) -> Iterator[Row]:
    for name, protocol in PROTOCOLS.items():
        receiver = Receiver(name, protocol, process)
        for path in protocol.paths:
            yield Row(path, receiver, protocol.methods)


def _probes(process: Process) -> Iterator[Row]:
    """What senders ask before they send. A token is asked for where they want to know whether it is
    the right one."""

    def serves() -> bool:
        return process.appender.health.serves(writes=True)

    def unavailable() -> Problem | None:
        return None if serves() else process.appender.health.unavailable()

    def admitted(name: str, scope: Scope, request: Request) -> Request:
        admit(name, PROTOCOLS[name], scope, request, process.tokens)
        return request

    for paths, methods, name, asked in (
        (loki.READY_PATHS, ("GET",), "loki", lambda *_: loki.ready(serves=serves())),
        (splunk.HEALTH_PATHS, ("GET",), "splunk", lambda *_: splunk.health(serves=serves())),
        (splunk.PATHS, ("OPTIONS",), "splunk", lambda *_: Answer(200)),
        (gelf.PATHS, ("OPTIONS",), "gelf", lambda *_: Answer(204)),
        (generic.PATHS, ("GET",), "json", lambda *_: Answer(200)),
        (
            datadog.VALIDATE_PATHS,
            ("GET",),
            "datadog",
            lambda scope, request: datadog.valid(admitted("datadog", scope, request)),
        ),
        (
            elasticsearch.OTHER_PATHS,
            ("GET", "PUT", "POST", "DELETE"),
            "elasticsearch",
            lambda scope, request: elasticsearch.probe(
                admitted("elasticsearch", scope, request), unavailable()
            ),
        ),
    ):
        probe = Probe(asked, PROTOCOLS[name].refused)
        yield from (Row(path, probe, methods) for path in paths)


class Probe:
    """An endpoint whose answer needs no body, as an ASGI application."""

    def __init__(
        self,
        asked: Callable[[Scope, Request], Answer],
        refused: Callable[[Request, Problem], Answer],
    ) -> None:
        self._asked = asked
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers; a body that comes along is thrown away."""
        request = request_of(scope, 0)
        try:
            answer = self._asked(scope, request)
        except Problem as problem:
            answer = self._refused(request, problem)
        if request.method in ("POST", "PUT", "DELETE"):
            await drain(receive)
        await give(answer, receive, send)
