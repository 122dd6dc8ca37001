"""Storage on a folder and through fsspec, checkpoints that lost something, stoppers, the table."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from shoal import tune
from shoal.tune import experiment as events
from shoal.tune.checkpoint import check_complete, store_checkpoint
from shoal.tune.experiment import Experiment, Rules
from shoal.tune.journal import Journal
from shoal.tune.progress import ProgressReporter
from shoal.tune.storage import Storage


@pytest.fixture(params=["folder", "fsspec"])
def storage(request, tmp_path) -> Storage:
    return Storage(str(tmp_path / "s") if request.param == "folder" else f"memory://{tmp_path.name}")


def test_files_streams_and_folders(storage, tmp_path) -> None:
    assert storage.read("a/b") is None and storage.read_lines("j") == []
    storage.write("a/b", b"1")
    storage.write("a/b", b"22")
    assert storage.read("a/b") == b"22"
    for number in range(3):
        storage.append("j", b"%d\n" % number)
        storage.flush()
    again = Storage(storage.location)
    again.append("j", b"3\n")
    again.flush()
    assert again.read_lines("j") == [b"0", b"1", b"2", b"3"]
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "x").write_text("xx")
    store_checkpoint(str(source), storage, "t/c0")
    check_complete(storage, "t/c0")
    folder = tune.Checkpoint(storage.full("t/c0")).to_directory(tmp_path / "copy")
    assert Path(folder, "deep", "x").read_text() == "xx"
    with tune.Checkpoint(storage.full("t/c0")).as_directory() as opened:
        assert Path(opened, "deep", "x").exists()
    storage.write("t/c0/deep/x", b"x")
    with pytest.raises(tune.CheckpointError, match="deep/x has 1 of 2 bytes"):
        tune.Checkpoint(storage.full("t/c0")).to_directory()
    storage.remove("t")
    with pytest.raises(tune.CheckpointError, match="not written to its end"):
        check_complete(storage, "t/c0")


def test_stoppers() -> None:
    plateau = tune.TrialPlateauStopper("loss", std=0.01, num_results=3, grace_period=3)
    answers = [plateau("t", {"loss": v, "training_iteration": i + 1}) for i, v in enumerate([5, 1, 1, 1])]
    assert answers == [False, False, False, True]
    both = tune.CombinedStopper(tune.MaximumIterationStopper(2), tune.TimeoutStopper(0))
    assert not both("t", {"training_iteration": 1}) and both("t", {"training_iteration": 2}) and both.stop_all()


def test_table_and_journal_through_fsspec(tmp_path) -> None:
    def fresh() -> Experiment:
        searcher = tune.BasicVariantGenerator(random_state=0)
        searcher.set_search_properties("loss", "min", {"x": tune.uniform(0, 1)}, 30)
        return Experiment(searcher, tune.FIFOScheduler(), Rules("loss", "min"), "e")

    machine, journal = fresh(), Journal(Storage(f"memory://{tmp_path.name}/journal"))
    for number in range(25):
        event = machine.create()
        assert event is not None
        for each in (
            event,
            events.TrialStarted(event.trial_id),
            events.TrialReported(event.trial_id, {"loss": number, "training_iteration": 1}, None, number != 3),
        ):
            machine.handle(each)
            journal.write(each)
    journal.snapshot(machine)
    again = fresh()
    journal.replay(again)
    assert again.trials == machine.trials
    console = Console(file=io.StringIO(), width=120)
    ProgressReporter(1, console).update(machine, final=True)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert (
        "25 trials: 24 TERMINATED, 1 RUNNING" in text
        and "and 5 more" in text
        and text.index("e_00003") < text.index("e_00000")
    )
    silent = Console(file=io.StringIO())
    ProgressReporter(None, silent).update(machine, final=True)
    assert silent.file.getvalue() == ""  # type: ignore[attr-defined]
