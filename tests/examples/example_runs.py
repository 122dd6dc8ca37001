"""Runs an example once and keeps what it printed: the tests of the examples and those of the guide look at the same run."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
GUIDE = ROOT / "docs" / "guide"
RUN_TIMEOUT_S = 240.0  #: far above what they take, for machines where others compute too


@dataclass
class Run:
    """One finished run."""

    stdout: str
    stderr: str
    returncode: int
    seconds: float


@functools.cache
def run_example(name: str) -> Run:
    """Run `examples/<name>` as a user would: a script in a process of its own, in another folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
        env=environment,
        cwd="/tmp",
        check=False,
    )
    return Run(done.stdout, done.stderr, done.returncode, time.monotonic() - begin)


def check_output(run: Run, expected: str) -> None:
    """Fail unless the run ended well and printed lines that match those of `expected` (regular expressions), and no others."""
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
    patterns = expected.strip().splitlines()
    printed = run.stdout.strip().splitlines()
    assert len(printed) == len(patterns), run.stdout
    for line, pattern in zip(printed, patterns, strict=True):
        assert re.fullmatch(pattern, line), f"{line!r} is not {pattern!r}"
