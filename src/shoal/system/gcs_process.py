"""Start a GCS server: another one in place of one that died, or a further shard.

Purpose: the daemon may not import `launch`, and may not fork on: it spawns a fresh interpreter whose entry `launch` provides.

What it does not do: wait for it, or decide whether it is worth the try (`node.io.gcs_process`).
"""

from __future__ import annotations

import os

from shoal.system.interpreter import spawn_interpreter
from shoal.system.start_plan import DaemonStart, GcsStart, to_plain


def shard_socket(gcs_socket: str, shard: int) -> str:
    """Where a shard of the GCS listens for its own node."""
    return f"{gcs_socket}.{shard}" if shard else gcs_socket


def respawn_gcs(start: DaemonStart, shard: int = 0, listen_fd: int = -1, fresh: bool = False) -> int:
    """Start a GCS server on the sockets and the storage of the one that died. Returns at once; it listens some 0.1 s later.

    Args:
        shard: its number.
        listen_fd: the TCP socket on which it listens for other nodes; -1 for none.
        fresh: there was none before that answered.

    Returns:
        Its pid, a child of this process.

    Raises:
        OSError: it cannot be started.
    """
    gcs_start = GcsStart(
        entry=start.zygote.entries.gcs,
        socket_path=shard_socket(start.gcs_socket, shard),
        storage=start.options["gcs_storage"],
        daemon_pid=os.getpid(),
        session_dir=start.session_dir,
        token_path=start.options.get("token_path", ""),
        shard=shard,
        shards=int(start.options.get("gcs_shards", 1)),
        fresh=fresh,
    )
    plan = {"session_dir": start.session_dir, "start": to_plain(gcs_start)}
    return spawn_interpreter(
        start.zygote.interpreter,
        "shoal.launch.gcs_process:main",
        plan,
        log_path=start.log_path or os.devnull,
        kept_fds={"alive_fd": start.alive_fd, "listen_fd": listen_fd},
    )
