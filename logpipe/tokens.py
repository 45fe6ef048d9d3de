"""The tokens in force: those of the settings, and those of their files as these are now."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import overload

from starlette.types import Scope

from logpipe.attempts import Attempts
from logpipe.auth import decoded, forbidden, is_known, missing, token_of
from logpipe.settings import Settings, words_in

log = logging.getLogger("logpipe")

NO_LONGER_ALLOWED = "this token is no longer allowed"
"""What a stream says at its end when its token was removed, or its session signed out."""

POLL_S = 1.0
"""Between two looks at the files. They are read, not only looked at: they are small, and a change
within one tick of a file system's clock is one, too."""

AGAIN_S = 0.2
"""Between the two looks that a reload takes."""


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

    def __iter__(self) -> Iterator[str]:
        return iter(self.now)  # the general one asks for each by its number


class Tokens:
    """Who may send, read and operate. Whether a scope is open to all never changes."""

    def __init__(self, settings: Settings, attempts: Attempts | None = None) -> None:
        self.attempts = attempts or Attempts()
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
        self._asked = asyncio.Event()

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

    @property
    def page_tokens(self) -> tuple[str, ...]:
        """The tokens with which a page that runs alone may exchange its sessions: those that may
        read, and where reading is open to all any other. None: there are no sessions."""
        return self.readers or (*self.admin, *self.ingest)

    def is_token(self, text: str) -> bool:
        """Whether a text is a token of any scope."""
        return is_known(text, (*self.ingest, *self.read, *self.admin))

    def require(
        self, scope: Scope, route: str, authorization: str | None, allowed: Sequence[str]
    ) -> str | None:
        """The token of an Authorization header; None where none is needed, because none is allowed.

        `route` is the name by which a wrong one is counted. Raises a 401, 403 or 429 `Problem`.
        """
        if not allowed:
            return None
        token = token_of(authorization)
        if token is None:
            raise missing()
        return self.admit(scope, route, token, allowed)

    def admit(self, scope: Scope, route: str, token: str, allowed: Sequence[str]) -> str:
        """The token, as it is meant, of a header that is one of `allowed`. Raises a 403 or 429
        `Problem`."""
        given = decoded(token)
        if not self.attempts.passes(scope, route, given, lambda: self.is_token(given)):
            raise forbidden()
        if not is_known(given, allowed):
            self.attempts.note(scope, route)
            raise forbidden()
        return given

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
        """Keeps up with the files, without an end."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._asked.wait()
                self._asked.clear()
                await self.look()
                await asyncio.sleep(AGAIN_S)
            await self.look()

    def reload(self) -> None:
        """Has `follow` read the files now, and once more after `AGAIN_S`."""
        self._asked.set()

    async def look(self) -> None:
        """Takes what has changed in the files."""
        found = await asyncio.to_thread(lambda: [file.read() for file in self._files])
        changed = [file.take(*each) for file, each in zip(self._files, found, strict=True)]
        if any(changed):
            self.end_streams()

    def end_streams(self) -> None:
        """Ends the streams that are no longer allowed."""
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
