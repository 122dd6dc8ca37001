"""The house rules that a machine can hold: docstrings, sizes, names, and nothing in the tree that speaks of one machine.

A rule that the code breaks today lists its exceptions here, and the list may only shrink: an entry that is no longer needed fails too.
"""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "shoal"

FILE_LINES_MAX = 800
FUNCTION_LINES_MAX = 90

#: Functions over the limit, as "path:qualified.name". It may only shrink.
LONG_FUNCTIONS: set[str] = set()
#: Files over the limit. It may only shrink.
LONG_FILES: set[str] = set()

MODULE_NAMES_BANNED = {"utils", "helper", "helpers", "common", "base", "data", "info", "misc", "manager", "stuff"}
CLASS_SUFFIXES_BANNED = ("Helper", "Utils", "Util", "Handler", "Info", "Manager")
#: The paper's word, and names that the public API owes to its users.
CLASS_NAMES_ALLOWED = {"ActorManager", "PlacementGroupManager"}

#: The doors: what floors above may import of a package. (`node` reads and writes the store's tables: it is the store's daemon half.)
DOORS = {"gcs": {"client"}, "node": {"client"}, "store": {"client", "page"}}
#: The simulator is made of what stands behind the doors.
DOOR_EXCEPTIONS = {("node", "store"), ("simulator", "gcs"), ("simulator", "node")}

CALLS_BANNED = {
    "os.system": "subprocess.run with a list",
    "pickle.Pickler": "the pickler of shoal.serialization",
    "time.clock": "time.perf_counter",
}


def source_files() -> list[Path]:
    """Every module of the package."""
    return sorted(path for path in SOURCE.rglob("*.py") if "__pycache__" not in path.parts)


@cache
def tree_of(path: Path) -> ast.Module:
    """The parsed module; read once a run."""
    return ast.parse(path.read_text(), filename=str(path))


def name_of(path: Path) -> str:
    """The path as the lists above write it."""
    return path.relative_to(ROOT).as_posix()


def functions_of(tree: ast.AST, outer: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function with its qualified name, nested ones too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield outer + node.name, node
            yield from functions_of(node, f"{outer}{node.name}.")
        elif isinstance(node, ast.ClassDef):
            yield from functions_of(node, f"{outer}{node.name}.")
        else:
            yield from functions_of(node, outer)


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of the body below its docstring."""
    first = function.body[0]
    documented = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    start = first.end_lineno if documented else function.lineno
    assert start is not None
    assert function.end_lineno is not None
    return function.end_lineno - start


def test_every_module_has_a_docstring() -> None:
    missing = [name_of(p) for p in source_files() if p.stat().st_size and not ast.get_docstring(tree_of(p))]
    assert not missing, f"modules without a docstring (purpose, design, how to extend, what it does not do): {missing}"


def test_every_public_function_and_class_has_a_docstring() -> None:
    missing = []
    for path in source_files():
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.ClassDef):
                continue
            if not node.name.startswith("_") and not ast.get_docstring(node):
                missing.append(f"{name_of(path)}:{node.name}")
        for statement in tree_of(path).body:
            if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef) or statement.name.startswith("_"):
                continue
            if not ast.get_docstring(statement):
                missing.append(f"{name_of(path)}:{statement.name}")
    assert not missing, f"public names without a docstring: {missing}"


def test_files_fit() -> None:
    long = {name_of(p) for p in source_files() if len(p.read_text().splitlines()) > FILE_LINES_MAX}
    assert not long - LONG_FILES, (
        f"over {FILE_LINES_MAX} lines: split by ownership of state: {sorted(long - LONG_FILES)}"
    )
    assert not LONG_FILES - long, f"these fit now; take them off LONG_FILES: {sorted(LONG_FILES - long)}"


def test_functions_fit_a_screen() -> None:
    long = {
        f"{name_of(path)}:{name}"
        for path in source_files()
        for name, function in functions_of(tree_of(path))
        if code_lines(function) > FUNCTION_LINES_MAX
    }
    assert not long - LONG_FUNCTIONS, f"over {FUNCTION_LINES_MAX} lines: {sorted(long - LONG_FUNCTIONS)}"
    assert not LONG_FUNCTIONS - long, f"these fit now; take them off LONG_FUNCTIONS: {sorted(LONG_FUNCTIONS - long)}"


def test_no_banned_module_names() -> None:
    banned = [name_of(p) for p in source_files() if MODULE_NAMES_BANNED & {p.stem, p.parent.name}]
    assert not banned, f"a name that says nothing about what lives there: {banned}"


def test_no_banned_class_names() -> None:
    banned = [
        f"{name_of(path)}:{node.name}"
        for path in source_files()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ClassDef)
        and node.name.endswith(CLASS_SUFFIXES_BANNED)
        and node.name not in CLASS_NAMES_ALLOWED
    ]
    assert not banned, f"name the thing, not its genre: {banned}"


def test_no_banned_calls() -> None:
    found = []
    for path in source_files():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                instead = CALLS_BANNED.get(f"{node.value.id}.{node.attr}")
                if instead:
                    found.append(f"{name_of(path)}:{node.lineno}: use {instead}")
    assert not found, found


def test_packages_are_entered_by_their_doors() -> None:
    found = []
    for path in source_files():
        floor = path.relative_to(SOURCE).parts[0]
        for node in ast.walk(tree_of(path)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                parts = name.split(".")
                if len(parts) < 3 or parts[0] != "shoal" or parts[1] not in DOORS or parts[1] == floor:
                    continue
                if parts[2] not in DOORS[parts[1]] and (floor, parts[1]) not in DOOR_EXCEPTIONS:
                    found.append(f"{name_of(path)}: {name}")
    assert not found, f"only {DOORS} may be imported from outside: {found}"


def test_no_bare_except_and_no_prints_in_the_engine() -> None:
    found = []
    for path in source_files():
        if path.is_relative_to(SOURCE / "cli"):
            continue
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ExceptHandler) and node.type is None:
                found.append(f"{name_of(path)}:{node.lineno}: bare except")
            printed = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            if printed and not any(keyword.arg == "file" for keyword in node.keywords):  # type: ignore[attr-defined]
                found.append(f"{name_of(path)}:{node.lineno}: print without file=")
    assert not found, found


def test_nothing_speaks_of_one_machine() -> None:
    """No path of somebody's disk and no leftover of an editor's conflict in any tracked file."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, timeout=30)
    if listed.returncode:
        pytest.skip("not a git checkout")
    words = ["/work" + "/", "<<<<" + "<<<", ">>>>" + ">>>", "/home" + "/"]
    found = []
    for name in listed.stdout.decode().split("\0"):
        path = ROOT / name
        if not name or not path.is_file():
            continue
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found += [f"{name}: {word}" for word in words if word in text]
    assert not found, found
