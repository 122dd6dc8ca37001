"""Search spaces: draws lie where they should, grids multiply, nesting works, nonsense is told."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal import tune
from shoal.tune.space import draw, flattened, grid_size


@given(st.integers())
def test_draws_are_in_their_domain(seed: int) -> None:
    space = {
        "a": tune.uniform(-1, 2),
        "b": tune.loguniform(1e-4, 1e-1),
        "c": tune.quniform(0, 1, 0.25),
        "d": tune.randint(3, 7),
        "e": tune.lograndint(1, 100),
        "f": tune.choice(["x", None, (1, 2)]),
        "g": [tune.qrandint(0, 10, 5), {"h": tune.randn()}],
        "i": tune.sample_from(lambda config: config["d"] * 10),
        "constant": "text",
    }
    config = draw(space, 0, random.Random(seed))
    assert -1 <= config["a"] <= 2 and 1e-4 <= config["b"] <= 1e-1
    assert config["c"] in (0, 0.25, 0.5, 0.75, 1) and config["d"] in (3, 4, 5, 6) and 1 <= config["e"] < 100
    assert (
        config["f"] in ("x", None, (1, 2)) and config["g"][0] in (0, 5, 10) and isinstance(config["g"][1]["h"], float)
    )
    assert config["i"] == config["d"] * 10 and config["constant"] == "text"
    assert draw(space, 0, random.Random(seed)) == config


def test_grids_multiply() -> None:
    space = {"a": tune.grid_search([1, 2, 3]), "b": {"c": tune.grid_search("xy")}, "d": 0}
    assert grid_size(space) == 6
    drawn = [draw(space, number, random.Random(0)) for number in range(6)]
    assert sorted((one["a"], one["b"]["c"]) for one in drawn) == [(a, c) for a in (1, 2, 3) for c in "xy"]


def test_the_space_stays_as_it_is() -> None:
    space = {"model": {"units": [1, 2]}, "x": tune.uniform(0, 1)}
    draw(space, 0, random.Random(0))["model"]["units"].append(3)
    assert space["model"] == {"units": [1, 2]}


@pytest.mark.parametrize(
    "make",
    [
        lambda: tune.uniform(2, 1),
        lambda: tune.loguniform(0, 1),
        lambda: tune.quniform(0, 1, 0),
        lambda: tune.choice([]),
        lambda: tune.grid_search([]),
        lambda: tune.randint(3, 3),
    ],
)
def test_nonsense_is_told(make) -> None:
    with pytest.raises(ValueError, match=r"tune\."):
        make()


def test_flattened() -> None:
    assert flattened({"a": {"b": 1, "c": {"d": 2}}, "e": {}}) == {"a/b": 1, "a/c/d": 2, "e": {}}
