"""A Valkey for all tests that need no other."""

from collections.abc import Iterator

import pytest

from tests.servers import Valkey


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[Valkey]:
    """The session's Valkey, on a unix socket, without persistence."""
    with Valkey.started() as server:
        yield server


@pytest.fixture
def valkey(valkey_server: Valkey) -> Valkey:
    """The session's Valkey, empty."""
    valkey_server.reset()
    return valkey_server


@pytest.fixture
def own_valkey() -> Iterator[Valkey]:
    """A Valkey that a test may kill, stop and restart; it keeps what it has acknowledged."""
    with Valkey.started("--appendonly", "yes", "--appendfsync", "always", "--save", "") as server:
        yield server
