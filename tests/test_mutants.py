"""`make mutants`: which changes are made, how tests are run with them, and what is a failure."""

import asyncio
import os
import re
from pathlib import Path

import pytest

from tests.helpers import wait_until
from trials.mutants import lua, report, table
from trials.mutants.copies import MARK, Copy
from trials.mutants.mutants import places, sample, unmatched

ROOT = Path(__file__).parents[1]
SOURCE = '''"""One and another, or 1 < 2."""

SCRIPT = Script.of("""
local at = 1
if at < #ARGV then at = at + 1 end
redis.call('DEL', KEYS[1])
""")
'''
LUA = table.Row("lua:it", ["it.py"], [])


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("x = a < b then", {"x = a >= b then", "x = a <= b then", ""}),
        ("return a and b", {"return a or b"}),
        ("return not a", {"return a"}),
        ("return a - 1", {"return a + 1", "return a - 2", "return a - 0"}),
        ("if a then b() end", {"if not (a) then b() end"}),
        ("record(a,\n  b(c))", {""}),
        ("if a then call(b) end", {"if not (a) then call(b) end", "if a then  end"}),
        ("redis.pcall('DEL', k)", {"redis.call('DEL', k)", ""}),
        ("  local a = b", set()),
        ("  a = b", {"  "}),
        ("return 'a < b and 1' -- not 1", set()),
    ],
)
def test_lua_is_changed_in_each_way(text: str, changed: set[str]) -> None:
    assert {each.made(text) for each in lua.changes(text)} == changed


@pytest.mark.parametrize("path", ["stream/append.py", "stream/group_scripts.py"])
def test_every_change_of_a_script_is_made_in_its_text(path: str) -> None:
    source = (ROOT / "logpipe" / path).read_text(encoding="utf-8")
    found = [(line, make()) for line, make in lua.places(source)]
    assert len(found) > 100
    outside = re.sub(r'""".*?"""', "", source, flags=re.DOTALL)
    for line, made in found:
        assert made != source
        assert re.sub(r'""".*?"""', "", made, flags=re.DOTALL) == outside, line


@pytest.fixture
def module(tmp_path: Path) -> Path:
    """A folder with a module `it.py`."""
    (tmp_path / "it.py").write_text(SOURCE, encoding="utf-8")
    return tmp_path


def test_a_seed_draws_the_same_mutants_again(module: Path) -> None:
    found = list(places(LUA, module, []))
    first, again, other = (sample(found, 4, seed) for seed in ("1", "1", "2"))
    assert first == again != other
    assert len(first) == 4
    assert len(sample(found, None, "1")) == len(found)


def test_lines_that_are_to_be_skipped_are_not_changed(module: Path) -> None:
    lines = {mutant.line for mutant in sample(list(places(LUA, module, ["DEL"])), None, "1")}
    assert lines == {4, 5}


def test_an_equivalent_mutant_that_is_not_made_any_more_is_known(module: Path) -> None:
    found = list(places(LUA, module, []))
    made = table.Equivalent("lua:it", "local at = 1", "local at = 2", "...")
    gone = table.Equivalent("lua:it", "local at = 1", "local at = 7", "...")
    assert unmatched(found, [made, gone]) == [gone]


def test_the_table_names_what_is_there() -> None:
    content = table.read("table.toml")
    assert len(table.rows(content["modules"], ROOT)) > 20
    assert table.equivalents(content["modules"]) is not None


@pytest.mark.parametrize(
    ("entry", "missing"),
    [
        ({"tests": []}, "logpipe/gone.py"),
        ({"paths": ["logpipe/sse.py"], "tests": ["tests/test_gone.py"]}, "tests/test_gone.py"),
    ],
)
def test_a_missing_module_or_test_is_named(entry: dict[str, list[str]], missing: str) -> None:
    with pytest.raises(table.TableError, match=f"gone: there is no {missing}"):
        table.rows({"gone": entry}, ROOT)


def test_a_module_that_is_not_in_the_table_is_named() -> None:
    with pytest.raises(table.TableError, match="nothing"):
        table.rows({"sse": {"tests": []}}, ROOT, ["nothing"])


