"""`logpipe copy` as a command."""

import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import click

from logpipe.cli.common import CONTEXT, fail, settings_of, show, visible

if TYPE_CHECKING:
    from logpipe.redis_address import RedisAddress
    from logpipe.settings import Settings
    from logpipe.stream.copying import Copied, StreamCopy


@click.command("copy", context_settings=CONTEXT)
@click.option(
    "--from",
    "source",
    envvar="COPY_FROM",
    metavar="ADDR",
    required=True,
    help="Where the stream is, as REDIS_ADDR or COPY_FROM; embedded:// takes DATA_DIR.",
)
@click.option(
    "--to",
    "target",
    envvar="COPY_TO",
    metavar="ADDR",
    required=True,
    help="Where it is to be, as REDIS_ADDR or COPY_TO.",
)
@click.option("--stream", metavar="NAME", help="Name of the stream.  [default: STREAM_NAME]")
@click.option("--live", is_flag=True, help="For a backup: that the source goes on is no failure.")
def command(source: str, target: str, stream: str | None, *, live: bool) -> None:
    """Copy a stream from one Redis to another: ids, counters, consumer groups and what is pending.

    Between the embedded engine, Redis and Valkey, also behind Sentinels and in a Cluster. At the
    end both are compared. Senders may go on meanwhile; another run copies what has come since, or
    goes on where one was interrupted. Exit 1 when something failed or, without --live, when the
    source has changed meanwhile.

    \b
      logpipe copy --from embedded:///var/lib/logpipe --to redis://redis:6379/0
      logpipe copy --live --from embedded:///var/lib/logpipe --to embedded:///backup/logpipe
    """
    settings = settings_of(os.environ)
    ends = {"--from": _address("--from", source), "--to": _address("--to", target)}
    import asyncio

    copied = asyncio.run(_copy(ends, stream or settings.stream_name, settings))
    show(
        f"copied {copied.entries:,} entries; there are {copied.length:,} now, {copied.groups:,}"
        f" groups with {copied.pending:,} pending, and {copied.keys:,} other keys"
    )
    if not copied.same:
        fail("entries differ: remove the stream at the target with DEL, and copy again", 1)
    if copied.complete:
        show("both are the same")
    elif live:
        show(f"all entries are the same; the source has {copied.newer:,} newer ones")
    else:
        fail(
            f"the source has changed meanwhile, by {copied.newer:,} newer entries: run it again"
            " when logpipe does not serve it",
            1,
        )


def _address(option: str, text: str) -> "RedisAddress":
    from logpipe.redis_address import parse_redis_addr

    try:
        return parse_redis_addr(text)
    except ValueError as error:
        fail(f"{option}: {error}", 2)


async def _copy(ends: "dict[str, RedisAddress]", stream: str, settings: "Settings") -> "Copied":
    from redis.exceptions import ConnectionError as RedisConnectionError
    from redis.exceptions import RedisError
    from redis.exceptions import TimeoutError as RedisTimeoutError

    from logpipe.engine import EngineError
    from logpipe.stream.copying import NotCopiedError

    try:
        async with _opened(ends, stream, settings) as copy:
            with click.progressbar(
                length=1, label="entries", file=sys.stderr, hidden=not sys.stderr.isatty()
            ) as bar:

                def progress(copied: int, length: int) -> None:
                    bar.length = max(copied, length)
                    bar.update(copied - bar.pos)

                return await copy.run(progress)
    except (NotCopiedError, EngineError) as error:
        fail(visible(str(error)), 1)
    except (RedisConnectionError, RedisTimeoutError, OSError) as error:
        fail(f"{visible(str(error))}; another run goes on where this one ended", 1)
    except RedisError as error:
        fail(visible(str(error)), 1)


@asynccontextmanager
async def _opened(
    ends: "dict[str, RedisAddress]", stream: str, settings: "Settings"
) -> "AsyncIterator[StreamCopy]":
    """The copy between two servers that answer."""
    import redis.asyncio as aioredis
    from redis.exceptions import RedisError

    from logpipe.stream.copying import StreamCopy, opened

    async with AsyncExitStack() as stack:
        clients: list[aioredis.Redis] = []
        for option, address in ends.items():
            at = await _served(address, settings, stack, must_exist=option == "--from")
            client = await stack.enter_async_context(opened(at, stream))
            try:
                await client.ping()
            except (RedisError, OSError) as error:
                fail(f"{option}: {address}: {visible(str(error) or 'no answer')}", 1)
            clients.append(client)
        source, target = clients
        yield StreamCopy(source, target, stream)


async def _served(
    address: "RedisAddress", settings: "Settings", stack: AsyncExitStack, *, must_exist: bool
) -> "RedisAddress":
    """The address, for an embedded engine that of one that runs: of the service that uses the
    folder now, or one that is started here. Raises `EngineError`."""
    if address.embedded is None:
        return address
    from pathlib import Path

    from logpipe.engine import Engine, EngineError
    from logpipe.redis_address import RedisAddress

    folder = Path(address.embedded) if address.embedded else settings.engine_dir
    if must_exist and not (folder / "appendonlydir").is_dir():
        raise EngineError(f"{folder}: there are no data of an embedded engine")
    engine = Engine(folder, settings.engine_bytes, as_commands=settings.trim_maxage_ms > 0)
    if await engine.runs_elsewhere():
        return RedisAddress(socket=str(engine.socket))
    await engine.start()
    stack.push_async_callback(engine.stop)
    return engine.address
