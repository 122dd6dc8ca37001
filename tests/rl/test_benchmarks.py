"""The benchmarks of shoal.rl, for a moment each: they still run and count what they should."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import cloudpickle
import numpy as np
import pytest

pytest.importorskip("gymnasium")

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def load(name: str) -> ModuleType:
    """A benchmark as a module that workers need not find."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    cloudpickle.register_pickle_by_value(module)
    return module


def test_evolution_counts_the_work_of_its_episodes(shoal_shared: ModuleType) -> None:
    line = load("evolution").measure(2, np.array([0.001, 0.003]), generations=1)
    assert line["episodes"] == 2 * 6 * 2 + 4 * 2
    # Sleeps are never shorter than asked for; how much work there is a second is the machine's affair.
    assert line["work_s"] >= 0.03 and line["work_per_s"] > 0


def test_asynchronous_simulation_counts_its_steps(shoal_shared: ModuleType) -> None:
    steps_s, driver = load("rl_simulation").with_shoal(0.2, 2, 1)
    assert steps_s > 0 and driver >= 0
