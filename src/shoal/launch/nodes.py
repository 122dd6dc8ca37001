"""Start a node on this machine, and end it: a head (daemon, zygote, GCS server), or one that joins a head's cluster (daemon, zygote).

Purpose: `start_head(HeadOptions())` returns in about 0.1 s with a node that listens, `start_node(NodeOptions(listen=...), address)` with one that
belongs to the cluster at `address`; `StartedNode.stop()` leaves nothing behind.

Design: the session's folder and its lock are made here and the lock is handed on, so there is no moment in which a living session looks dead.
The node process tells by one JSON line that it listens; when it dies instead, its log's end becomes the error. Every process of the
session holds the write end of a pipe whose read end is here: its end means that the last one is gone.

                     session folder, lock, log
    starter --spawn--> node process --fork--> zygote --double fork--> workers
       |                 |    `------fork--> GCS server (of a head)
       |<-- ready line --'
       `<-- end of the alive pipe when all of them are gone

A node that joins proves the token to the GCS from here first, so that a wrong address or token costs no process and is told at once; its ready
line comes when it is registered. A cluster's token is made here if there is none; a head that is given no place for it keeps it in the session's
folder, with which it goes.

What it does not do: connect to the node (`runtime`), or register itself at exit (`api`).
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from shoal.protocol.limits import CONNECT_TIMEOUT_S, SHUTDOWN_GRACE_S, START_TIMEOUT_S
from shoal.system.interpreter import spawn_interpreter, this_interpreter
from shoal.system.janitor import create_session, remove_session
from shoal.system.process import exit_text, open_pidfd, reap, require_files, require_linux, wait_readable
from shoal.system.start_plan import EntryPoints, InterpreterPlan, to_plain
from shoal.system.tls_files import find_tls_files
from shoal.system.token_file import cluster_token, make_token, token_path
from shoal.wire.tcp import connect_authenticated, format_address, parse_address

_LOG_TAIL_BYTES = 4000
#: the name of a socket may have 107 bytes: this, /shoal-<uid>/<8>/w/<16>.sock
PARENT_PATH_BYTES_MAX = 56
_READY_BYTES_MAX = 64 << 10
_ALL_GONE_S = 1.0


class NodeStartError(RuntimeError):
    """The node could not be started; the text says why and ends with its log."""


def default_parent_dir() -> str:
    """The folder in which sessions get theirs: SHOAL_TMPDIR, or /tmp."""
    return os.environ.get("SHOAL_TMPDIR") or "/tmp"


@dataclass(slots=True)
class NodeOptions:
    """What a node shall be. None means: find out from this machine."""

    num_cpus: float | None = None
    num_gpus: float | None = None
    #: custom resources by name
    resources: dict[str, float] = field(default_factory=dict)
    #: size of the object store in bytes
    object_store_memory: int | None = None
    #: memory that tasks can ask for, in bytes
    memory: int | None = None
    labels: dict[str, str] = field(default_factory=dict)
    #: further settings for the daemon, plain values; they become keys of `DaemonStart.options` (gcs_storage: `protocol.storage_names`)
    settings: dict[str, Any] = field(default_factory=dict)
    #: the node ends with this process, its starter; 0 for a node that stays until it is told to end
    driver_pid: int = field(default_factory=os.getpid)
    #: it also ends when the session that this process has on it does
    ends_with_session: bool = True
    #: where it listens for other nodes, an address of this machine that they can reach; "" for a head that stays alone
    listen: str = ""
    #: the port of that; 0 for any that is free
    node_port: int = 0
    #: where the cluster's token is; "" for the session's folder (a head) or `token_file.token_path()`
    token_path: str = ""
    #: where the cluster's certificates are (`system.tls_files`); "" for a cluster without TLS
    tls_folder: str = ""
    #: what people call it; no two nodes of a cluster have the same. "" for its address
    name: str = ""
    #: where the folder of all sessions is
    parent_dir: str = field(default_factory=default_parent_dir)
    #: the functions that make up the node
    entries: EntryPoints = field(default_factory=EntryPoints)
    #: None: like this process
    interpreter: InterpreterPlan | None = None
    start_timeout_s: float = START_TIMEOUT_S


@dataclass(slots=True)
class HeadOptions(NodeOptions):
    """What a head node shall be."""

    #: where its GCS server listens for other nodes, if `listen` says so; 0 for any port that is free
    port: int = 0


class StartedNode:
    """A running node, as its starter sees it. All methods are safe from any thread.

    Attributes:
        pid: the node daemon's.
        session_dir: the private folder of the session.
        node_socket: where to connect.
        gcs_socket: where the GCS server listens; there is none on a node that joined.
        ready: what the daemon said when it was ready.
        node_id: hexadecimal.
        address: of the cluster, "HOST:PORT": what other nodes join; "" for a node that stays alone.
        token_path: where the cluster's token is; "" for a node that stays alone.
    """

    def __init__(
        self, pid: int, pidfd: int, alive_fd: int, log_fd: int, session_dir: str, ready: dict[str, Any]
    ) -> None:
        self.pid = pid
        self.session_dir = session_dir
        self.node_socket = os.path.join(session_dir, "node.sock")
        self.gcs_socket = os.path.join(session_dir, "gcs.sock")
        self.ready = ready
        self.node_id: str = ready.get("node_id", "")
        self.address: str = ready.get("address", "")
        self.token_path: str = ready.get("token_path", "")
        self._pidfd = pidfd
        self._alive_fd = alive_fd
        self._log_fd = log_fd  #: of its own, so that the log can be read when a dead node's folder is gone
        self._starter_pid = os.getpid()
        self._lock = threading.Lock()
        self._stopped = False
        self._status: int | None = None

    def is_alive(self) -> bool:
        """Whether the daemon runs."""
        return not self._stopped and not wait_readable(self._pidfd, 0.0)

    def wait(self) -> str:
        """Wait until the daemon ends; how it ended, for people."""
        while not wait_readable(self._pidfd, 3600.0):
            pass
        return self.exit_reason()

    def exit_reason(self, within_s: float = 0.0) -> str:
        """How the daemon ended, for people ("killed by SIGKILL (9)"); "running" if it has not within `within_s` seconds."""
        if not self._stopped:
            wait_readable(self._pidfd, within_s)
        if self.is_alive():
            return "running"
        self._reap()
        return "ended" if self._status is None else exit_text(self._status)

    def log_tail(self) -> str:
        """The end of what daemon, zygote and GCS server have logged, also after they died; empty after `stop`."""
        with self._lock:
            return "" if self._stopped else _tail(self._log_fd)

    def tell_to_end(self) -> None:
        """Let the node end by itself, and do not wait for it: `stop` does."""
        with self._lock:
            if os.getpid() == self._starter_pid and not self._stopped:
                _send(self._pidfd, signal.SIGINT)

    def notify(self) -> None:
        """Tell the node that its machine is about to go (SIGTERM): it drains for a while, if others can take what it has. Told again, it ends."""
        if os.getpid() == self._starter_pid and not self._stopped:  # no lock: it is called by a signal's handler
            _send(self._pidfd, signal.SIGTERM)

    def stop(self, grace_s: float = SHUTDOWN_GRACE_S) -> None:
        """End the node and everything it started, and wait until it is gone. Idempotent; does nothing in a fork of the starter.

        Args:
            grace_s: time for the daemon to end by itself before it is killed.
        """
        if os.getpid() != self._starter_pid:
            return
        with self._lock:
            if self._stopped:
                return
            _send(self._pidfd, signal.SIGINT)  # at once; SIGTERM would let it drain
            if not wait_readable(self._pidfd, grace_s):
                _send(self._pidfd, signal.SIGKILL)
                wait_readable(self._pidfd, 5.0)
            # The last process of the session closes the pipe: nobody ever writes to it.
            wait_readable(self._alive_fd, _ALL_GONE_S)
            self._reap()
            remove_session(self.session_dir)
            self._stopped = True
            for fd in (self._pidfd, self._alive_fd, self._log_fd):
                os.close(fd)

    def _reap(self) -> None:
        if self._status is None:
            self._status = reap(self.pid)


def start_head(options: HeadOptions, meanwhile: Callable[[], None] | None = None) -> StartedNode:
    """Start a head node on this machine and wait until it listens.

    Args:
        meanwhile: called once while the node starts.

    Raises:
        UnsupportedSystemError: not this operating system, or not with so few open files.
        PermissionError: the folder for sessions is another user's, or others may read the token.
        NodeStartError: the node died or did not listen in time; or its port is taken, or the GCS's storage cannot be used.
    """
    settings: dict[str, Any] = {}
    _try_storage(options.settings.get("gcs_storage"))
    if options.listen:
        settings = {"gcs_listen": [options.listen, options.port]}
        if options.token_path:
            cluster_token(make_token(options.token_path))
    return _start(options, settings, meanwhile)


def start_node(options: NodeOptions, address: str) -> StartedNode:
    """Start a node on this machine, let it join the cluster at `address` ("HOST:PORT") and wait until it belongs to it.

    Args:
        address: "HOST:PORT", or several of these with commas between: where the head is, and where it may be when that one is lost.

    Raises:
        ConnectionError: nobody answers there, or not this cluster; or other versions run there.
        FileNotFoundError, PermissionError, ValueError: there is no token, or it is none, or others may read it; the address is none.
        UnsupportedSystemError, NodeStartError: as for `start_head`.
    """
    addresses = [format_address(*parse_address(each)) for each in address.split(",")]
    options = replace(options, token_path=options.token_path or token_path())
    token = cluster_token(options.token_path)
    gcs_address, own_host = _first_that_answers(addresses, token, options.tls_folder)
    # The address by which this machine reaches the head is one by which the head's network reaches this machine.
    options = replace(options, listen=options.listen or own_host)
    return _start(options, {"gcs_address": gcs_address, "gcs_addresses": addresses}, None)


def _first_that_answers(addresses: list[str], token: bytes, tls_folder: str) -> tuple[str, str]:
    """The first of the addresses where the cluster's head is, and the address of this machine that reaches it."""
    for address in addresses:
        try:
            sock = connect_authenticated(address, token, CONNECT_TIMEOUT_S, tls_folder=tls_folder)
        except ConnectionError:
            if address == addresses[-1]:
                raise
            continue
        with sock:
            return address, str(sock.getsockname()[0])
    raise ConnectionError("no address was given")


