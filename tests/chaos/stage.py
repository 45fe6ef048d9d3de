"""The pipeline that a fault is done to, under an oracle's eyes."""

import asyncio
import contextlib
import random
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import httpx

from tests.chaos.judge import Evidence, Offence, Record, Seen, Terms, offences
from tests.chaos.oracle import EARLIEST, Oracle, Subscriber, seen
from tests.chaos.processes import Logpipe
from tests.chaos.proxy import Proxy
from tests.helpers import wait_until
from tests.servers import Valkey
from tests.soak.readers import Plan

DURABLE = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")
FORGETFUL = ("--appendonly", "no", "--save", "")
NONE: Mapping[str, str] = MappingProxyType({})
WARM_EVENTS = 60
"""Delivered before the fault begins."""
START_S = 30.0
SETTLE_S = 8.0
"""How long what was acknowledged may take to arrive, once nothing is sent any more."""
ENVIRON = {"HEARTBEAT_S": "1", "TRIM_MAXLEN": "1000000", "LOG_FORMAT": "json"}


Around = Callable[[Path], AbstractContextManager[Mapping[str, str]]]
"""What is set up in a folder before logpipe starts, and gives variables to start it with."""


@contextlib.contextmanager
def no_more(_: Path) -> Iterator[Mapping[str, str]]:
    """Nothing more."""
    yield NONE


class Setup(NamedTuple):
    """What a trial is set up with; `whole` is one process with the embedded engine."""

    whole: bool = False
    ui: bool = False
    options: tuple[str, ...] = DURABLE
    redis_runs: bool = True
    proxied: bool = False
    user: str = ""
    """Redis user and password that logpipe is given, as in a URL."""
    environ: Mapping[str, str] = NONE
    altered: str = ""
    prefix: tuple[str, ...] = ()
    around: Around = no_more
    rate: int = 300
    plan: Plan = EARLIEST


