"""A worker of a training: an actor that runs the user's loop in a thread, and hands its reports to the trainer."""

from __future__ import annotations

import inspect
import os
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psutil

import shoal
from shoal.train import session
from shoal.train.memory import keep_freed_memory
from shoal.train.session import Report, Session, TrainContext
from shoal.tune.checkpoint import Checkpoint
from shoal.tune.storage import Storage

#: what torch reads of the environment; it takes no other word on it from `init_process_group`
GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
LOOPBACK_INTERFACE = "lo"


@dataclass(slots=True)
class Placed:
    """Where a worker is."""

    node_id: str
    address: str


@dataclass(slots=True)
class Start:
    """What a worker needs to begin: the same for all, but for the context."""

    context: TrainContext
    loop: Callable[..., Any]
    config: dict[str, Any] | None
    backend: str
    timeout_s: float
    host: str
    port: int
    storage: str
    checkpoint: str
    first_checkpoint: int
    datasets: dict[str, Any]


def _interface_of(address: str) -> str:
    """The network interface of this machine that has `address`; that of loopback where none has it by itself (127.0.0.2)."""
    found = psutil.net_if_addrs().items()
    return next((name for name, has in found if any(each.address == address for each in has)), LOOPBACK_INTERFACE)


def _distributed() -> Any:
    import torch.distributed

    return torch.distributed


class TrainWorker:
    """One process of a training."""

    def __init__(self) -> None:
        self._store: Any = None
        self._session: Session | None = None
        self._ended = threading.Event()
        self._error: BaseException | None = None

    def place(self) -> Placed:
        """Where this worker runs."""
        return Placed(shoal.get_runtime_context().get_node_id(), shoal.util.get_node_ip_address())

    def open_store(self, timeout_s: float) -> int:
        """As rank 0: begin the store through which the workers find each other; its port."""
        host = shoal.util.get_node_ip_address()
        self._store = _distributed().TCPStore(host, 0, None, True, timedelta(seconds=timeout_s), wait_for_workers=False)
        port: int = self._store.port
        return port

    def start(self, start: Start) -> None:
        """Join the others and begin the loop."""
        context = start.context
        keep_freed_memory()
        if context.world_size > 1:
            self._join(start)
        self._session = Session(
            context,
            Checkpoint(start.checkpoint) if start.checkpoint else None,
            Storage(start.storage),
            start.first_checkpoint,
            {name: shoal.get(ref) for name, ref in start.datasets.items()},
        )
        session.running = self._session
        threading.Thread(target=self._run, args=(start,), name="training loop", daemon=True).start()

    def _join(self, start: Start) -> None:
        context, distributed = start.context, _distributed()
        patience = timedelta(seconds=start.timeout_s)
        store = self._store or distributed.TCPStore(start.host, start.port, None, False, patience)
        if start.backend == "gloo" and GLOO_INTERFACE not in os.environ:
            # Gloo would look this machine's name up; it is to use the address that nodes have for each other.
            os.environ[GLOO_INTERFACE] = _interface_of(shoal.util.get_node_ip_address())
        distributed.init_process_group(
            start.backend, store=store, rank=context.rank, world_size=context.world_size, timeout=patience
        )

    def _run(self, start: Start) -> None:
        try:
            takes_config = bool(inspect.signature(start.loop).parameters)
            start.loop(start.config or {}) if takes_config else start.loop()
        except BaseException as error:
            self._error = error
        finally:
            self._ended.set()

    def next(self, wait_s: float) -> list[Report] | None:
        """The loop's next reports, at the latest after `wait_s` (then perhaps none); None when it has ended and all are told.

        Raises:
            whatever the loop has raised, after its last report.
        """
        assert self._session is not None, "start comes before next"
        found: list[Report] = []
        ended = self._ended.is_set()
        try:
            found.append(self._session.said.get_nowait() if ended else self._session.said.get(timeout=wait_s))
            while True:
                found.append(self._session.said.get_nowait())
        except queue.Empty:
            pass
        if found or not ended:
            return found
        if self._error is not None:
            raise self._error
        return None
