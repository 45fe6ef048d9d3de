"""What the documents and the container files say is true of the code."""

import importlib
import re
from pathlib import Path

import pytest

from logpipe.settings import fields

ROOT = Path(__file__).parent.parent
VARIABLES = {field.variable for field in fields()}


def _text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", ["compose.yaml", "deploy/sentinel/compose.yaml"])
def test_every_variable_that_compose_sets_is_a_setting(path: str) -> None:
    """A misspelt variable would be ignored without a word."""
    roles = _text(path).partition("x-settings")[2]
    named = set(re.findall(r"^\s+([A-Z_]+):", roles, re.MULTILINE))
    assert named
    assert named <= VARIABLES


@pytest.mark.parametrize("path", ["compose.yaml", "deploy/sentinel/compose.yaml"])
def test_the_stream_of_compose_has_a_part_of_redis_memory(path: str) -> None:
    """Else Redis would fill, and refuse every event from then on."""
    text = _text(path)
    assert "--maxmemory " in text
    assert re.search(r"^  TRIM_MAXBYTES: \$\{TRIM_MAXBYTES:-75%\}$", text, re.MULTILINE)


def test_every_variable_that_the_image_sets_is_a_setting_or_known_to_python() -> None:
    """The same for the image."""
    block = re.search(r"^ENV (?:.*\\\n)*.*", _text("Dockerfile"), re.MULTILINE)
    assert block is not None
    named = set(re.findall(r"\b([A-Z_]+)=", block[0]))
    assert named - {"PATH", "PYTHONDONTWRITEBYTECODE"} <= VARIABLES
    assert "HOST" in named


def test_the_dockerfile_needs_no_buildkit() -> None:
    """Classic builders know neither mounts nor here-documents nor a syntax line."""
    text = _text("Dockerfile")
    assert not re.search(r"--mount|--link|--chmod|<<|#\s*syntax", text)


@pytest.mark.parametrize(
    ("module", "name"),
    re.findall(r"`([a-z]+)\.([A-Z][A-Z_]+)`", _text("ARCHITECTURE.md")),
)
def test_every_bound_in_the_architecture_exists(module: str, name: str) -> None:
    """A constant that was renamed is renamed there as well."""
    files = (ROOT / "logpipe").glob(f"**/{module}.py")
    packages = (ROOT / "logpipe").glob(f"**/{module}/")
    paths = [path.relative_to(ROOT).with_suffix("") for path in (*files, *packages)]
    dotted = [".".join(path.parts) for path in paths]
    modules = [importlib.import_module(each) for each in dotted]
    assert next(getattr(each, name) for each in modules if hasattr(each, name)) > 0


@pytest.mark.parametrize("path", re.findall(r"`([a-z_/]+(?:\.py|/))`", _text("ARCHITECTURE.md")))
def test_every_room_in_the_architecture_exists(path: str) -> None:
    """Modules are named as they are."""
    found = [*ROOT.glob(path), *(ROOT / "logpipe").glob(f"**/{path.rstrip('/')}")]
    assert found, path


def test_the_readme_opens_with_how_to_run_and_how_to_test() -> None:
    """The first thing that anyone does."""
    commands = re.findall(r"^    (make \w+)", _text("README.md"), re.MULTILINE)
    assert commands[:2] == ["make run", "make test"]


BY_NAME = re.compile(
    r"""\b(?:pip3?|pipx|uv|uvx|poetry|pdm|conda)\b[^\n\#]*  # a command of an installer,
        \s["'`]?logpipe(?:\[[^]]*\])?(?:[=<>~!@][^\s]*)?["'`]?(?=[\s.,;:)]|$)  # a bare name""",
    re.VERBOSE,
)
FOLDERS = ("logpipe", "docs", "deploy", "tests")
FILES = [
    *(path for path in ROOT.iterdir() if path.suffix in (".md", ".toml", ".yaml", ".lock", "")),
    *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*")),
]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{} install logpipe", True),
        ("# Python: {} install logpipe. It never", True),
        ("{} install --upgrade 'logpipe[x]>=1'", True),
        ("{} install ./logpipe", False),
        ("{} install .                     # `logpipe` on your PATH", False),
        ("COPY --from=build /opt/logpipe /opt/logpipe", False),
    ],
)
def test_a_command_that_installs_by_name_is_known(text: str, named: bool) -> None:
    assert bool(BY_NAME.search(text.format("pip"))) is named


def test_nothing_installs_logpipe_by_its_name() -> None:
    """On PyPI that name is another project's."""
    found = [
        f"{path.relative_to(ROOT)}: {line}"
        for path in FILES
        if path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".png", ".js")
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
        if BY_NAME.search(line)
    ]
    assert found == []


@pytest.mark.parametrize("name", ["README.md", "SECURITY.md", "docs/python.md"])
def test_who_installs_is_warned_of_the_other_project(name: str) -> None:
    assert re.search(r"PyPI[^.]*(?:somebody\s+else|another)", _text(name))
