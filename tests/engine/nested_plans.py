"""Tasks that hand on refs to tasks of their own, and note each of their runs. A module without imports that a fresh worker would wait for."""

from __future__ import annotations

import os
import time
from typing import Any

import shoal


def note(path: str, name: str) -> None:
    """One line, written whole: also by a process that is killed just then."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, (name + "\n").encode())
    os.close(fd)


@shoal.remote(max_retries=-1)
def leaf(path: str, name: str, value: int, *others: Any) -> int:
    """A step of a plan."""
    note(path, name)
    time.sleep(0.002)
    return value + sum(others)


@shoal.remote(max_retries=-1)
def planner(path: str, name: str) -> Any:
    """Hands on refs to tasks that have not run, each made from the one before; then its worker may die."""
    note(path, name)
    refs = [leaf.remote(path, f"{name}/{os.getpid()}/0", 1)]
    for number in range(1, 4):
        refs.append(leaf.remote(path, f"{name}/{os.getpid()}/{number}", 1, refs[-1]))
    return refs, [shoal.put(b"x" * 200_000)]
