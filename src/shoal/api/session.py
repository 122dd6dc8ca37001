"""Sessions: init, shutdown, and what they tell.

Design: one session a process. `init` starts a head node (unless an address is given) and connects to it; `shutdown`, the interpreter's exit, or
the death of this process end it. In a worker the session is the one it works for, and `init` with ignore_reinit_error is harmless there.
"""

from __future__ import annotations

import atexit
import inspect
import os
import signal
import sys
import threading
import types
from collections.abc import Iterator, Mapping
from typing import Any

from shoal.api.environments import JOB_ENVIRONMENT, add_import_path
from shoal.api.init_options import (
    check_address,
    check_folder,
    check_foreign_options,
    check_init_options,
    check_running_node,
    check_system_settings,
)
from shoal.api.options import check_environment
from shoal.api.terminal import LogPrinter
from shoal.protocol.messages import LogLines, Notice, Shutdown
from shoal.protocol.resources import to_units
from shoal.runtime import core
from shoal.runtime.session import connect, new_worker_id
from shoal.system.interpreter import import_path

LOG_LINES_SHOWN = 12  #: of a dead daemon's log, in the error

_lock = threading.RLock()
_head: Any = None  #: the StartedNode this process started
_context: SessionContext | None = None
_printer: LogPrinter | None = None
_previous_sigint: Any = None


class SessionContext(Mapping[str, Any]):
    """What `init` returns: a mapping of addresses, and a context manager that ends the session.

    Attributes:
        address_info: the mapping as a dict.
        dashboard_url: empty; there is no dashboard.
    """

    def __init__(self, address_info: dict[str, Any]) -> None:
        self.address_info = address_info
        self.dashboard_url = ""

    def disconnect(self) -> None:
        """End the session, like `shoal.shutdown()`."""
        if _context is self:
            shutdown()

    def __enter__(self) -> SessionContext:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self.disconnect()

    def __getitem__(self, key: str) -> Any:
        return self.address_info[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.address_info)

    def __len__(self) -> int:
        return len(self.address_info)

    def __repr__(self) -> str:
        return f"SessionContext({self.address_info})"


def init(
    address: str | None = None,
    *,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    resources: dict[str, float] | None = None,
    labels: dict[str, str] | None = None,
    object_store_memory: int | None = None,
    memory: int | None = None,
    namespace: str | None = None,
    local_mode: bool = False,
    ignore_reinit_error: bool = False,
    include_dashboard: bool | None = None,
    log_to_driver: bool = True,
    runtime_env: dict[str, Any] | None = None,
    **system: Any,
) -> SessionContext:
    """Begin a session: start a node on this machine, or connect to a running one.

    Args:
        address: "local" starts a node; "HOST:PORT" joins that cluster, through its node on this machine; "auto" the only cluster or session of
            this user on this machine; or the path of a node's socket, as in `context["node_socket"]`. None: what SHOAL_ADDRESS or
            RAY_ADDRESS says, else "local".
        num_cpus, num_gpus, resources, memory: what tasks can ask for (memory in bytes); found out from this machine when None. Logical
            quantities. They, and the next two, are for a node that this starts, not for one that runs.
        labels: of the node, by which tasks can choose it (`label_selector`).
        object_store_memory: size of the shared-memory store in bytes; 30% of the machine's memory when None.
        namespace: where names of actors are looked up; a fresh one when None.
        local_mode: run everything in this process, one call after the other, for debugging.
        ignore_reinit_error: return the present session instead of raising.
        include_dashboard: accepted and ignored: there is none.
        log_to_driver: print here what workers print.
        runtime_env: {"env_vars": {...}} for the worker processes of all tasks and actors of this program.
        system: settings of Ray that have no counterpart are accepted and ignored. `_temp_dir` is the folder in which the session gets its
            own, like SHOAL_TMPDIR. `_system={"gcs_storage": "memory", "gcs_shards": 2}` is ours: where the GCS keeps its tables
            (`protocol.storage_names`), and in how many processes.

    Raises:
        RuntimeError: there is a session already.
        ConnectionError: no node answers at `address`, or none of that cluster runs on this machine.
        ValueError, TypeError: a quantity makes no sense, or there is no such option.
    """
    global _context
    with _lock:
        if core.current_or_none() is not None:
            return _present_session(ignore_reinit_error)
        check_foreign_options(
            system, [name for name in inspect.signature(init).parameters if name != "system"] if system else []
        )
        environment = check_environment("runtime_env", runtime_env or {})
        check_init_options(
            address=address,
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            memory=memory,
            resources=resources,
            labels=labels,
            object_store_memory=object_store_memory,
            namespace=namespace,
            log_to_driver=log_to_driver,
        )
        if local_mode:
            return _begin_local(num_cpus, num_gpus, memory, resources or {}, namespace or "")
        own = {
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "resources": resources,
            "labels": labels,
            "object_store_memory": object_store_memory,
            "memory": memory,
        }
        node_socket = _start_or_find_node(address, own, system)
        job = {"namespace": namespace or "", "log_to_driver": log_to_driver, "python": list(sys.version_info[:2])}
        runtime = _connect(node_socket, job)
        if _head is None:
            environment = add_import_path(environment, import_path(), runtime.config["import_path"])
        runtime.config[JOB_ENVIRONMENT] = environment
        core.set_current(runtime)
        _install_interrupt(runtime)
        _context = SessionContext(_addresses(runtime, node_socket))
        return _context


