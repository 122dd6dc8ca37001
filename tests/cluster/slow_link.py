"""A link between two network namespaces that is slow and loses packets, for kernels without tc-netem.

    python slow_link.py SPACE DEVICE SPACE DEVICE DELAY_S JITTER_S LOSS

Two TAP devices, one in each namespace, between which this process carries the frames: each after its delay, in order, or never. It says "ready" when
they are there; they go with it. Needs root and /dev/net/tun.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import selectors
import signal
import struct
import sys
import time
from collections import deque

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1
FRAME_BYTES_MAX = 65536


def tap(space: str, device: str) -> int:
    """A new TAP device in a namespace; the file that has it.

    Raises:
        OSError: there is no such thing here.
    """
    namespace = os.open(f"/var/run/netns/{space}", os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(namespace, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {space}")
    finally:
        os.close(namespace)
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TAP | IFF_NO_PI))
    return file


def carry(first: int, second: int, delay_s: float, jitter_s: float, loss: float) -> None:
    """Carry frames between two devices for ever."""
    dice = random.Random(1)
    selector = selectors.DefaultSelector()
    #: by where it goes: (when, frame), the next first
    under_way: dict[int, deque[tuple[float, bytes]]] = {first: deque(), second: deque()}
    for source, target in ((first, second), (second, first)):
        selector.register(source, selectors.EVENT_READ, target)
    while True:
        due = min((queue[0][0] for queue in under_way.values() if queue), default=None)
        ready = selector.select(None if due is None else max(0.0, due - time.monotonic()))
        now = time.monotonic()
        for key, _ in ready:
            queue = under_way[key.data]
            try:
                frame = os.read(key.fd, FRAME_BYTES_MAX)
            except OSError:
                continue  # the device is down
            if dice.random() >= loss:
                when = now + delay_s + jitter_s * dice.random()
                queue.append((max(when, queue[-1][0]) if queue else when, frame))
        for target, queue in under_way.items():
            while queue and queue[0][0] <= now:
                frame = queue.popleft()[1]
                try:
                    os.write(target, frame)
                except OSError:
                    continue  # the device is down: lost


def main() -> None:
    """Make the link and keep it, as long as who wants it lives."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    first = tap(sys.argv[1], sys.argv[2])
    second = tap(sys.argv[3], sys.argv[4])
    print("ready", flush=True)
    carry(first, second, *map(float, sys.argv[5:8]))


if __name__ == "__main__":
    main()
