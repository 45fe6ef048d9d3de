"""The ui: the page at `/`, server-rendered, on htmx."""

from logpipe.ui.app import Page, Submit, create
from logpipe.ui.log import LocalLog, Log

__all__ = ["LocalLog", "Log", "Page", "Submit", "create"]
