"""How a serialized value with large parts lies in memory.

Purpose: one contiguous blob for a pickle and the buffers that it left out, readable without copying them.

Design: the first byte tells the kind. A pickle of protocol 5 starts with 0x80 and is its own blob; the others are

    0x01  bytes       marker, 63 bytes of nothing, payload
    0x02  bytearray   the same
    0x03  container   marker, 3 zero bytes, u32 count, u64 head size, count x u64 buffer size, head (a pickle), then each
                      buffer at the next multiple of 64 from the start of the blob

so arrays in the store, whose payloads start at a multiple of 64, are aligned for every vector instruction. All integers are
little-endian.

What it does not do: pickling (`values`), or memory that others write to: whoever passes a view promises that it stays.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

PICKLE_MARK = 0x80
BYTES_MARK = 0x01
BYTEARRAY_MARK = 0x02
CONTAINER_MARK = 0x03
ALIGN_BYTES = 64

_HEADER = struct.Struct("<B3xIQ")
_HEADER_BYTES = _HEADER.size
_ONE_BUFFER = struct.Struct("<B3xIQQ")
assert _HEADER_BYTES == 16


class Serialized:
    """A value in parts, before it is written: `head` bytes, then `buffers`, each at its offset.

    The buffers are views of the user's memory: write them before the user can change it.
    """

    __slots__ = ("buffers", "head", "offsets", "total_bytes")

    def __init__(self, head: bytes, buffers: list[memoryview], offsets: list[int]) -> None:
        self.head = head  #: header and pickle, at offset 0
        self.buffers = buffers  #: flat, contiguous, format B
        self.offsets = offsets  #: where each buffer begins
        self.total_bytes = offsets[-1] + buffers[-1].nbytes  #: size of the blob

    def write_into(self, target: memoryview) -> None:
        """Write the blob to the first `total_bytes` of `target`. Gaps between parts are not written."""
        head = self.head
        target[: len(head)] = head
        for offset, buffer in zip(self.offsets, self.buffers, strict=True):
            target[offset : offset + buffer.nbytes] = buffer

    def to_bytes(self) -> bytes:
        """The blob as one bytes object."""
        parts: list[bytes | memoryview] = [self.head]
        position = len(self.head)
        for offset, buffer in zip(self.offsets, self.buffers, strict=True):
            if offset > position:
                parts.append(bytes(offset - position))
            parts.append(buffer)
            position = offset + buffer.nbytes
        return b"".join(parts)

    def __len__(self) -> int:
        return self.total_bytes


def raw_parts(mark: int, payload: bytes | bytearray) -> Serialized:
    """`payload` without a pickle around it."""
    return Serialized(bytes((mark,)) + bytes(ALIGN_BYTES - 1), [memoryview(payload)], [ALIGN_BYTES])


def container_parts(head: bytes, buffers: Sequence[memoryview]) -> Serialized:
    """A pickle and its buffers."""
    count = len(buffers)
    sizes = [buffer.nbytes for buffer in buffers]
    if count == 1:
        head = _ONE_BUFFER.pack(CONTAINER_MARK, 1, len(head), sizes[0]) + head
    else:
        head = _HEADER.pack(CONTAINER_MARK, count, len(head)) + struct.pack(f"<{count}Q", *sizes) + head
    position = len(head)
    offsets = []
    for size in sizes:
        position = -(-position // ALIGN_BYTES) * ALIGN_BYTES
        offsets.append(position)
        position += size
    return Serialized(head, list(buffers), offsets)


def split_container(view: memoryview) -> tuple[memoryview, list[memoryview]]:
    """The pickle and the buffers of a container, as views.

    Raises:
        ValueError: the sizes do not fit the blob.
    """
    total = view.nbytes
    if total < _HEADER_BYTES:
        raise ValueError(f"a container of {total} bytes is cut short")
    _, count, head_bytes = _HEADER.unpack_from(view)
    position = _HEADER_BYTES + 8 * count
    if position + head_bytes > total:
        raise ValueError(f"a container of {total} bytes is cut short: its head ends at {position + head_bytes}")
    sizes = struct.unpack_from(f"<{count}Q", view, _HEADER_BYTES)
    head = view[position : position + head_bytes]
    position += head_bytes
    buffers = []
    for size in sizes:
        position = -(-position // ALIGN_BYTES) * ALIGN_BYTES
        buffers.append(view[position : position + size])
        position += size
    if position > total:
        raise ValueError(f"a container of {total} bytes is cut short: its buffers end at {position}")
    return head, buffers
