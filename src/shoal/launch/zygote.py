"""The zygote: a warm, single-threaded process that forks workers.

Purpose: a worker in 2-5 ms, sharing the memory of the imported modules with all others.

Design: it is forked from the node process before that imports anything of its own, and imports what workers need while the daemon and the
GCS server start beside it; requests wait in the socket meanwhile. No event loop and no threads, so that fork is safe; the garbage collector
is off and everything is frozen, so that children touch few shared pages. One request is one packet (`system.zygote_client`); the fork is
double, so that the worker's parent is the daemon, which learns of its death and takes it along when it dies:

    zygote --fork--> intermediate --fork--> worker
       |                  `- exits: the worker is re-parented to the daemon (its subreaper)
       `- goes on with the next request at once

When idle after the first worker, modules that most workers will want (numpy) are imported once, with one BLAS thread, so that no thread pool
exists here and later workers have them for nothing. When the daemon dies, the zygote removes the session's folder and ends.

How to extend: state that must not be shared between workers is reset in `_become_worker`.

What it does not do: count workers, know what they run, or survive its daemon.
"""

from __future__ import annotations

import array
import gc
import importlib.util
import os
import select
import signal
import socket
import sys
import time
import traceback
from typing import Any, NoReturn

import msgspec

from shoal.system.interpreter import complete_package
from shoal.system.janitor import clear_session
from shoal.system.process import close_all_except, set_parent_death_signal, set_process_title, wait_readable
from shoal.system.start_plan import WorkerStart, ZygoteStart, entry_function, zygote_start_of
from shoal.system.zygote_client import REQUEST_BYTES_MAX, SpawnReply, SpawnRequest

WARM_AFTER_IDLE_S = 0.25
_REPARENT_TIMEOUT_S = 10.0
_PARENT_ENDS_S = 1.0
_BLAS_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def main(plan: dict[str, Any]) -> NoReturn:
    """Entry of a zygote in a fresh interpreter (`respawn_zygote`)."""
    control_fd, alive_fd = plan["control_fd"], plan["alive_fd"]
    names = ZygoteStart.__slots__
    serve(zygote_start_of({name: plan[name] for name in names}), control_fd, alive_fd)


def serve(start: ZygoteStart, control_fd: int, alive_fd: int) -> NoReturn:
    """Be the zygote until the daemon lets go of the control socket. Everything else that is open is closed."""
    code = 1
    try:
        gc.disable()
        set_process_title("shoal:zygote")
        close_all_except([control_fd, alive_fd])
        _watch_parent(start)
        control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=control_fd)
        control.setblocking(True)
        # The interpreter exits by `os._exit` only: nothing here may be torn down twice.
        _Zygote(start, control, alive_fd).run()
        code = 0
    except BaseException:
        traceback.print_exc()
        _flush()
    finally:
        # A dying process closes its files first and gives away its children later, so the end of the socket comes early.
        deadline = time.monotonic() + (_PARENT_ENDS_S if code == 0 else 0.0)
        while not _parent_gone(start) and time.monotonic() < deadline:
            time.sleep(0.001)
        if _parent_gone(start):
            clear_session(start.session_dir)
        os._exit(code)


def _watch_parent(start: ZygoteStart) -> None:
    """End with the daemon even if some process keeps the other end of the control socket open."""
    zygote_pid = os.getpid()

    def on_sigterm(number: int, frame: Any) -> None:
        if os.getpid() == zygote_pid and _parent_gone(start):
            clear_session(start.session_dir)
        os._exit(0)

    signal.signal(signal.SIGTERM, on_sigterm)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # intermediates need no waiting for
    set_parent_death_signal(signal.SIGTERM)


def _parent_gone(start: ZygoteStart) -> bool:
    return os.getppid() != start.daemon_pid


def _preload(start: ZygoteStart) -> Any:
    """Import what every worker needs; returns the worker's entry function."""
    complete_package()
    for name in start.entries.preload:
        __import__(name)
    return entry_function(start.entries.worker)


