"""What others have made: pinned, hashed, and laid beside the page by its hash."""

import hashlib
import importlib
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.locks import differences, locked, versions

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCKS = {
    "requirements.lock": PROJECT["project"]["dependencies"],
    "requirements-dev.lock": PROJECT["dependency-groups"]["dev"],
    "requirements-build.lock": PROJECT["build-system"]["requires"],
}
REMEDY = "`make test` installs the locked versions (`make clean` first, if pip was run by hand)."
IMAGES = (
    {"python_version": minor, "python_full_version": f"{minor}.1", "platform_machine": machine}
    for minor in ("3.11", "3.12", "3.13", "3.14")
    for machine in ("x86_64", "aarch64")
)
LINUX = [
    {"sys_platform": "linux", "implementation_name": "cpython", "extra": "", **image}
    for image in IMAGES
]


@pytest.mark.parametrize("name", LOCKS)
def test_every_requirement_of_a_lock_is_one_version_with_its_hashes(name: str) -> None:
    rows = locked(ROOT / name)
    assert len(rows) > 8
    for requirement, hashes in rows:
        assert re.fullmatch(r"==[\w.!+]+", str(requirement.specifier)), requirement
        assert hashes, requirement
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in hashes), requirement


@pytest.mark.parametrize("name", LOCKS)
@pytest.mark.parametrize(
    "image", LINUX, ids=lambda each: f"{each['python_version']}-{each['platform_machine']}"
)
def test_a_lock_holds_what_the_project_asks_for(name: str, image: dict[str, str]) -> None:
    """A dependency that was added, or whose least version rose, needs `make lock`."""
    there = versions(name, image)
    for wanted in map(Requirement, LOCKS[name]):
        if wanted.marker is None or wanted.marker.evaluate(image):
            assert there.get(canonicalize_name(wanted.name), "none") in wanted.specifier, wanted


@pytest.mark.parametrize(
    "image", LINUX, ids=lambda each: f"{each['python_version']}-{each['platform_machine']}"
)
def test_the_development_lock_repeats_the_runtime_versions(image: dict[str, str]) -> None:
    runtime = versions("requirements.lock", image)
    development = versions("requirements-dev.lock", image)
    both = runtime.keys() & development.keys()
    assert both
    assert {name: runtime[name] for name in both} == {name: development[name] for name in both}


@pytest.mark.locked
@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
def test_the_environment_has_exactly_the_locked_versions(name: str) -> None:
    found = differences(versions(name), importlib.metadata.version)
    assert not found, "\n".join(
        [f"the environment is not the one that {name} describes:", *found, REMEDY]
    )


def test_a_version_that_is_not_the_locked_one_is_named() -> None:
    installed = {"one": "1.0", "two": "2.1"}
    expected = {"one": "1.0", "two": "2.0", "three": "3.0"}

    def version(name: str) -> str:
        try:
            return installed[name]
        except KeyError:
            raise importlib.metadata.PackageNotFoundError(name) from None

    assert differences(expected, version) == [
        "two: installed is 2.1, locked is 2.0",
        "three: not installed, locked is 3.0",
    ]


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_does_not_say_where_it_is_installed_from(name: str) -> None:
    """Who builds the image decides that, with a mirror or without."""
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.search(r"^\s*--(?!hash)", text, re.MULTILINE)
    assert not re.search(r"^[^#\n]* @ ", text, re.MULTILINE)


# -- what runs in browsers -------------------------------------------------------------------------


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The build's hook, with a django-htmx in `tmp_path` that has other files."""
    interface = ModuleType("hatchling.builders.hooks.plugin.interface")
    interface.BuildHookInterface = type("BuildHookInterface", (), {})  # type: ignore[attr-defined]
    parts = interface.__name__.split(".")
    for count in range(1, len(parts)):
        monkeypatch.setitem(sys.modules, ".".join(parts[:count]), ModuleType(parts[count - 1]))
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    package = ModuleType("django_htmx")
    package.__file__ = str(tmp_path / "django_htmx" / "__init__.py")
    monkeypatch.setitem(sys.modules, "django_htmx", package)
    monkeypatch.delitem(sys.modules, "logpipe.ui.build_htmx", raising=False)
    yield importlib.import_module("logpipe.ui.build_htmx")
    sys.modules.pop("logpipe.ui.build_htmx", None)


def test_the_scripts_that_the_page_loads_are_the_recorded_ones(hook: Any) -> None:
    assert len(hook.FILES) == 2
    for name, digest in hook.FILES.items():
        laid = ROOT / "logpipe/ui/static/htmx" / Path(name).name
        assert hashlib.sha256(laid.read_bytes()).hexdigest() == digest


def test_the_build_refuses_any_other(hook: Any, tmp_path: Path) -> None:
    source = tmp_path / "django_htmx/static/django_htmx"
    for name in hook.FILES:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(b"alert(1)")
    build = hook.HtmxHook()
    build.root = str(tmp_path)
    with pytest.raises(ValueError, match="recorded"):
        build.initialize("standard", {})
    assert not list((tmp_path / "logpipe/ui/static/htmx").iterdir())


def test_the_page_and_the_documents_load_nothing_from_anywhere_else() -> None:
    """No CDN: neither in templates nor in style or script."""
    folder = ROOT / "logpipe/ui"
    texts = [path for path in folder.rglob("*") if path.suffix in (".html", ".css", ".js", ".svg")]
    assert len(texts) > 10
    for path in texts:
        text = path.read_text(encoding="utf-8")
        loads = re.findall(
            r"""(?:src|href)=["'](?:https?:)?//[^"']+|url\(["']?(?:https?:)?//""", text
        )
        assert loads == [], path