class Stage:
    """What a fault may lay hands on."""

    def __init__(self, setup: Setup, folder: Path, valkey: Valkey | None, seed: int) -> None:
        self.setup = setup
        self.folder = folder
        self.chance = random.Random(seed)
        self.found: list[Offence] = []
        """What a fault has found wrong by itself."""
        self.notes: list[str] = []
        self._valkey = valkey
        self.proxy = Proxy(folder / "proxy.sock", valkey.socket) if valkey else None
        self.children = self._processes()
        first, last = self.collector, self.distributor
        self.subscriber = Subscriber(last.url, self.chance, setup.plan)
        self.oracle = Oracle(first.url, self.subscriber, self.chance, setup.rate)

    def _processes(self) -> dict[str, Logpipe]:
        if self.setup.whole:
            return {"all": self._process("all")}
        children = {role: self._process(role) for role in ("collector", "distributor")}
        if self.setup.ui:
            urls = {f"{role.upper()}_URL": child.url for role, child in children.items()}
            children["ui"] = self._process("ui", urls)
        return children

    def _process(self, role: str, more: Mapping[str, str] = NONE) -> Logpipe:
        environ = {**ENVIRON, "DATA_DIR": str(self.folder / "data"), **self.setup.environ, **more}
        if self._valkey and role != "ui":
            environ["REDIS_ADDR"] = self._address
        return Logpipe(role, environ, self.folder, self.setup.altered, self.setup.prefix)

    @property
    def _address(self) -> str:
        user = f"{self.setup.user}@" if self.setup.user else ""
        socket = self.proxy.socket if self.proxy and self.setup.proxied else self.valkey.socket
        return f"unix://{user}{socket}"

    @property
    def valkey(self) -> Valkey:
        """The Redis of roles that are apart."""
        assert self._valkey is not None
        return self._valkey

    def ask(self, *command: Any) -> Any:
        """A command to Redis."""
        return self.valkey.client.execute_command(*command)  # type: ignore[no-untyped-call]

    @property
    def collector(self) -> Logpipe:
        """The process that takes events."""
        return self.children["all" if self.setup.whole else "collector"]

    @property
    def distributor(self) -> Logpipe:
        """The process that hands them out."""
        return self.children["all" if self.setup.whole else "distributor"]

    async def start(self) -> None:
        """Returns when events flow, or where there is no Redis yet, when all processes live."""
        for child in self.children.values():
            await child.start()
        self.oracle.start()
        if self.setup.redis_runs and not self.setup.user:
            await self.flows(WARM_EVENTS, START_S)
        for child in self.children.values():
            await wait_until(lambda url=child.url: _lives(url), f"{child.role} lives", START_S)  # type: ignore[misc]
            child.measure()

    async def flows(self, count: int, timeout: float = START_S) -> None:
        """Returns when so many more events were delivered."""
        wanted = len(self.subscriber.seen) + count
        await wait_until(lambda: len(self.subscriber.seen) >= wanted, f"{count} more", timeout)

    async def kill(self) -> None:
        """Ends all that was started."""
        for child in self.children.values():
            await child.kill()

    async def settle(self, terms: Terms) -> Evidence:
        """Ends the load, waits until all has arrived, and takes the evidence."""
        fresh_s = await self.oracle.fresh(terms.fresh_s + 5)
        if self.setup.ui and not await self._page_shows_it():
            self.found.append(Offence("stale", "the page does not show the fresh event"))
        await self.oracle.stop_sending()
        evidence = self._evidence([], fresh_s)

        def owes() -> bool:
            kinds = [found for found in offences(evidence, terms) if "delivered" in found.text]
            return bool(kinds)

        deadline = time.monotonic() + SETTLE_S
        while owes() and time.monotonic() < deadline:
            await asyncio.sleep(0.2)
        return self._evidence(await self._held(), fresh_s)

    async def _page_shows_it(self) -> bool:
        """Whether the page has the fresh event, within two seconds."""
        query = {"q": f'"event {self.oracle.freshest} "'}
        deadline = time.monotonic() + 2
        async with httpx.AsyncClient(trust_env=False, timeout=1) as http:
            while time.monotonic() < deadline:
                with contextlib.suppress(httpx.HTTPError):
                    page = await http.get(f"{self.children['ui'].url}/ui/rows", params=query)
                    if 'data-id="' in page.text:
                        return True
                await asyncio.sleep(0.02)
        return False

    def _evidence(self, held: list[Seen], fresh_s: float | None) -> Evidence:
        oracle, reader = self.oracle, self.subscriber
        gaps = reader.history.gaps
        return Evidence(
            oracle.issued, oracle.acked, reader.seen, gaps, held, fresh_s, oracle.answers
        )

    async def _held(self) -> list[Seen]:
        """All that the stream holds, over HTTP as anyone would read it."""
        held: list[Seen] = []
        query = {"order": "asc", "limit": "5000"}
        async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
            with contextlib.suppress(httpx.HTTPError, KeyError):
                while True:
                    page = await http.get(f"{self.distributor.url}/events", params=query)
                    told = page.json()
                    held += [seen(each) for each in told["events"]]
                    if not told["next"]:
                        break
                    query["cursor"] = told["next"]
        return held

    def records(self) -> list[Record]:
        """Of all processes."""
        return [child.record() for child in self.children.values()]


async def _lives(url: str) -> bool:
    async with httpx.AsyncClient(trust_env=False) as http:
        with contextlib.suppress(httpx.HTTPError):
            return (await http.get(f"{url}/livez")).status_code == 200
    return False


@contextlib.asynccontextmanager
async def staged(setup: Setup, seed: int) -> AsyncIterator[Stage]:
    """A stage whose processes are all gone at the end, whatever happens."""
    with contextlib.ExitStack() as cleanup:
        folder = cleanup.enter_context(tempfile.TemporaryDirectory(prefix="logpipe-chaos-"))
        valkey = None
        if not setup.whole:
            valkey = cleanup.enter_context(Valkey.started(*setup.options))
        more = cleanup.enter_context(setup.around(Path(folder)))
        setup = setup._replace(environ={**setup.environ, **more})
        stage = Stage(setup, Path(folder), valkey, seed)
        if valkey and not setup.redis_runs:
            valkey.kill()
        try:
            async with stage.proxy.running() if stage.proxy else contextlib.nullcontext():
                yield stage
        finally:
            await stage.kill()
            await stage.oracle.aclose()
