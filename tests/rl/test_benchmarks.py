"""The benchmarks of shoal.rl, for a moment each: they still run and count what they should."""

from __future__ import annotations

import importlib.util
import json
import re
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


def test_states_are_served(shoal_shared: ModuleType) -> None:
    assert load("rl_serving").served_by_shoal(4_000, 0.05, 1) > 0


def test_every_part_of_the_long_run_has_its_place_on_the_page(tmp_path: Path) -> None:
    sys.path.insert(0, str(FOLDER))
    parts = {part.name for part in load("learning").PARTS}
    page = (FOLDER.parent / "docs" / "benchmarks.md").read_text()
    assert set(re.findall(r"<!-- (\w+) -->", page)) - {"end"} == parts - {"systems"}, "systems has pages of its own"
    for name in parts - {"systems"}:
        assert page.count(f"<!-- {name} -->") == 1
    assert page.count("<!-- end -->") == len(parts) - 1


def test_lines_that_were_measured_come_into_the_page(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location("write_rl", FOLDER.parent / "docs" / "write_rl.py")
    assert spec is not None and spec.loader is not None
    writer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writer)
    page, lines = tmp_path / "page.md", tmp_path / "images.jsonl"
    page.write_text("a\n<!-- images -->\nold\n<!-- end -->\nb\n<!-- other -->\nold\n<!-- end -->\n")
    ways = {"torchrun": 12_000.0, "parameter_server": 13_000}
    shares = {"torchrun": 1.0, "parameter_server": 1.083}
    row = {"images_s": ways, "of_torchrun": shares, "of_torchrun_kept_memory": shares, "load": 0.5}
    lines.write_text("a progress bar\n" + json.dumps(row) + "\n")
    writer.write(page, lines, writer.rows_of(lines))
    text = page.read_text()
    assert "| of torchrun | 1.00 | 1.08 |" in text and "load 0.5:" in text and text.count("old") == 1
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"curve": [[1, 2]], "seconds": 1.23456, "steps_s": 12345.6}))
    writer.write(page, other, writer.rows_of(other))
    assert '{"seconds": 1.235, "steps_s": 12346}' in page.read_text() and "old" not in page.read_text()


def test_learning_ends_at_its_goal(shoal_shared: ModuleType) -> None:
    line = load("rl_learning").learn("evolution", "CartPole-v1", 1, 10.0, 60.0, 1e6, "")
    assert line["reached"] and line["steps"] > 0 and len(line["curve"]) == 1


def test_training_counts_images_and_reduces(shoal_shared: ModuleType) -> None:
    pytest.importorskip("torch")
    sys.path.insert(0, str(FOLDER))
    training = load("training")
    assert training.with_parameter_server(1, 0.01, synchronous=True) > 0
    assert training.reduce_for(lambda array: array.fill(training.MEMBERS), lambda array: array, list, [1], 0.01)[0] > 0
