"""The benchmark's short form: it runs to its end and prints what docs/benchmarks.md shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_figure_is_printed() -> None:
    run = subprocess.run(
        [
            sys.executable,
            str(ROOT / "benchmarks" / "tune_overhead.py"),
            "--trials",
            "6",
            "--samples",
            "4",
            "--epochs",
            "9",
        ],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    assert run.returncode == 0, run.stderr
    figures = [json.loads(line) for line in run.stdout.splitlines()]
    searches = [one for one in figures if "trials" in one]
    assert [one["trials"] for one in searches] == [4, 6, 6, 6, 6]
    assert all(one["ms_a_trial"] > 0 and one["of_ideal"] <= 1 for one in searches)
    [digits] = [one for one in figures if one["figure"] == "digits"]
    # How many ASHA ends depends on who reports first.
    assert digits["FIFO"]["epochs"] == 4 * 9 >= digits["ASHA"]["epochs"] >= 4
    assert digits["FIFO"]["errors"] == digits["ASHA"]["errors"] == 0