class _Zygote:
    """The loop. `run` returns when the daemon has closed the control socket."""

    def __init__(self, start: ZygoteStart, control: socket.socket, alive_fd: int) -> None:
        self.start = start
        self.control = control
        self.alive_fd = alive_fd
        self.decoder = msgspec.msgpack.Decoder(SpawnRequest)
        self.broken = ""  #: why no worker can be made: every request is answered with it
        try:
            self.run_worker = _preload(start)
        except Exception as error:
            traceback.print_exc()
            _flush()
            self.broken = f"what workers need cannot be imported: {type(error).__name__}: {error}"
        self.forked = 0
        self.warm = not start.entries.warm  #: whether nothing is left to be warmed

    def run(self) -> None:
        """Answer requests, one packet after the other."""
        gc.freeze()  # without a collection (20 ms), which the first worker would wait for: imports leave little garbage
        while not _parent_gone(self.start):
            may_warm = self.forked > 0 and not self.warm
            if may_warm and not wait_readable(self.control.fileno(), WARM_AFTER_IDLE_S):
                self._warm_up()
                continue
            try:
                packet, fds = self._receive()
            except ConnectionError:
                return
            if not packet:
                return
            self._fork_worker(packet, fds)
            for fd in fds:
                os.close(fd)

    def _receive(self) -> tuple[bytes, list[int]]:
        packet, ancillary, _, _ = self.control.recvmsg(REQUEST_BYTES_MAX, socket.CMSG_SPACE(8), socket.MSG_CMSG_CLOEXEC)
        fds = array.array("i")
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
        return packet, list(fds)

    def _fork_worker(self, packet: bytes, fds: list[int]) -> None:
        request = self.decoder.decode(packet)
        if len(fds) != 2:
            self._answer(SpawnReply(request.token, 0, f"a request comes with 2 descriptors, this one had {len(fds)}"))
            return
        if self.broken:
            self._answer(SpawnReply(request.token, 0, self.broken))
            return
        try:
            pid = os.fork()
        except OSError as error:
            self._answer(SpawnReply(request.token, 0, f"the zygote cannot fork: {error}"))
            return
        if pid:
            self.forked += 1
            return
        try:
            intermediate_pid = os.getpid()
            try:
                if os.fork():
                    os._exit(0)
            except OSError as error:
                self._answer(SpawnReply(request.token, 0, f"the zygote cannot fork: {error}"))
                os._exit(1)
            self._become_worker(request, fds, intermediate_pid)
        except BaseException:
            traceback.print_exc()
            _flush()
        finally:
            os._exit(1)  # never back into the zygote's loop

    def _answer(self, reply: SpawnReply) -> None:
        # Forks share the socket with the zygote, so its blocking mode must stay as it is: no settimeout anywhere.
        poller = select.poll()
        poller.register(self.control, select.POLLOUT)
        poller.poll(_REPARENT_TIMEOUT_S * 1000)
        try:
            self.control.send(msgspec.msgpack.encode(reply), socket.MSG_DONTWAIT)
        except OSError:
            pass  # the daemon is gone or stuck: the next receive tells

    def _become_worker(self, request: SpawnRequest, fds: list[int], intermediate_pid: int) -> NoReturn:
        """In the fork: undo all that belongs to the zygote, then run the worker and exit."""
        daemon_pid = self.start.daemon_pid
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        _wait_for_parent(daemon_pid, intermediate_pid)
        set_parent_death_signal(signal.SIGKILL)
        if os.getppid() != daemon_pid:
            os._exit(1)
        os.setsid()
        self._answer(SpawnReply(request.token, os.getpid()))
        os.dup2(fds[0], 1)
        os.dup2(fds[1], 2)
        close_all_except([self.alive_fd])
        self.control.detach()
        set_process_title("shoal:worker")
        os.environ.update(request.environment.get("env_vars") or {})
        sys.path[:0] = request.environment.get("import_path") or []
        _fresh_output()
        _reseed()
        gc.enable()
        start = WorkerStart(
            session_dir=self.start.session_dir,
            node_socket=self.start.node_socket,
            worker_id=request.worker_id,
            startup_token=request.token,
            daemon_pid=daemon_pid,
            environment=request.environment,
            alive_fd=self.alive_fd,
        )
        os._exit(_exit_code_of(self.run_worker, start))

    def _warm_up(self) -> None:
        self.warm = True
        saved = {name: os.environ.get(name) for name in _BLAS_THREADS}
        os.environ.update(dict.fromkeys(_BLAS_THREADS, "1"))
        try:
            for name in self.start.entries.warm:
                if name not in sys.modules and importlib.util.find_spec(name) is not None:
                    __import__(name)
        except Exception:
            traceback.print_exc()  # a broken package is the business of those who import it
        finally:
            for name, value in saved.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
        if len(os.listdir("/proc/self/task")) > 1:
            # Forking beside a thread can hang the child. The daemon starts another zygote, which does not warm.
            raise RuntimeError(
                f"importing {self.start.entries.warm} started threads: this zygote ends, a cold one follows"
            )
        gc.collect()
        gc.freeze()


def _wait_for_parent(daemon_pid: int, intermediate_pid: int) -> None:
    deadline = time.monotonic() + _REPARENT_TIMEOUT_S
    while (parent := os.getppid()) != daemon_pid:
        if parent != intermediate_pid or time.monotonic() > deadline:
            os._exit(1)  # the daemon died meanwhile
        time.sleep(0.00005)


def _fresh_output() -> None:
    """Complete lines leave at once, and any text can be printed, whatever the locale says.

    The streams are made anew: those of the zygote believe that they write to a log file.
    """
    for name, fd in (("stdout", 1), ("stderr", 2)):
        stream = open(fd, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _reseed() -> None:
    """Forks of one zygote must not draw the same numbers."""
    random = sys.modules.get("random")
    if random is not None:
        random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def _exit_code_of(run_worker: Any, start: WorkerStart) -> int:
    try:
        code = run_worker(start)
    except SystemExit as leaving:
        code = leaving.code
        if code is not None and not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    _flush()
    return int(code or 0) & 0xFF


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # a closed pipe, or a stream that user code has replaced
            pass
