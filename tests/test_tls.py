"""https by the server's own certificate, and the commands that speak it."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import trustme
from click.testing import CliRunner
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from logpipe import cli
from logpipe.settings import BadSettingsError, load
from logpipe.tls import require_usable
from tests.helpers import wait_until
from tests.servers import Process, Valkey, spawned

PASSWORD = "s3cr/#t@"
EVENT = {"source": "demo", "message": "over TLS"}
WORK_BYTES = 4_000
WORK = re.compile(rb'work (\d+) x{%d}"' % WORK_BYTES)


class Files(NamedTuple):
    """What an authority of the test's own has given out, in PEM."""

    authority: Path
    certificate: Path
    key: Path
    locked_key: Path
    other_key: Path
    other_authority: Path


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """For localhost; `certificate` has its chain, and `locked_key` has `PASSWORD`."""
    folder = tmp_path_factory.mktemp("tls")
    found = Files(*(folder / name for name in Files._fields))
    authority = trustme.CA()
    own, other = authority.issue_cert("localhost"), authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(found.authority)
    trustme.CA().cert_pem.write_to_path(found.other_authority)
    found.certificate.write_bytes(b"".join(blob.bytes() for blob in own.cert_chain_pems))
    own.private_key_pem.write_to_path(found.key)
    other.private_key_pem.write_to_path(found.other_key)
    key = load_pem_private_key(own.private_key_pem.bytes(), None)
    locking = BestAvailableEncryption(PASSWORD.encode())
    found.locked_key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locking))
    return found


def environ_of(files: Files, valkey: Valkey) -> dict[str, str]:
    return {
        "REDIS_ADDR": valkey.url,
        "SSL_CERTFILE": str(files.certificate),
        "SSL_KEYFILE": str(files.key),
    }


@contextlib.asynccontextmanager
async def serving_tls(
    folder: Path, files: Files, **environ: str
) -> AsyncIterator[tuple[Process, httpx.AsyncClient]]:
    """A process that speaks https, ready, and a client that trusts its authority."""
    trusting = ssl.create_default_context(cafile=str(files.authority))
    async with spawned(folder, **environ) as process:
        url = f"https://localhost:{process.port}"
        async with httpx.AsyncClient(base_url=url, verify=trusting, trust_env=False) as http:

            async def ready() -> bool:
                assert process.popen.poll() is None, process.log.read_text()
                with contextlib.suppress(httpx.HTTPError):
                    return (await http.get("/healthz")).status_code == 200
                return False

            await wait_until(ready, "it is ready", timeout=20)
            yield process, http


async def command(*words: str, given: str = "", **environ: str) -> tuple[int, str]:
    """Runs logpipe; its exit status and all that it has written."""
    kept = {name: text for name, text in os.environ.items() if name != "SSL_CERT_FILE"}
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "logpipe", *words],
        input=given,
        env={**kept, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=30,
    )
    return done.returncode, done.stdout


async def test_events_go_in_and_out_over_tls_and_the_page_s_cookie_is_for_tls_alone(
    valkey: Valkey, tmp_path: Path, files: Files
) -> None:
    environ = {**environ_of(files, valkey), "READ_TOKENS": "r"}
    reads = {"Authorization": "Bearer r"}
    async with serving_tls(tmp_path, files, **environ) as (process, http):
        assert f"https://127.0.0.1:{process.port}" in process.log.read_text()
        async with http.stream("GET", "/subscribe", headers=reads) as stream:
            assert (await http.post("/ingest", json=EVENT)).status_code == 202
            large = [{**EVENT, "message": "x" * 30_000}] * 200
            assert (await http.post("/ingest", json=large)).json()["accepted"] == 200
            async with asyncio.timeout(20):
                seen = 0
                async for line in stream.aiter_lines():
                    seen += line.startswith("data: ") and '"source":"demo"' in line
                    if seen == 201:
                        break
            cookie = (await http.post("/login", data={"token": "r"})).headers["set-cookie"]
        for word in ("Secure", "HttpOnly", "SameSite=strict"):
            assert word in cookie
        await http.aclose()  # else the end waits for a client that does not say goodbye
        process.popen.terminate()
        assert await process.exit_status() == 0
        assert "Traceback" not in process.log.read_text()


def reader_that_stops(port: int, files: Files, count: int) -> tuple[ssl.SSLSocket, bytes]:
    """Of the group `g`, and what it has read, so many events at least; its kernel takes little."""
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plain.settimeout(20)
    plain.connect(("127.0.0.1", port))
    trusting = ssl.create_default_context(cafile=str(files.authority))
    reader = trusting.wrap_socket(plain, server_hostname="localhost")
    path = b"/subscribe?delivery=shared&group=g&since=earliest"
    reader.sendall(b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % path)
    read = b""
    while len(WORK.findall(read)) < count:
        read += reader.recv(65_536)
    return reader, read


