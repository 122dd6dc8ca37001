"""Amounts are exact, nonsense is refused by name, accelerator ids are never shared beyond 1."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.protocol import resources as r


def test_units_and_floats() -> None:
    assert r.to_units({"CPU": 1, "GPU": 0.5, "x": 0, "y": 1e-9, "z": 0.1 + 0.2}) == {
        "CPU": 10000,
        "GPU": 5000,
        "y": 1,
        "z": 3000,
    }
    assert r.to_floats({"CPU": 15000}) == {"CPU": 1.5}
    assert r.to_units({"memory": 1e13}) == {"memory": 10**17}


@pytest.mark.parametrize(
    ("name", "quantity", "error", "words"),
    [
        ("CPU", -1, ValueError, "negative"),
        ("CPU", math.nan, ValueError, "nan"),
        ("CPU", math.inf, ValueError, "at most"),
        ("CPU", -math.inf, ValueError, "negative"),
        ("CPU", 10**400, ValueError, "at most"),
        ("CPU", 1e13, ValueError, "at most"),
        ("memory", 1e15, ValueError, "at most"),
        ("CPU", "2", TypeError, "str"),
        ("CPU", True, TypeError, "bool"),
        ("CPU", None, TypeError, "NoneType"),
        ("CPU", 1j, TypeError, "complex"),
        ("GPU", 1.5, ValueError, "whole"),
        ("", 1, TypeError, "name"),
        (3, 1, TypeError, "name"),
    ],
)
def test_nonsense_is_refused(name: object, quantity: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        r.to_units({name: quantity})  # type: ignore[dict-item]
    assert repr(name) in str(caught.value) or not name


@given(st.lists(st.floats(0, 100), max_size=50))
def test_adding_and_subtracting_is_exact(amounts: list[float]) -> None:
    held = {"CPU": 7}
    for amount in amounts:
        r.add(held, r.to_units({"CPU": amount}))
    for amount in reversed(amounts):
        r.subtract(held, r.to_units({"CPU": amount}))
    assert held == {"CPU": 7}


def test_fits() -> None:
    assert r.fits({}, {"CPU": -1})
    assert r.fits({"CPU": 2}, {"CPU": 2, "GPU": 1})
    assert not r.fits({"CPU": 2}, {"CPU": 1})
    assert not r.fits({"x": 1}, {"CPU": 1})


def test_format() -> None:
    assert (
        r.format_resources({"CPU": 20000, "GPU": 5000, "memory": (3 << 29) * 10000}) == "2 CPU, 0.5 GPU, 1.5 GiB memory"
    )
    assert r.format_resources({}) == "nothing"
    total = {"CPU": 20000, "node:10.0.0.1": 10000, "node:__internal_head__": 10000}
    assert r.format_total(total) == "2 CPU"
    assert r.format_total(total, {"node:10.0.0.1": 1}) == "2 CPU, 1 node:10.0.0.1"


def test_fractions_pack_and_whole_ones_stay_whole() -> None:
    pool = r.AcceleratorPool({"GPU": [4, 5, 6]})
    half = r.to_units({"GPU": 0.5})
    first, second, third = pool.assign(half), pool.assign(half), pool.assign(half)
    assert (first, second, third) == ({"GPU": [4]}, {"GPU": [4]}, {"GPU": [5]})
    assert pool.assign(r.to_units({"GPU": 2})) is None
    assert pool.assign(r.to_units({"GPU": 1, "CPU": 3})) == {"GPU": [6]}
    pool.release(half, {"GPU": [4]})
    assert not pool.fits(r.to_units({"GPU": 0.6}))
    assert pool.assign(r.to_units({"CPU": 1})) == {}
    with pytest.raises(AssertionError):
        pool.release(r.to_units({"GPU": 0.6}), {"GPU": [4]})


@given(st.lists(st.tuples(st.sampled_from([0.25, 0.3, 0.5, 0.7, 1, 2, 3]), st.integers(0, 9)), max_size=60))
def test_no_id_is_overcommitted(steps: list[tuple[float, int]]) -> None:
    pool = r.AcceleratorPool({"GPU": [0, 1, 2]})
    held: list[tuple[r.Resources, r.Assigned]] = []
    for amount, choice in steps:
        demand = r.to_units({"GPU": amount})
        if choice < 3 and held:
            pool.release(*held.pop(choice % len(held)))
        fit = pool.fits(demand)
        assigned = pool.assign(demand)
        assert (assigned is not None) == fit
        if assigned is not None:
            held.append((demand, assigned))
        used = dict.fromkeys([0, 1, 2], 0)
        for owned, ids in held:
            for number in ids["GPU"]:
                used[number] += min(owned["GPU"], 10000)
        assert pool.free("GPU") == {number: 10000 - units for number, units in used.items()}
        assert all(units >= 0 for units in pool.free("GPU").values())
    for owned, ids in held:
        pool.release(owned, ids)
    assert pool.free("GPU") == {0: 10000, 1: 10000, 2: 10000}


def test_visible_devices() -> None:
    assert r.visible_ids("GPU", 2, {}) == [0, 1]
    assert r.visible_ids("GPU", 1, {"CUDA_VISIBLE_DEVICES": "3, 5"}) == [3]
    assert r.visible_ids("GPU", 2, {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}) == [0, 1]
    with pytest.raises(ValueError, match="only 1"):
        r.visible_ids("GPU", 2, {"CUDA_VISIBLE_DEVICES": "3"})
    assert r.visible_variables({"GPU": [3, 5]}, {}) == {"CUDA_VISIBLE_DEVICES": "3,5"}
    assert r.visible_variables({"GPU": [1]}, {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}) == {
        "CUDA_VISIBLE_DEVICES": "GPU-b"
    }
    assert r.visible_variables({"GPU": [1]}, {"HIP_VISIBLE_DEVICES": "0,1"}) == {"HIP_VISIBLE_DEVICES": "1"}
    assert r.visible_variables({"GPU": [0], "TPU": [2], "x": [1]}, {}, "amd") == {
        "HIP_VISIBLE_DEVICES": "0",
        "TPU_VISIBLE_CHIPS": "2",
    }
