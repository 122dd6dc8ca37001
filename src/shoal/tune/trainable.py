"""Trainables: functions of a configuration, and classes with `setup` and `step`; what is bound to them before a search."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cloudpickle

DICT_FILE = "dict_checkpoint.pkl"


class Trainable:
    """A trial as an object: `setup` once, then `step` until it returns `done=True` or the search stops it."""

    def __init__(self, config: dict[str, Any], trial_id: str = "", **parameters: Any) -> None:
        self.config = config
        self.trial_id = trial_id
        self.iteration = 0
        self.setup(config, **parameters)

    @property
    def training_iteration(self) -> int:
        """How many steps were taken, those before a restart included."""
        return self.iteration

    def setup(self, config: dict[str, Any]) -> None:
        """Build what the steps need."""

    def step(self) -> dict[str, Any]:
        """One iteration; returns its metrics."""
        raise NotImplementedError(f"{type(self).__name__} has no step()")

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any] | None:
        """Write files into `checkpoint_dir`, or return a dict to be pickled there."""
        raise NotImplementedError(f"{type(self).__name__} has no save_checkpoint(): it cannot be saved")

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Go on from the dict that `save_checkpoint` returned, or from the folder that it filled."""
        raise NotImplementedError(f"{type(self).__name__} has no load_checkpoint(): it cannot be restored")

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Become another trial in place. False (default): this object is replaced by a new one."""
        return False

    def cleanup(self) -> None:
        """The trial has ended."""

    def save_to(self, folder: str) -> None:
        """Fill `folder` with a checkpoint."""
        state = self.save_checkpoint(folder)
        if isinstance(state, dict):
            Path(folder, DICT_FILE).write_bytes(cloudpickle.dumps(state))

    def load_from(self, folder: str) -> None:
        """Go on from a checkpoint in `folder`."""
        path = os.path.join(folder, DICT_FILE)
        if os.path.exists(path):
            self.load_checkpoint(cloudpickle.loads(Path(path).read_bytes()))
        else:
            self.load_checkpoint(folder)


@dataclass(slots=True)
class BoundTrainable:
    """A trainable with parameters and resources."""

    target: Any
    parameters: dict[str, Any] = field(default_factory=dict)
    resources: dict[str, float] | Callable[[dict[str, Any]], dict[str, float]] | None = None

    @property
    def name(self) -> str:
        """For folders and tables."""
        return str(getattr(self.target, "__name__", type(self.target).__name__)).strip("<>")


def bound(trainable: Any) -> BoundTrainable:
    """Any trainable in one form; TypeError for what is none."""
    if isinstance(trainable, BoundTrainable):
        return trainable
    if isinstance(trainable, type) and not issubclass(trainable, Trainable):
        raise TypeError(f"{trainable.__name__} is a class but no tune.Trainable: derive it from tune.Trainable")
    if not callable(trainable):
        raise TypeError(f"a trainable is a function of a config or a subclass of tune.Trainable, not {trainable!r}")
    if not isinstance(trainable, type):
        try:
            inspect.signature(trainable).bind_partial({})
        except TypeError:
            raise TypeError(f"{trainable!r} takes no argument; a trainable takes the config") from None
        except ValueError:  # a builtin without a signature
            pass
    return BoundTrainable(trainable)


def check_parameters(trainable: BoundTrainable, partly: bool = False) -> None:
    """TypeError if a trial could not be called with the parameters that are bound. `partly`: more of them may come."""
    target: Any = trainable.target
    if isinstance(target, type):
        target = target.setup  # type: ignore[attr-defined]
    try:
        signature = inspect.signature(target)
    except ValueError:  # a builtin without one
        return
    positional = ("self", "config") if isinstance(trainable.target, type) else ("config",)
    try:
        (signature.bind_partial if partly else signature.bind)(*positional, **trainable.parameters)
    except TypeError as error:
        name = f"{trainable.name}.setup" if isinstance(trainable.target, type) else trainable.name
        raise TypeError(
            f"{name}{signature}: {error}; a trial calls it with a config and with what tune.with_parameters has bound "
            f"({', '.join(trainable.parameters) or 'nothing'})"
        ) from None


def with_parameters(trainable: Any, **parameters: Any) -> BoundTrainable:
    """The trainable with further arguments. Each value lies once in the object store, not once for a trial; classes get them in `setup`."""
    one = bound(trainable)
    result = replace(one, parameters={**one.parameters, **parameters})
    check_parameters(result, partly=True)
    return result


def with_resources(trainable: Any, resources: Any) -> BoundTrainable:
    """The trainable with what each trial holds: `{"cpu": 0.5, "gpu": 1, "licence": 1}`, or a function of the config that returns such a dict."""
    if not callable(resources):
        actor_options(resources)
    return replace(bound(trainable), resources=resources)


def actor_options(resources: dict[str, float] | None) -> dict[str, Any]:
    """Resources of a trial as options of an actor; 1 CPU if nothing is said."""
    if resources is None:
        return {"num_cpus": 1}
    if not isinstance(resources, dict):
        raise TypeError(f"resources of a trial are a dict such as {{'cpu': 1}}, not {resources!r}")
    options: dict[str, Any] = {"num_cpus": 0}
    for name, amount in resources.items():
        if not isinstance(amount, (int, float)) or amount < 0:
            raise ValueError(f"resources of a trial: {name}={amount!r} is not an amount")
        if name.lower() in ("cpu", "gpu"):
            options[f"num_{name.lower()}s"] = amount
        elif name == "memory":
            options["memory"] = amount
        else:
            options.setdefault("resources", {})[name] = amount
    return options


def demand_of(options: dict[str, Any]) -> dict[str, float]:
    """Options of an actor as resources of the cluster."""
    names = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
    demand = {names[key]: float(value) for key, value in options.items() if key in names}
    demand.update(options.get("resources", {}))
    return {name: amount for name, amount in demand.items() if amount}
