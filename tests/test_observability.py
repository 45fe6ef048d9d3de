"""The metrics, and what is built on them outside of the code: documents, alerts, a dashboard."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import promql_parser
import pytest
import yaml
from prometheus_client import CollectorRegistry

from logpipe.metrics import Metrics

ROOT = Path(__file__).parent.parent
DOCUMENT = (ROOT / "docs/observability.md").read_text(encoding="utf-8")
RULES = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text(encoding="utf-8"))
DASHBOARD = json.loads((ROOT / "deploy/grafana/logpipe.json").read_text(encoding="utf-8"))

ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TARGETS = [target for panel in PANELS for target in panel["targets"]]

OF_THE_SCRAPE = {"job", "instance"}
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",), "gauge": ("",)}
VALUES = {
    "outcome": {"accepted", "rejected", "repeated", "failed"},
    "reason": {"trimmed", "slow", "reset"},
    "status": {"202", "503"},
}
"""What labels may be asked for by value."""


class Described(NamedTuple):
    """A metric: its type, and the names of its labels."""

    type: str
    labels: frozenset[str]


def registered(registry: CollectorRegistry) -> Iterator[tuple[str, Described]]:
    """All metrics of a registry by the name under which they are documented."""
    for collector in registry._collector_to_names:
        labels = frozenset(getattr(collector, "_labelnames", ()))
        for family in collector.collect():
            suffix = "_total" if family.type == "counter" else ""
            yield family.name + suffix, Described(family.type, labels)


METRICS = dict(registered(Metrics().registry))
SERIES = {"up": Described("gauge", frozenset())} | {
    name.removesuffix("_total") + suffix: described
    for name, described in METRICS.items()
    for suffix in SUFFIXES[described.type]
}


# -- the document --------------------------------------------------------------------------------


def documented() -> dict[str, Described]:
    rows = re.findall(r"^\| `(logpipe_\w+)` \| (\w+) \| (.*?) ?\| (.+) \|$", DOCUMENT, re.MULTILINE)
    assert all(meaning.strip() for *_, meaning in rows)
    return {
        name: Described(kind, frozenset(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels, _ in rows
    }


def test_every_metric_is_documented_and_none_is_invented() -> None:
    """By name, type and labels."""
    assert documented() == METRICS


def test_the_alerts_of_the_document_are_those_of_the_rules() -> None:
    named = re.findall(r"^\| `(Logpipe\w+)` \|", DOCUMENT, re.MULTILINE)
    assert named == [alert["alert"] for alert in ALERTS]


# -- expressions ---------------------------------------------------------------------------------


def parsed(expression: str) -> promql_parser.Expr:
    """The tree of an expression; Grafana's variables are given some value first."""
    text = re.sub(r"\$__(rate_interval|range)", "5m", expression)
    return promql_parser.parse(re.sub(r"\$(\w+)", r"\1", text))


def inside(node: Any) -> Iterator[Any]:
    """All nodes of a tree."""
    yield node
    for name in ("lhs", "rhs", "expr", "vector_selector"):
        if (child := getattr(node, name, None)) is not None:
            yield from inside(child)
    for child in getattr(node, "args", ()):
        yield from inside(child)


def selectors(expression: str) -> list[promql_parser.VectorSelector]:
    nodes = inside(parsed(expression))
    return [node for node in nodes if isinstance(node, promql_parser.VectorSelector)]


def labels_of(expression: str) -> set[str]:
    """The labels that its series have."""
    found = {*OF_THE_SCRAPE, "le"}
    for selector in selectors(expression):
        assert selector.name is not None
        found |= SERIES[selector.name].labels
    return found


EXPRESSIONS = [alert["expr"] for alert in ALERTS] + [target["expr"] for target in TARGETS]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_what_is_asked_of_prometheus_is_there(expression: str) -> None:
    """Each series exists, with the labels that are asked for, and the values where they are few."""
    found = selectors(expression)
    assert found
    for selector in found:
        assert selector.name in SERIES, selector.name
        for matcher in selector.matchers.matchers:
            assert matcher.name in SERIES[selector.name].labels | OF_THE_SCRAPE
            if matcher.name in VALUES:
                assert set(matcher.value.split("|")) <= VALUES[matcher.name]
    for node in inside(parsed(expression)):
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            assert set(node.modifier.labels) <= labels_of(expression)


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_counters_and_histograms_are_asked_for_their_rate(expression: str) -> None:
    """And gauges are not: the rate of a gauge is nothing."""
    rated = {
        node.args[0].vector_selector.name
        for node in inside(parsed(expression))
        if isinstance(node, promql_parser.Call) and node.func.name in ("rate", "increase")
    }
    for selector in selectors(expression):
        name = selector.name
        assert name is not None
        assert (name in rated) is (SERIES[name].type != "gauge"), name


# -- the rules -----------------------------------------------------------------------------------


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert["alert"]))
def test_an_alert_says_what_is_wrong_how_bad_it_is_and_what_to_do(alert: dict[str, Any]) -> None:
    assert set(alert) == {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch(r"Logpipe[A-Za-z]+", alert["alert"])
    assert re.fullmatch(r"\d+[sm]", alert["for"])
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert set(alert["annotations"]) == {"summary", "remedy"}
    asked = set(re.findall(r"\$labels\.(\w+)", alert["annotations"]["summary"]))
    assert asked <= labels_of(alert["expr"])


def test_alerts_have_a_name_each() -> None:
    names = [alert["alert"] for alert in ALERTS]
    assert len(names) == len(set(names))


def test_a_counter_that_alerts_ask_for_is_there_before_it_counts() -> None:
    """Of a series that begins with 1, Prometheus sees no increase."""
    text = Metrics().exposition().decode()
    for series in (
        'logpipe_gaps_total{reason="trimmed"}',
        'logpipe_gaps_total{reason="reset"}',
        'logpipe_ingest_requests_total{status="503"}',
        'logpipe_ingest_events_total{outcome="rejected"}',
        "logpipe_canary_lost_total",
    ):
        assert f"\n{series} 0.0\n" in text


# -- the dashboard -------------------------------------------------------------------------------


def test_panels_have_an_id_and_a_title_each_and_say_what_they_show() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    for panel in PANELS:
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        refs = [target["refId"] for target in panel["targets"]]
        assert len(refs) == len(set(refs)) > 0


def test_panels_do_not_lie_on_one_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_the_dashboard_uses_the_variables_that_it_has() -> None:
    names = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    built_in = {"__rate_interval", "__range", "__all"}
    text = json.dumps(DASHBOARD["panels"])
    assert set(re.findall(r"\$\{?(\w+)", text)) - built_in == names


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: str(target["expr"]))
def test_a_legend_names_labels_that_its_series_have(target: dict[str, str]) -> None:
    assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= labels_of(target["expr"])


def test_every_metric_is_on_the_dashboard_or_has_no_place_there() -> None:
    """One that is added is looked at, or is left out on purpose."""
    shown = {selector.name for target in TARGETS for selector in selectors(target["expr"])}
    left_out = {
        "logpipe_window_events",
        "logpipe_process_virtual_memory_bytes",
        "logpipe_process_start_time_seconds",
        "logpipe_redis_evicts",
        "logpipe_redis_append_only",
        "logpipe_workers",
        "logpipe_workers_wanted",
    }
    for name, described in METRICS.items():
        series = {name.removesuffix("_total") + each for each in SUFFIXES[described.type]}
        assert bool(series & shown) is (name not in left_out), name
