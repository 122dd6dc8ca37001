"""The daemon's side of its TLS gateway: starts it, and starts another one when it dies.

Purpose: a node of a cluster with TLS listens on Unix sockets; the gateway (`tls_process`) has the TCP ones.

Design: listening sockets, public and inner, are made here and kept, so another gateway has the same ports and whoever dials meanwhile waits. The
death of a gateway breaks all connections to other nodes, as a cut cable would: lines between nodes and to the GCS come back, calls that were on
their way are retried as after the death of their worker (after `submitter.DEATH_TOLD_WITHIN_S`).

What it does not do: TLS.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable

from shoal.node.io.processes import End, WatchTable
from shoal.protocol.errors import describe_exit
from shoal.system.interpreter import spawn_interpreter
from shoal.system.sockets import listening_unix_socket
from shoal.system.start_plan import DaemonStart
from shoal.wire.tcp import format_address, listening_socket

log = logging.getLogger("shoal.node")

DEATHS_MAX = 10  #: so many within DEATHS_WITHIN_S end the node
DEATHS_WITHIN_S = 60.0


class TlsGateway:
    """One node's gateway. `listen` and `adopt` first, then `begin`.

    Args:
        folder: where the certificates are.
        on_failed: called with the reason when there is no gateway and will be none.

    Attributes:
        path: where processes of this node ask to be connected (`wire.tls.dial_through`).
    """

    def __init__(self, start: DaemonStart, watches: WatchTable, folder: str, on_failed: Callable[[str], None]) -> None:
        self._start = start
        self._watches = watches
        self._folder = folder
        self._on_failed = on_failed
        self._public: list[socket.socket] = []
        self._inner_paths: list[str] = []
        self._deaths: list[float] = []
        self._closed = False
        self.pid = 0
        self.path = os.path.join(start.session_dir, "tls.sock")
        self._door = listening_unix_socket(self.path)

    def listen(self, host: str, port: int) -> tuple[socket.socket, str]:
        """Listen for other nodes: the socket on which their connections arrive, and the address that others are given.

        Raises:
            OSError: the address cannot be had.
        """
        public = listening_socket(host, port)
        inner = listening_unix_socket(os.path.join(self._start.session_dir, f"tls-{len(self._public)}.in"))
        self.adopt(public, inner.getsockname())
        return inner, format_address(*public.getsockname()[:2])

    def adopt(self, public: socket.socket, inner_path: str) -> None:
        """Have connections to `public` arrive at the Unix socket `inner_path`."""
        self._public.append(public)
        self._inner_paths.append(inner_path)

    def begin(self) -> None:
        """Start the process."""
        plan = {
            "session_dir": self._start.session_dir,
            "daemon_pid": os.getpid(),
            "tls_folder": self._folder,
            "inner_paths": self._inner_paths,
        }
        kept = {f"public_{number}": sock.fileno() for number, sock in enumerate(self._public)}
        self.pid = spawn_interpreter(
            self._start.zygote.interpreter,
            "shoal.node.io.tls_process:main",
            plan,
            log_path=self._start.log_path or os.devnull,
            kept_fds={"door_fd": self._door.fileno(), "alive_fd": self._start.alive_fd, **kept},
        )
        self._watches.watch(self.pid, self._died)

    def _died(self, end: End) -> None:
        if self._closed:
            return
        now = self._watches.loop.time()
        self._deaths = [at for at in self._deaths if at > now - DEATHS_WITHIN_S] + [now]
        how = f"its TLS gateway (process {self.pid}) died: {describe_exit(end.exit_code)}"
        if len(self._deaths) > DEATHS_MAX:
            self._on_failed(f"{how}; it died {len(self._deaths)} times within {DEATHS_WITHIN_S:g} s")
            return
        log.warning("%s; starting another one", how)
        try:
            self.begin()
        except OSError as error:
            self._on_failed(f"{how}, and no other could be started: {error}")

    def close(self) -> None:
        """The node ends; the process goes with the daemon."""
        self._closed = True