def _present_session(ignore_reinit_error: bool) -> SessionContext:
    """What a second `init` gives, or the error that it is."""
    if ignore_reinit_error and _context is not None:
        return _context
    if ignore_reinit_error or core.current().role == "worker":
        return SessionContext({"session_dir": core.current().session_dir})
    raise RuntimeError("shoal.init() was called twice: call shoal.shutdown() first, or pass ignore_reinit_error=True")


def _addresses(runtime: core.Runtime, node_socket: str) -> dict[str, Any]:
    cluster_address = runtime.config.get("cluster_address", "")
    return {
        "address": cluster_address or node_socket,
        "node_socket": node_socket,
        "gcs_address": cluster_address or os.path.join(runtime.session_dir, "gcs.sock"),
        "session_dir": runtime.session_dir,
        "node_id": runtime.node_id.hex(),
        "node_ip_address": runtime.config.get("node_host", "127.0.0.1"),
    }


def _start_or_find_node(address: str | None, own: dict[str, Any], system: dict[str, Any]) -> str:
    """The socket of the node that the session is to use. `own` are the options of a node that is started."""
    global _head
    from shoal.launch.nodes import HeadOptions, default_parent_dir, start_head

    wanted = address or os.environ.get("SHOAL_ADDRESS") or os.environ.get("RAY_ADDRESS") or "local"
    parent_dir = check_folder(system.get("_temp_dir")) or default_parent_dir()
    settings = check_system_settings(system.get("_system"))
    if wanted != "local":
        check_running_node(wanted, own, from_environment=not address)
        return _find_node(wanted, parent_dir)
    options = HeadOptions(
        **{name: value for name, value in own.items() if value is not None}, settings=settings, parent_dir=parent_dir
    )
    _head = start_head(options, meanwhile=_prepare)
    return str(_head.node_socket)


def _connect(node_socket: str, job: dict[str, Any]) -> core.Runtime:
    """A runtime that is registered with the node behind `node_socket`, and prints what it hears. A node that was just started ends if that fails."""
    global _printer
    runtime = core.Runtime("driver", new_worker_id())
    printer = _printer = LogPrinter()

    def take(connection: Any, message: Any) -> None:
        printer.take(message)
        runtime.reactor.later.append(printer.drain)

    runtime.reactor.handlers[LogLines] = take
    runtime.reactor.handlers[Notice] = take
    runtime.reactor.handlers[Shutdown] = lambda connection, message: runtime.on_node_ends(message.reason)
    if _head is not None:
        runtime.explain_loss = _why_the_node_died
    try:
        connect(runtime, node_socket, job=job)
    except BaseException:
        runtime.close()
        _stop_head()
        raise
    return runtime


