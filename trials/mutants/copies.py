"""Copies of the working tree in which tests run, and the end of all that they have started."""

import asyncio
import contextlib
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

LEFT_OUT = (
    ".venv*",
    ".git",
    ".*_cache",
    ".hypothesis",
    ".senders",
    ".mutants",
    ".data",
    "__pycache__",
)
MARK = "LOGPIPE_MUTANTS_COPY"
"""The environment variable by which the processes of a copy are known."""

PLUGINS = (
    *("-p", "pytest_asyncio.plugin", "-p", "pytest_timeout", "-p", "_hypothesis_pytestplugin"),
    *("-p", "no:cacheprovider"),
)
"""Those that the tests need: to load all that are installed takes longer than most tests."""

Outcome = Literal["passed", "failed", "timed out"]
OUTCOMES: dict[int | None, Outcome] = {0: "passed", None: "timed out"}
"""By the exit status, None while they run; with any other one tests have failed."""


class Ran(NamedTuple):
    """The outcome of some tests, how many seconds they took, and their output."""

    outcome: Outcome
    seconds: float
    output: str


class Copy:
    """A copy of the working tree in a folder of its own."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.tree = folder / "tree"
        self._output = folder / "output"
        (folder / "t").mkdir(parents=True)
        shutil.copytree(root, self.tree, ignore=shutil.ignore_patterns(*LEFT_OUT))
        self._environ = {
            **os.environ,
            MARK: str(folder),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTHONPATH": str(self.tree),  # before the installed package, also in subprocesses
            "TMPDIR": str(folder / "t"),
        }

    @contextlib.contextmanager
    def changed(self, path: str, code: str) -> Iterator[None]:
        """With another content of one file."""
        file = self.tree / path
        before = file.read_text(encoding="utf-8")
        for cached in (file.parent / "__pycache__").glob(f"{file.stem}.*"):
            cached.unlink()  # Python would take it for the new one's: it looks at size and second
        file.write_text(code, encoding="utf-8")
        try:
            yield
        finally:
            file.write_text(before, encoding="utf-8")

    async def run(
        self,
        tests: Sequence[str],
        seed: int,
        limit_s: float = math.inf,
        *,
        compiled: bool = False,
    ) -> Ran:
        """Runs test files until one test fails. Whatever happens, none of their processes is left.

        `compiled`: Python may keep the code that it compiles, for the runs after this one.
        """
        options = ("-x", "-q", "--tb=short", f"--hypothesis-seed={seed}")
        environ = {**self._environ, "PYTHONDONTWRITEBYTECODE": "" if compiled else "1"}
        start = time.monotonic()
        with self._output.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "pytest", *PLUGINS, *options, *tests],
                cwd=self.tree,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            try:
                while process.poll() is None and time.monotonic() - start < limit_s:
                    await asyncio.sleep(0.02)
                outcome = OUTCOMES.get(process.returncode, "failed")
            finally:
                self._end_all()
                process.wait()
        text = self._output.read_text(encoding="utf-8", errors="replace")
        return Ran(outcome, time.monotonic() - start, text)

    def _end_all(self) -> None:
        """Kills the processes of this copy until there are none: tests start servers, some of them
        in sessions of their own."""
        mark = f"{MARK}={self._environ[MARK]}".encode()
        while left := [pid for pid in _pids() if mark in _environ_of(pid)]:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)


def _pids() -> list[int]:
    return [int(each.name) for each in Path("/proc").iterdir() if each.name.isdecimal()]


def _environ_of(pid: int) -> Sequence[bytes]:
    """Empty for one that has ended, and for another user's."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return ()
