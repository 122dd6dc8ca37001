"""A worker process: what the zygote's fork becomes.

Purpose: `run_worker(start)` listens, registers, and executes until the process is to leave.

Design: the listening socket is bound before the daemon is told of it, so a submitter can connect as soon as it knows the address. Output is line
buffered, and each line of output from a newly named task or actor is preceded by a marker line that the daemon swallows, so that the driver
can say who printed.

What it does not do: fork (`launch.zygote`) or decide what to run (`executor`).
"""

from __future__ import annotations

import atexit
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from shoal.protocol.messages import Hello, Shutdown, ToRuntime
from shoal.protocol.node_messages import handover_path
from shoal.runtime import core
from shoal.runtime.actor_host import exit_process
from shoal.runtime.executor import Executor
from shoal.runtime.jobs import SubmitterPeer
from shoal.runtime.reactor import Connection
from shoal.runtime.session import connect
from shoal.system.sockets import listening_unix_socket
from shoal.system.start_plan import WorkerStart
from shoal.wire.framing import ProtocolError, decoder_of

decoder_of(ToRuntime)  # in the zygote, once: making it takes 2 ms
HANDOVER_TIMEOUT_S = 1.0
CONFIRMED_WITHIN_S = 5.0  #: a worker that leaves waits so long for holds on other nodes' objects to count
WRITTEN_WITHIN_S = 10.0  #: and for the kernel to take its results, and what it leaves to its node
LISTEN_BACKLOG = 4096  #: callers that may knock while nobody here reads
NAME_MARKER = "\x01shoal:name:"


def run_worker(start: WorkerStart) -> int:
    """Be a worker until there is nothing more to do; returns the exit code."""
    runtime = core.Runtime("worker", start.worker_id)
    core.set_current(runtime)
    folder = os.path.join(start.session_dir, "w")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    address = os.path.join(folder, start.worker_id.hex()[:16] + ".sock")
    listener = listening_unix_socket(address, LISTEN_BACKLOG)
    listener.setblocking(False)
    executor = connect_executor(runtime, start, address, listener)
    try:
        executor.run()
        runtime.reactor.wait_confirmed(CONFIRMED_WITHIN_S)  # the last replies may wait for it
        atexit._run_exitfuncs()  # what users registered; the daemon ends it if it takes too long
        runtime.reactor.wait_written(WRITTEN_WITHIN_S)
    finally:
        for path in (address, handover_path(address)):
            try:
                os.unlink(path)
            except OSError:
                pass
    exit_process(0)
    return 0


def connect_executor(runtime: core.Runtime, start: WorkerStart, address: str, listener: socket.socket) -> Executor:
    """Register with the daemon and make the executor that serves the listening socket."""
    reactor = runtime.reactor
    executor = Executor(runtime)
    reactor.handlers[Shutdown] = lambda connection, message: exit_process(0)
    reactor.handlers[Hello] = partial(on_hello, executor)
    reactor.exit_on_fault = lambda: exit_process(1)

    def on_submitter_closed(connection: Connection) -> None:
        executor.on_submitter_gone(connection)

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, OSError):
                return
            connection = reactor.add(sock, on_submitter_closed)
            connection.attachment = SubmitterPeer()
            connection.withholds = True

    reactor.add_listener(listener.fileno(), accept)
    executor.accept = accept
    page = connect(runtime, start.node_socket, address, start.startup_token)
    if runtime.config.get("cluster_token"):
        take_handed_over(runtime, address, on_submitter_closed)
    executor.page = page
    daemon = reactor.causal
    if daemon is None:
        exit_process(1)
        raise AssertionError("unreachable")
    daemon.on_closed = lambda connection: exit_process(1)  # nobody can use a worker without its daemon
    sys.stdout = out = NamedStream(sys.stdout)
    sys.stderr = err = NamedStream(sys.stderr)

    def flush_output() -> None:
        for stream in (out, err):
            if stream.last[-1] != "\n":
                try:
                    stream.flush()
                except (OSError, ValueError):
                    pass  # the task has closed it: that must not cost it its reply

    executor.flush_output = flush_output
    return executor


def take_handed_over(runtime: core.Runtime, address: str, on_submitter_closed: Callable[[Connection], None]) -> None:
    """Take connections of submitters on other nodes, which the daemon hands on."""
    door = listening_unix_socket(handover_path(address), LISTEN_BACKLOG)
    door.setblocking(False)
    reactor = runtime.reactor

    def accept() -> None:
        while True:
            try:
                knock, _ = door.accept()
            except (BlockingIOError, OSError):
                return
            with knock:
                knock.settimeout(HANDOVER_TIMEOUT_S)
                try:
                    _, fds, _, _ = socket.recv_fds(knock, 1, 1)
                except OSError:
                    continue
            for fd in fds:
                sock = socket.socket(fileno=fd)
                connection = reactor.add(sock, on_submitter_closed)
                connection.attachment = SubmitterPeer()
                connection.attachment.abroad = True
                connection.withholds = True
                try:
                    sock.send(b"1")
                except OSError:
                    pass  # the reader sees its end

    with reactor.lock:
        reactor.add_listener(door.fileno(), accept)


def on_hello(executor: Executor, connection: Connection, message: Hello) -> None:
    """A submitter says who it is.

    Raises:
        ProtocolError: it is dead, and what it had here is told: this came too late.
    """
    if executor.orphans.is_dead(message.worker_id):
        raise ProtocolError("its sender was told to be dead")
    connection.attachment.worker_id = message.worker_id


class NamedStream:
    """A text stream that says who prints, when that changed since the line before."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._write = stream.write
        self._task: Any = None  #: whose text came last
        self._name = ""
        self.last = "\n"  #: the text that came last
        self._lock = threading.RLock()

    def write(self, text: str) -> int:
        """Write text, after a marker line when another task prints than before. Hot: `print` calls this twice a line."""
        task = core.running_task.get()
        if task is not self._task and task is not None:
            self._change_to(task)
        written: int = self._write(text)
        if text:
            self.last = text
        return written

    def _change_to(self, task: Any) -> None:
        """Another task prints: name it, on a line of its own."""
        runtime = core.current_or_none()
        actor = runtime.executor.actor if runtime is not None else None
        name = actor.printed_name() if actor is not None else task.name
        with self._lock:
            self._task = task
            if name != self._name:
                self._name = name
                end = "" if self.last.endswith("\n") else "\n"
                self._write(f"{end}{NAME_MARKER}{name}\n")

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each of `lines`."""
        for line in lines:
            self.write(line)

    def __iter__(self) -> Any:
        return iter(self._stream)

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._stream, attribute)
