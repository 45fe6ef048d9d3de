"""The image and its Compose file: as confined as they can be, and logpipe works so confined."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.helpers import wait_until
from tests.security.sandbox import DATA, PATH, Inside, Sandbox
from tests.servers import Valkey, free_port, subscribed

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))[
    "services"
]
OWN = [name for name in SERVICES if name != "redis"]


def instructions(name: str) -> list[str]:
    """The arguments of each such instruction of the image, continued lines joined."""
    joined = re.sub(r"\\\n\s*", "", DOCKERFILE)
    return re.findall(rf"^{name} (.+)$", joined, re.MULTILINE)


# -- what the files say ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_has_as_little_as_compose_can_give(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"])
    assert 0 < service["pids_limit"] <= 512
    assert service["mem_limit"]
    assert service["healthcheck"]["test"][0] == "CMD"
    assert not {"privileged", "cap_add", "network_mode", "pid", "ipc", "devices"} & service.keys()


@pytest.mark.parametrize("name", OWN)
def test_a_service_of_logpipe_has_nothing_of_the_host_and_asks_itself_how_it_is(name: str) -> None:
    service = SERVICES[name]
    assert "volumes" not in service
    assert service["healthcheck"]["test"] == ["CMD", "logpipe", "health"]
    (tmp,) = service["tmpfs"]
    assert {"noexec", "nosuid", "nodev"} <= set(tmp.partition(":")[2].split(","))
    assert service["user"] == instructions("USER")[-1]


def test_redis_is_reached_by_the_services_alone() -> None:
    assert "ports" not in SERVICES["redis"]


COMPOSED = ["compose.yaml", "deploy/sentinel/compose.yaml"]
PORTS = {"collector": "8081:8081", "distributor": "8082:8082", "ui": "8080:8080"}


def published(path: str, **environ: str) -> dict[str, list[str]]:
    """The ports that the services publish, as Compose makes them of the file and an environment."""

    def value(found: re.Match[str]) -> str:
        return environ.get(found[1]) or found[2]

    text = re.sub(r"\$\{(\w+):-([^}]*)\}", value, (ROOT / path).read_text(encoding="utf-8"))
    services: dict[str, Any] = yaml.safe_load(text)["services"]
    return {name: service["ports"] for name, service in services.items() if "ports" in service}


@pytest.mark.parametrize("path", COMPOSED)
def test_ports_are_published_to_this_machine_alone(path: str) -> None:
    ports = [port for each in published(path).values() for port in each]
    assert ports
    assert all(re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port) for port in ports)


@pytest.mark.parametrize("path", COMPOSED)
def test_an_address_opens_them_to_the_network(path: str) -> None:
    ports = [port for each in published(path, PUBLISH_ADDRESS="0.0.0.0").values() for port in each]
    assert all(re.fullmatch(r"0\.0\.0\.0:(\d+):\1", port) for port in ports)


def test_each_role_has_its_port_and_distributors_a_range() -> None:
    local = {name: [f"127.0.0.1:{port}"] for name, port in PORTS.items()}
    assert published("compose.yaml") == local
    ranged = {**local, "distributor": ["127.0.0.1:8082-8089:8082"]}
    assert published("compose.yaml", DISTRIBUTOR_PORTS="8082-8089") == ranged


def test_the_image_runs_as_a_number_that_is_not_root() -> None:
    """A number, because `runAsNonRoot` of Kubernetes cannot judge a name."""
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", instructions("USER")[-1])
    assert DOCKERFILE.index("\nUSER ") < DOCKERFILE.index("\nENTRYPOINT ")


def test_the_image_is_healthy_when_logpipe_says_so() -> None:
    (health,) = instructions("HEALTHCHECK")
    assert health.endswith('CMD ["logpipe", "health"]')


def test_the_image_fetches_nothing_but_what_the_locks_name() -> None:
    steps = " && ".join(instructions("RUN")).split(" && ")
    installs = [step for step in steps if re.search(r"pip (install|wheel)", step)]
    assert len(installs) == 4
    for step in installs:
        hashed = "--require-hashes --only-binary :all: -r requirements" in step
        assert hashed or "--no-index" in step, step
    assert not instructions("ADD")
    assert not re.search(r"curl|wget|apt|git |:latest|ARG |sudo", DOCKERFILE)


def test_no_secret_is_in_the_image() -> None:
    assert not re.search(r"(?i)token|password|secret|key", " ".join(instructions("ENV")))
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert ignored[0] == "*"
    kept = {line[1:] for line in ignored if line.startswith("!")}
    copied = set(" ".join(instructions("COPY")).split()) & {path.name for path in ROOT.iterdir()}
    assert copied <= kept


# -- and so it works -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    service = SERVICES["collector"]
    uid = int(service["user"].partition(":")[0])
    made = Sandbox(uid, service["tmpfs"][0].partition(":")[2], service["pids_limit"])
    if why := made.why_not():
        pytest.skip(f"no sandbox here: {why}")
    return made


@pytest.fixture(scope="module")
def inside(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inside]:
    """The image's own command, confined, with the image's own variables."""
    environ = {
        "PATH": PATH,
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOST": "0.0.0.0",
        "PORT": str(free_port()),
        "DATA_DIR": DATA,
    }
    with sandbox.running(
        ["logpipe", "serve"], environ, tmp_path_factory.mktemp("box") / "log"
    ) as running:
        yield running


async def serves(url: str) -> bool:
    async with httpx.AsyncClient(trust_env=False) as http:
        try:
            return (await http.get(f"{url}/healthz")).status_code == 200
        except httpx.HTTPError:
            return False


def url_of(inside: Inside) -> str:
    return f"http://127.0.0.1:{inside.environ['PORT']}"


EVENT = {"source": "box", "message": "from inside"}


async def test_confined_as_in_a_container_it_serves_takes_in_and_gives_out(inside: Inside) -> None:
    url = url_of(inside)
    await wait_until(lambda: serves(url), "it serves", 30)
    async with subscribed(url) as reader, httpx.AsyncClient(base_url=url, trust_env=False) as http:
        await reader.named("hello")
        assert (await http.post("/ingest", json=EVENT)).status_code == 202
        (event,) = await reader.until(1)
        assert event["message"] == EVENT["message"]
        for path in ("/", "/status", "/metrics", "/events"):
            assert (await http.get(path)).status_code == 200
    healthy = inside.run("logpipe", "health")
    assert healthy.returncode == 0, healthy.stderr
    assert EVENT["message"] in await first_line(inside, "logpipe", "tail", "--url", url)
    log = inside.log.read_text()
    assert not re.search(r"Traceback|denied|Read-only", log), log


async def first_line(inside: Inside, *words: str) -> str:
    """Of a command that would go on; all of it is ended, not only what entered the sandbox."""
    process = await asyncio.create_subprocess_exec(
        *inside.joining(words),
        env=inside.environ,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        return (await asyncio.wait_for(process.stdout.readline(), 20)).decode()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def test_what_runs_there_can_do_nothing_else(inside: Inside) -> None:
    """The kernel's own word for it, of each process: logpipe's and the engine's."""
    await wait_until(lambda: serves(url_of(inside)), "it serves", 30)
    for status in statuses(inside):
        assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
        assert re.search(r"^CapPrm:\t0+$", status, re.MULTILINE)
        assert re.search(r"^CapBnd:\t0+$", status, re.MULTILINE)
        assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE)
        assert re.search(r"^Uid:\t(10001\t?){4}$", status, re.MULTILINE)
        assert re.search(r"^Groups:\s*$", status, re.MULTILINE)
    names = {status.partition("\n")[0].removeprefix("Name:\t") for status in statuses(inside)}
    assert names == {"logpipe", "valkey-server"}
    tried = inside.run(
        sys.executable, "-c", TRY_TO_WRITE, str(ROOT), sys.prefix, "/etc", "/tmp", DATA
    )
    assert json.loads(tried.stdout) == {
        str(ROOT): "read-only",
        sys.prefix: "read-only",
        "/etc": "read-only",
        "/tmp": "written",
        DATA: "written",
    }


