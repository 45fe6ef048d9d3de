"""The ui: the page at `/`, server-rendered, on htmx."""

from logpipe.ui.app import Submit, create
from logpipe.ui.log import LocalLog, Log

__all__ = ["LocalLog", "Log", "Submit", "create"]
