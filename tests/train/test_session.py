"""What a training loop calls, without processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal import train
from shoal.train.session import Session, TrainContext, shard_of
from shoal.tune.checkpoint import MANIFEST
from shoal.tune.storage import Storage


@given(st.integers(0, 40), st.integers(1, 6))
def test_shards_are_equal_disjoint_and_complete_up_to_the_rest(rows: int, count: int) -> None:
    if rows < count:
        with pytest.raises(ValueError, match=f"{rows} rows cannot be divided among {count} workers"):
            shard_of(np.arange(rows), 0, count)
        return
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
    with pytest.raises(ValueError, match="must be whole"):
        train.ScalingConfig(num_workers=1.5)  # type: ignore[arg-type]
    assert train.ScalingConfig(resources_per_worker={"cpu": 2}).bundle() == {"CPU": 2}
    assert train.TorchTrainer(print, run_config=train.RunConfig("run", Path("/nowhere")))
    with pytest.raises(TypeError, match="must be a function"):
        train.TorchTrainer(42)


def test_a_loader_is_divided_with_all_it_was_made_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    data = torch.utils.data
    dataset = data.TensorDataset(torch.arange(8))
    made_with = {"batch_size": 2, "num_workers": 1, "persistent_workers": True, "worker_init_fn": print, "timeout": 7}
    given = data.DataLoader(dataset, shuffle=True, generator=torch.Generator(), **made_with)
    epochs = []
    for rank in range(2):
        monkeypatch.setattr("shoal.train.session.running", session_of(tmp_path, rank))
        loader = train.prepare_data_loader(given)
        assert {name: getattr(loader, name) for name in made_with} == made_with
        assert loader.generator is given.generator and train.prepare_data_loader(loader) is loader
        epochs.append([list(loader.sampler) for _ in range(2)])
        loader.sampler.set_epoch(0)
        assert list(loader.sampler) == epochs[-1][0]
    for first, second in zip(*epochs, strict=True):
        assert sorted(first + second) == list(range(8))
    assert epochs[0][0] != epochs[0][1], "each epoch has an order of its own"
    plain = train.prepare_data_loader(data.DataLoader(dataset, batch_size=2))
    assert [list(plain.sampler) for _ in range(2)] == [[1, 3, 5, 7]] * 2
    weighted = data.WeightedRandomSampler([1.0] * 8, 8)
    batches = data.BatchSampler(data.SequentialSampler(dataset), 2, False)
    for own in ({"sampler": weighted}, {"batch_sampler": batches}):
        with pytest.raises(ValueError, match="a sampler of your own"):
            train.prepare_data_loader(data.DataLoader(dataset, **own))


def session_of(storage: Path, rank: int = 0) -> Session:
    return Session(TrainContext(rank, 2, rank, 2, 0, "run", 0), None, Storage(str(storage)), 3, {})


def test_files_that_grew_since_they_were_copied_from_a_checkpoint_are_reported(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "log").write_text("1234")
    (own / MANIFEST).write_text('{"log": 3}')  # as it was when it was copied
    session_of(tmp_path / "run").report({}, train.Checkpoint.from_directory(own))
    assert [one.name for one in (tmp_path / "run" / "checkpoint_000003").iterdir()] == ["log"]
    with pytest.raises(FileNotFoundError, match="does not exist"):
        session_of(tmp_path / "run").report({}, train.Checkpoint.from_directory(tmp_path / "nowhere"))


def test_files_of_one_report_lie_in_one_folder(tmp_path: Path) -> None:
    workers = [session_of(tmp_path / "run", rank) for rank in range(2)]
    for step in range(4):
        for rank, worker in enumerate(workers):
            own = tmp_path / f"{rank}-{step}"
            own.mkdir()
            (own / f"{rank}-{step}").touch()
            worker.report({}, train.Checkpoint.from_directory(own) if rank == 0 or step % 2 else None)
    found = [sorted(file.name for file in one.iterdir()) for one in sorted((tmp_path / "run").iterdir())]
    assert found == [["0-0"], ["0-1", "1-1"], ["0-2"], ["0-3", "1-3"]]
