"""The page's own files: style, script, icon and htmx, with URLs that change with the content."""

import hashlib
import os
from pathlib import Path

from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER = Path(__file__).parent / "static"
FILES = (
    "page.css",
    "page.js",
    "status.css",
    "status.js",
    "theme.js",
    "icon.svg",
    "htmx/htmx-4.min.js",
    "htmx/hx-sse-4.min.js",
)


class Assets(StaticFiles):
    """Serves `FOLDER` and knows the URLs. Raises OSError where htmx was not laid beside it."""

    def __init__(self) -> None:
        super().__init__(directory=FOLDER)
        self._versions = {str(FOLDER / name): _digest(FOLDER / name) for name in FILES}

    def url(self, name: str) -> str:
        """The URL of a file, with its version."""
        return f"/static/{name}?v={self._versions[str(FOLDER / name)]}"

    def file_response(
        self,
        full_path: "str | os.PathLike[str]",
        stat_result: os.stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        """The file. Only the version that it has now may be kept for good: while two releases
        serve side by side, the one must not answer for the other."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        current = f"v={self._versions.get(str(full_path))}".encode()
        kept = "max-age=31536000, immutable" if scope["query_string"] == current else "no-cache"
        response.headers["Cache-Control"] = kept
        return response


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
