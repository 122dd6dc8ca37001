"""One segment of the store: a memfd, its control page, and the blocks in it.

Layout:

    0      control page, written by the daemon only: u64 slots used, then offsets (u64) of the blocks being evicted, 0 for none
    4096   blocks, each on 64 bytes:
           0   8s   magic
           8   u64  generation      unique on the node: the segment's serial << 32 | a counter
           16  u64  payload size
           24  20s  ObjectID
           44  u8   state           written last: WRITING, SEALED, EVICTED
           45  u8   freed           the writer's half of the agreement below
           64  payload

Who may write what: the writer its blocks; the daemon the control page, and a block's header once the block belongs to it.
The agreement about a block that the daemon spills while its writer frees it, without a lock that could die with its holder:

    daemon: lists the block in the control page | waits EVICTION_GRACE_S | reads `freed`: not 0 -> gives up, else the block is the daemon's
    writer: writes freed = ASKED                | reads the list: listed -> LEFT, the daemon gives it back; else TAKEN, reused at once

Whoever comes second sees the first. A reader pins (`page`), then reads the list, then the header: a block that is listed, or whose header
differs, is stale, and the daemon knows better. The daemon looks at the pins only after the grace, writes EVICTED into the header and unlists.

Names: a segment's number is `serial << 20 | fd`, the memfd is called "shoal-segment-<number>".

What it does not do: choose places (`allocator`), count pins (`client`, `page`), decide (`node.store_table`).
"""

from __future__ import annotations

import os
import struct

from shoal.protocol.limits import BLOCK_HEADER_BYTES, SEGMENT_GROW_BYTES
from shoal.store.allocator import PAGE_BYTES, page_ceil
from shoal.store.mapping import Mapping, create_shared_memory, open_shared_memory, punch_hole

BLOCKS_START = PAGE_BYTES  #: offset of the first block
EVICTING_MAX = PAGE_BYTES // 8 - 1  #: blocks of one segment that can be on the way out at one time
FD_BITS = 20
GENERATION_BITS = 32
POPULATE_STEP_BYTES = SEGMENT_GROW_BYTES

MAGIC = b"SHOALBLK"
WRITING, SEALED, EVICTED = 1, 2, 3
KEPT, ASKED, TAKEN, LEFT = 0, 1, 2, 3
_HEADER = struct.Struct("=8sQQ20sBB")
_IDENTITY_BYTES = 45  #: magic to state, what must be equal for a block to be the one looked for
_STATE_AT = 44
_FREED_AT = 45

assert _HEADER.size <= BLOCK_HEADER_BYTES


def segment_number(serial: int, fd: int) -> int:
    """The number of the daemon's `serial`-th segment, kept open as `fd`."""
    assert fd < 1 << FD_BITS
    return serial << FD_BITS | fd


def first_generation(number: int) -> int:
    """Generations of a segment's blocks count up from here; no two segments of a node share one."""
    return (number >> FD_BITS) << GENERATION_BITS | 1


class Segment:
    """One segment as one process sees it. Writers and the daemon map it writable, readers read-only."""

    __slots__ = ("_control", "fd", "mapping", "number", "view")

    def __init__(self, number: int, mapping: Mapping, fd: int = -1) -> None:
        self.number = number
        self.mapping = mapping
        self.view = mapping.view
        self._control = mapping.view[:PAGE_BYTES].cast("Q")
        self.fd = fd  #: kept open by those who punch holes, else -1

    @classmethod
    def create(cls, serial: int, capacity_bytes: int) -> Segment:
        """A new sparse segment of the daemon's."""
        capacity = page_ceil(capacity_bytes) + BLOCKS_START
        fd = create_shared_memory(f"shoal-segment-{serial}", capacity)
        return cls(segment_number(serial, fd), Mapping(fd, writable=True), fd)

    @classmethod
    def open(cls, daemon_pid: int, number: int, writable: bool) -> Segment:
        """Map segment `number` of the daemon.

        Raises:
            FileNotFoundError: the daemon has closed it, or is gone.
        """
        serial, fd = number >> FD_BITS, number & ((1 << FD_BITS) - 1)
        opened = open_shared_memory(daemon_pid, fd, f"shoal-segment-{serial}", writable)
        try:
            mapping = Mapping(opened, writable)
        except BaseException:
            os.close(opened)
            raise
        if writable:
            return cls(number, mapping, opened)
        os.close(opened)
        return cls(number, mapping)

    def close(self) -> None:
        """Close the descriptor. The memory stays mapped while anybody refers to the mapping."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def punch(self, offset: int, length_bytes: int) -> None:
        """Give whole pages back to the system."""
        assert offset % PAGE_BYTES == 0 and length_bytes % PAGE_BYTES == 0 and self.fd >= 0
        punch_hole(self.fd, offset, length_bytes)

    def populate(self, offset: int, length_bytes: int) -> None:
        """Make pages present, in steps that let other threads run.

        Raises:
            MemoryError: the system has none left.
        """
        end = offset + length_bytes
        while offset < end:
            self.mapping.populate(offset, min(POPULATE_STEP_BYTES, end - offset))
            offset += POPULATE_STEP_BYTES

    # ---------------------------------------------------------------- headers

    def write_header(self, offset: int, generation: int, oid: bytes, size: int, state: int) -> None:
        """Write a whole header; the state byte comes after the rest."""
        _HEADER.pack_into(self.view, offset, MAGIC, generation, size, oid, WRITING, KEPT)
        if state != WRITING:
            self.view[offset + _STATE_AT] = state

    def set_state(self, offset: int, state: int) -> None:
        """Seal a block, or mark it evicted."""
        self.view[offset + _STATE_AT] = state

    def get_freed(self, offset: int) -> int:
        """The writer's half of the agreement: KEPT, ASKED, TAKEN or LEFT."""
        return self.view[offset + _FREED_AT]

    def set_freed(self, offset: int, freed: int) -> None:
        """Write the writer's half of the agreement."""
        self.view[offset + _FREED_AT] = freed

    def is_sealed(self, offset: int, generation: int, oid: bytes, size: int) -> bool:
        """Whether the block at `offset` is that object, sealed. Says nothing of being listed."""
        expected = _HEADER.pack(MAGIC, generation, size, oid, SEALED, 0)[:_IDENTITY_BYTES]
        return self.view[offset : offset + _IDENTITY_BYTES] == expected

    # ---------------------------------------------------------------- the list of blocks being evicted

    def is_listed(self, offset: int) -> bool:
        """Whether the daemon is taking the block at `offset` away."""
        count = self._control[0]
        return count > 0 and offset in self._control[1 : 1 + count].tolist()

    def list_evicting(self, offset: int) -> bool:
        """Put a block on the list (daemon); False when the list is full."""
        control = self._control
        count = control[0]
        slots = control[1 : 1 + count].tolist()
        index = slots.index(0) if 0 in slots else count
        if index == EVICTING_MAX:
            return False
        control[1 + index] = offset
        control[0] = max(count, index + 1)
        return True

    def unlist_evicting(self, offset: int) -> None:
        """Take a block off the list (daemon), once its header says EVICTED or it stays after all."""
        control = self._control
        slots = control[1 : 1 + control[0]].tolist()
        if offset in slots:
            slots[slots.index(offset)] = 0
            control[1 + control[1 : 1 + control[0]].tolist().index(offset)] = 0
        while slots and slots[-1] == 0:
            slots.pop()
        control[0] = len(slots)
