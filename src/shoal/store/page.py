"""One small shared page per process: which task it has started, and which blocks of the store it reads.

Purpose: two facts that must survive the process's sudden death and cost no message: (lease, seq) of the task being run, which decides
whether its retry is charged; and the *pins*, which keep the daemon from giving a block's memory to somebody else. And one that must hold also
when the daemon stands still: until when an actor may answer (`node/io/leash.py`).

Layout (native byte order; both sides are on one machine):

    0     u64 lease_id, u64 seq, u64 lease_id ^ seq     the started task; all zero: none
    32    u64 slots_used                                slots at or above this number were never used
    40    u64 answers_until                             CLOCK_MONOTONIC in ns: the daemon's leash on an actor; 0: none
    48    u64 lease_id, u64 seq                         the last task that may run once only
    64    16 pairs u64 lease_id, u64 seq                tasks begun before that one, whose replies others have not taken yet
    4096  slots of 16 bytes: u64 segment, u64 offset    segment 0: empty

A slot has no generation: a reader writes its slot *first* and then checks the block's header. A slot that names a block which
somebody else got meanwhile delays a reuse for a moment and does no harm.

Design: the process takes the lowest free slot, so that the daemon scans only as many as were ever used at one time. All methods are safe in
threads. The daemon creates the page and drops it, with its pins, when the process dies.

What it does not do: know blocks or sizes (`client`), decide about eviction (`node.store_table`).
"""

from __future__ import annotations

import os
import struct
import threading
from heapq import heappop, heappush
from time import monotonic_ns

from shoal.protocol.limits import PAGE_HEADER_BYTES, PIN_SLOTS_MAX
from shoal.store.mapping import Mapping, create_shared_memory, open_shared_memory

PAGE_NAME = "shoal-page"
SLOT_BYTES = 16
UNTAKEN_MAX = 16
_STARTED = struct.Struct("@QQQ")
#: where fields of the layout above begin, in u64 units
_SLOTS_USED_INDEX, _ANSWERS_UNTIL_INDEX, _ONCE_INDEX, _UNTAKEN_INDEX = 4, 5, 6, 8
_READ_ATTEMPTS = 100

RECORDS_NAME = "shoal-records"
RECORD_PAGE_BYTES = 256 << 10
_ENTRY = struct.Struct("@QQ")  #: length and index of a record


class PinSlotsExhausted(RuntimeError):
    """The process reads more blocks at one time than it has slots."""


