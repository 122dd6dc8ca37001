"""Storage on a folder and through fsspec, checkpoints that lost something, stoppers, the table."""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

import pytest

from shoal import tune
from shoal.tune import context as trial_context
from shoal.tune import experiment as events
from shoal.tune.checkpoint import MANIFEST, check_complete, reported_files, store_checkpoint
from shoal.tune.experiment import Experiment, Rules
from shoal.tune.journal import Journal
from shoal.tune.progress import ProgressReporter
from shoal.tune.runner import Assignment, Runner
from shoal.tune.storage import PART_BYTES, Storage


@pytest.fixture(params=["folder", "fsspec"])
def storage(request, tmp_path) -> Storage:
    return Storage(str(tmp_path / "s") if request.param == "folder" else f"memory://{tmp_path.name}")


def test_files_streams_and_folders(storage, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    assert storage.read("a/b") is None and storage.read_lines("j") == []
    storage.write("a/b", b"1")
    storage.write("a/b", b"22")
    assert storage.read("a/b") == b"22"
    for number in range(3):
        storage.append("j", b"%d\n" % number)
        storage.flush()
    again = Storage(storage.location)
    again.append("j", b"3\n")
    again.flush("j")
    again.append("j", b"4" * PART_BYTES + b"\n")
    again.flush()
    again.append("j", b"torn, as by a kill")
    again.flush()
    last = Storage(storage.location)
    assert last.read_lines("j") == [b"0", b"1", b"2", b"3", b"4" * PART_BYTES]
    last.append("j", b"5\n")
    last.flush()
    assert last.read_lines("j")[-1] == b"5"
    last.append("j", b"6\n")
    last.cut("j", 3)
    last.append("j", b"7\n")
    last.flush()
    assert Storage(storage.location).read_lines("j") == [b"0", b"1", b"2", b"3", b"7"]
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "x").write_text("xx")
    store_checkpoint(str(source), storage, "t/c0")
    check_complete(storage, "t/c0")
    folder = tune.Checkpoint(storage.full("t/c0")).to_directory(tmp_path / "copy")
    assert Path(folder, "deep", "x").read_text() == "xx"
    with tune.Checkpoint(storage.full("t/c0")).as_directory() as opened:
        assert Path(opened, "deep", "x").exists()
    # A copy is the user's: its files may change, and it can be reported; so can a copy that was made with its manifest.
    Path(folder, "deep", "x").write_text("longer")
    with tune.Checkpoint.from_directory(folder).as_directory() as opened:
        assert Path(opened, "deep", "x").read_text() == "longer"
    Path(folder, MANIFEST).write_text('{"deep/x": 2}')
    with reported_files(tune.Checkpoint.from_directory(folder)) as opened:
        store_checkpoint(opened, storage, "t/c1")
    check_complete(storage, "t/c1")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"), reported_files(tune.Checkpoint("/nowhere")):
        pass
    with reported_files(tune.Checkpoint(storage.full("t/c1"))) as opened:
        assert Path(opened, "deep", "x").read_text() == "longer"
    storage.write("t/c0/deep/x", b"x")
    with pytest.raises(tune.CheckpointError, match="deep/x has 1 of 2 bytes"):
        tune.Checkpoint(storage.full("t/c0")).to_directory()
    assert list((tmp_path / "temporary").iterdir()) == []  # nothing is left behind, of copies neither
    storage.remove("t")
    with pytest.raises(tune.CheckpointError, match="not written to its end"):
        check_complete(storage, "t/c0")


def test_stoppers() -> None:
    plateau = tune.TrialPlateauStopper("loss", std=0.01, num_results=3, grace_period=3)
    answers = [plateau("t", {"loss": v, "training_iteration": i + 1}) for i, v in enumerate([5, 1, 1, 1])]
    assert answers == [False, False, False, True]
    both = tune.CombinedStopper(tune.MaximumIterationStopper(2), tune.TimeoutStopper(0))
    assert not both("t", {"training_iteration": 1}) and both("t", {"training_iteration": 2}) and both.stop_all()