def measured(name: str, *fates: report.Fate, control: bool = True) -> report.Measured:
    return report.Measured(
        name, [report.Tried("a.py:1", "a", "b", fate) for fate in fates], control
    )


def test_the_score_leaves_equivalent_mutants_out() -> None:
    one = measured("one", "killed", "timed out", "survived", "survived", "equivalent")
    assert report.score(one.tried) == 50
    assert "| one | 5 | 1 | 1 | 2 | 1 | 50 % |" in report.table([one])
    assert report.survivors([one]) == "a.py:1\n    - a\n    + b\na.py:1\n    - a\n    + b"


def test_a_low_score_of_one_module_or_all_is_a_shortfall() -> None:
    killed: list[report.Fate] = ["killed"] * 18
    good = measured("good", *killed)
    bad = measured("bad", "killed", "survived")
    assert report.shortfalls([good], 92, 85) == []
    assert report.shortfalls([good, bad], 92, 85) == ["bad: 50.0 %, at least 85 % is needed"]
    assert report.shortfalls([bad], 92, 0) == ["all: 50.0 %, at least 92 % is needed"]


def test_an_unchanged_module_that_fails_is_a_shortfall() -> None:
    assert "one" in report.shortfalls([measured("one", "killed", control=False)], 92, 85)[0]


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    """A copy of a tree with a module, `it.py`, and tests of it."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "it.py").write_text("X = 1\n", encoding="utf-8")
    (root / "test_it.py").write_text(
        "from it import X\ndef test_it() -> None:\n    assert X == 1\n", encoding="utf-8"
    )
    (root / "test_leaves.py").write_text(
        "import subprocess, time\n"
        "def test_it() -> None:\n"
        "    subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        "    time.sleep(600)\n",
        encoding="utf-8",
    )
    return Copy(root, tmp_path / "copy")


async def test_tests_fail_with_the_change_alone(copy: Copy, tmp_path: Path) -> None:
    assert (await copy.run(["test_it.py"], 1, compiled=True)).outcome == "passed"
    module = copy.tree / "it.py"
    written = module.stat().st_mtime
    with copy.changed("it.py", "X = 2\n"):
        os.utime(module, (written, written))  # as if both were written in one second
        assert (await copy.run(["test_it.py"], 1)).outcome == "failed"
    assert (await copy.run(["test_it.py"], 1)).outcome == "passed"
    assert (tmp_path / "root" / "it.py").read_text(encoding="utf-8") == "X = 1\n"


def marked(folder: Path) -> list[str]:
    """The processes of a copy."""
    mark = f"{MARK}={folder}".encode()
    found = []
    for each in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in each.read_bytes().split(b"\0"):
                found.append(each.parent.name)
        except OSError:  # it has ended
            continue
    return found


async def test_no_process_is_left_after_the_time_limit(copy: Copy, tmp_path: Path) -> None:
    assert (await copy.run(["test_leaves.py"], 1, limit_s=3)).outcome == "timed out"
    assert marked(tmp_path / "copy") == []


async def test_no_process_is_left_when_the_run_is_interrupted(copy: Copy, tmp_path: Path) -> None:
    running = asyncio.create_task(copy.run(["test_leaves.py"], 1))
    await wait_until(lambda: len(marked(tmp_path / "copy")) == 2, "both run", 30)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert marked(tmp_path / "copy") == []


def test_python_is_changed_in_the_bodies_of_functions_alone() -> None:
    python = pytest.importorskip("trials.mutants.python", reason="`make mutants` installs it")
    source = """
LIMIT = 1
class It(Base, gc=True):
    async def f(self, n: int | Literal[1] = 2, *, ok: bool = True) -> Literal[3]:
        assert n > 0
        log.info("%s", n + 1)
        async with self.lock:
            self.total += n
        try:
            g()
        except a.b:
            return
"""
    lines = source.splitlines()
    made = {make() for _, make in python.places(source)}
    differing = {
        (old.strip(), new.strip())
        for each in made
        for old, new in zip(lines, each.splitlines(), strict=True)
        if old != new
    }
    assert differing == {
        ("async with self.lock:", "if True:"),
        ("self.total += n", "pass"),
        ("g()", "pass"),
        ("except a.b:", "except ():"),
        ("return", "pass"),
    }