class ProcessPage:
    """The page of one process, on either side. Make one with `create` (daemon) or `open` (process)."""

    #: `fd` is the daemon's descriptor, -1 in the process; `_free_slots` is a heap of emptied slots, `_slots_used` the count ever used.
    __slots__ = ("_free_slots", "_lock", "_mapping", "_slots", "_slots_used", "_untaken", "_view", "_words", "fd")

    def __init__(self, mapping: Mapping, fd: int) -> None:
        assert mapping.size_bytes == PAGE_HEADER_BYTES + PIN_SLOTS_MAX * SLOT_BYTES, "a page of another version"
        self.fd = fd
        self._mapping = mapping
        self._view = mapping.view
        self._words = mapping.view[:PAGE_HEADER_BYTES].cast("Q")
        self._slots = mapping.view[PAGE_HEADER_BYTES:].cast("Q")
        self._lock = threading.Lock()
        self._free_slots: list[int] = []
        self._slots_used = 0
        self._untaken = 0

    @classmethod
    def create(cls) -> ProcessPage:
        """A new page; the caller is the daemon and owns `fd`."""
        fd = create_shared_memory(PAGE_NAME, PAGE_HEADER_BYTES + PIN_SLOTS_MAX * SLOT_BYTES)
        return cls(Mapping(fd, writable=True), fd)

    @classmethod
    def open(cls, daemon_pid: int, fd: int) -> ProcessPage:
        """The page that process `daemon_pid` made for us.

        Raises:
            FileNotFoundError: the daemon is gone.
        """
        opened = open_shared_memory(daemon_pid, fd, PAGE_NAME, writable=True)
        try:
            return cls(Mapping(opened, writable=True), -1)
        finally:
            os.close(opened)

    # ---------------------------------------------------------------- the started task

    def set_started(self, lease_id: int, seq: int) -> None:
        """From now on task `seq` of `lease_id` counts as started. Measured: 0.2 us."""
        words = self._words
        words[0] = lease_id
        words[1] = seq
        words[2] = lease_id ^ seq

    def set_runs_once(self, lease_id: int, seq: int) -> None:
        """The task that starts next cannot be run again."""
        words = self._words
        words[_ONCE_INDEX] = lease_id
        words[_ONCE_INDEX + 1] = seq

    def runs_once(self) -> bool:
        """Whether the task begun last cannot be run again."""
        words = self._words
        return words[_ONCE_INDEX] != 0 and self.read_started() == (words[_ONCE_INDEX], words[_ONCE_INDEX + 1])

    def read_started(self) -> tuple[int, int]:
        """(lease_id, seq) of the task begun last, (0, 0) for none. Reads again while the writer is in the middle of writing."""
        lease_id = seq = 0
        for _ in range(_READ_ATTEMPTS):
            lease_id, seq, check = _STARTED.unpack_from(self._view, 0)
            if lease_id ^ seq == check:
                break
        # A writer killed between two of its three stores leaves them torn for good: what stands there was about to start.
        return lease_id, seq

    def keep_started(self) -> None:
        """Another caller's task is about to begin, while replies up to the started one stand in this process's own memory: the oldest such
        note gives way."""
        words = self._words
        index = _UNTAKEN_INDEX + 2 * (self._untaken % UNTAKEN_MAX)
        self._untaken += 1
        words[index] = 0  # a note that is half written says nothing
        words[index + 1] = words[1]
        words[index] = words[0]

    def read_kept(self) -> list[tuple[int, int]]:
        """(lease_id, seq) of tasks begun, whose replies may be lost with the process: the daemon's side."""
        end = _UNTAKEN_INDEX + 2 * UNTAKEN_MAX
        numbers = self._words[_UNTAKEN_INDEX:end].tolist()
        return [pair for pair in zip(numbers[::2], numbers[1::2], strict=True) if pair[0]]

    # ---------------------------------------------------------------- the leash

    def set_answers_until(self, until_ns: int) -> bool:
        """The daemon lets the process answer until then. Whether it had to be silent before, and need not be now."""
        was_silenced = self.is_silenced()
        self._words[_ANSWERS_UNTIL_INDEX] = until_ns
        return was_silenced and not self.is_silenced()

    def is_leashed(self) -> bool:
        """Whether the process must look before it answers."""
        return self._words[_ANSWERS_UNTIL_INDEX] != 0

    def is_silenced(self) -> bool:
        """Whether the process may say nothing now. Measured: 0.15 us."""
        return 0 < self._words[_ANSWERS_UNTIL_INDEX] < monotonic_ns()

    # ---------------------------------------------------------------- pins

    def pin(self, segment: int, offset: int) -> int:
        """Name a block in a free slot and return the slot. The caller checks the block's header *afterwards*.

        Raises:
            PinSlotsExhausted: all slots are taken.
        """
        # heappop and heappush are single C calls, hence atomic under the interpreter's lock.
        try:
            slot = heappop(self._free_slots)
        except IndexError:
            slot = self._add_slot()
        slots = self._slots
        # The offset first: a half-written slot must not look like a pin of another block of that segment.
        slots[2 * slot + 1] = offset
        slots[2 * slot] = segment
        return slot

    def _add_slot(self) -> int:
        with self._lock:
            slot = self._slots_used
            if slot == PIN_SLOTS_MAX:
                raise PinSlotsExhausted(
                    f"this process (pid {os.getpid()}) reads {PIN_SLOTS_MAX} stored objects at one time, the most it can; "
                    "delete some of the arrays or values that shoal.get returned"
                )
            self._slots_used = self._words[_SLOTS_USED_INDEX] = slot + 1
            return slot

    def unpin(self, slot: int) -> None:
        """Empty a slot that `pin` returned."""
        self._slots[2 * slot] = 0
        heappush(self._free_slots, slot)

    def pins(self) -> set[tuple[int, int]]:
        """(segment, offset) of every block pinned now: the daemon's side. Costs 0.1 us a slot ever used."""
        used = min(self._words[_SLOTS_USED_INDEX], PIN_SLOTS_MAX)
        slots = self._slots[: 2 * used].tolist()
        return {pair for pair in zip(slots[::2], slots[1::2], strict=True) if pair[0]}

    def close(self) -> None:
        """Close the daemon's descriptor; the mapping goes with the last reference to the page."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class RecordPage:
    """Records of an actor's calls, in memory that outlives its process: written without a system call, read by the daemon when the process is dead.

    Layout: u64 bytes used, u64 unused, then entries of u64 length, u64 index and the record, padded to 8 bytes. An entry counts once the first word
    covers it, so a writer that is killed leaves no half of one.
    """

    __slots__ = ("_mapping", "_used", "_view", "_words", "fd")

    def __init__(self, mapping: Mapping, fd: int) -> None:
        self.fd = fd
        self._mapping = mapping
        self._view = mapping.view
        self._words = mapping.view.cast("Q")
        self._used = _ENTRY.size

    @classmethod
    def create(cls) -> RecordPage:
        """A new page; the caller is the daemon and owns `fd`."""
        fd = create_shared_memory(RECORDS_NAME, RECORD_PAGE_BYTES)
        page = cls(Mapping(fd, writable=True), fd)
        page.clear()
        return page

    @classmethod
    def open(cls, daemon_pid: int, fd: int) -> RecordPage:
        """The page that process `daemon_pid` made for us.

        Raises:
            FileNotFoundError: the daemon is gone.
        """
        opened = open_shared_memory(daemon_pid, fd, RECORDS_NAME, writable=True)
        try:
            return cls(Mapping(opened, writable=True), -1)
        finally:
            os.close(opened)

    def append(self, index: int, record: bytes) -> bool:
        """Write a record; whether there was room. Measured: 0.6 us."""
        begin = self._used
        size = len(record)
        end = begin + _ENTRY.size + (size + 7 & ~7)
        if end > RECORD_PAGE_BYTES:
            return False
        _ENTRY.pack_into(self._view, begin, size, index)
        begin += _ENTRY.size
        self._view[begin : begin + size] = record
        self._used = self._words[0] = end
        return True

    def clear(self) -> None:
        """None of the records is needed any more."""
        self._used = self._words[0] = _ENTRY.size

    def entries(self) -> list[tuple[int, bytes]]:
        """All (index, record), on either side."""
        found = []
        begin, end = _ENTRY.size, self._words[0]
        while begin < end:
            size, index = _ENTRY.unpack_from(self._view, begin)
            begin += _ENTRY.size
            found.append((index, bytes(self._view[begin : begin + size])))
            begin += size + 7 & ~7
        return found

    def close(self) -> None:
        """Close the daemon's descriptor; the mapping goes with the last reference to the page."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
