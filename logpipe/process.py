"""The life of a serving process: bind, open, serve, close."""

import logging

from logpipe import __version__
from logpipe.app import running
from logpipe.server import Server, bind
from logpipe.settings import Settings

log = logging.getLogger("logpipe")


async def serve_until_stopped(settings: Settings) -> int:
    """Serves until SIGTERM or SIGINT; the exit status.

    Raises `PortTakenError` before anything is started, and `EngineError`.
    """
    listener = bind(settings.host, settings.listen_port)
    port = listener.getsockname()[1]
    async with running(settings) as process:
        server = Server(process.app, process.farewell)
        process.background.on_failure = server.stop
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        log.info(
            "logpipe %s runs %s at http://%s:%d",
            __version__,
            ", ".join(sorted(settings.roles)),
            host,
            port,
        )
        if settings.exposed and (open_to := _open_to_all(settings)):
            log.warning(
                "%s listens beyond this machine, and anyone who reaches it can %s: set %s",
                settings.host,
                " and ".join(open_to.values()),
                " and ".join(open_to),
            )
        await server.serve(sockets=[listener])
        return 1 if process.background.failure else 0


def _open_to_all(settings: Settings) -> dict[str, str]:
    """The settings of tokens that are missing, and what that leaves open."""
    missing = {}
    if not settings.ingest_tokens and settings.roles & {"collector", "ui"}:
        missing["INGEST_TOKENS"] = "send"
    if not settings.read_tokens and settings.roles & {"distributor", "ui"}:
        missing["READ_TOKENS"] = "read"
    return missing
