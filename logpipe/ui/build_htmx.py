"""Lays htmx and its SSE extension beside the page while logpipe is built or installed.

The files come from the PyPI package django-htmx, a requirement of the build alone (pyproject.toml);
the wheel and the editable install carry them, the repository does not.
"""

import shutil
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# htmx 4 rather than 2: its SSE extension reads by fetch, so a stream that was cut resumes with the
# Last-Event-ID header; version 2 opens a new EventSource, which forgets it.
FILES = ("htmx-4.min.js", "ext/hx-sse-4.min.js")


class HtmxHook(BuildHookInterface):  # type: ignore[misc]
    """Copies `FILES` to logpipe/ui/static/htmx before the tree is packed."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        import django_htmx

        source = Path(django_htmx.__file__).parent / "static" / "django_htmx"
        target = Path(self.root) / "logpipe" / "ui" / "static" / "htmx"
        target.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            shutil.copyfile(source / name, target / Path(name).name)
