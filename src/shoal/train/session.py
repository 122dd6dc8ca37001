"""What a training loop calls: `report`, `get_checkpoint`, `get_context`, `get_dataset_shard`, `prepare_model`, `prepare_data_loader`.

Design: a worker's process runs one loop at a time, in a thread of its own; what it calls finds its session in a module variable. `report` copies the
files of a checkpoint to where all workers' go, hands the metrics to the worker's actor, and goes on; the trainer commits a checkpoint when all
workers have reported it.
"""

from __future__ import annotations

import queue
from dataclasses import dataclass, field
from typing import Any

from shoal.tune.checkpoint import MANIFEST, Checkpoint, reported_files
from shoal.tune.storage import Storage

#: reports that a loop may be ahead of the trainer
REPORTS_AHEAD_MAX = 8
#: what a DataLoader is made with, and knows (some only in newer versions of torch)
_LOADER_OPTIONS = (
    "batch_size", "num_workers", "collate_fn", "pin_memory", "drop_last", "timeout", "worker_init_fn", "multiprocessing_context", "generator",
    "prefetch_factor", "persistent_workers", "pin_memory_device", "in_order",
)  # fmt: skip


@dataclass(slots=True)
class TrainContext:
    """Which worker this is. `node_rank` counts nodes, `local_rank` the workers of one node."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_rank: int
    experiment_name: str
    attempt: int

    def get_world_rank(self) -> int:
        """This worker's number, from 0."""
        return self.rank

    def get_world_size(self) -> int:
        """How many workers there are."""
        return self.world_size

    def get_local_rank(self) -> int:
        """This worker's number on its node."""
        return self.local_rank

    def get_local_world_size(self) -> int:
        """How many workers this node has."""
        return self.local_world_size

    def get_node_rank(self) -> int:
        """The number of this worker's node."""
        return self.node_rank

    def get_experiment_name(self) -> str:
        """The name of the run."""
        return self.experiment_name


@dataclass(slots=True)
class Report:
    """What a worker said in its call number `number` of `report`, from 0 in each attempt. `checkpoint`: the path it wrote to, or empty."""

    number: int
    metrics: dict[str, Any]
    checkpoint: str = ""


@dataclass(slots=True)
class Session:
    """Between the thread of a loop and its actor."""

    context: TrainContext
    checkpoint: Checkpoint | None
    storage: Storage
    first_checkpoint: int  #: number of the first checkpoint that this attempt may write
    shards: dict[str, Any]
    said: queue.Queue[Report] = field(default_factory=lambda: queue.Queue(REPORTS_AHEAD_MAX))
    reports: int = 0

    def report(self, metrics: dict[str, Any], checkpoint: Checkpoint | None) -> None:
        """Hand a report over; wait when the trainer is far behind."""
        path = ""
        if checkpoint is not None:
            # Numbered by the report: workers need not give one with the same ones.
            path = f"checkpoint_{self.first_checkpoint + self.reports:06d}"
            with reported_files(checkpoint) as folder:
                self.storage.upload(folder, path, leave_out=MANIFEST)  # the trainer's, of all workers' files
        said = Report(self.reports, dict(metrics), path)
        self.reports += 1
        self.said.put(said)


#: the session of the loop that runs in this process, or None
running: Session | None = None


def _session(what: str) -> Session:
    if running is None:
        raise RuntimeError(
            f"train.{what} was called outside of a training loop: only a function that a TorchTrainer runs may call it"
        )
    return running


def report(metrics: dict[str, Any], *, checkpoint: Checkpoint | None = None) -> None:
    """Report how the training goes; every worker calls it equally often. Metrics of rank 0 are the run's.

    Args:
        metrics: names and values.
        checkpoint: files to go on from. Usually rank 0 gives one; the files of all workers that do are put into one folder, so theirs need
            names of their own. A checkpoint counts when all workers have made the report it came with.

    Raises:
        RuntimeError: no training loop runs in this process.
        TypeError: metrics that are no dict, a checkpoint that is none.
        FileNotFoundError: the checkpoint's folder does not exist.
    """
    session = _session("report")
    if not isinstance(metrics, dict):
        raise TypeError(f"train.report takes a dict of metrics, not {type(metrics).__name__}")
    if checkpoint is not None and not isinstance(checkpoint, Checkpoint):
        raise TypeError(f"checkpoint must be a train.Checkpoint, not {type(checkpoint).__name__}")
    session.report(metrics, checkpoint)


