"""The processes of the node, as its daemon sees them, and the end of each.

Purpose: one record a process (driver, worker, GCS server, zygote), and exactly one notice of its death, with its exit code.

Design: a pidfd tells that a process ended; `wait4` tells how, because the daemon is the subreaper of all but drivers. Strangers that the
daemon inherits (children of dead workers) are reaped on SIGCHLD and otherwise ignored. No timer runs and no pid is ever taken for
another process's: signals go through the pidfd.

    watch(pid, on_exit) -> pidfd readable -> wait4 -> on_exit(End(exit code, peak memory))

What it does not do: start processes (`workers`), or decide what a death means (`daemon`).
"""

from __future__ import annotations

import logging
import os
import select
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

    from shoal.node.io.connections import Connection
    from shoal.node.io.logs import LogStream
    from shoal.store.page import ProcessPage

log = logging.getLogger("shoal.node")

#: a worker that died before its intermediate parent did becomes our child a moment later
REAP_AGAIN_S = 0.005
REAP_ATTEMPTS_MAX = 20
#: a worker may die before the zygote's answer with its pid was read
STRANGERS_MAX = 64


@dataclass(slots=True)
class End:
    """How a process ended. `exit_code` is negative for a signal, None when not known; `peak_bytes` is the most memory it ever had."""

    exit_code: int | None = None
    peak_bytes: int = 0


@dataclass(slots=True, eq=False)
class Process:
    """A registered (or starting) process that speaks with the daemon. Written by `daemon`, `workers` and `leases`, each its own fields."""

    worker_id: bytes
    pid: int = 0
    connection: Connection | None = None
    job_id: bytes = b""
    namespace: str = ""
    address: str = ""
    page: ProcessPage | None = None
    watch: Watch | None = None
    #: why it leaves, as it said itself or as the daemon decided; "" while nobody wants it to
    leaving: str = ""
    #: its death was handled: nothing more is sent, nothing more is heard
    dead: bool = False

    def send(self, message: Any) -> None:
        """Queue a message, unless the process is gone."""
        if self.connection is not None:
            self.connection.send(message)

    def __str__(self) -> str:
        return f"{type(self).__name__.lower()} {self.pid}"


@dataclass(slots=True, eq=False)
class Driver(Process):
    """A user's program."""

    #: the process that started the node: the node ends with it
    is_home: bool = False
    log_to_driver: bool = True
    #: lines withheld because it does not read, by worker's node ("": this one) and pid
    lines_dropped: dict[tuple[str, int], int] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Worker(Process):
    """A worker process, from the moment it is asked for."""

    token: int = 0
    environment_key: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    stdout: LogStream | None = None
    stderr: LogStream | None = None
    #: write ends of its pipes, kept until the zygote has answered (another zygote may have to be asked)
    pipe_fds: tuple[int, ...] = ()
    start_timer: asyncio.TimerHandle | None = None
    registered: bool = False
    #: the lease (or actor's lease) it works for now; 0 for none
    lease_id: int = 0
    #: everyone who was ever granted this worker, in that order: all are told of its death
    submitters: dict[bytes, None] = field(default_factory=dict)
    actor_id: bytes = b""
    incarnation: int = 0
    #: it said WorkerExiting, or was asked to drain: an actor that ends so is not restarted
    exits_by_itself: bool = False
    #: it said that its actor goes on elsewhere
    moves: bool = False
    #: the memory watch chose it
    out_of_memory: bool = False
    #: bytes that its lease asked for (memory=), 0 for none, and what it held when the lease began
    memory_asked: int = 0
    memory_before: int = 0
    #: its actor is restarted when it dies, and then has its state again
    restartable: bool = False
    recoverable: bool = False
    #: it was killed because its placement group was removed
    group_removed: bool = False