async def standstill(valkey: Valkey) -> None:
    """Returns when the group has work that its reader is not given any more."""
    seen: list[tuple[bytes, int]] = []

    def stands() -> bool:
        groups = valkey.client.xinfo_groups("logs")
        seen.extend((group["last-delivered-id"], group["pending"]) for group in groups)
        return len(seen) > 20 and seen[-1] == seen[-20] and seen[-1][1] > 0

    await wait_until(stands, "the reader is full", timeout=20)


def counted_as_delivered(valkey: Valkey) -> set[int]:
    """The numbers of the events that the group has had and that are not pending."""
    group = valkey.client.xinfo_groups("logs")[0]
    pending = valkey.client.xpending_range("logs", "g", "-", "+", 10_000)
    waiting = {each["message_id"] for each in pending}
    given: Any = valkey.client.xrange("logs", "-", group["last-delivered-id"])
    return {int(WORK.findall(fields[b"event"])[0]) for id_, fields in given if id_ not in waiting}


def received_by(reader: ssl.SSLSocket, read: bytes) -> set[int]:
    """The numbers of the events in what was read and in what comes until the connection ends."""
    with contextlib.suppress(ssl.SSLError, ConnectionError):  # it was not closed in order
        while more := reader.recv(1 << 20):
            read += more
    body = re.sub(rb"\r\n[0-9a-f]+\r\n", b"", read)  # the heads of HTTP's chunks
    return {int(number) for number in WORK.findall(body)}


async def test_no_event_of_a_group_is_lost_over_tls_with_a_killed_process(
    valkey: Valkey, tmp_path: Path, files: Files
) -> None:
    """Events that TLS holds for a slow reader, in this process, are not acknowledged."""
    environ = {**environ_of(files, valkey), "BATCH_COUNT": "100"}
    async with serving_tls(tmp_path, files, **environ) as (process, http):
        text = "x" * WORK_BYTES
        events = [{"source": "demo", "message": f"work {n} {text}"} for n in range(1_500)]
        for at in range(0, len(events), 500):
            sent = await http.post("/ingest", json=events[at : at + 500], timeout=20)
            assert sent.status_code == 202
        reader, read = await asyncio.to_thread(reader_that_stops, process.port, files, 150)
        with reader:
            await standstill(valkey)
            process.popen.kill()
            delivered = counted_as_delivered(valkey)
            lost = delivered - await asyncio.to_thread(received_by, reader, read)
        assert 0 < len(delivered) < len(events)
        assert lost == set()


async def test_the_commands_speak_https_with_an_authority_of_one_s_own(
    valkey: Valkey, tmp_path: Path, files: Files
) -> None:
    trusted = {"SSL_CERT_FILE": str(files.authority)}
    stranger = {"SSL_CERT_FILE": str(files.other_authority)}
    async with serving_tls(tmp_path, files, **environ_of(files, valkey)) as (process, http):
        url = f"https://localhost:{process.port}"
        sending = ("send", "--patience", "0", "--url", url)
        assert (await http.post("/ingest", json=EVENT)).status_code == 202
        followed, sent, examined, *refused = await asyncio.gather(
            first_line("tail", "--since", "earliest", "--url", url, **trusted),
            command(*sending, given="a line\n", **trusted),
            command("doctor", url, **trusted),
            command("health", "--url", url, **stranger),
            command(*sending, given="a line\n", **stranger),
            command("doctor", url, **stranger),
        )
        assert "over TLS" in followed
        for status, told in (sent, examined):
            assert status == 0, told
        for status, told in refused:
            assert status == 1
            assert "certificate verify failed" in told, told
            assert "Traceback" not in told


