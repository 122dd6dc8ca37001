"""Arrays, tables and frames come back read-only, and large ones without a copy."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from tests.engine.node_counts import settled_counts, wait_for_counts

import shoal

np = pytest.importorskip("numpy")
pytestmark = pytest.mark.usefixtures("shoal_session")

SIZES = [1, 100, 10_000, 1_000_000]  # of doubles: 8 bytes to 8 MB


@shoal.remote
def same(value: Any) -> Any:
    return value


@shoal.remote
def make(count: int) -> Any:
    return np.arange(count, dtype=float)


@shoal.remote
def is_writeable(array: Any) -> bool:
    return bool(array.flags.writeable)


@pytest.mark.parametrize("count", SIZES)
def test_arrays_are_read_only(count: int) -> None:
    array = np.arange(count, dtype=float)
    for back in (
        shoal.get(shoal.put(array)),
        shoal.get(same.remote(array), timeout=60),
        shoal.get(make.remote(count), timeout=60),
    ):
        assert np.array_equal(back, array)
        assert not back.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            back[0] = 1
    assert not shoal.get(is_writeable.remote(array), timeout=60)
    assert not shoal.get(is_writeable.remote(shoal.put(array)), timeout=60)
    array[0] = 5  # the original stays the user's


def test_large_gets_share_memory() -> None:
    ref = shoal.put(np.zeros(1_000_000))
    first, second = shoal.get(ref), shoal.get(ref)
    assert first.__array_interface__["data"][0] == second.__array_interface__["data"][0]


def test_arrays_of_many_forms() -> None:
    forms = [
        np.zeros((300, 300)),
        np.asfortranarray(np.arange(90_000.0).reshape(300, 300)),
        np.arange(100_000.0)[::2],
        np.zeros((0, 3)),
        np.array(5.0),
        np.array(["a", "bc"]),
        np.array([None, {}], dtype=object),
        np.zeros(40_000, dtype=[("a", "i4"), ("b", "f8")]),
        np.arange(100_000).astype("datetime64[s]"),
        np.ones(200_000, dtype=bool),
    ]
    backs = shoal.get(same.remote(forms), timeout=60)
    for form, back in zip(forms, backs, strict=True):
        assert back.dtype == form.dtype
        assert np.array_equal(back, form)


def test_arrow_tables() -> None:
    pa = pytest.importorskip("pyarrow")
    for rows in (3, 300_000):
        table = pa.table({"n": np.arange(rows), "s": ["x"] * rows})
        back = shoal.get(same.remote(table), timeout=60)
        assert back.equals(table)
    ref = shoal.put(pa.table({"n": np.arange(1_000_000)}))
    before = pa.total_allocated_bytes()
    tables = [shoal.get(ref) for _ in range(10)]
    assert pa.total_allocated_bytes() - before < 1_000_000
    assert tables[0].column("n").chunk(0).buffers()[1].address == tables[9].column("n").chunk(0).buffers()[1].address


def test_pandas_frames() -> None:
    pd = pytest.importorskip("pandas")
    for rows in (3, 300_000):
        frame = pd.DataFrame({"a": np.arange(rows, dtype=float), "b": np.arange(rows, dtype=float)})
        back = shoal.get(same.remote(frame), timeout=60)
        pd.testing.assert_frame_equal(back, frame)
        assert not back["a"].to_numpy().flags.writeable


def test_views_outlive_their_ref() -> None:
    before = settled_counts()
    ref = shoal.put(np.full(1_000_000, 7.0))
    view = shoal.get(ref)[10:20]
    del ref
    others = [shoal.put(np.zeros(1_000_000)) for _ in range(5)]  # would take the place
    assert view.tolist() == [7.0] * 10
    del others, view
    gc.collect()
    wait_for_counts(before)


def test_a_view_kept_by_an_actor_stays() -> None:
    @shoal.remote
    class Keeper:
        def keep(self, array: Any) -> None:
            self.array = array

        def total(self) -> float:
            return float(self.array.sum())

    before = settled_counts()
    keeper = Keeper.remote()
    shoal.get(keeper.keep.remote(np.ones(500_000)), timeout=60)
    ref = shoal.put(np.ones(500_000))
    shoal.get(keeper.keep.remote(ref), timeout=60)
    del ref
    for _ in range(5):
        shoal.put(np.zeros(500_000))
    assert shoal.get(keeper.total.remote(), timeout=60) == 500_000.0
    del keeper
    wait_for_counts(before, 3)


def test_arrays_beside_refs_in_one_object() -> None:
    inner = shoal.put(np.ones(200_000))
    array, ref = shoal.get(same.remote([np.zeros(200_000), inner]), timeout=60)
    assert array.sum() == 0
    assert ref is inner
    assert shoal.get(ref).sum() == 200_000


def test_results_beside_each_other() -> None:
    @shoal.remote(num_returns=3)
    def three() -> Any:
        return np.zeros(100_000), b"x" * 300_000, 3

    array, text, three_ = shoal.get(three.remote(), timeout=60)
    assert array.shape == (100_000,)
    assert len(text) == 300_000
    assert three_ == 3


def test_megabytes_through_a_chain() -> None:
    ref = make.remote(500_000)
    for _ in range(10):
        ref = same.remote(ref)
    assert shoal.get(ref, timeout=60)[-1] == 499_999
