"""The ui: the page at `/`, server-rendered, on htmx."""

from logpipe.ui.app import Submit, Tail, create

__all__ = ["Submit", "Tail", "create"]
