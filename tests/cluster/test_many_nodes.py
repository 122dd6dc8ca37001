"""The benchmark of many nodes, small: they start, share the work, and end clean (`benchmarks/many_nodes.py` runs it with fifty)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

import shoal

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "many_nodes.py"


@pytest.fixture
def many_nodes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    shoal.shutdown()
    spec = importlib.util.spec_from_file_location("many_nodes", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setenv(module.MARK, "")  # put back at the end
    return module


def test_six_nodes_share_tasks_and_actors_and_leave_nothing(many_nodes: ModuleType) -> None:
    # Leaves that take a while: short ones a quick node may well serve alone.
    found = many_nodes.measure(nodes=6, tasks=880, actors=12, leaf_s=0.03)
    assert found["tasks"] == 880
    assert found["actor_calls"] == 81
    assert found["nodes_that_ran_tasks"] == 6
    assert found["nodes_with_actors"] > 1
    assert found["left_behind"] == []
