"""What Prometheus scrapes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from logpipe import __version__
from logpipe.metrics import MAX_LABELS, OTHER_GROUPS, Metrics


def test_every_metric_has_the_prefix_and_a_help_text() -> None:
    """One family, and each says what it counts."""
    for family in text_string_to_metric_families(Metrics().exposition().decode()):
        assert family.name.startswith("logpipe_"), family.name
        assert family.documentation, family.name


@pytest.mark.parametrize("state", ["empty", "gone"])
def test_a_file_that_a_worker_has_just_made_or_removed_is_skipped(
    tmp_path: Path, state: str
) -> None:
    """Among the files of other workers, which are added up."""
    new = tmp_path / "counter_1.db"
    new.touch()
    if state == "gone":
        new.unlink()
        new.symlink_to("gone")  # which the folder lists, and which is not there
    code = "from logpipe.metrics import Metrics; m = Metrics(); m.body_bytes.inc(7); "
    code += "print(m.exposition().decode())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert "logpipe_ingest_bytes_total 7" in done.stdout


def test_the_version_is_a_label_of_the_build() -> None:
    """So that a dashboard can tell when a deployment changed."""
    assert f'logpipe_build_info{{version="{__version__}"}} 1.0' in Metrics().exposition().decode()


def test_two_processes_worth_of_metrics_do_not_meet() -> None:
    """The registry is not global: tests and embedders may have several."""
    first, second = Metrics(), Metrics()
    first.body_bytes.inc(7)
    assert re.search(rb"logpipe_ingest_bytes_total 7", first.exposition())
    assert re.search(rb"logpipe_ingest_bytes_total 0", second.exposition())


def test_groups_beyond_a_bound_share_one_label() -> None:
    """Clients name groups: a series for each would grow without end."""
    metrics = Metrics()
    for number in range(MAX_LABELS + 10):
        metrics.group(f"g{number}").lost(1)
    metrics.group("g0").lost(None)
    text = metrics.exposition().decode()
    assert text.count("logpipe_group_lost_total{") == MAX_LABELS + 1
    assert f'logpipe_group_lost_total{{group="{OTHER_GROUPS}"}} 10.0' in text
    assert 'logpipe_group_lost_total{group="g0"} 1.0' in text
