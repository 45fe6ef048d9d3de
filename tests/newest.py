"""`make newest`: the tests that need no server, with the newest versions of all dependencies.

It prints a warning with names where something breaks, and ends with 0 all the same: whether the
project passes is decided with the locked versions.
"""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tests.locks import ROOT, differences, versions

VENV = ROOT / ".venv-newest"
PYTHON = VENV / "bin" / "python"
REPORT = VENV / "report.txt"
"""All that the last run of pytest printed."""
INSTALL_S = 180
RUN_S = 180
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+?(?:\[.*?\])?)(?: - .*)?$", re.MULTILINE)


def unbounded(requirements: Iterable[str]) -> list[str]:
    """The requirements that have an upper bound, without it."""
    found = []
    for each in map(Requirement, requirements):
        kept = [part for part in each.specifier if not part.operator.startswith("<")]
        if len(kept) < len(each.specifier):
            each.specifier = SpecifierSet(",".join(map(str, kept)))
            found.append(str(each))
    return found


def failures(output: str) -> list[str]:
    """The tests that pytest's summary names as failed."""
    return sorted({match[1] for match in FAILED.finditer(output)})


def report(what: str, different: list[str], problem: str, failed: list[str]) -> str:
    """What is printed after one run; `problem` is empty where all tests passed."""
    versions_line = f"{len(different)} differ from the locks" if different else "as locked"
    lines = [f"{what} ({versions_line}): {problem or 'the tests without servers pass'}"]
    lines += [f"  {each}" for each in [*different, *failed]]
    if not problem:
        return "\n".join(lines)
    return "\n".join(["WARNING: " + lines[0], *lines[1:], f"  all of the output: {REPORT}"])


def install(*arguments: str) -> str:
    """Installs into the environment; returns why that is impossible, or nothing."""
    uv = Path(sys.executable).with_name("uv")
    command = [uv, "pip", "install", "--quiet", "--upgrade", "--python", PYTHON, *arguments]
    try:
        done = subprocess.run(
            [str(each) for each in command],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=INSTALL_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stderr.strip() if done.returncode else ""


def tested() -> tuple[str, list[str]]:
    """Runs the tests: what went wrong, or nothing, and the tests that failed."""
    command = [str(PYTHON), "-m", "pytest", "-q", "--without-servers", "-m", "not locked"]
    command += ["-p", "no:cacheprovider", "--numprocesses", "2"]
    with REPORT.open("w", encoding="utf-8") as out:
        try:
            status = subprocess.run(
                command, cwd=ROOT, stdout=out, stderr=out, timeout=RUN_S
            ).returncode
        except subprocess.TimeoutExpired:
            return f"the tests do not end within {RUN_S} s", []
    failed = failures(REPORT.read_text(encoding="utf-8"))
    if not status:
        return "", []
    return f"{len(failed)} tests fail" if failed else f"pytest ends with {status}", failed


def installed() -> dict[str, str]:
    """The versions in the environment."""
    (folder,) = VENV.glob("lib/python*/site-packages")
    return {
        canonicalize_name(each.metadata["Name"]): each.version
        for each in distributions(path=[str(folder)])
    }


def differing(there: Mapping[str, str]) -> list[str]:
    """How the environment differs from the locks."""

    def version(name: str) -> str:
        if name not in there:
            raise PackageNotFoundError(name)
        return there[name]

    return differences(
        {**versions("requirements-dev.lock"), **versions("requirements.lock")}, version
    )


def main() -> None:
    """Tries the newest versions that pyproject.toml admits, then those beyond its upper bounds."""
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", "--clear", str(VENV)], check=True
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    beyond = unbounded(project["dependencies"])
    before: dict[str, str] = {}
    for what, arguments in (
        ("the newest versions", ["--requirements", "pyproject.toml", "--group", "dev"]),
        ("the newest versions, beyond upper bounds", beyond),
    ):
        if why := install(*arguments):
            print(report(what, [], f"cannot be installed: {why}", []))
            return
        there = installed()
        if there == before:
            print(f"{what}: there are none")
        else:
            print(report(what, differing(there), *tested()), flush=True)
        before = there


if __name__ == "__main__":
    main()
