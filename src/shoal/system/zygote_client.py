"""The daemon's side of its zygote: ask for workers, read the answers, start another zygote when it died.

Purpose: a worker costs a fork of a warm process (2-5 ms), asked for and answered without ever blocking the daemon.

Design: one SEQPACKET socket, a packet a request, the worker's stdout and stderr travelling with it (SCM_RIGHTS). What the socket does not
take at once waits here and is sent when answers come: the zygote answers every request, so nothing waits for ever.

    daemon                       zygote                      (intermediate)            worker
    SpawnRequest + 2 fds  ---->  fork  ------------------->  fork, exit  ----------->  SpawnReply(token, pid) ----> daemon

How to extend: append fields with defaults to the two structs.

What it does not do: decide how many workers there should be, time out a worker that never registers, or watch the zygote's pid.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from dataclasses import replace
from typing import Any

import msgspec

from shoal.system.interpreter import spawn_interpreter
from shoal.system.start_plan import DaemonStart, to_plain

#: an unanswered packet must fit into the socket's buffer beside others
REQUEST_BYTES_MAX = 64 << 10
REPLY_BYTES_MAX = 4 << 10


class SpawnRequest(msgspec.Struct, array_like=True):
    """Daemon to zygote, with two file descriptors: make a worker."""

    token: int
    worker_id: bytes
    environment: dict[str, Any] = {}


class SpawnReply(msgspec.Struct, array_like=True):
    """Zygote to daemon. `pid` is a child of the daemon, or 0 when it failed for the reason `error`."""

    token: int
    pid: int
    error: str = ""


class ZygoteClient:
    """Requests to one zygote. All methods return at once.

    Args:
        sock: the daemon's end of the control socket (or its file descriptor, which then belongs to this object).
    """

    #: `pending`: tokens asked for and not answered, in order; when the zygote dies these must be asked for again.
    #: `_backlog`: packets that the socket did not take yet, with duplicates of their fds.
    __slots__ = ("_backlog", "_decoder", "_sock", "closed", "pending")

    def __init__(self, sock: socket.socket | int) -> None:
        if isinstance(sock, int):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=sock)
        sock.setblocking(False)
        self._sock = sock
        self._backlog: deque[tuple[bytes, list[int]]] = deque()
        self._decoder = msgspec.msgpack.Decoder(SpawnReply)
        self.pending: dict[int, bytes] = {}
        #: True once the zygote is known to be gone: ask `respawn_zygote` for another one and make a new client
        self.closed = False

    def fileno(self) -> int:
        """For `add_reader`; call `read_replies` when it is readable."""
        return self._sock.fileno()

    def spawn(self, token: int, worker_id: bytes, environment: dict[str, Any], stdout_fd: int, stderr_fd: int) -> None:
        """Ask for a worker whose stdout and stderr are the two fds; the caller closes its copies whenever it likes.

        Args:
            token: the caller's number for this request, unique among the pending ones; it comes back in the reply.
            worker_id: what the worker will call itself.
            environment: plain values; "env_vars" are set in the worker before anything else runs.

        Raises:
            ValueError: the environment is too large to send (`REQUEST_BYTES_MAX`).
        """
        assert token not in self.pending, f"token {token} asked for twice"
        packet = msgspec.msgpack.encode(SpawnRequest(token, worker_id, environment))
        if len(packet) > REQUEST_BYTES_MAX:
            raise ValueError(f"a runtime environment of {len(packet)} bytes exceeds the limit of {REQUEST_BYTES_MAX}")
        self.pending[token] = worker_id
        if self.closed:
            return
        if self._backlog or not self._sent(packet, [stdout_fd, stderr_fd]):
            self._backlog.append((packet, [os.dup(stdout_fd), os.dup(stderr_fd)]))

    def read_replies(self) -> list[SpawnReply]:
        """What the zygote answered since the last call. Sets `closed` when it is gone."""
        replies: list[SpawnReply] = []
        while True:
            try:
                packet = self._sock.recv(REPLY_BYTES_MAX)
            except BlockingIOError:
                break
            except OSError:
                packet = b""
            if not packet:
                self.closed = True
                break
            reply = self._decoder.decode(packet)
            self.pending.pop(reply.token, None)
            replies.append(reply)
        self._flush()
        return replies

    def close(self) -> None:
        """Let go of the zygote, which then ends. Idempotent."""
        self.closed = True
        self._flush()
        self._sock.close()

    def _flush(self) -> None:
        while self._backlog:
            packet, fds = self._backlog[0]
            if not self.closed and not self._sent(packet, fds):
                return
            self._backlog.popleft()
            for fd in fds:
                os.close(fd)

    def _sent(self, packet: bytes, fds: list[int]) -> bool:
        try:
            socket.send_fds(self._sock, [packet], fds)
        except BlockingIOError:
            return False
        except OSError:
            # The zygote died: the requests stay pending and whoever watches it starts another.
            self.closed = True
        return True


def respawn_zygote(start: DaemonStart) -> tuple[socket.socket, int]:
    """Start another zygote in place of one that died: a fresh interpreter (the daemon has an event loop, so it must not fork on).

    Returns at once; requests can be sent at once and are answered in about 0.1 s. The second zygote imports no warm modules: they
    may be why the first one died.

    Returns:
        The daemon's end of its control socket (for a new `ZygoteClient`), and its pid, a child of this process.

    Raises:
        OSError: it cannot be started.
    """
    cold = replace(start.zygote, entries=replace(start.zygote.entries, warm=[]))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        try:
            pid = spawn_interpreter(
                start.zygote.interpreter,
                "shoal.launch.zygote:main",
                to_plain(cold),
                log_path=start.log_path or os.devnull,
                kept_fds={"control_fd": theirs.fileno(), "alive_fd": start.alive_fd},
            )
        except BaseException:
            ours.close()
            raise
    return ours, pid