class Watch:
    """One process being watched; `cancel` stops it."""

    __slots__ = ("_attempts", "_is_child", "_loop", "_on_exit", "_table", "pid", "pidfd")

    def __init__(self, table: WatchTable, pid: int, pidfd: int, is_child: bool, on_exit: Callable[[End], None]) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self._is_child = is_child
        self._table = table
        self._loop = table.loop
        self._on_exit = on_exit
        self._attempts = 0
        self._loop.add_reader(pidfd, self.ended)

    def ended(self) -> None:
        """The process ended, or may have: learn how, then say so."""
        if self.pidfd < 0 or not has_ended(self.pidfd):
            return
        end = End()
        try:
            if self._is_child:
                # The pid is ours until we reap it, so it names nobody else.
                pid, status, usage = os.wait4(self.pid, os.WNOHANG)
                if pid == 0:
                    return
                end = End(os.waitstatus_to_exitcode(status), usage.ru_maxrss << 10)
        except ChildProcessError:
            if self._attempts < REAP_ATTEMPTS_MAX:
                self._attempts += 1
                self._loop.remove_reader(self.pidfd)
                self._loop.call_later(REAP_AGAIN_S, self.ended)
                return
        on_exit = self._on_exit
        self.cancel()
        try:
            on_exit(end)
        except Exception:
            log.exception("internal error while handling the death of process %d; please report it", self.pid)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal, if the process still lives."""
        if self.pidfd >= 0:
            try:
                signal.pidfd_send_signal(self.pidfd, number)
            except ProcessLookupError:
                pass

    def cancel(self) -> None:
        """Watch no more."""
        if self.pidfd >= 0:
            self._table.forget(self)
            self._loop.remove_reader(self.pidfd)
            os.close(self.pidfd)
            self.pidfd = -1


def has_ended(pidfd: int) -> bool:
    """Whether the process behind a pidfd has ended."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


class WatchTable:
    """All watched processes. `reap_strangers` is to be called on SIGCHLD."""

    __slots__ = ("_strangers", "_watches", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._watches: dict[int, Watch] = {}
        #: ends of children reaped before anybody watched them, the last STRANGERS_MAX
        self._strangers: dict[int, End] = {}

    def watch(self, pid: int, on_exit: Callable[[End], None], is_child: bool = True, pidfd: int = -1) -> Watch | None:
        """Call `on_exit(end)` once when process `pid` has ended; with a `pidfd` given, that one is watched (and owned).

        A process that is gone already is told of in the next turn of the loop, and there is no watch.
        """
        early = self._strangers.pop(pid, None) if is_child else None
        if early is None:
            try:
                watch = Watch(self, pid, pidfd if pidfd >= 0 else os.pidfd_open(pid), is_child, on_exit)
                self._watches[pid] = watch
                return watch
            except ProcessLookupError:
                pass
        self.loop.call_soon(on_exit, early or End())
        return None

    def forget(self, watch: Watch) -> None:
        """`watch` was cancelled."""
        if self._watches.get(watch.pid) is watch:
            del self._watches[watch.pid]

    def reap_strangers(self) -> None:
        """Reap what nobody watches, and look at what somebody does."""
        while True:
            try:
                result = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if result is None:
                return
            watch = self._watches.get(result.si_pid)
            if watch is not None:
                watch.ended()
                if self._watches.get(result.si_pid) is watch:
                    return  # not yet ready to be reaped; its pidfd will tell
            else:
                _pid, status, usage = os.wait4(result.si_pid, os.WNOHANG)
                self._strangers[result.si_pid] = End(os.waitstatus_to_exitcode(status), usage.ru_maxrss << 10)
                if len(self._strangers) > STRANGERS_MAX:
                    del self._strangers[next(iter(self._strangers))]


class ProcessTable:
    """The registered processes that live. Written by `daemon` alone."""

    __slots__ = ("by_id", "namespaces")

    def __init__(self) -> None:
        self.by_id: dict[bytes, Process] = {}
        #: where the actors of each job are named; kept when the driver is gone, for those that are detached
        self.namespaces: dict[bytes, str] = {}

    def send(self, worker_id: bytes, message: Any) -> None:
        """Queue a message for a process, if it lives."""
        process = self.by_id.get(worker_id)
        if process is not None:
            process.send(message)

    def worker(self, worker_id: bytes) -> Worker | None:
        """The worker of that id, if it lives."""
        process = self.by_id.get(worker_id)
        return process if isinstance(process, Worker) else None

    def drivers(self) -> list[Driver]:
        """The drivers there are, in the order of registering."""
        return [process for process in self.by_id.values() if isinstance(process, Driver)]

    def workers(self) -> list[Worker]:
        """The registered workers, in the order of registering."""
        return [process for process in self.by_id.values() if isinstance(process, Worker)]
