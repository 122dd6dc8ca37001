"""The first lines of a GCS server process, forked from the node process or started anew by the daemon.

Purpose: both beginnings make the same process: titled, with nothing open but the session's alive pipe, guarding the session's folder.

What it does not do: serve (`gcs.io.server`).
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
from typing import Any, NoReturn

from shoal.system.janitor import guard_session
from shoal.system.process import close_all_except, set_process_title
from shoal.system.start_plan import GcsStart, entry_function


def main(plan: dict[str, Any]) -> NoReturn:
    """Entry of a GCS server in a fresh interpreter (`respawn_gcs`)."""
    run(GcsStart(**plan["start"]), plan["listen_fd"], plan["alive_fd"])


def run(start: GcsStart, listen_fd: int, alive_fd: int) -> NoReturn:
    """Be the GCS server until it ends, then exit.

    Args:
        listen_fd: a TCP socket that listens for other nodes; -1 for none.
        alive_fd: kept open for as long as this process lives.
    """
    code = 1
    try:
        set_process_title("shoal:gcs")
        close_all_except([fd for fd in (alive_fd, listen_fd) if fd >= 0])
        guard_session(start.daemon_pid, start.session_dir)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        gcs_main = entry_function(start.entry)
        gc.freeze()
        gc.enable()
        others: dict[str, Any] = {} if listen_fd < 0 else {"listen_fd": listen_fd, "token_path": start.token_path}
        if start.shards > 1:
            others |= {"shard": start.shard, "shards": start.shards}
        if not start.fresh:
            others["fresh"] = False
        code = int(gcs_main(start.socket_path, storage=start.storage, parent_pid=start.daemon_pid, **others) or 0)
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
