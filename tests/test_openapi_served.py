"""`/openapi.json` against a real process: it answers as it says that it does, whatever is asked."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from tests.servers import UNMEASURED, Valkey, spawned, subscribed

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)


async def compared(url: str, folder: Path, *options: str) -> tuple[int, str]:
    """The exit status of schemathesis over the document at `url`, and what it says."""
    schemathesis = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"),
        *("--checks", ",".join(CHECKS), "--phases", "coverage,fuzzing", "--no-color"),
        *("--seed", "1", "--warnings", "off", "--request-timeout", "30"),
        *options,
        cwd=folder,
        env={**os.environ, **UNMEASURED, "PYTHONPATH": str(Path.cwd())},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await schemathesis.communicate()
    return await schemathesis.wait(), said.decode()


@pytest.mark.timeout(240)
async def test_a_process_answers_as_its_document_says(valkey: Valkey, tmp_path: Path) -> None:
    """One seat for subscribers, which is taken: so streams say that there is no other, and end."""
    async with spawned(
        tmp_path, REDIS_ADDR=valkey.url, MAX_SUBSCRIBERS="1", **UNMEASURED
    ) as process:
        await process.ready()
        async with subscribed(process.url) as reader:
            await reader.named("hello")
            status, said = await compared(process.url, tmp_path, "--max-examples", "8")
        log = process.log.read_text()
    assert status == 0, said
    assert "/subscribe" not in said
    assert "Traceback" not in log


@pytest.mark.timeout(120)
async def test_a_document_that_says_something_else_is_found(valkey: Valkey, tmp_path: Path) -> None:
    """The control: an answer that the document does not know."""
    script = tmp_path / "sitecustomize.py"
    script.write_text(
        "import logpipe.probes as p\n"
        "p.OPERATIONS = tuple(o._replace(replies={201: o.replies[200]}) for o in p.OPERATIONS)\n"
    )
    given = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path.cwd()}", **UNMEASURED}
    async with spawned(tmp_path, REDIS_ADDR=valkey.url, **given) as process:
        await process.ready()
        only = ("--max-examples", "1", "--include-path-regex", "^/(livez|metrics)$")
        status, said = await compared(process.url, tmp_path, *only)
    assert status == 1
    assert "Received: 200" in said, said
