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


def test_six_nodes(many_nodes: ModuleType) -> None:
    found = many_nodes.measure(nodes=6, tasks=3000, actors=12)
    assert found["tasks"] == 3000
    assert found["actor_calls"] == 270
    assert found["nodes_that_ran_tasks"] == 6
    assert found["nodes_with_actors"] > 1
    assert found["left_behind"] == []
