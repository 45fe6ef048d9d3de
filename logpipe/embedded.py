"""The embedded engine in the process that owns it: one that serves, or that holds workers."""

from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from logpipe.background import Background
from logpipe.engine import Engine, Rewriting
from logpipe.settings import Settings
from logpipe.stream import Disk, Stream, free_bytes


async def start_engine(settings: Settings, stack: AsyncExitStack, background: Background) -> Engine:
    """The engine, started and supervised; `stack` stops it. Raises `EngineError`."""
    engine = Engine(
        settings.engine_dir, settings.engine_bytes, as_commands=settings.trim_maxage_ms > 0
    )
    await engine.start()
    stack.push_async_callback(engine.stop)
    background.start("engine", engine.supervise())
    return engine


def disk_of(
    settings: Settings, folder: str, measured: Callable[[int, int], None] = lambda *_: None
) -> Disk:
    """The disk of a folder that an engine with these settings writes to."""
    return Disk(free_bytes(Path(folder)), measured, as_commands=settings.trim_maxage_ms > 0)


def start_rewriting(
    settings: Settings, engine: Engine, stream: Stream, background: Background
) -> None:
    """Has text that has left the stream leave the engine's files; `stream` is one whose monitor
    runs."""
    rewriting = Rewriting(
        settings.engine_dir,
        engine.socket,
        stream.left,
        partial(stream.groups.lose_trimmed, settings.pending_idle_ms),
        lambda: stream.no_room,
        max_age_ms=settings.trim_maxage_ms,
    )
    background.start("rewriting", rewriting.run())


def start_rewriting_alone(
    settings: Settings, engine: Engine, stack: AsyncExitStack, background: Background
) -> None:
    """As `start_rewriting`, in a process that uses the stream for nothing else; `stack` closes
    its connections."""
    stream = Stream(
        engine.address,
        settings.stream_name,
        maxlen=settings.trim_maxlen,
        trouble=lambda: engine.trouble,
        disk=disk_of(settings, engine.address.disk),
    )
    stack.push_async_callback(stream.aclose)
    background.start("monitor", stream.monitor())
    start_rewriting(settings, engine, stream, background)
