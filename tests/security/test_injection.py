"""What a client sends stays a value: no command, no key's name, no script, no frame of its own."""

import ast
import json
import random
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from logpipe import sse
from tests.hostile import HOSTILE
from tests.servers import Valkey, serving, subscribed

ROOT = Path(__file__).parents[2]
FLUSH = "\r\n*1\r\n$8\r\nFLUSHALL\r\n"
PIECES = (
    FLUSH, "\r\n", "\n", "\r", "*1\r\n", "$-1\r\n", "*3\r\n$3\r\nSET\r\n$3\r\nown\r\n$1\r\n1\r\n",
    "EVAL", "' .. redis.call('FLUSHALL') .. '", "]]", "--", "{logs}", "}:", "*", "\0", "\x1b", "%s",
    "\U0001f600", "é", " ", "x" * 70, '"', "\\",
)  # fmt: skip
KEY = re.compile(rb"logs|canary|\{logs\}:(once:bytes|groups|[a-z]+:[0-9a-f]{64})")


def texts(seed: int, count: int) -> list[str]:
    chosen = random.Random(seed)
    return [FLUSH, *("".join(chosen.choices(PIECES, k=chosen.randint(1, 6))) for _ in range(count))]


async def test_text_that_looks_like_redis_own_protocol_is_stored_as_it_is(valkey: Valkey) -> None:
    """In every field, by the transaction and by the script, alone and in a batch."""
    sent: list[dict[str, Any]] = [
        {
            "source": text[:256],
            "message": text,
            "level": text.strip()[:32].upper() or "INFO",
            "metadata": {text: text, "list": [text]},
        }
        for text in texts(1, 150)
    ]
    valkey.client.set("canary", "alive")
    valkey.client.config_resetstat()
    async with (
        serving(redis_addr=valkey.url, role="collector,distributor") as service,
        subscribed(service.url, since="earliest") as reader,
    ):
        for event in sent[:50]:
            assert (await service.post(event)).status_code == 202
        assert (await service.post(sent[50:100])).json()["accepted"] == 50
        once = {"Idempotency_Key": quote(FLUSH) + "*1 $8 FLUSHALL"}
        assert (await service.post(sent[100:], **once)).json()["accepted"] == len(sent[100:])
        got = await reader.until(len(sent), 30)
    for event, back in zip(sent, got, strict=True):
        assert {name: back[name] for name in event} == {**event, "level": back["level"]}
    entries: Any = valkey.client.xrange("logs")
    stored = [json.loads(fields[b"event"]) for _, fields in entries]
    assert [event["message"] for event in stored] == [event["message"] for event in sent]
    unharmed(valkey)


async def test_a_name_of_a_group_that_looks_like_commands_is_a_name(valkey: Valkey) -> None:
    names = [text[:100] for text in texts(2, 12)]
    valkey.client.set("canary", "alive")
    valkey.client.config_resetstat()
    async with serving(
        redis_addr=valkey.url, role="collector,distributor", consumer_name=f"c{FLUSH}"
    ) as service:
        for name in names:
            async with subscribed(service.url, delivery="shared", group=name) as reader:
                await reader.named("hello")
    groups = {group["name"].decode() for group in valkey.client.xinfo_groups("logs")}
    assert groups == set(names)
    unharmed(valkey)


def unharmed(valkey: Valkey) -> None:
    """Nothing but logpipe's own commands ran, on keys whose names are its own."""
    assert valkey.client.get("canary") == b"alive"
    called = valkey.client.info("commandstats")
    assert not [name for name in called if re.search(r"flush|config\|set|mset|rename", name)]
    assert [key for key in valkey.client.scan_iter() if not KEY.fullmatch(key)] == []


def scripts() -> list[tuple[str, ast.expr]]:
    """The text of each script, as an expression of the code."""
    return [
        (f"{path.name}:{node.lineno}", node.args[0])
        for path in sorted((ROOT / "logpipe").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Script.of"
    ]


@pytest.mark.parametrize(("place", "text"), scripts())
def test_a_script_is_made_of_constants_alone(place: str, text: ast.expr) -> None:
    """So Redis knows a dozen scripts at the most, and values come as KEYS and ARGV."""
    for node in ast.walk(text):
        constant = isinstance(node, (ast.Constant, ast.BinOp, ast.Add, ast.Load))
        assert constant or (isinstance(node, ast.Name) and node.id.isupper()), place


def test_all_scripts_are_looked_at() -> None:
    """None is sent in another way."""
    assert len(scripts()) >= 10
    for path in (ROOT / "logpipe").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if path.name not in ("scripts.py", "failovers.py"):
            assert not re.search(r"""\.eval\(|\.evalsha\(|["']EVAL|register_script""", text), path


def test_no_text_ends_its_frame_of_the_stream() -> None:
    """Fifty thousand frames of anything hostile, in one stream: as many events, each as it was."""
    chosen = random.Random(3)
    alphabet = [
        *PIECES,
        *HOSTILE,
        "data: x",
        "id: 9-9\n",
        "event: bye\n",
        ":",
        "retry: 1\n",
        "\n\n",
    ]
    sent = ["".join(chosen.choices(alphabet, k=chosen.randint(1, 4))) for _ in range(50_000)]
    frames = b"".join(sse.frame(text.encode(), id=b"%d-0" % at) for at, text in enumerate(sent))
    got = list(sse.Parser().feed(frames.decode()))
    assert len(got) == len(sent)
    for at, (text, event) in enumerate(zip(sent, got, strict=True)):
        assert event.data == re.sub(r"\r\n|\r", "\n", text)
        assert (event.id, event.event) == (f"{at}-0", "message")
