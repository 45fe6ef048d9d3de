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