def get_checkpoint() -> Checkpoint | None:
    """The newest whole checkpoint, to go on from after a restart or with `resume_from_checkpoint`; None at a fresh start."""
    return _session("get_checkpoint").checkpoint


def get_context() -> TrainContext:
    """Which worker this is, of how many."""
    return _session("get_context").context


def get_dataset_shard(name: str = "train") -> Any:
    """This worker's part of a dataset given to the trainer: rows `rank`, `rank + world_size`, ...

    Raises:
        KeyError: the trainer was given no dataset of that name.
        ValueError: it has fewer rows than there are workers.
    """
    session = _session("get_dataset_shard")
    if name not in session.shards:
        raise KeyError(f"the trainer was given no dataset {name!r}, only: {', '.join(session.shards) or 'none'}")
    return shard_of(session.shards[name], session.context.rank, session.context.world_size)


def shard_of(dataset: Any, rank: int, count: int) -> Any:
    """Every `count`-th row from row `rank` on, of an array, a tensor, a sequence, a dict or tuple of such with equal lengths, or a torch dataset.

    Rows that are left over (fewer than `count`) are left out, so that all workers take equally many steps.
    """
    if isinstance(dataset, dict):
        return {name: shard_of(part, rank, count) for name, part in dataset.items()}
    if isinstance(dataset, tuple):
        return tuple(shard_of(part, rank, count) for part in dataset)
    if len(dataset) < count:
        raise ValueError(f"a dataset of {len(dataset)} rows cannot be divided among {count} workers")
    rows = len(dataset) - len(dataset) % count
    if hasattr(dataset, "__array__") or isinstance(dataset, list | str | range):
        return dataset[rank:rows:count]
    from torch.utils.data import Subset

    return Subset(dataset, range(rank, rows, count))


def get_device() -> Any:
    """Where this worker's model belongs: its GPU if it was given one, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", 0)  # CUDA_VISIBLE_DEVICES shows what this worker was given
    return torch.device("cpu")


def prepare_model(model: Any) -> Any:
    """The model on this worker's device, in DistributedDataParallel when there are several workers."""
    session = _session("prepare_model")
    device = get_device()
    model = model.to(device)
    if session.context.world_size == 1:
        return model
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)


def prepare_data_loader(loader: Any) -> Any:
    """A loader over this worker's part of the dataset, shuffled if the given one is, and differently in each epoch.

    What the given one was made with stays (workers, their functions, memory, collation). An epoch is one pass over the loader, counted from 0 in each
    process; after a restart `loader.sampler.set_epoch(first)` says with which one to go on.

    Raises:
        ValueError: rows come from a sampler of the user's, or one after the other: there is no telling whose they are.
    """
    session = _session("prepare_data_loader")
    if session.context.world_size == 1:
        return loader
    from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, RandomSampler, SequentialSampler

    if isinstance(loader.sampler, DistributedSampler):
        return loader
    rows = loader.sampler
    shuffled = type(rows) is RandomSampler and not rows.replacement and rows.num_samples == len(loader.dataset)
    own_batches = loader.batch_sampler is not None and loader.batch_size is None
    in_order = type(rows) is SequentialSampler and not isinstance(loader.dataset, IterableDataset)
    if own_batches or not (shuffled or in_order):
        raise ValueError(
            "prepare_data_loader divides datasets that have a length and are read in order or shuffled; for an IterableDataset or a sampler "
            "of your own, let the dataset or the sampler take this worker's part (train.get_context() says which worker this is)"
        )

    class EachEpochDifferent(DistributedSampler[Any]):
        """Counts its passes over the rows as epochs."""

        def __iter__(self) -> Any:
            rows = super().__iter__()  # drawn here and now
            self.epoch += 1
            return rows

    sampler = EachEpochDifferent(
        loader.dataset,
        session.context.world_size,
        session.context.rank,
        shuffle=shuffled,
        drop_last=loader.drop_last,
    )
    kept = {name: getattr(loader, name) for name in _LOADER_OPTIONS if hasattr(loader, name)}
    return DataLoader(loader.dataset, sampler=sampler, **kept)
