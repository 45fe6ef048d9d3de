"""Which test modules need no server: they start no process and open no socket."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]

STARTING = frozenset({"multiprocessing", "socket", "subprocess", "tests.servers"})
"""Modules by which servers are started and reached."""
CALLS = frozenset({"create_subprocess_exec", "open_connection", "start_server"})
"""Functions of asyncio that do so."""


@cache
def needs_servers(path: Path) -> bool:
    """Whether a module, or a module of tests that it imports, may start or reach a server.

    What it imports says so, because a test names the type of each fixture that it takes.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{each.name}" for each in node.names)}
        elif isinstance(node, ast.Attribute) and node.attr in CALLS:
            return True
    if names & STARTING:
        return True
    modules = [ROOT / f"{name.replace('.', '/')}.py" for name in names if name.startswith("tests.")]
    return any(each.is_file() and needs_servers(each) for each in modules)
