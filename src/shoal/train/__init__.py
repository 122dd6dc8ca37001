"""Distributed training on Shoal: data-parallel torch models, collectives between actors, and a parameter server.

    from shoal import train

    def loop(config):
        model = train.prepare_model(make_model())
        for epoch in range(config["epochs"]):
            ...
            train.report({"loss": loss})

    train.TorchTrainer(loop, train_loop_config={"epochs": 3}, scaling_config=train.ScalingConfig(num_workers=2)).fit()

The names are those of Ray Train. Reading order: `trainer`, `worker`, `session`; `collective` and `parameter_server` with `served_model` stand
alone. Only the public API of Shoal is used. docs/guide/15_train.md says what is there.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.train import collective
    from shoal.train.collective import CollectiveError
    from shoal.train.parameter_server import Momentum, ParameterServer, RoundIncomplete
    from shoal.train.served_model import ServedModel, serve_model
    from shoal.train.session import (
        get_checkpoint,
        get_context,
        get_dataset_shard,
        get_device,
        prepare_data_loader,
        prepare_model,
        report,
    )
    from shoal.train.trainer import Result, RunConfig, ScalingConfig, TorchTrainer, TrainingFailedError
    from shoal.tune.checkpoint import Checkpoint, CheckpointError

_HOMES = {
    "Checkpoint": "shoal.tune.checkpoint",
    "CheckpointError": "shoal.tune.checkpoint",
    "CollectiveError": "shoal.train.collective",
    "Momentum": "shoal.train.parameter_server",
    "ParameterServer": "shoal.train.parameter_server",
    "Result": "shoal.train.trainer",
    "RoundIncomplete": "shoal.train.parameter_server",
    "RunConfig": "shoal.train.trainer",
    "ScalingConfig": "shoal.train.trainer",
    "ServedModel": "shoal.train.served_model",
    "TorchTrainer": "shoal.train.trainer",
    "TrainingFailedError": "shoal.train.trainer",
    "get_checkpoint": "shoal.train.session",
    "get_context": "shoal.train.session",
    "get_dataset_shard": "shoal.train.session",
    "get_device": "shoal.train.session",
    "prepare_data_loader": "shoal.train.session",
    "prepare_model": "shoal.train.session",
    "report": "shoal.train.session",
    "serve_model": "shoal.train.served_model",
}

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "CollectiveError",
    "Momentum",
    "ParameterServer",
    "Result",
    "RoundIncomplete",
    "RunConfig",
    "ScalingConfig",
    "ServedModel",
    "TorchTrainer",
    "TrainingFailedError",
    "collective",
    "get_checkpoint",
    "get_context",
    "get_dataset_shard",
    "get_device",
    "prepare_data_loader",
    "prepare_model",
    "report",
    "serve_model",
]


def __getattr__(name: str) -> Any:
    if name == "collective":
        return importlib.import_module("shoal.train.collective")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value
