"""`rediss://` and its like, against a redis-server with TLS and an authority of the test's own."""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.deployments import SLOTS, eventually
from tests.helpers import wait_until
from tests.servers import free_port, serving

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


@contextlib.contextmanager
def started(folder: Path, *words: str, **more: str) -> Iterator[int]:
    """A redis-server that speaks TLS alone, on this port of localhost."""
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
        yield port
    finally:
        process.kill()
        process.wait(10)


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
        node = redis.Redis("localhost", port, ssl=True, ssl_ca_certs=str(folder / "ca.pem"))
        eventually(lambda: node.ping(), "the node is there")
        node.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, SLOTS - 1)  # type: ignore[no-untyped-call]
        node.close()
        yield f"rediss+cluster://localhost:{port}"


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
