"""Training with real processes: gangs, checkpoints, deaths, growth."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from shoal import train  # noqa: E402
from shoal.train.session import Report  # noqa: E402
from shoal.train.trainer import GROW_LOOK_S, _Gang  # noqa: E402
from shoal.tune.checkpoint import MANIFEST  # noqa: E402
from shoal.tune.storage import Storage  # noqa: E402

TWO = train.ScalingConfig(num_workers=2)


def bare(model: Any) -> Any:
    """The model itself: a gang of one has no wrapper around it, and its checkpoint is for any gang."""
    return getattr(model, "module", model)


def fit_line(config: dict[str, Any]) -> None:
    """Learns y = 3x - 1 in steps; a checkpoint each; perhaps dies in the middle, once."""
    shard = train.get_dataset_shard("train")
    torch.manual_seed(0)
    model = train.prepare_model(torch.nn.Linear(1, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    begin, checkpoint, rank = 0, train.get_checkpoint(), train.get_context().get_world_rank()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            state = torch.load(Path(folder, "state.pt"))
        begin = state["step"] + 1
        bare(model).load_state_dict(state["model"])
    x, y = torch.tensor(np.array(shard["x"])), torch.tensor(np.array(shard["y"]))
    for step in range(begin, config["steps"]):
        marker = config.get("die_at", {}).get(step)
        if marker and rank == 1 and not os.path.exists(marker):
            Path(marker).touch()
            os._exit(7)
        if step == config.get("raise_at") and rank == 1:
            raise ValueError("the data are spoilt")
        if train.get_context().get_world_size() == 1:
            time.sleep(config.get("pause_alone_s", 0.0))
        loss = (model(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        folder = Path(config["folder"], f"own-{os.getpid()}")
        folder.mkdir(exist_ok=True)
        torch.save({"step": step, "model": bare(model).state_dict()}, folder / "state.pt")
        saved = train.Checkpoint.from_directory(folder) if rank == 0 else None
        train.report(
            {
                "loss": float(loss),
                "step": step,
                "world": train.get_context().get_world_size(),
                "interface": os.environ.get("GLOO_SOCKET_IFNAME"),
            },
            checkpoint=saved,
        )


def line(rows: int = 64) -> dict[str, Any]:
    x = np.linspace(-1, 1, rows, dtype=np.float32).reshape(-1, 1)
    return {"train": {"x": x, "y": 3 * x - 1}}


def trainer(tmp_path: Path, scaling: train.ScalingConfig = TWO, failures: int = 0, **config: Any) -> train.TorchTrainer:
    return train.TorchTrainer(
        fit_line,
        train_loop_config={"folder": str(tmp_path), "steps": 8, **config},
        scaling_config=scaling,
        run_config=train.RunConfig(name="line", storage_path=str(tmp_path / "runs"), max_failures=failures),
        datasets=line(),
    )


def test_two_workers_train_one_model(shoal_shared: ModuleType, tmp_path: Path) -> None:
    result = trainer(tmp_path).fit()
    losses = result.metrics_dataframe["loss"].tolist()
    assert [row["step"] for row in result.history] == list(range(8)) and losses[-1] < losses[0] / 4
    assert result.metrics["world"] == 2 and result.restarts == 0
    assert result.metrics["interface"] == "lo", "workers meet where the node's address (127.0.0.1) is"
    assert result.checkpoint is not None
    with result.checkpoint.as_directory() as folder:
        assert torch.load(Path(folder, "state.pt"))["step"] == 7
    kept = sorted(one.name for one in (tmp_path / "runs" / "line").glob("checkpoint_*"))
    assert kept == ["checkpoint_000006", "checkpoint_000007"]


def test_a_worker_that_dies_costs_what_was_after_the_checkpoint(
    shoal_shared: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = trainer(tmp_path / "a", failures=0) if (tmp_path / "a").mkdir() is None else None
    assert plain is not None
    wanted = plain.fit().metrics["loss"]
    (tmp_path / "b").mkdir()
    result = trainer(tmp_path / "b", failures=1, die_at={4: str(tmp_path / "died")}).fit()
    assert result.restarts == 1 and [row["step"] for row in result.history] == list(range(8))
    assert abs(result.metrics["loss"] - wanted) < 1e-5, "the same weights as without the death"
    assert "training 'line' goes on from checkpoint_00000" in capsys.readouterr().err


def test_an_error_in_the_loop_is_the_cause(shoal_shared: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(
        train.TrainingFailedError, match=r"worker 1: ValueError: the data are spoilt(.|\n)*max_failures"
    ) as caught:
        trainer(tmp_path, raise_at=2).fit()
    assert isinstance(caught.value.__cause__, ValueError) and "in fit_line" in str(caught.value.__cause__)
    # A new trainer does not mistake these files for its own.
    with pytest.raises(ValueError, match=r"line holds a training already.*TorchTrainer\.restore"):
        trainer(tmp_path).fit()


def test_no_room_says_what_there_is(shoal_shared: ModuleType, tmp_path: Path) -> None:
    scaling = train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1, "unobtainium": 1}, place_timeout_s=1)
    with pytest.raises(train.TrainingFailedError, match=r"no room for 1 workers.*unobtainium.*place_timeout_s"):
        trainer(tmp_path, scaling).fit()


def test_a_smaller_gang_begins_when_there_is_no_room(shoal_shared: ModuleType, tmp_path: Path) -> None:
    scaling = train.ScalingConfig(num_workers=3, min_workers=1, resources_per_worker={"CPU": 2}, place_timeout_s=30)
    result = trainer(tmp_path, scaling).fit()  # 4 CPUs: two workers fit
    assert result.metrics["world"] == 2 and result.metrics["step"] == 7


def test_one_worker_needs_no_group(shoal_shared: ModuleType, tmp_path: Path) -> None:
    result = trainer(tmp_path, train.ScalingConfig(num_workers=1)).fit()
    assert result.metrics["world"] == 1 and result.metrics["step"] == 7


def test_a_small_gang_grows_when_there_is_room(shoal_shared: ModuleType, tmp_path: Path) -> None:
    class Blocker:
        pass

    blocker = shoal_shared.remote(num_cpus=3)(Blocker).options(num_cpus=3).remote()
    shoal_shared.get(blocker.__shoal_ready__.remote())

    def make_room() -> None:
        while not list(tmp_path.glob("own-*")):  # until the small gang trains
            time.sleep(0.01)
        shoal_shared.kill(blocker)

    threading.Thread(target=make_room, daemon=True).start()
    scaling = train.ScalingConfig(num_workers=2, min_workers=1, place_timeout_s=30)
    result = trainer(tmp_path, scaling, steps=200, pause_alone_s=0.05).fit()
    worlds = [row["world"] for row in result.history]
    assert worlds[0] == 1 and worlds[-1] == 2 and result.restarts == 1
    assert [row["step"] for row in result.history] == list(range(200)), "nothing is done twice or left out"


def test_gangs_that_were_ended_to_grow_and_did_not_are_ended_ever_more_seldom(
    shoal_shared: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = trainer(tmp_path, train.ScalingConfig(num_workers=3, min_workers=1))
    sizes, looks = [1, 1, 1, 2, 2], []
    ends = iter([False, False, False, False, True])
    monkeypatch.setattr(one, "_place", lambda attempt: _Gang([object()] * sizes[attempt], None, attempt))
    monkeypatch.setattr(one, "_start", lambda gang, datasets: looks.append(one._look_s))
    monkeypatch.setattr(one, "_watch", lambda gang: next(ends))
    monkeypatch.setattr(one, "_end", lambda gang: None)
    one.fit()
    assert looks == [GROW_LOOK_S, 4 * GROW_LOOK_S, 16 * GROW_LOOK_S, GROW_LOOK_S, 4 * GROW_LOOK_S]


def test_reports_that_not_all_workers_made_are_told(tmp_path: Path) -> None:
    gang = _Gang([], None, 0, [[Report(0, {"loss": 1.0}), Report(1, {})], []])
    with pytest.warns(UserWarning, match=r"workers \[1\] have not made.*worker 0: 2.*equally often"):
        assert trainer(tmp_path)._watch(gang)


def test_metrics_of_numpy_and_torch_are_numbers_on_disk(tmp_path: Path) -> None:
    one = trainer(tmp_path)
    one._commit(_Gang([], None, 0, [[Report(0, {"a": np.float32(0.5), "b": torch.tensor(2), "c": Path("x")})]]))
    assert json.loads((tmp_path / "runs" / "line" / "progress.jsonl").read_text()) == {
        "a": 0.5,
        "b": 2,
        "c": "x",
        "training_iteration": 1,
        "checkpoint_dir_name": None,
    }


def write_checkpoint(run: Path, number: int, step: int) -> None:
    """As a trainer leaves it."""
    folder = run / f"checkpoint_{number:06d}"
    folder.mkdir(parents=True)
    torch.save({"step": step, "model": torch.nn.Linear(1, 1).state_dict()}, folder / "state.pt")
    (folder / MANIFEST).write_text(json.dumps({"state.pt": (folder / "state.pt").stat().st_size}))


def truncate(run: Path, number: int) -> None:
    file = run / f"checkpoint_{number:06d}" / "state.pt"
    file.write_bytes(file.read_bytes()[:-10])


def test_a_run_is_gone_on_with_from_the_newest_checkpoint_that_is_whole(
    shoal_shared: ModuleType, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "line"
    write_checkpoint(run, 6, step=3)
    write_checkpoint(run, 7, step=4)
    truncate(run, 7)
    (run / "checkpoint_000008").mkdir()  # its driver was killed before this one was whole
    (run / "progress.jsonl").write_text(
        '{"step": 3, "checkpoint_dir_name": "checkpoint_000006"}\n'
        '{"step": 4, "checkpoint_dir_name": "checkpoint_000007"}\n{"st'
    )
    settings = {"train_loop_config": {"folder": str(tmp_path), "steps": 7}, "datasets": line()}
    with pytest.warns(UserWarning, match=r"checkpoint_000007: the file state.pt has \d+ of \d+ bytes.*the one before"):
        again = train.TorchTrainer.restore(str(run), fit_line, **settings)
    assert not (run / "checkpoint_000008").exists()
    result = again.fit()
    assert [row["step"] for row in result.history] == [3, 4, 5, 6], "step 4 was reported twice, and counts once"
    assert [json.loads(line) for line in (run / "progress.jsonl").read_text().splitlines()] == result.history
    assert result.path == str(run) and result.checkpoint is not None and result.checkpoint.path.endswith("000010")


def test_runs_that_cannot_be_gone_on_with(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no training at .*nowhere"):
        train.TorchTrainer.restore(str(tmp_path / "nowhere"), fit_line)
    write_checkpoint(tmp_path / "run", 0, step=1)
    truncate(tmp_path / "run", 0)
    with (
        pytest.warns(UserWarning, match="where it first began"),
        pytest.raises(train.CheckpointError, match=r"no checkpoint in .*run is whole"),
    ):
        train.TorchTrainer.restore(str(tmp_path / "run"), fit_line)


def test_a_damaged_checkpoint_is_passed_over_after_a_death(tmp_path: Path) -> None:
    first = train.Checkpoint(str(tmp_path))
    one = train.TorchTrainer(
        fit_line,
        run_config=train.RunConfig(name="line", storage_path=str(tmp_path)),
        resume_from_checkpoint=first,
    )
    for number in range(2):
        write_checkpoint(tmp_path / "line", number, step=number)
        one._seal(f"checkpoint_{number:06d}")
    truncate(tmp_path / "line", 1)
    with pytest.warns(UserWarning, match="the one before"):
        assert one._newest().endswith("checkpoint_000000")
    truncate(tmp_path / "line", 0)
    with pytest.warns(UserWarning, match="where it first began"):
        assert one._newest() == first.path


def test_without_torch_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"shoal\[train\]"):
        train.TorchTrainer(fit_line).fit()
    with pytest.raises(ImportError, match=r"shoal\[train\]"):
        train.collective.allreduce(np.ones(1))


def test_names_of_a_storage_anywhere(tmp_path: Path) -> None:
    for location in (str(tmp_path / "here"), "memory://names-of-a-storage"):
        storage = Storage(location)
        assert storage.names() == []
        storage.write("b/file", b"1")
        storage.write("a", b"2")
        assert storage.names() == ["a", "b"]
