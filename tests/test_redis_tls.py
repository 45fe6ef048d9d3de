"""`rediss://`, against a redis-server with TLS and a certificate authority of the test's own."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from logpipe.settings import BadSettingsError, load
from tests.helpers import wait_until
from tests.servers import free_port, serving

EVENT = {"source": "demo", "message": "over TLS"}


def openssl(folder: Path, *words: str) -> None:
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def tls_port(tmp_path: Path) -> Iterator[int]:
    """A redis-server whose certificate is for localhost; the authority's is `ca.pem`."""
    server = shutil.which("redis-server")
    if server is None or shutil.which("openssl") is None:
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
    port = free_port()
    options = {
        "port": "0", "tls-port": str(port), "tls-cert-file": "pem", "tls-key-file": "key",
        "tls-ca-cert-file": "ca.pem", "tls-auth-clients": "no", "save": "",
    }  # fmt: skip
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    process = subprocess.Popen([server, *words], cwd=tmp_path, stdout=subprocess.DEVNULL)
    try:
        yield port
    finally:
        process.kill()
        process.wait(10)


async def test_a_redis_whose_certificate_is_trusted_is_used(
    tls_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    address = f"rediss://localhost:{tls_port}"
    async with serving(redis_addr=address, role="collector,distributor") as service:

        async def stored() -> bool:
            return (await service.post(EVENT)).status_code == 202

        await wait_until(stored, "an event is stored over TLS")
        events = (await service.http.get("/events")).json()["events"]
        assert events[0]["message"] == "over TLS"


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


async def test_a_certificate_of_a_stranger_is_refused_with_the_reason(tls_port: int) -> None:
    """Verified by default: nothing is sent to who cannot prove to be that host."""
    address = f"rediss://localhost:{tls_port}"
    async with serving(redis_addr=address, role="collector") as service:

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