def _find_node(address: str, parent_dir: str) -> str:
    """The socket of the node on this machine that `address` means: "auto", "HOST:PORT" of a cluster, or that socket's path.

    Raises:
        ConnectionError: there is none, or several.
        ValueError: that is no address.
    """
    from shoal.launch.local_nodes import node_at, only_node

    if address.startswith("/"):
        return address
    check_address(address)
    node = only_node(parent_dir) if address == "auto" else node_at(address, parent_dir)
    return node.node_socket


def _prepare() -> None:
    """What the first task needs and can be had while the node starts."""
    import shoal.serialization.code  # noqa: F401
    from shoal.protocol.messages import ToRuntime
    from shoal.wire.framing import FrameDecoder

    FrameDecoder(ToRuntime)  # the decoder behind it is made once a process


def _begin_local(
    num_cpus: float | None, num_gpus: float | None, memory: int | None, resources: dict[str, float], namespace: str
) -> SessionContext:
    """A session inside this process, without a node."""
    global _context
    from shoal.runtime.local_mode import LocalRuntime
    from shoal.system import machine

    total = {
        "CPU": machine.cpus_available() if num_cpus is None else num_cpus,
        "GPU": machine.gpus_available() if num_gpus is None else num_gpus,
        "memory": machine.memory_available_bytes() if memory is None else memory,
        **resources,
    }
    runtime = LocalRuntime(to_units(total), namespace)
    core.set_current(runtime)
    _context = SessionContext(
        {"address": "local", "session_dir": "", "node_id": runtime.node_id.hex(), "node_ip_address": "127.0.0.1"}
    )
    return _context


def shutdown(*, wait_for_processes: bool = False) -> None:
    """End the session: tasks are dropped, the node that `init` started ends. Idempotent; `init` works again afterwards.

    Args:
        wait_for_processes: accepted and ignored: it always waits until the processes of a node that it ends are gone.
    """
    global _context
    with _lock:
        runtime = core.current_or_none()
        if runtime is not None and runtime.role == "driver":
            _restore_interrupt()
            runtime.say_goodbye()
            if _printer is not None:
                _printer.drain()
                _printer.tell_repeats()
            core.set_current(None)
            runtime.close()
            _context = None
        _stop_head()


def _stop_head() -> None:
    global _head
    head, _head = _head, None
    if head is not None:
        head.stop()


def _why_the_node_died() -> str:
    """How the daemon that this process started ended, and the warnings at the end of its log."""
    head = _head
    if head is None:
        return ""
    how = head.exit_reason(within_s=0.2)
    last = [line for line in head.log_tail().splitlines()[-LOG_LINES_SHOWN:] if " INFO " not in line]
    return f": {how}" + ("; its log ends with:\n    " + "\n    ".join(last) + "\n" if last else "")


def is_initialized() -> bool:
    """Whether this process has a session."""
    return core.current_or_none() is not None


def _implicit_init() -> core.Runtime:
    init()
    return core.current()


def _install_interrupt(runtime: core.Runtime) -> None:
    """Ctrl-C must not strike while the runtime's tables are being written: then it is put off to the next moment outside."""
    global _previous_sigint
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        return

    def interrupt(signum: int, frame: Any) -> None:
        if runtime.reactor.lock._is_owned():  # type: ignore[attr-defined]
            again = threading.Timer(0.005, os.kill, (os.getpid(), signal.SIGINT))
            again.daemon = True  # the end of the program must not wait for it
            again.start()
            return
        raise KeyboardInterrupt

    _previous_sigint = signal.signal(signal.SIGINT, interrupt)


def _restore_interrupt() -> None:
    global _previous_sigint
    if _previous_sigint is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _previous_sigint)
        _previous_sigint = None


def _at_exit() -> None:
    """End the session with the interpreter. It takes bounded time, so Ctrl-C must not leave it half done and print where it was."""
    _restore_interrupt()
    if threading.current_thread() is not threading.main_thread() or (_head is None and not is_initialized()):
        shutdown()
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        shutdown()
    finally:
        signal.signal(signal.SIGINT, before)


core.initialize = _implicit_init
atexit.register(_at_exit)
