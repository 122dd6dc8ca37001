"""What a training loop calls, without processes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal import train
from shoal.train.session import shard_of


@given(st.integers(0, 40), st.integers(1, 6))
def test_shards_are_equal_disjoint_and_complete_up_to_the_rest(rows: int, count: int) -> None:
    shards = [shard_of(np.arange(rows), rank, count) for rank in range(count)]
    assert {len(shard) for shard in shards} == {rows // count}
    assert sorted(np.concatenate(shards).tolist()) == list(range(rows - rows % count))


def test_shards_of_everything_that_has_rows() -> None:
    torch = pytest.importorskip("torch")
    columns = {"x": np.arange(5), "y": (list(range(5)), torch.arange(5))}
    shard = shard_of(columns, 1, 2)
    assert shard["x"].tolist() == [1, 3] and shard["y"][0] == [1, 3] and shard["y"][1].tolist() == [1, 3]
    dataset = torch.utils.data.TensorDataset(torch.arange(5))
    assert [int(row[0]) for row in shard_of(dataset, 0, 2)] == [0, 2]


@pytest.mark.parametrize(
    "call", [lambda: train.report({}), train.get_context, train.get_checkpoint, train.get_dataset_shard]
)
def test_calls_outside_of_a_loop_say_so(call) -> None:  # noqa: ANN001
    with pytest.raises(RuntimeError, match="outside of a training loop"):
        call()


def test_wrong_settings() -> None:
    with pytest.raises(ValueError, match="min_workers"):
        train.ScalingConfig(num_workers=2, min_workers=3)
    with pytest.raises(TypeError, match="must be a function"):
        train.TorchTrainer(42)