TRY_TO_WRITE = """
import json, os, sys
def tried(folder):
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        return "read-only"
    with open(os.path.join(folder, "x"), "w"):
        return "written"
print(json.dumps({folder: tried(folder) for folder in sys.argv[1:]}))
"""


def statuses(inside: Inside) -> list[str]:
    """What /proc says of each process there that has not ended."""
    namespace = Path(f"/proc/{inside.pid}/ns/pid").readlink()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "ns/pid").readlink() == namespace:
                found.append((process / "status").read_text())
        except OSError:  # it has ended meanwhile
            continue
    return [status for status in found if "\nState:\tZ" not in status]


async def test_a_role_apart_works_so_confined_with_a_redis_elsewhere(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    port, redis = free_port(), free_port()
    with Valkey.started("--port", str(redis), "--save", ""):
        environ = {
            "PATH": PATH,
            "REDIS_ADDR": f"redis://127.0.0.1:{redis}",
            "ROLE": "collector,distributor",
            "PORT": str(port),
        }
        with sandbox.running(["logpipe", "serve"], environ, tmp_path / "log"):
            url = f"http://127.0.0.1:{port}"
            await wait_until(lambda: serves(url), "it serves", 30)
            async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
                assert (await http.post("/ingest", json=EVENT)).status_code == 202
                assert (await http.get("/events")).json()["events"][0]["source"] == "box"