def _start(options: NodeOptions, settings: dict[str, Any], meanwhile: Callable[[], None] | None) -> StartedNode:
    require_linux()
    require_files()
    interpreter = options.interpreter or this_interpreter()
    session_dir, lock_fd = _make_folder(options.parent_dir)
    ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
    alive_read, alive_write = os.pipe2(os.O_CLOEXEC)
    handed_on = [lock_fd, ready_write, alive_write]
    log_path = os.path.join(session_dir, "node.log")
    log_fd = os.open(log_path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    pid, pidfd = 0, -1
    try:
        plan = {
            "session_dir": session_dir,
            "log_path": log_path,
            "driver_pid": options.driver_pid,
            "entries": to_plain(options.entries),
            "options": {**_plain_options(options, session_dir), **settings},
        }
        kept_fds = {"ready_fd": ready_write, "lock_fd": lock_fd, "alive_fd": alive_write}
        pid = spawn_interpreter(
            interpreter, "shoal.launch.node_process:main", plan, log_path=log_path, kept_fds=kept_fds
        )
        pidfd = open_pidfd(pid)
        while handed_on:
            os.close(handed_on.pop())
        if meanwhile is not None:
            meanwhile()
        ready = _wait_ready(ready_read, pid, pidfd, log_fd, options.start_timeout_s)
    except BaseException:
        # Also for Ctrl-C: a half-started node must not stay.
        if pidfd >= 0:
            _send(pidfd, signal.SIGKILL)
            wait_readable(pidfd, 5.0)
            os.close(pidfd)
            reap(pid)
        for fd in handed_on:
            os.close(fd)
        if pid:
            wait_readable(alive_read, _ALL_GONE_S)
        os.close(alive_read)
        os.close(log_fd)
        remove_session(session_dir)
        raise
    finally:
        os.close(ready_read)
    return StartedNode(pid, pidfd, alive_read, log_fd, session_dir, ready)


def _try_storage(storage: str | None) -> None:
    """A storage outside of the session that is not there is told before a process is started, as a wrong address is."""
    if storage is None or storage in ("memory", "sqlite"):
        return
    from shoal.gcs.client import try_storage

    try:
        try_storage(storage)
    except ConnectionError as error:
        raise NodeStartError(f"the GCS cannot use its storage: {error}") from None


def _make_folder(parent: str) -> tuple[str, int]:
    if len(os.fsencode(parent)) > PARENT_PATH_BYTES_MAX:
        raise ValueError(
            f"the folder for sessions, {parent!r}, has a path of more than {PARENT_PATH_BYTES_MAX} bytes, so sockets in it "
            "would have names longer than the system allows: set SHOAL_TMPDIR to a shorter one"
        )
    try:
        return create_session(parent)
    except OSError as error:
        if error.errno is None:
            raise  # ours: it says what to do
        raise _no_room(error, parent) from None


def _no_room(error: OSError, parent: str) -> OSError:
    return OSError(
        error.errno,
        f"no folder for the session can be made in {parent}: {error.strerror}. Free space there, or set SHOAL_TMPDIR to another folder on a "
        "local disk",
    )


def _plain_options(options: NodeOptions, session_dir: str) -> dict[str, Any]:
    cluster: dict[str, Any] = {}
    if options.listen:
        check_listen(options.listen)
        if options.tls_folder:
            find_tls_files(options.tls_folder)
        cluster = {
            "node_listen": options.listen,
            "node_port": options.node_port,
            "node_name": options.name,
            "tls_folder": options.tls_folder,
            "token_path": options.token_path or _token_of_session(session_dir),
        }
    return {
        **cluster,
        "ends_with_session": options.ends_with_session,
        **options.settings,
        "num_cpus": options.num_cpus,
        "num_gpus": options.num_gpus,
        "resources": dict(options.resources),
        "object_store_memory": options.object_store_memory,
        "memory": options.memory,
        "labels": dict(options.labels),
    }


def _token_of_session(session_dir: str) -> str:
    try:
        return make_token(os.path.join(session_dir, "token"))
    except OSError as error:
        raise _no_room(error, session_dir) from None


def check_listen(host: str) -> None:
    """Raise for an address at which no other node could reach this one.

    Raises:
        ValueError: it stands for all addresses of a machine.
    """
    if host in ("0.0.0.0", "::", "*"):
        raise ValueError(
            f"a node cannot listen on {host!r}: other nodes are told where it is, so give one address of this machine that they can reach "
            "(`ip addr` lists them)"
        )


def _wait_ready(ready_fd: int, pid: int, pidfd: int, log_fd: int, timeout_s: float) -> dict[str, Any]:
    """The daemon's ready line as a dict."""
    line = b""
    deadline = time.monotonic() + timeout_s
    while not line.endswith(b"\n"):
        if not wait_readable(ready_fd, deadline - time.monotonic()):
            raise NodeStartError(
                f"the node did not listen within {timeout_s:g} s (the machine may be overloaded).{_log_text(log_fd)}"
            )
        piece = os.read(ready_fd, _READY_BYTES_MAX)
        if not piece:
            raise NodeStartError(f"the node died while starting: {_end_of(pid, pidfd)}.{_log_text(log_fd)}")
        line += piece
    ready: dict[str, Any] = json.loads(line)
    if "error" in ready:
        tail = _tail(log_fd)
        more = "" if not tail or ("\n" not in tail and ready["error"] in tail) else _log_text(log_fd)
        raise NodeStartError(f"the node could not start: {ready['error']}{more}")
    return ready


def _end_of(pid: int, pidfd: int) -> str:
    if pidfd >= 0:
        wait_readable(pidfd, 1.0)
    status = reap(pid)
    return "it closed its start pipe" if status is None else exit_text(status)


def _log_text(log_fd: int) -> str:
    tail = _tail(log_fd)
    return f"\nIts log ends with:\n{tail}" if tail else "\nIts log is empty."


def _tail(log_fd: int) -> str:
    start = max(0, os.fstat(log_fd).st_size - _LOG_TAIL_BYTES)
    return os.pread(log_fd, _LOG_TAIL_BYTES, start).decode(errors="replace").strip()


def _send(pidfd: int, number: int) -> None:
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        pass
