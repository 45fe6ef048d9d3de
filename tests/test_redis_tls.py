"""`rediss://` and its like, against a redis-server with TLS and an authority of the test's own."""

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis

from logpipe.settings import BadSettingsError, load
from tests.deployments import SLOTS, eventually
from tests.helpers import wait_until
from tests.load import loaded
from tests.servers import free_port, serving
from tests.test_redis_faults import ANSWERED_S, said

EVENT = {"source": "demo", "message": "over TLS"}


def openssl(folder: Path, *words: str) -> None:
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a certificate for localhost, and its authority's, `ca.pem`."""
    if shutil.which("redis-server") is None or shutil.which("openssl") is None:
        pytest.skip("NOT TESTED: rediss:// needs redis-server and openssl")
    new = ("-newkey", "rsa:2048", "-nodes")
    openssl(
        tmp_path, "req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca"
    )
    openssl(tmp_path, "req", *new, "-keyout", "key", "-out", "csr", "-subj", "/CN=localhost")
    (tmp_path / "ext").write_text("subjectAltName=DNS:localhost")
    openssl(
        tmp_path, "x509", "-req", "-in", "csr", "-out", "pem", "-extfile", "ext",
        "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
    )  # fmt: skip
    return tmp_path


class Server(NamedTuple):
    """A redis-server that speaks TLS alone, on a port of localhost."""

    port: int
    process: subprocess.Popen[bytes]


@contextlib.contextmanager
def launched(folder: Path, *words: str, **more: str) -> Iterator[Server]:
    """A server with these options, killed at the end."""
    port = free_port()
    options = {
        "port": "0", "tls-port": str(port), "tls-cert-file": "pem", "tls-key-file": "key",
        "tls-ca-cert-file": "ca.pem", "tls-auth-clients": "no", "save": "", "bind": "127.0.0.1",
        **more,
    }  # fmt: skip
    told = [word for name, value in options.items() for word in (f"--{name}", value)]
    command = ["redis-server", *words, *told]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    try:
        yield Server(port, process)
    finally:
        process.kill()
        process.wait(10)


@contextlib.contextmanager
def started(folder: Path, *words: str, **more: str) -> Iterator[int]:
    """The port of such a server."""
    with launched(folder, *words, **more) as server:
        yield server.port


@contextlib.contextmanager
def asked(folder: Path, port: int) -> Iterator[Callable[..., Any]]:
    """A function that gives the server's answer to a command."""
    client = redis.Redis("localhost", port, ssl=True, ssl_ca_certs=str(folder / "ca.pem"))
    try:
        eventually(client.ping, "the server is there")
        yield client.execute_command
    finally:
        client.close()


@pytest.fixture
def tls_port(folder: Path) -> Iterator[int]:
    """Of a Redis."""
    with started(folder) as port:
        yield port


@pytest.fixture
def tls_sentinel(folder: Path, tls_port: int) -> Iterator[str]:
    """The address by a Sentinel, which gives names, as certificates have them."""
    (folder / "sentinel.conf").write_text(
        "sentinel resolve-hostnames yes\nsentinel announce-hostnames yes\n"
        f"sentinel monitor m localhost {tls_port} 1\n"
    )
    with started(folder, "sentinel.conf", "--sentinel", **{"tls-replication": "yes"}) as port:
        yield f"rediss+sentinel://localhost:{port}/m"


@pytest.fixture
def tls_cluster(folder: Path) -> Iterator[str]:
    """The address of a Cluster of one node, which gives its name."""
    options = {
        "cluster-enabled": "yes", "tls-cluster": "yes", "cluster-port": str(free_port()),
        "cluster-announce-hostname": "localhost", "cluster-preferred-endpoint-type": "hostname",
    }  # fmt: skip
    with started(folder, **options) as port:
        with asked(folder, port) as ask:
            ask("CLUSTER", "ADDSLOTSRANGE", 0, SLOTS - 1)
        yield f"rediss+cluster://localhost:{port}"


