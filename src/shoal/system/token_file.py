"""The cluster's token: a secret that all nodes and drivers of a cluster share.

Purpose: make it, keep it where only its user can read it, and find it again.

Design: a line of 64 hexadecimal digits in a file of mode 0600 in a folder of mode 0700. Its place is SHOAL_TOKEN_FILE, or ~/.shoal/token. A file that
others may read is refused: it is no secret. Copy the file to the other machines of a cluster (scp -p keeps its mode).

What it does not do: prove anything (`wire.handshake`).
"""

from __future__ import annotations

import os
import stat

TOKEN_BYTES = 32
TOKEN_TEXT_BYTES_MAX = 4096


def token_path() -> str:
    """Where the token is kept: SHOAL_TOKEN_FILE, or ~/.shoal/token."""
    return os.environ.get("SHOAL_TOKEN_FILE") or os.path.join(os.path.expanduser("~"), ".shoal", "token")


def make_token(path: str | None = None) -> str:
    """See that there is a token at `path` (default: `token_path()`), making one if there is none; returns the path.

    Raises:
        OSError: it cannot be written.
    """
    path = path or token_path()
    folder = os.path.dirname(path)
    if folder:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    # Written beside and linked into place: two that make it at once agree, and nobody reads half of it.
    fresh = f"{path}.{os.getpid()}"
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        try:
            os.write(fd, os.urandom(TOKEN_BYTES).hex().encode() + b"\n")
            os.fsync(fd)
        finally:
            os.close(fd)
        os.link(fresh, path)
    except FileExistsError:
        pass
    finally:
        os.unlink(fresh)
    return path


def cluster_token(path: str | None = None) -> bytes:
    """The token at `path` (default: `token_path()`).

    Raises:
        FileNotFoundError: there is none; says how to get it.
        PermissionError: others may read it.
        ValueError: it is no token.
    """
    path = path or token_path()
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"there is no cluster token at {path}. `shoal start --head` makes one: copy that file here from the head node "
            "(mode 0600), or name it by SHOAL_TOKEN_FILE"
        ) from None
    try:
        status = os.fstat(fd)
        if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise PermissionError(
                f"the cluster token {path} belongs to user {status.st_uid} with mode {stat.S_IMODE(status.st_mode):o}: others may know it. "
                f"Make it yours alone: chmod 600 {path}, or delete it and start the cluster anew"
            )
        text = os.read(fd, TOKEN_TEXT_BYTES_MAX).strip()
    finally:
        os.close(fd)
    if len(text) < 2 * TOKEN_BYTES:
        raise ValueError(f"{path} holds no cluster token: it is {len(text)} bytes long, a token has {2 * TOKEN_BYTES}")
    return text