def test_a_time_limit_counts_what_passed_before_a_restore() -> None:
    short, long = tune.TimeoutStopper(55), tune.TimeoutStopper(1000)
    both = tune.CombinedStopper(tune.stoppers.stopper_of(lambda trial_id, result: result["absent"]), short, long)
    for moment, step_s in ((1000, 30), (1040, 40), (1045, 20), (9000, 10)):  # nobody ran it between 1045 and 8990
        both.replay("t", {"timestamp": moment, "time_this_iter_s": step_s})
    assert short._spent_s == long._spent_s == 40 + 5 + 10
    assert both.stop_all() and short.stop_all() and not long.stop_all()


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
    text = shown(machine, verbose=1)
    assert (
        "25 trials: 24 TERMINATED, 1 RUNNING" in text
        and "and 5 more" in text
        and text.index("e_00003") < text.index("e_00000")
    )
    assert shown(machine, verbose=None) == "" and shown(machine, verbose=0, terminal=True) == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(machine: Experiment, verbose: int | None, terminal: bool = False) -> str:
    stream = Terminal() if terminal else io.StringIO()
    reporter = ProgressReporter(verbose, stream)
    reporter.update(machine)
    reporter.update(machine, final=True)
    return stream.getvalue()


def failing() -> Experiment:
    searcher = tune.BasicVariantGenerator(random_state=0)
    searcher.set_search_properties("loss", "min", {"[b]x": tune.uniform(0, 1)}, 2)
    machine = Experiment(searcher, tune.FIFOScheduler(), Rules("loss", "min"), "e")
    for _ in range(2):
        event = machine.create()
        assert event is not None
        machine.handle(event)
    machine.handle(events.TrialFailed("e_00000", "Traceback ...\nKeyError: '<no> [such] column'", fatal=True))
    return machine


def test_a_table_on_a_terminal_says_what_failed(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setenv("TERM", "xterm")
    text = shown(failing(), verbose=None, terminal=True)
    assert text.count("2 trials: 1 ERROR, 1 PENDING") >= 2 and "\x1b[" in text  # drawn twice, in place
    assert "[b]x" in text and "e_00000 failed: KeyError: '<no> [such] column'" in text
    monkeypatch.setitem(sys.modules, "rich.live", None)
    assert "e_00000 failed: KeyError" in shown(failing(), verbose=None, terminal=True)  # plain, without rich


def test_a_table_in_a_notebook_is_replaced_in_place() -> None:
    outputs: list[str] = []

    def display(text):
        outputs.append(text)
        return lambda text: outputs.__setitem__(-1, text)

    reporter = ProgressReporter(display=display)
    reporter.update(failing())
    reporter.update(failing(), final=True)
    assert len(outputs) == 1 and outputs[0].count("<tr") == 3
    assert "KeyError: &#x27;&lt;no&gt; [such] column&#x27;" in outputs[0]

    def broken(text):
        raise OSError("the kernel is gone")

    ProgressReporter(display=broken).update(failing())  # is no reason to end a search


def test_a_damaged_experiment_says_what_is_damaged(tmp_path) -> None:
    searcher = tune.BasicVariantGenerator(random_state=0)
    searcher.set_search_properties("loss", "min", {}, 1)
    storage = Storage(str(tmp_path))
    storage.append("journal.jsonl", b'["ExperimentStopped", "x"]\n["TrialSta\n')
    with pytest.raises(ValueError, match=r"journal\.jsonl: event number 2 cannot be read"):
        Journal(storage).replay(Experiment(searcher, tune.FIFOScheduler(), Rules(), "e"))
    storage.write("tuner.pkl", b"torn")
    with pytest.raises(ValueError, match=r"tuner\.pkl cannot be read: it is damaged"):
        tune.Tuner.restore(str(tmp_path), lambda config: None)


@pytest.mark.parametrize("place", ["step", "load_checkpoint"])
def test_an_object_whose_code_raised_is_cleaned_up_and_not_used_again(place, tmp_path, monkeypatch) -> None:
    class Raises(tune.Trainable):
        ended = 0

        def step(self):
            return {"score": 1 / (place != "step")}

        def save_checkpoint(self, folder):
            Path(folder, "state").touch()

        def load_checkpoint(self, folder):
            raise ZeroDivisionError

        def reset_config(self, config):
            return True

        def cleanup(self):
            Raises.ended += 1
            raise OSError("not heard")

    monkeypatch.setattr(trial_context, "context", None)
    runner = Runner(Raises, {}, str(tmp_path))
    kept = Path(tmp_path, "kept")
    kept.mkdir()
    (kept / "state").touch()
    store_checkpoint(str(kept), runner._storage, "t/c0")
    with pytest.raises(ZeroDivisionError):
        runner.run(Assignment("t", "t", "e", "t", {}, {}, restore_path="t/c0" if place != "step" else None))
    assert Raises.ended == 1 and runner._object is None