@pytest.fixture
def tls_pair(folder: Path) -> Iterator[tuple[str, Server]]:
    """The address of a primary with a replica, by a Sentinel, and the primary. All three speak TLS
    among themselves, too, and are known by name."""
    named = {"replica-announce-ip": "localhost", "tls-replication": "yes"}
    quickly = {**named, "repl-diskless-sync-delay": "0"}
    with contextlib.ExitStack() as stack:
        primary = stack.enter_context(launched(folder, **quickly))
        to_primary = {"replicaof": f"localhost {primary.port}"}
        replica = stack.enter_context(launched(folder, **quickly, **to_primary))
        with asked(folder, replica.port) as ask:
            eventually(lambda: ask("ROLE")[3] == b"connected", "the replica has caught up")
        (folder / "sentinel.conf").write_text(
            "sentinel resolve-hostnames yes\nsentinel announce-hostnames yes\n"
            f"sentinel monitor m localhost {primary.port} 1\n"
            "sentinel down-after-milliseconds m 1000\nsentinel failover-timeout m 5000\n"
        )
        sentinel = stack.enter_context(
            launched(folder, "sentinel.conf", "--sentinel", **{"tls-replication": "yes"})
        )
        with asked(folder, sentinel.port) as ask:
            eventually(lambda: ask("SENTINEL MASTER", "m")["num-slaves"] == 1, "it knows both")
        yield f"rediss+sentinel://localhost:{sentinel.port}/m", primary


@pytest.fixture(params=["redis", "sentinel", "cluster"])
def tls_address(request: pytest.FixtureRequest) -> str:
    """What REDIS_ADDR is for each of them."""
    if request.param == "redis":
        return f"rediss://localhost:{request.getfixturevalue('tls_port')}"
    return str(request.getfixturevalue(f"tls_{request.param}"))


async def test_a_redis_whose_certificate_is_trusted_is_used(
    tls_address: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "ca.pem"))
    async with serving(redis_addr=tls_address, role="collector,distributor") as service:

        async def stored() -> bool:
            return (await service.post(EVENT)).status_code == 202

        await wait_until(stored, "an event is stored over TLS")
        events = (await service.http.get("/events")).json()["events"]
        assert events[0]["message"] == "over TLS"


async def test_a_primary_that_is_killed_is_followed_by_its_replica_over_tls(
    tls_pair: tuple[str, Server], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "ca.pem"))
    address, primary = tls_pair
    async with loaded(address) as (service, load, delivered):
        primary.process.kill()
        await load.more(200)
        await wait_until(said(service, "ok"), "it says so")
        assert load.refused > 0
        assert load.slowest < ANSWERED_S
    assert [gap["reason"] for gap in delivered.gaps] == ["reset"]


async def test_the_address_itself_may_name_the_authority(tls_port: int, tmp_path: Path) -> None:
    address = f"rediss://localhost:{tls_port}/0?ssl_ca_certs={tmp_path / 'ca.pem'}"
    async with serving(redis_addr=address, role="collector,distributor") as service:

        async def stored() -> bool:
            return (await service.post(EVENT)).status_code == 202

        await wait_until(stored, "an event is stored over TLS")
        assert len((await service.http.get("/events")).json()["events"]) == 1


@pytest.mark.parametrize("name", ["none", "key"])
def test_an_authority_s_file_that_cannot_be_used_is_told_at_the_start(
    tls_port: int, tmp_path: Path, name: str
) -> None:
    with pytest.raises(BadSettingsError) as caught:
        load({"redis_addr": f"rediss://:s3cr@h/0?ssl_ca_certs={tmp_path / name}"}, {})
    assert str(caught.value).startswith("REDIS_ADDR: ssl_ca_certs")
    assert "s3cr" not in str(caught.value)


async def test_a_certificate_of_a_stranger_is_refused_with_the_reason(tls_address: str) -> None:
    """Verified by default: nothing is sent to who cannot prove to be that host."""
    async with serving(redis_addr=tls_address, role="collector") as service:

        async def detail() -> str:
            return str((await service.http.get("/healthz")).json().get("detail"))

        async def told() -> bool:
            return "its certificate is not accepted" in await detail()

        await wait_until(told, "the reason is told")
        assert (await service.post(EVENT)).status_code == 503


async def test_a_redis_without_tls_is_not_spoken_to_in_the_clear(tls_port: int) -> None:
    """And the other way round: plain to a port with TLS is an error, not a hang."""
    async with serving(redis_addr=f"redis://localhost:{tls_port}", role="collector") as service:
        assert (await service.post(EVENT)).status_code == 503
        assert (await service.http.get("/healthz")).status_code == 503
