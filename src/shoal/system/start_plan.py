"""What one process tells the next when it starts it: plain records, no behaviour.

Purpose: the node daemon, the zygote and the workers are started by `launch`, but live in packages that must not import it (or that it
must not import). They meet here: `launch` fills these records, and names the functions to call as "module:function".

Design: every record can be written with `marshal` through `to_plain`, so that it can be handed to a fresh interpreter before any
package can be imported.

How to extend: append a field with a default; the reader of the record is named in its docstring.

What it does not do: start anything (`launch`, `zygote_client`).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

#: in the environment of every process of a session, and so of all that these start: its folder. Strays are found by it.
SESSION_VARIABLE = "SHOAL_SESSION_DIR"
#: in the session's folder of a head with TLS: where connections to its GCS server arrive from the gateway
TLS_GCS_SOCKET = "tls-gcs.in"


@dataclass(slots=True)
class InterpreterPlan:
    """How to start an interpreter that sees the modules this one sees. Read by `interpreter.spawn_interpreter`."""

    #: the real binary (never a venv's or pyenv's shim)
    executable: str
    #: `sys.path` of the new interpreter, made absolute
    import_path: list[str]
    #: what `sys.executable`, `sys.prefix` and `sys.exec_prefix` say there, so that user code finds its virtual environment
    shown_executable: str
    prefix: str
    exec_prefix: str
    #: options of the command line that change what code means (-O, -B, -W, -X utf8)
    flags: list[str] = field(default_factory=list)
    #: modules whose `install()` puts import hooks of editable installs into place (no `.pth` file is read there)
    finders: list[str] = field(default_factory=list)


@dataclass(slots=True)
class EntryPoints:
    """The functions that the started processes call, as "module:function"; tests put stand-ins here."""

    #: `main(start: DaemonStart)` in the node process; returns or raises when the node ends
    daemon: str = "shoal.node.io.daemon:main"
    #: `main(socket_path: str, storage: str = "memory", parent_pid: int = ...)`, for a cluster also `listen_fd: int, token_path: str`,
    #: for one of several shards `shard: int, shards: int`
    gcs: str = "shoal.gcs.io.server:main"
    #: `run_worker(start: WorkerStart) -> int`, the exit code
    worker: str = "shoal.runtime.worker:run_worker"
    #: imported in the node process before the zygote is forked: what all processes of a node need
    shared: list[str] = field(default_factory=lambda: ["msgspec", "shoal.protocol.messages"])
    #: imported after the zygote was forked, before the GCS server is: what these two need and workers do not
    servers: list[str] = field(default_factory=lambda: ["asyncio", "uvloop"])
    #: imported by the zygote before it serves (beside the public package and the worker entry's module)
    preload: list[str] = field(default_factory=lambda: ["shoal.serialization.code"])
    #: imported by the zygote when it has been idle for a moment after the first worker
    warm: list[str] = field(default_factory=lambda: ["numpy"])


@dataclass(slots=True)
class ZygoteStart:
    """All that a zygote needs. Read by `launch.zygote`; kept by the daemon to start another one."""

    interpreter: InterpreterPlan
    entries: EntryPoints
    session_dir: str
    node_socket: str
    daemon_pid: int


@dataclass(slots=True)
class DaemonStart:
    """All that a node daemon is told by the process it was. Read by the `EntryPoints.daemon` function.

    The process is a session leader, is the subreaper of its descendants (already set), holds the flock of `<session_dir>/lock` and has
    SIGTERM, SIGINT and SIGCHLD at Python's defaults. Its children are the zygote, the GCS server, and every worker.
    """

    #: the private folder of this session; the daemon removes it last (`janitor.remove_session`)
    session_dir: str
    #: where the daemon must listen
    node_socket: str
    #: where the GCS server listens, soon: it starts at the same time
    gcs_socket: str
    #: pid of the GCS server, a child of this process; 0 on a node that joins a cluster: its GCS is at `options["gcs_address"]`
    gcs_pid: int
    #: pid of the zygote, a child of this process
    zygote_pid: int
    #: this end of the zygote's control socket (SEQPACKET): give it to `ZygoteClient`
    zygote_fd: int
    #: write one JSON line when listening, `{"ok": true, ...}` or `{"error": text}`, then close it
    ready_fd: int
    #: the process that started the node and ends it; 0 for a node that outlives its starter
    driver_pid: int
    #: a pidfd: readable when the driver has died; -1 when there is none
    driver_fd: int
    #: num_cpus, num_gpus (float), resources (dict), memory, object_store_memory (bytes), labels (dict): all filled in; and any
    #: further setting that the starter passed through
    options: dict[str, Any]
    #: for `zygote_client.respawn_zygote`
    zygote: ZygoteStart
    #: held open by every process of the session; the starter sees its other end close when the last one is gone. Never write to it.
    alive_fd: int = -1
    #: stdout and stderr of daemon, GCS server and zygote go here
    log_path: str = ""
    #: the TCP socket on which the GCS server listens for other nodes, kept for the next one; -1 for none
    gcs_listen_fd: int = -1
    #: with TLS that is a Unix socket, and this the TCP socket for the gateway
    gcs_public_fd: int = -1


@dataclass(slots=True)
class GcsStart:
    """All that a GCS server is told. Read by `launch.gcs_process`."""

    #: `EntryPoints.gcs`
    entry: str
    socket_path: str
    #: a name as in `gcs.storage.backend.open_backend`
    storage: str
    daemon_pid: int
    session_dir: str
    #: where the token is that other nodes must know
    token_path: str = ""
    #: its number among how many
    shard: int = 0
    shards: int = 1
    #: the session has had no server of this shard that answered
    fresh: bool = True


@dataclass(slots=True)
class WorkerStart:
    """All that a worker is told. Read by the `EntryPoints.worker` function.

    The process was just forked: its own session (`setsid`), stdin /dev/null, stdout and stderr as the daemon gave them, Python's default
    signal handlers, nothing else open but `alive_fd`; it is killed when the daemon dies.
    """

    session_dir: str
    node_socket: str
    worker_id: bytes
    #: the number by which the daemon asked for this worker
    startup_token: int
    daemon_pid: int
    #: the runtime environment asked for; its "env_vars" are already in `os.environ`
    environment: dict[str, Any]
    alive_fd: int = -1


def to_plain(record: Any) -> Any:
    """`record` as dicts, lists and scalars, for `marshal`."""
    if is_dataclass(record) and not isinstance(record, type):
        return {f.name: to_plain(getattr(record, f.name)) for f in fields(record)}
    if isinstance(record, dict):
        return {key: to_plain(value) for key, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [to_plain(value) for value in record]
    return record


def zygote_start_of(plain: dict[str, Any]) -> ZygoteStart:
    """The inverse of `to_plain` for a `ZygoteStart`."""
    rest = {**plain, "interpreter": InterpreterPlan(**plain["interpreter"]), "entries": EntryPoints(**plain["entries"])}
    return ZygoteStart(**rest)


def entry_function(entry: str) -> Any:
    """The function named by "module:function", imported.

    Raises:
        ValueError: `entry` is not of that form.
        ImportError, AttributeError: there is no such module or function.
    """
    module_name, _, function_name = entry.partition(":")
    if not module_name or not function_name:
        raise ValueError(f"an entry point is written 'module:function', got {entry!r}")
    __import__(module_name)
    return getattr(sys.modules[module_name], function_name)
