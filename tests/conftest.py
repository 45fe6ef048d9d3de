"""A Valkey for all tests that need no other, and the choice of tests that need no server."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.schedules import SEED
from tests.servers import Valkey
from tests.without_servers import needs_servers

settings.register_profile("logpipe", deadline=None)  # a busy machine fails no test
settings.load_profile("logpipe")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--without-servers", action="store_true", help="leave out modules that start servers"
    )


def pytest_report_header() -> str:
    return f"schedules of the laws: LAW_SEED={SEED}"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    left_out = (
        config.getoption("--without-servers")
        and collection_path.suffix == ".py"
        and collection_path.name.startswith("test_")
        and needs_servers(collection_path)
    )
    return True if left_out else None


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
