"""Allreduce among members of one node, through memory that they share.

    say what is to be done --> meet, compare --> for each chunk: copy it in --> meet --> add up this member's part of all --> meet --> copy it out

Design: gloo sends every byte through the loopback device, several times; here each is written to the shared memory once, and read by whoever
needs it, chunk by chunk, so that chunks stay in the processor's cache. Chunks take turns between two halves of the memory, so two meetings a chunk
are enough. Members meet at counters, for which they yield the processor and soon nap; who waits looks whether the others live (their pidfds), and has
the group's time limit for one that is stopped.

The memory has no name (a memfd): rank 0 makes it, the others open it by way of /proc while they join, and it ends with the last of them. Its pages
are taken when they are first used.

What it does not do: other machines than x86-64, whose processors show what was written in the order of writing; types that numpy does not
have; members on several nodes. For all of these `open_shared` or `fits` says no, and gloo does it.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import platform
import secrets
import select
import time
from typing import Any

import numpy as np

import shoal

CHUNK_BYTES = 512 * 1024
LINE_BYTES = 64  #: each counter has a cache line of its own
TEXT_BYTES = 128  #: of what a member says it does
TOKEN_BYTES = 16
#: who waits yields at least so often, and for so long, before it sleeps between two looks: on a busy machine each yield costs a turn
#: of the others, and who has slept is woken sooner than who has yielded
YIELDS, YIELD_S = 10, 100e-6
NAP_S, NAP_MAX_S = 20e-6, 1e-3
LOOK_S = 0.02  #: how often a member that waits looks whether the others live

GIVEN_UP = "a call before has failed"
UFUNCS = {"sum": np.add, "mean": np.add, "product": np.multiply, "min": np.minimum, "max": np.maximum}


class MemberGone(RuntimeError):
    """A member died in the middle, or did not go on in time."""


def fits(array: Any) -> bool:
    """Whether an array of numpy goes through shared memory."""
    return array.dtype.kind in "iuf" and array.dtype.itemsize <= 8


class Shared:
    """A member's view of the memory.

    In this order: a counter for each member, whether the group has failed, a token, two texts for each member, two chunks for each.
    """

    def __init__(self, memory: mmap.mmap, rank: int, pids: list[int], timeout_s: float) -> None:
        size = len(pids)
        self._memory, self._rank, self._size, self._timeout_s = memory, rank, size, timeout_s
        self._words = memoryview(memory).cast("q")
        self._texts = _head_bytes(size) - 2 * size * TEXT_BYTES
        halves = np.frombuffer(memory, np.uint8, 2 * size * CHUNK_BYTES, _head_bytes(size))
        self._halves = halves.reshape(2, size, CHUNK_BYTES)
        self._step = self._said = 0
        self._poll = select.poll()
        self._pidfds = {os.pidfd_open(pid): member for member, pid in enumerate(pids) if member != rank}
        for descriptor in self._pidfds:
            self._poll.register(descriptor, select.POLLIN)

    def agree(self, text: bytes) -> list[bytes]:
        """Say what this member is about to do, and hear what the others are, by rank: equally long texts of at most `TEXT_BYTES`."""
        if self._words[self._size * 8]:
            raise MemberGone(GIVEN_UP)
        self._said += 1
        begin = self._texts + self._said % 2 * self._size * TEXT_BYTES
        at = begin + self._rank * TEXT_BYTES
        self._memory[at : at + len(text)] = text
        self._meet()
        places = range(begin, begin + self._size * TEXT_BYTES, TEXT_BYTES)
        return [self._memory[place : place + len(text)] for place in places]

    def allreduce(self, array: Any, op: str) -> None:
        """Replace `array` (contiguous) by the result. All members have agreed on its shape and type.

        Raises:
            MemberGone: see there. The array may hold the result in part.
        """
        flat, combine = array.reshape(-1), UFUNCS[op]
        rows = CHUNK_BYTES // flat.itemsize
        halves = self._halves.view(flat.dtype)
        for number, begin in enumerate(range(0, flat.size, rows)):
            part = flat[begin : begin + rows]
            chunks = halves[number % 2, :, : part.size]
            chunks[self._rank] = part
            self._meet()
            mine = slice(part.size * self._rank // self._size, part.size * (self._rank + 1) // self._size)
            total = chunks[0, mine]
            for other in range(1, self._size):
                combine(total, chunks[other, mine], out=total)
            self._meet()
            part[:] = chunks[0]

    def _meet(self) -> None:
        """Wait until all members have come this far."""
        self._step += 1
        words, step = self._words, self._step
        words[self._rank * 8] = step
        began = time.monotonic()
        yields = 0
        for other in range(self._size):
            while words[other * 8] < step:
                if yields >= YIELDS and time.monotonic() > began + YIELD_S:
                    self._await(other, step, began + self._timeout_s)
                    break
                os.sched_yield()
                yields += 1

    def _await(self, other: int, step: int, deadline: float) -> None:
        """The same for one who lets others wait."""
        words, nap_s, look = self._words, NAP_S, time.monotonic() + LOOK_S
        while words[other * 8] < step:
            time.sleep(nap_s)
            nap_s = min(2 * nap_s, NAP_MAX_S)
            if (now := time.monotonic()) < look:
                continue
            look = now + LOOK_S
            reason = ""
            if words[self._size * 8]:
                reason = GIVEN_UP
            elif dead := self._poll.poll(0):
                reason = f"member {self._pidfds[dead[0][0]]} has died"
            elif now > deadline:
                reason = f"member {other} did not come within {self._timeout_s:g} s"
            if reason and words[other * 8] < step:
                words[self._size * 8] = 1
                raise MemberGone(reason)

    def close(self) -> None:
        """Let go of it; the memory itself ends when no array lies in it any more, in the last of the processes."""
        for descriptor in self._pidfds:
            os.close(descriptor)
        self._pidfds.clear()


def _head_bytes(size: int) -> int:
    """Of all that is not chunks."""
    return LINE_BYTES * (size + 2) + 2 * size * TEXT_BYTES


def open_shared(store: Any, rank: int, size: int, timeout_s: float) -> Shared | None:
    """This member's part of the group's memory; None for all members if they are not on one node, or cannot share any.

    `store`: the group's, of torch; every member calls this.
    """
    descriptor, memory = -1, None
    try:
        length = _head_bytes(size) + 2 * size * CHUNK_BYTES
        token = b""
        if rank == 0:
            token = secrets.token_bytes(TOKEN_BYTES)
            with contextlib.suppress(OSError):
                descriptor, memory = _make(length, size, token)
        able = platform.machine() in ("x86_64", "AMD64") and hasattr(os, "pidfd_open")
        mine = {"node": shoal.get_runtime_context().get_node_id() if able else "", "pid": os.getpid()}
        store.set(f"shared/{rank}", json.dumps({**mine, "fd": descriptor, "token": token.hex()}))
        members = [json.loads(store.get(f"shared/{member}")) for member in range(size)]
        alike = bool(mine["node"]) and len({each["node"] for each in members}) == 1 and members[0]["fd"] >= 0
        if alike and rank:
            memory = _open(members[0], length, size)
        shared = None
        if alike and memory is not None:
            with contextlib.suppress(OSError):
                shared = Shared(memory, rank, [each["pid"] for each in members], timeout_s)
        store.set(f"shared/{rank}/open", b"1" if shared else b"0")
        if all(store.get(f"shared/{member}/open") == b"1" for member in range(size)):
            return shared
        if shared is not None:
            shared.close()
        return None
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _make(length: int, size: int, token: bytes) -> tuple[int, mmap.mmap]:
    descriptor = os.memfd_create("shoal-collective", os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, length)
        memory = mmap.mmap(descriptor, length)
    except OSError:
        os.close(descriptor)
        raise
    begin = LINE_BYTES * (size + 1)
    memory[begin : begin + TOKEN_BYTES] = token
    return descriptor, memory


def _open(first: dict[str, Any], length: int, size: int) -> mmap.mmap | None:
    """The memory of rank 0, or None: it may be of another user, or its number that of another process here."""
    with contextlib.suppress(OSError, ValueError):
        descriptor = os.open(f"/proc/{first['pid']}/fd/{first['fd']}", os.O_RDWR | os.O_CLOEXEC)
        try:
            memory = mmap.mmap(descriptor, length)
        finally:
            os.close(descriptor)
        begin = LINE_BYTES * (size + 1)
        if memory[begin : begin + TOKEN_BYTES].hex() == first["token"]:
            return memory
    return None