async def first_line(*words: str, **environ: str) -> str:
    """What logpipe writes first, which then is ended."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "logpipe", *words,
        env={**os.environ, **environ}, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            return (await process.stdout.readline()).decode()
    finally:
        process.kill()
        await process.wait()


async def test_workers_speak_https_and_health_knows_the_certificate_that_serve_was_given(
    valkey: Valkey, tmp_path: Path, files: Files
) -> None:
    """As in a container: the password in a file, and the health check at an address that the
    certificate does not name."""
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    environ = {
        **environ_of(files, valkey),
        "SSL_KEYFILE": str(files.locked_key),
        "SSL_KEYFILE_PASSWORD_FILE": str(tmp_path / "password"),
        "WORKERS": "2",
    }
    async with serving_tls(tmp_path, files, **environ) as (process, http):
        said = process.log.read_text
        await wait_until(lambda: said().count("Redis is ready") == 2, "both workers are ready")
        environ["PORT"] = str(process.port)
        other = {**environ, "SSL_CERTFILE": str(files.other_authority)}
        (status, told), refused = await asyncio.gather(
            command("health", **environ), command("health", **other)
        )
        ready = f"https://127.0.0.1:{process.port}: ready: collector, distributor, ui\n"
        assert (status, told) == (0, ready)
        assert refused[0] == 1
        assert "certificate verify failed" in refused[1]
        await http.aclose()  # else the end waits for a client that does not say goodbye
        process.popen.terminate()
        assert await process.exit_status() == 0


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_sighup_takes_a_renewed_certificate_and_no_broken_one(
    valkey: Valkey, tmp_path: Path, workers: str
) -> None:
    authority = trustme.CA()
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    both = tmp_path / "both.pem"

    def renew() -> None:
        blob = authority.issue_cert("localhost").private_key_and_cert_chain_pem
        both.with_suffix(".new").write_bytes(blob.bytes())
        both.with_suffix(".new").rename(both)

    async def served() -> set[str]:
        """The certificates of ten connections."""
        found = set()
        for _ in range(10):
            _, writer = await asyncio.open_connection("localhost", process.port, ssl=trusting)
            found.add(writer.get_extra_info("peercert")["serialNumber"])
            writer.close()
        return found

    renew()
    environ = {"REDIS_ADDR": valkey.url, "SSL_CERTFILE": str(both), "WORKERS": workers}
    async with spawned(tmp_path, **environ) as process:
        await process.ready(trusting=trusting)
        (first,) = await served()
        renew()
        assert await served() == {first}
        process.popen.send_signal(signal.SIGHUP)

        async def renewed() -> bool:
            return len(found := await served()) == 1 and first not in found

        await wait_until(renewed, "the new certificate is served", 20)
        (second,) = await served()
        both.write_text("none")
        process.popen.send_signal(signal.SIGHUP)
        await wait_until(lambda: "holds no certificate" in process.log.read_text(), "it says so")
        assert await served() == {second}
        process.popen.terminate()
        assert await process.exit_status() == 0


@pytest.mark.parametrize(
    ("certificate", "key", "password", "line"),
    [
        ("missing", "key", "", "SSL_CERTFILE={certificate}: cannot be read: No such file"),
        ("certificate", "missing", "", "SSL_KEYFILE={key}: cannot be read: No such file"),
        ("key", "key", "", "SSL_CERTFILE={certificate}: holds no certificate in PEM"),
        ("certificate", "authority", "", "SSL_KEYFILE={key}: holds no private key in PEM"),
        ("certificate", "", "", "SSL_CERTFILE={certificate}: holds no private key in PEM"),
        ("certificate", "other_key", "", "SSL_KEYFILE={key}: is not the key of the certificate"),
        ("certificate", "locked_key", "", "SSL_KEYFILE={key}: its password is wrong or missing"),
        ("certificate", "locked_key", "no", "SSL_KEYFILE={key}: its password is wrong or missing"),
        ("certificate", "locked_key", PASSWORD, ""),
        ("certificate", "key", "", ""),
    ],
)
def test_a_certificate_or_a_key_that_cannot_be_used_is_named_with_the_reason(
    files: Files, tmp_path: Path, certificate: str, key: str, password: str, line: str
) -> None:
    paths = {**{n: str(p) for n, p in files._asdict().items()}, "missing": str(tmp_path / "no")}
    given = {"ssl_certfile": paths[certificate], "ssl_keyfile": paths.get(key, "")}
    told = ""
    try:
        require_usable(load({**given, "ssl_keyfile_password": password}, {}))
    except BadSettingsError as error:
        told = str(error)
    assert told.startswith(line.format(certificate=paths[certificate], key=paths.get(key)))
    assert bool(told) is bool(line)
    assert "\n" not in told


async def test_a_start_without_the_right_key_ends_with_one_line(
    files: Files, tmp_path: Path
) -> None:
    given = {"SSL_CERTFILE": str(files.certificate), "SSL_KEYFILE": str(files.other_key)}
    async with spawned(tmp_path, **given) as process:
        assert await process.exit_status() == 2
        (line,) = process.log.read_text().splitlines()
    assert line.startswith(f"logpipe: SSL_KEYFILE={files.other_key}: is not the key")


def test_a_key_without_its_certificate_is_told() -> None:
    with pytest.raises(BadSettingsError, match="SSL_KEYFILE: needs SSL_CERTFILE"):
        load({"ssl_keyfile": "/k.pem"}, {})


@pytest.mark.parametrize("words", [("tail",), ("send", "-"), ("doctor",)])
def test_an_authority_s_file_that_cannot_be_used_is_named(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    path = tmp_path / "none"
    for reason in ("No such file or directory", "holds no certificate in PEM"):
        environ = {"SSL_CERT_FILE": str(path), "PORT": "1"}
        done = CliRunner().invoke(cli.main, words, env=environ)
        assert done.exit_code == 2
        assert done.stderr.splitlines()[-1] == f"logpipe: SSL_CERT_FILE={path}: {reason}"
        path.write_text("none")
