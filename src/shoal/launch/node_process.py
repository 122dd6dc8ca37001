"""The node process, from its first line to the daemon's: fork the zygote, then (on a head) the GCS server, then become the daemon.

Purpose: three roles out of one interpreter start, in the order that makes the first worker early.

Design: until the last step nothing may start a thread or an event loop, because this process forks. What two processes need is imported before
the fork that parts them, so they share its memory; the rest each imports for itself, at the same time as the others. Garbage collection
stays off until the imports are done, and what was imported is frozen: collections have nothing to look at there.

What it does not do: wait for anything, or know what a daemon does.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
import traceback
from typing import Any, NoReturn

from shoal.launch import zygote
from shoal.launch.gcs_process import run as run_gcs
from shoal.protocol.limits import STORE_SHARE_OF_MEMORY
from shoal.protocol.storage_names import STORAGE_DEFAULT
from shoal.system.janitor import kill_children, remove_session
from shoal.system.machine import cpus_available, gpus_available, memory_available_bytes
from shoal.system.process import (
    become_subreaper,
    open_pidfd,
    raise_file_limit,
    set_process_title,
)
from shoal.system.sockets import listening_unix_socket
from shoal.system.start_plan import (
    TLS_GCS_SOCKET,
    DaemonStart,
    EntryPoints,
    GcsStart,
    InterpreterPlan,
    ZygoteStart,
    entry_function,
)
from shoal.wire.tcp import listening_socket


class StartRefusedError(Exception):
    """The node cannot start, and the text says all: nobody needs a traceback to understand it."""


def main(plan: dict[str, Any]) -> NoReturn:
    """Entry of the node process; `plan` is what `nodes.start_head` or `nodes.start_node` wrote."""
    set_process_title("shoal:node")
    ready_fd, session_dir = plan["ready_fd"], plan["session_dir"]
    code = 1
    try:
        start = _start_children(plan)
        daemon_main = entry_function(start.zygote.entries.daemon)
        _collect_from_now_on()
        daemon_main(start)
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except StartRefusedError as refusal:
        _tell(ready_fd, str(refusal))
    except BaseException as error:
        traceback.print_exc()
        _tell(ready_fd, f"{type(error).__name__}: {error}")
    finally:
        # After a normal end there is nothing left to do here.
        kill_children()
        remove_session(session_dir)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _start_children(plan: dict[str, Any]) -> DaemonStart:
    raise_file_limit()
    become_subreaper()
    driver_fd = _watch_driver(plan["driver_pid"])
    session_dir, options = plan["session_dir"], plan["options"]
    # Before anything is started: an address that cannot be had is the likeliest error.
    listen_fd = _listen(*options["gcs_listen"]) if options.get("gcs_listen") else -1
    public_fd = -1
    if listen_fd >= 0 and options.get("tls_folder"):
        public_fd, listen_fd = listen_fd, listening_unix_socket(os.path.join(session_dir, TLS_GCS_SOCKET)).detach()
    zygote_start = ZygoteStart(
        interpreter=InterpreterPlan(**plan["interpreter"]),
        entries=EntryPoints(**plan["entries"]),
        session_dir=session_dir,
        node_socket=os.path.join(session_dir, "node.sock"),
        daemon_pid=os.getpid(),
    )
    _import_all(zygote_start.entries.shared)
    zygote_pid, zygote_fd = _fork_zygote(zygote_start, plan["alive_fd"])
    _import_all(zygote_start.entries.servers)
    gcs_socket = os.path.join(session_dir, "gcs.sock")
    gcs_pid = 0 if options.get("gcs_address") else _fork_gcs(zygote_start.entries.gcs, gcs_socket, listen_fd, plan)
    return DaemonStart(
        session_dir=session_dir,
        node_socket=zygote_start.node_socket,
        gcs_socket=gcs_socket,
        gcs_pid=gcs_pid,
        zygote_pid=zygote_pid,
        zygote_fd=zygote_fd,
        ready_fd=plan["ready_fd"],
        driver_pid=plan["driver_pid"],
        driver_fd=driver_fd,
        options=resolve_options(options),
        zygote=zygote_start,
        alive_fd=plan["alive_fd"],
        log_path=plan["log_path"],
        gcs_listen_fd=listen_fd,
        gcs_public_fd=public_fd,
    )


def _listen(host: str, port: int) -> int:
    try:
        return listening_socket(host, port).detach()
    except OSError as error:
        raise StartRefusedError(error.strerror or str(error)) from None


def _import_all(names: list[str]) -> None:
    for name in names:
        __import__(name)


def _watch_driver(driver_pid: int) -> int:
    if driver_pid == 0:
        return -1
    driver_fd = open_pidfd(driver_pid)
    # The driver is our parent, so a pid that was given to another process since is found out.
    if driver_fd < 0 or os.getppid() != driver_pid:
        raise SystemExit(0)
    return driver_fd


def _fork_zygote(start: ZygoteStart, alive_fd: int) -> tuple[int, int]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        ours.close()
        zygote.serve(start, theirs.detach(), alive_fd)
    theirs.close()
    return pid, ours.detach()


def _fork_gcs(entry: str, socket_path: str, listen_fd: int, plan: dict[str, Any]) -> int:
    options = plan["options"]
    start = GcsStart(
        entry=entry,
        socket_path=socket_path,
        storage=storage_of(options),
        daemon_pid=os.getpid(),
        session_dir=plan["session_dir"],
        token_path=options.get("token_path", ""),
        shards=int(options.get("gcs_shards", 1)),
    )
    pid = os.fork()
    if pid == 0:
        run_gcs(start, listen_fd, plan["alive_fd"])
    return pid


def _collect_from_now_on() -> None:
    gc.freeze()
    gc.enable()


def storage_of(options: dict[str, Any]) -> str:
    """The GCS's storage that is asked for, as in `protocol.storage_names`."""
    return str(options.get("gcs_storage") or STORAGE_DEFAULT)


def resolve_options(options: dict[str, Any]) -> dict[str, Any]:
    """`options` with what the user left open (None) filled in from this machine."""
    memory_bytes = options.get("memory")
    store_bytes = options.get("object_store_memory")
    total_bytes = memory_available_bytes()
    if store_bytes is None:
        store_bytes = int(total_bytes * STORE_SHARE_OF_MEMORY)
    filled = {
        "num_cpus": _or(options.get("num_cpus"), cpus_available),
        "num_gpus": _or(options.get("num_gpus"), gpus_available),
        "resources": dict(options.get("resources") or {}),
        "labels": dict(options.get("labels") or {}),
        "memory": int(memory_bytes) if memory_bytes is not None else max(0, total_bytes - int(store_bytes)),
        "object_store_memory": int(store_bytes),
        "gcs_storage": storage_of(options),
    }
    return {**options, **filled}


def _or(value: float | None, detect: Any) -> float:
    return float(detect() if value is None else value)


def _tell(ready_fd: int, error: str) -> None:
    """Tell the starter, if it still listens; otherwise the log has it."""
    import json

    line = json.dumps({"error": error}) + "\n"
    try:
        os.write(ready_fd, line.encode())
    except OSError:
        pass
