"""Unix sockets that only their user can reach."""

from __future__ import annotations

import os
import socket

BACKLOG = 1024
ANSWER_S = 1.0


def listening_unix_socket(path: str, backlog: int = BACKLOG) -> socket.socket:
    """A socket that listens at `path` with mode 0600: before it listens nobody can connect.

    Raises:
        OSError: it cannot be made.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(path)
        os.chmod(path, 0o600)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def is_listened_at(path: str) -> bool:
    """Whether a process listens on the Unix socket at `path`; one that is frozen, or takes no more connections, does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(ANSWER_S)
        try:
            sock.connect(path)
        except (BlockingIOError, TimeoutError):
            return True
        except OSError:  # nothing is there, or nobody
            return False
        return True
