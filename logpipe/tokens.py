"""The tokens in force: those of the settings, and those of their files as these are now."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import overload

from logpipe.settings import Settings, words_in

log = logging.getLogger("logpipe")

POLL_S = 1.0
"""Between two looks at the files. They are read, not only looked at: they are small, and a change
within one tick of a file system's clock is one, too."""


class Words(Sequence[str]):
    """The tokens of one scope, as they are at the moment; none: it is open to all."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self.now = words

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[str, ...]: ...
    def __getitem__(self, at: int | slice) -> str | tuple[str, ...]:
        return self.now[at]

    def __len__(self) -> int:
        return len(self.now)


class Tokens:
    """Who may send, read and operate. Whether a scope is open to all never changes."""

    def __init__(self, settings: Settings) -> None:
        self.ingest = Words(settings.ingest_tokens)
        self.read = Words(settings.read_tokens)
        self.admin = Words(settings.admin_tokens)
        scopes = {"ingest_tokens": self.ingest, "read_tokens": self.read}
        scopes["admin_tokens"] = self.admin
        self._files = [
            _File(f"{name.upper()}_FILE", path, scopes[name])
            for name, path in settings.files.items()
            if name in scopes
        ]
        self._streams: set[tuple[Callable[[], bool], Callable[[], None]]] = set()

    @property
    def from_files(self) -> bool:
        """Whether any of them may change."""
        return bool(self._files)

    @property
    def readers(self) -> tuple[str, ...]:
        """The tokens that may read: an operator's may, too."""
        return (*self.read, *self.admin) if self.read else ()

    @property
    def operators(self) -> tuple[str, ...]:
        """The tokens that may see how logpipe runs: where there is no scope of its own for that,
        those that may read."""
        return tuple(self.admin) or self.readers

    @contextmanager
    def revoking(self, allowed: Callable[[], bool], end: Callable[[], None]) -> Iterator[None]:
        """Meanwhile `end` is called when `allowed` no longer is after a change of tokens."""
        stream = (allowed, end)
        self._streams.add(stream)
        if not allowed():  # no longer, since it was asked for
            end()
        try:
            yield
        finally:
            self._streams.discard(stream)

    async def follow(self) -> None:
        """Keeps up with the files, for ever."""
        while True:
            await asyncio.sleep(POLL_S)
            await self.look()

    async def look(self) -> None:
        """Takes what has changed in the files."""
        found = await asyncio.to_thread(lambda: [file.read() for file in self._files])
        changed = [file.take(*each) for file, each in zip(self._files, found, strict=True)]
        if any(changed):
            for allowed, end in list(self._streams):
                if not allowed():
                    end()


class _File:
    """A file of tokens. What it holds counts once it was seen twice, so that nobody's token is what
    was written of a file by then; and only while it holds any, so that it opens nothing."""

    def __init__(self, variable: str, path: str, words: Words) -> None:
        self._name = f"{variable}={path}"
        self._path = path
        self._words = words
        self._seen: tuple[str, ...] = ()
        self._trouble = ""

    def read(self) -> tuple[tuple[str, ...], str]:
        """Its tokens, and why there are none."""
        try:
            return words_in(self._path), ""
        except ValueError as error:
            return (), str(error)

    def take(self, words: tuple[str, ...], trouble: str) -> bool:
        """Whether other tokens are in force now; what is wrong is logged once."""
        before, self._seen = self._seen, words
        if trouble != self._trouble:
            self._trouble = trouble
            if trouble:
                log.warning("%s: %s; the tokens stay as they were", self._name, trouble)
            else:
                log.info("%s: is read again", self._name)
        if trouble or words == self._words.now or words != before:
            return False
        self._words.now = words
        log.info("%s: has changed; tokens in force: %d", self._name, len(words))
        return True
