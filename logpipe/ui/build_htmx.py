"""Lays htmx and its SSE extension beside the page while logpipe is built or installed.

The files come from the PyPI package django-htmx, a requirement of the build alone (pyproject.toml);
the wheel and the editable install carry them, the repository does not. They run in every reader's
browser: so what is laid there has the recorded hash, or nothing is.
"""

import hashlib
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# htmx 4 rather than 2: its SSE extension reads by fetch, so a stream that was cut resumes with the
# Last-Event-ID header; version 2 opens a new EventSource, which forgets it.
FILES = {
    "htmx-4.min.js": "28fae7bbe8e8142b702debb9d5234a9a436d9435a4b5165b195aa1a7ed840d25",
    "ext/hx-sse-4.min.js": "d3aeb71073552b253eaee99badebd60607003b1c25ac567ab88187d6887ab522",
}
"""By name, the SHA-256 of what is laid there; a newer django-htmx needs newer ones."""


class HtmxHook(BuildHookInterface):  # type: ignore[misc]
    """Copies `FILES` to logpipe/ui/static/htmx before the tree is packed."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        import django_htmx

        source = Path(django_htmx.__file__).parent / "static" / "django_htmx"
        target = Path(self.root) / "logpipe" / "ui" / "static" / "htmx"
        target.mkdir(parents=True, exist_ok=True)
        for name, digest in FILES.items():
            content = (source / name).read_bytes()
            if hashlib.sha256(content).hexdigest() != digest:
                raise ValueError(f"django-htmx has another {name} than the recorded one")
            (target / Path(name).name).write_bytes(content)
