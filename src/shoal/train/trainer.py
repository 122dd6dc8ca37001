"""Data-parallel training of torch models: gangs of workers that are started together, watched, and started again from the last checkpoint.

    TorchTrainer(loop, scaling_config=ScalingConfig(num_workers=4)).fit()

      place all workers or none --> join (gloo or nccl) --> loops run --> reports, checkpoints --> Result
                 ^                                              |
                 '--- a worker or its node dies; room for more --'   (from the newest whole checkpoint)

Design: the trainer runs in the driver; workers are actors, in a placement group, so that a gang gets all its places or waits. A checkpoint is whole
when all workers have made the report it came with; then its manifest is written. When a worker dies the others hang in a collective call: all are
ended and a new gang begins where the checkpoint was. With `min_workers` the gang may be smaller than wished, and is made larger when nodes have
joined, at the next checkpoint. If it then turns out not to be larger (its strategy wants the room elsewhere), it looks for room ever more seldom.
Rows of the history say which checkpoint came with them, so a gang that begins again from one cuts off what was reported after it.

What it does not do: split a model over workers; watch a loop that neither reports nor ends (`RunConfig.report_timeout_s` does).
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import shoal
from shoal.train.session import Report, TrainContext
from shoal.train.worker import Placed, Start, TrainWorker
from shoal.tune.checkpoint import MANIFEST, Checkpoint, CheckpointError, check_complete
from shoal.tune.storage import Storage

POLL_S = 0.5  #: how long a worker waits for its loop's next report before it answers
GROW_LOOK_S = 2.0  #: how often a gang that is too small looks for room
GROW_LOOK_MAX_S = 600.0  #: and how seldom, when gangs that were ended to grow did not
GROW_PLACE_S = 0.5  #: for the room to be shown
PROGRESS = "progress.jsonl"
CHECKPOINT = "checkpoint_dir_name"  #: in a row of the history: the checkpoint that came with it, or None


class TrainingFailedError(RuntimeError):
    """The training ended with an error and no failures were left (`RunConfig.max_failures`).

    Its cause is the last error, as `shoal.get` raises it: of the loop's own class, and its text shows where in the loop it was raised.
    """


@dataclass(slots=True)
class ScalingConfig:
    """How many workers, and what each gets.

    Args:
        num_workers: wished for.
        min_workers: begin with so many when there is no room for more; None: never fewer than `num_workers`.
        use_gpu: a GPU each, and nccl.
        resources_per_worker: {"CPU": 1} by default.
        placement_strategy: of the placement group: PACK, SPREAD, STRICT_PACK, STRICT_SPREAD.
        place_timeout_s: a gang that has no room after this ends the training, or starts smaller.
    """

    num_workers: int = 1
    min_workers: int | None = None
    use_gpu: bool = False
    resources_per_worker: dict[str, float] | None = None
    placement_strategy: str = "PACK"
    place_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        least = self.num_workers if self.min_workers is None else self.min_workers
        if not isinstance(self.num_workers, int) or not isinstance(least, int):
            raise ValueError(f"numbers of workers must be whole, not {self.num_workers!r} and {self.min_workers!r}")
        if not 1 <= least <= self.num_workers:
            raise ValueError(
                f"1 <= min_workers <= num_workers must hold, not {self.min_workers!r} and {self.num_workers!r}"
            )

    def bundle(self) -> dict[str, float]:
        """The resources of one worker."""
        written = {"cpu": "CPU", "gpu": "GPU"}
        resources = {
            written.get(name, name): each for name, each in (self.resources_per_worker or {"CPU": 1.0}).items()
        }
        if self.use_gpu:
            resources.setdefault("GPU", 1.0)
        return resources


@dataclass(slots=True)
class RunConfig:
    """Where the run's files go, and what it survives.

    Args:
        name: of the run; from the time if not given.
        storage_path: folder or fsspec URL; ~/shoal_results by default.
        max_failures: deaths and errors of workers after which it goes on from the last checkpoint; -1: any number.
        keep_checkpoints: so many of the newest stay; None: all.
        join_timeout_s: for the workers to find each other, and for each collective call.
        report_timeout_s: a gang in which nobody reports for so long counts as failed; None: wait for ever.
    """

    name: str | None = None
    storage_path: str | os.PathLike[str] | None = None
    max_failures: int = 0
    keep_checkpoints: int | None = 2
    join_timeout_s: float = 120.0
    report_timeout_s: float | None = None


@dataclass(slots=True)
class Result:
    """What came of a training. `metrics`: the last report of rank 0; `history`: all of them; `restarts`: gangs after the first."""

    metrics: dict[str, Any]
    checkpoint: Checkpoint | None
    path: str
    history: list[dict[str, Any]] = field(default_factory=list)
    restarts: int = 0

    @property
    def metrics_dataframe(self) -> Any:
        """The history as a pandas data frame."""
        import pandas

        return pandas.DataFrame(self.history)


class _GangFailed(Exception):
    """A worker died or its loop raised; `error` is what `shoal.get` raised."""

    def __init__(self, rank: int, error: Exception) -> None:
        cause = getattr(error, "cause", None)
        self.reason = cause if isinstance(cause, Exception) else error
        super().__init__(f"worker {rank}: {type(self.reason).__name__}: {self.reason}")
        self.error = error


@dataclass(slots=True)
class _Gang:
    """The workers that run now."""

    workers: list[Any]
    group: Any
    attempt: int
    reports: list[list[Report]] = field(default_factory=list)  #: per worker, those that not all have made yet
    told: int = 0  #: reports that all have made
    #: calls whose answers may never be read, because the gang is ended before
    asked: dict[Any, int] = field(default_factory=dict)


class TorchTrainer:
    """Runs a function in several processes that torch.distributed connects.

    Args:
        train_loop_per_worker: called in each worker, with `train_loop_config` if it takes an argument.
        train_loop_config: what it is called with.
        scaling_config, run_config: see there.
        datasets: by name; each lies once in the object store, and a worker sees its rows through `train.get_dataset_shard`.
        resume_from_checkpoint: what `train.get_checkpoint` gives at first.
    """

    def __init__(
        self,
        train_loop_per_worker: Callable[..., Any],
        *,
        train_loop_config: dict[str, Any] | None = None,
        scaling_config: ScalingConfig | None = None,
        run_config: RunConfig | None = None,
        datasets: dict[str, Any] | None = None,
        resume_from_checkpoint: Checkpoint | None = None,
    ) -> None:
        if not callable(train_loop_per_worker):
            raise TypeError(f"train_loop_per_worker must be a function, not {type(train_loop_per_worker).__name__}")
        self._loop, self._config = train_loop_per_worker, train_loop_config
        self._scaling = scaling_config or ScalingConfig()
        self._run = run_config or RunConfig()
        name = self._run.name or time.strftime("train_%Y-%m-%d_%H-%M-%S")
        root = str(self._run.storage_path or Path.home() / "shoal_results")
        self._name = name
        self._storage = Storage(f"{root.rstrip('/')}/{name}")
        self._datasets = datasets or {}
        self._resume_from = self._checkpoint = resume_from_checkpoint
        self._kept: list[str] = []  #: whole checkpoints of this run, newest last
        self._next_checkpoint = 0
        self._goes_on = False  #: what is in the folder is this trainer's, or taken over by `restore`
        self._history: list[dict[str, Any]] = []
        self._look_s = GROW_LOOK_S  #: how often a gang that is too small looks for room just now

    @classmethod
    def restore(
        cls,
        path: str | os.PathLike[str],
        train_loop_per_worker: Callable[..., Any],
        *,
        run_config: RunConfig | None = None,
        **more: Any,
    ) -> TorchTrainer:
        """A trainer that goes on with a run whose driver was killed, or that failed: from its newest checkpoint that is whole.

        Args:
            path: the run's folder (`Result.path`, or `storage_path`/`name`).
            run_config: as before; name and storage_path are the run's.
            train_loop_per_worker, more: as for a new trainer.

        Raises:
            FileNotFoundError: there is no run at `path`.
            CheckpointError: it has checkpoints, but none that is whole.
        """
        root, _, name = str(path).rstrip("/").rpartition("/")
        config = replace(run_config or RunConfig(), name=name, storage_path=root or ".")
        trainer = cls(train_loop_per_worker, run_config=config, **more)
        lines = trainer._storage.read_lines(PROGRESS)
        found = _checkpoints_in(trainer._storage)
        if not lines and not found:
            raise FileNotFoundError(f"there is no training at {path}: neither {PROGRESS} nor a checkpoint")
        trainer._goes_on = True
        trainer._history = [json.loads(line) for line in lines]
        # One without a manifest was never whole: its number is free again.
        trainer._kept = [one for one in found if trainer._storage.read(f"{one}/{MANIFEST}") is not None]
        trainer._next_checkpoint = _number_of(trainer._kept[-1]) + 1 if trainer._kept else 0
        if trainer._kept and not trainer._newest():
            raise CheckpointError(
                f"no checkpoint in {path} is whole (see the warnings): begin anew under another name, or with resume_from_checkpoint"
            )
        return trainer

    # ---------------------------------------------------------------- the run

    def fit(self) -> Result:
        """Train until all loops have ended.

        Raises:
            ImportError: torch is not installed.
            ValueError: there is a run of that name.
            TrainingFailedError: a worker failed once more than `max_failures`, or no gang could be placed.
        """
        try:
            import torch  # noqa: F401
        except ImportError as error:
            raise ImportError("shoal.train needs torch: pip install 'shoal[train]'") from error
        if not self._goes_on and (self._storage.read_lines(PROGRESS) or _checkpoints_in(self._storage)):
            raise ValueError(
                f"{self._storage.location} holds a training already: choose another RunConfig.name, or go on with it by "
                f"TorchTrainer.restore({self._storage.location!r}, loop)"
            )
        self._goes_on = True
        if not shoal.is_initialized():
            shoal.init()
        datasets = {name: shoal.put(value) for name, value in self._datasets.items()}
        failures = attempt = 0
        ended_to_grow = 0  #: workers of the gang before, if it was ended for a larger one
        while True:
            gang = self._place(attempt)
            attempt += 1
            if ended_to_grow:
                grew = len(gang.workers) > ended_to_grow
                self._look_s = GROW_LOOK_S if grew else min(4 * self._look_s, GROW_LOOK_MAX_S)
                ended_to_grow = 0
            try:
                self._start(gang, datasets)
                if self._watch(gang):
                    break
                ended_to_grow = len(gang.workers)
            except _GangFailed as failed:
                failures += 1
                if self._run.max_failures != -1 and failures > self._run.max_failures:
                    raise TrainingFailedError(
                        f"the training {self._name!r} failed: {failed}. {failures - 1} failures before were allowed and used "
                        "(RunConfig.max_failures); its checkpoints are in " + self._storage.location
                    ) from failed.error
                self._tell_restart(failed, failures)
            finally:
                self._end(gang)
        self._storage.flush()
        last = self._history[-1] if self._history else {}
        return Result(last, self._checkpoint, self._storage.location, self._history, attempt - 1)

    def _tell_restart(self, failed: _GangFailed, failures: int) -> None:
        allowed = "any number" if self._run.max_failures == -1 else self._run.max_failures
        begin = self._kept[-1] if self._kept else "where it first began"
        text = (str(failed).strip() or "-").splitlines()[0]
        print(
            f"training {self._name!r} goes on from {begin}: {text} (failure {failures}, allowed: {allowed})",
            file=sys.stderr,
        )

    def _place(self, attempt: int) -> _Gang:
        """All places of a gang, or as many as there are down to `min_workers`."""
        scaling = self._scaling
        least = scaling.num_workers if scaling.min_workers is None else scaling.min_workers
        bundle = scaling.bundle()
        wished = scaling.num_workers
        deadline = time.monotonic() + scaling.place_timeout_s
        while True:
            group = shoal.util.placement_group([bundle] * wished, strategy=scaling.placement_strategy)
            patience_s = max(0.0, deadline - time.monotonic())
            # With smaller gangs allowed, each size but the smallest gets a moment only.
            if group.wait(patience_s if wished == least else min(1.0, patience_s)):
                return _Gang([self._worker(group, index, bundle) for index in range(wished)], group, attempt)
            shoal.util.remove_placement_group(group)
            if wished == least:
                raise TrainingFailedError(
                    f"no room for {least} workers with {bundle} each within {scaling.place_timeout_s:g} s "
                    f"(ScalingConfig.place_timeout_s); the cluster has {shoal.cluster_resources()}"
                )
            wished -= 1

    def _worker(self, group: Any, index: int, bundle: dict[str, float]) -> Any:
        from shoal.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        own = {name: amount for name, amount in bundle.items() if name not in ("CPU", "GPU", "memory")}
        return (
            shoal.remote(TrainWorker)
            .options(
                num_cpus=bundle.get("CPU", 0),
                num_gpus=bundle.get("GPU", 0),
                memory=bundle.get("memory"),
                resources=own,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
            )
            .remote()
        )

    def _start(self, gang: _Gang, datasets: dict[str, Any]) -> None:
        """Have the workers find each other and begin."""
        timeout_s = self._run.join_timeout_s
        workers = gang.workers
        places: list[Placed] = self._all(gang, [worker.place.remote() for worker in workers], timeout_s)
        nodes = list(dict.fromkeys(place.node_id for place in places))
        port = 0
        if len(workers) > 1:
            port = self._all(gang, [workers[0].open_store.remote(timeout_s)], timeout_s)[0]
        starts = []
        for rank, place in enumerate(places):
            mates = [other for other, at in enumerate(places) if at.node_id == place.node_id]
            context = TrainContext(
                rank, len(workers), mates.index(rank), len(mates), nodes.index(place.node_id), self._name, gang.attempt
            )
            start = Start(
                context,
                self._loop,
                self._config,
                "nccl" if self._scaling.use_gpu else "gloo",
                timeout_s,
                places[0].address,
                port,
                self._storage.location,
                self._newest(),
                self._next_checkpoint,
                datasets,
            )
            starts.append(workers[rank].start.remote(start))
        self._all(gang, starts, 2 * timeout_s)
        gang.reports = [[] for _ in workers]

    def _all(self, gang: _Gang, refs: list[Any], timeout_s: float) -> list[Any]:
        """The values of one call on each worker; the first that fails, fails the gang, without waiting for the others."""
        waiting, deadline = list(refs), time.monotonic() + timeout_s
        gang.asked = {ref: rank for rank, ref in enumerate(refs)}
        while waiting:
            done, waiting = shoal.wait(waiting, num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
            if not done:
                late = [refs.index(ref) for ref in waiting]
                raise _GangFailed(
                    late[0], TimeoutError(f"workers {late} did not begin within {timeout_s:g} s (join_timeout_s)")
                )
            for ref in done:
                self._value(refs.index(ref), ref)
        return [shoal.get(ref) for ref in refs]

    def _value(self, rank: int, ref: Any) -> Any:
        try:
            return shoal.get(ref)
        except Exception as error:
            raise _GangFailed(rank, error) from error

    def _watch(self, gang: _Gang) -> bool:
        """Follow the loops: True when all have ended, False when the gang shall be replaced by a larger one."""
        asked = gang.asked = {worker.next.remote(POLL_S): rank for rank, worker in enumerate(gang.workers)}
        heard = looked = time.monotonic()
        grows = False
        while asked:
            done, _ = shoal.wait(list(asked), num_returns=1, timeout=POLL_S * 4)
            now = time.monotonic()
            for ref in done:
                rank = asked.pop(ref)
                reports = self._value(rank, ref)
                if reports is None:
                    continue
                asked[gang.workers[rank].next.remote(POLL_S)] = rank
                if reports:
                    heard = now
                    gang.reports[rank] += reports
                    if self._commit(gang) and grows:
                        return False
            limit_s = self._run.report_timeout_s
            if limit_s is not None and now - heard > limit_s:
                raise _GangFailed(
                    next(iter(asked.values())), TimeoutError(f"no report within {limit_s:g} s (report_timeout_s)")
                )
            if len(gang.workers) < self._scaling.num_workers and not grows and now - looked > self._look_s:
                looked, grows = now, self._room_for_one()
        self._tell_unmatched(gang)
        return True

    def _tell_unmatched(self, gang: _Gang) -> None:
        """Warn of reports that some workers have made and others have not: they count for nothing."""
        if more := {rank: len(reports) for rank, reports in enumerate(gang.reports) if reports}:
            made = ", ".join(f"worker {rank}: {count}" for rank, count in more.items())
            fewer = [rank for rank, reports in enumerate(gang.reports) if not reports]
            warnings.warn(
                f"the training {self._name!r} ended with reports that workers {fewer} have not made, and which are not in "
                f"its result, with their checkpoints ({made}): every worker must call train.report equally often",
                stacklevel=2,
            )

    def _room_for_one(self) -> bool:
        """Whether one more worker would find what it asks for, on one node: it is placed, and given up again."""
        free, bundle = shoal.available_resources(), self._scaling.bundle()
        if any(free.get(name, 0) < amount for name, amount in bundle.items()):
            return False
        group = shoal.util.placement_group([bundle])
        try:
            found: bool = group.wait(GROW_PLACE_S)
            return found
        finally:
            shoal.util.remove_placement_group(group)

    def _commit(self, gang: _Gang) -> bool:
        """Take the reports that all workers have made; whether a checkpoint became whole."""
        whole = False
        while all(gang.reports):
            row = [reports.pop(0) for reports in gang.reports]
            gang.told += 1
            path = next((one.checkpoint for one in row if one.checkpoint), "")
            metrics = {**row[0].metrics, "training_iteration": len(self._history) + 1, CHECKPOINT: path or None}
            self._history.append(metrics)
            self._storage.append(PROGRESS, json.dumps(metrics, default=_plain).encode() + b"\n")
            if path:
                self._storage.flush(PROGRESS)
                self._seal(path)
                whole = True
        return whole

    def _seal(self, path: str) -> None:
        """All files of a checkpoint are there: write its manifest, forget old ones."""
        sizes = {name: size for name, size in self._storage.sizes(path).items() if Path(name).name != MANIFEST}
        self._storage.write(f"{path}/{MANIFEST}", json.dumps(sizes).encode())
        self._checkpoint = Checkpoint(self._storage.full(path))
        self._next_checkpoint = _number_of(path) + 1
        self._kept.append(path)
        while self._run.keep_checkpoints is not None and len(self._kept) > max(1, self._run.keep_checkpoints):
            self._storage.remove(self._kept.pop(0))

    def _newest(self) -> str:
        """The path of the newest checkpoint that is whole on disk; earlier ones stand in for a damaged one."""
        while self._kept:
            newest = self._kept[-1]
            try:
                check_complete(self._storage, newest)
                self._checkpoint = Checkpoint(self._storage.full(newest))
                break
            except CheckpointError as error:
                self._kept.pop()
                self._checkpoint = self._resume_from
                before = "the one before" if self._kept else "where it first began: none is left"
                warnings.warn(f"{error}; the training goes on from {before}", stacklevel=2)
        # What a gang wrote beyond it was never whole.
        for path in _checkpoints_in(self._storage):
            if _number_of(path) >= self._next_checkpoint:
                self._storage.remove(path)
        self._cut_history()
        return self._checkpoint.path if self._checkpoint is not None else ""

    def _cut_history(self) -> None:
        """Forget what was reported after the checkpoint to begin from: it will be reported again."""
        newest = self._kept[-1] if self._kept else None
        keep = len(self._history)
        while keep and (newest is None or self._history[keep - 1].get(CHECKPOINT) != newest):
            keep -= 1
        if keep == 0 and newest is not None:  # of a checkpoint that no row names nothing is known
            return
        if cut := len(self._history) - keep:
            del self._history[keep:]
            self._storage.cut(PROGRESS, cut)

    def _end(self, gang: _Gang) -> None:
        for worker in gang.workers:
            shoal.kill(worker)
        shoal.util.remove_placement_group(gang.group)
        for ref in gang.asked:  # that they were killed is no news
            try:
                shoal.get(ref, timeout=1)
            except Exception:
                pass
        gang.asked = {}


def _checkpoints_in(storage: Storage) -> list[str]:
    """The folders of checkpoints, whole or not, oldest first."""
    return [name for name in storage.names() if name.startswith("checkpoint_") and name[11:].isdigit()]


def _plain(value: Any) -> Any:
    """What JSON cannot say: numbers of numpy and torch as numbers, the rest as text."""
    item = getattr(value, "item", None)
    return item() if callable(item) and np.prod(np.shape(value)) == 1 else str(value)


def _number_of(path: str) -> int:
    return int(path.rpartition("_")[2])
