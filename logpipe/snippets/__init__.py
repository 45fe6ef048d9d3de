"""Ready configurations of other senders: a template each, filled in with where the collector is.

In a template `@NAME@` stands for a value, and a line with `@TOKEN@` is left out where there is no
token. Pure but for reading the templates.
"""

import re
from collections.abc import Mapping
from importlib.resources import files
from typing import NamedTuple
from urllib.parse import urlsplit

PORTS = {"http": 80, "https": 443}

UNFIT = re.compile(r"[^!-~]|[\"'\\$`{}%]")
"""What a token cannot have: some configuration would read it as its own syntax."""


class Snippet(NamedTuple):
    """A template's file, and what it configures, in a line."""

    file: str
    title: str


SNIPPETS: Mapping[str, Snippet] = {
    "fluent-bit": Snippet("fluent-bit.yaml", "Fluent Bit, its http output"),
    "vector": Snippet("vector.yaml", "Vector, its http sink"),
    "promtail": Snippet("promtail.yaml", "Promtail, by Loki's push"),
    "alloy": Snippet("config.alloy", "Grafana Alloy, by Loki's push"),
    "filebeat": Snippet("filebeat.yml", "Filebeat, its Elasticsearch output"),
    "logstash": Snippet("logstash.conf", "Logstash, its Elasticsearch output"),
    "otel-collector": Snippet("otel-collector.yaml", "OpenTelemetry Collector, OTLP over HTTP"),
    "docker": Snippet("compose.yaml", "Docker Compose, the splunk log driver"),
    "rsyslog": Snippet("rsyslog.conf", "rsyslog, its omhttp output"),
    "syslog-ng": Snippet("syslog-ng.conf", "syslog-ng, its http destination"),
    "python": Snippet("python.py.txt", "Python's logging, logpipe's own handler"),
    "node": Snippet("node.mjs", "Node.js 18 or later, no package needed"),
}


class UnfitError(Exception):
    """The snippet cannot say this."""


def listed() -> str:
    """A line for each snippet."""
    return "\n".join(f"{name:<16}{snippet.title}" for name, snippet in SNIPPETS.items())


def filled(name: str, url: str, token: str = "") -> str:
    """The configuration for a collector at `url`, a base URL. Raises KeyError, `UnfitError`."""
    template = files(__name__).joinpath("templates", SNIPPETS[name].file).read_text("utf-8")
    values = _values(url, token)
    if "@ROOT@" in template and values["PATH"]:
        raise UnfitError("its URL can have no path: give the collector a host of its own")
    lines = (line for line in template.splitlines() if token or "@TOKEN@" not in line)
    return re.sub(r"@([A-Z]+)@", lambda found: values[found[1]], "\n".join(lines)) + "\n"


def _values(url: str, token: str) -> dict[str, str]:
    if token and UNFIT.search(token):
        raise UnfitError("the token has characters that configurations read as their own syntax")
    parts = urlsplit(url.rstrip("/"))
    if parts.username or parts.query or parts.fragment or UNFIT.search(url):
        raise UnfitError("the URL must have a host, a port and a path alone")
    port = parts.port or PORTS[parts.scheme]
    default = "" if parts.port else f":{port}"
    return {
        "URL": parts.geturl(),
        "ROOT": f"{parts.scheme}://{parts.netloc}",
        "HOSTED": f"{parts.scheme}://{parts.netloc}{default}{parts.path}",
        "HOST": parts.hostname or "",
        "PORT": str(port),
        "PATH": parts.path,
        "ONOFF": "on" if parts.scheme == "https" else "off",
        "TOKEN": token,
        "KEY": token or "any",
    }
