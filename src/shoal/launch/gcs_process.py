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
from shoal.system.start_plan import entry_function


def main(plan: dict[str, Any]) -> NoReturn:
    """Entry of a GCS server in a fresh interpreter (`respawn_gcs`)."""
    run(
        plan["gcs_entry"],
        plan["gcs_socket"],
        plan["gcs_storage"],
        plan["daemon_pid"],
        plan["session_dir"],
        plan["alive_fd"],
    )


def run(entry: str, socket_path: str, storage: str, daemon_pid: int, session_dir: str, alive_fd: int) -> NoReturn:
    """Be the GCS server until it ends, then exit.

    Args:
        entry: `EntryPoints.gcs`.
        storage: a name as in `gcs.storage.backend.open_backend`.
        alive_fd: kept open for as long as this process lives.
    """
    code = 1
    try:
        set_process_title("shoal:gcs")
        close_all_except([alive_fd])
        guard_session(daemon_pid, session_dir)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        gcs_main = entry_function(entry)
        gc.freeze()
        gc.enable()
        code = int(gcs_main(socket_path, storage=storage, parent_pid=daemon_pid) or 0)
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
