"""The journey and the other pages name files, classes and functions: all of them exist."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
FOLDERS = ("src", "tests", "benchmarks", "examples", "docs")
LINK = re.compile(r"\[`([^`]+)`\]\(([^)]+\.py)\)")
MESSAGE_DIAGRAM = re.compile(r"[A-Z][a-z]+[A-Z]\w+")


@functools.cache
def names_in(path: Path) -> set[str]:
    """Functions and classes of a file, and methods as Class.method."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    found.add(f"{node.name}.{inner.name}")
    return found


FILE = re.compile(r"`([\w/]+\.py)`")


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "GLOSSARY.md", "benchmarks.md", "simulation.md"])
def test_files_exist(page: str) -> None:
    """Files are named by the ends of their paths: `gcs/shard.py`, `pulls.py`."""
    there = [f"/{path}" for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    named = set(FILE.findall((DOCS / page).read_text()))
    assert named, f"{page} names no files: does it still write them as `name.py`?"
    missing = {name for name in named if not any(path.endswith(f"/{name}") for path in there)}
    assert not missing, f"{page} names files that do not exist"


@pytest.mark.parametrize("page", ["JOURNEY.md", "paper.md", "fault-tolerance.md"])
def test_names_exist(page: str) -> None:
    found = LINK.findall((DOCS / page).read_text())
    assert found, f"{page} has no links to code: are they still written as [`name`](path.py)?"
    for name, target in found:
        path = (DOCS / target).resolve()
        assert path.is_file(), f"{page} links to {target}"
        if name not in (path.stem, f"{path.parent.name}/{path.name}"):
            assert name in names_in(path), f"{page} says that {name} is in {target}"


def test_messages_of_the_diagrams_exist() -> None:
    import builtins

    from shoal.gcs import actor_manager
    from shoal.protocol import errors, gcs_messages, messages, node_messages
    from shoal.scheduling import events
    from shoal.system import zygote_client

    homes = [messages, gcs_messages, node_messages, errors, events, zygote_client, actor_manager, builtins]
    text = (DOCS / "JOURNEY.md").read_text()
    diagrams = "\n".join(line for line in text.splitlines() if line.startswith("    "))
    for word in set(MESSAGE_DIAGRAM.findall(diagrams)):
        assert any(hasattr(home, word) for home in homes), f"a diagram of the journey names {word}"
