"""Anonymous shared memory: memfds sealed against resizing.

Purpose: shared memory without a name, so that nothing is left behind and a container's 64 MB /dev/shm does not matter.

What it does not do: allocate inside (`store`), or account.
"""

from __future__ import annotations

import fcntl
import os


def create_sealed_memfd(name: str, size_bytes: int) -> int:
    """A sparse memfd of `size_bytes` zero bytes that can neither shrink nor grow; the fd is closed on exec.

    Args:
        name: shown in /proc/<pid>/maps as memfd:<name>.

    Raises:
        OSError: no descriptor is left, or the kernel refuses the size.
    """
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size_bytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd
