"""What every role's Starlette app has in common."""

from collections.abc import Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute

from logpipe.problems import HANDLERS


def sub_app(routes: Sequence[BaseRoute], cors: dict[str, Any] | None = None) -> Starlette:
    """An app that answers errors as problems; `cors` is what CORSMiddleware takes.

    A path with a slash too many is 404: a redirect would lead to a host of the client's own making.
    """
    middleware = [Middleware(CORSMiddleware, **cors)] if cors else []
    app = Starlette(routes=routes, middleware=middleware, exception_handlers=HANDLERS)
    app.router.redirect_slashes = False
    return app
