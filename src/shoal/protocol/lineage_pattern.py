"""The lineage of many tasks of one template in one message: what they share, and what each has of its own.

Purpose: refs to pending tasks escape by the dozen; each needs a TaskLineage, and these differ in the TaskID and in short arguments.

Design: a *pattern* is an encoded TaskLineage without these two, with the places (`cuts`) where they belong. Whoever needs a lineage fills it; few are
ever needed.

What it does not do: make patterns (`runtime.closures`).
"""

from __future__ import annotations

ARGUMENTS_BYTES_MAX = 255  #: as msgpack writes their length in one byte
_BIN_8 = 0xC4  #: msgpack: a byte with the length follows, then so many bytes


def fill(pattern: bytes, cuts: tuple[int, int], task_id: bytes, arguments: bytes) -> bytes:
    """The lineage of one task, as if all of it had been encoded."""
    first, second = cuts
    header = bytes((_BIN_8, len(arguments)))
    return b"".join((pattern[:first], task_id, pattern[first:second], header, arguments, pattern[second:]))
