"""Which objects make room for others: a pure policy of the store's table.

Design: the least recently used first. Copies of other nodes' objects go before this node's own: they cost no disk, and are pulled again.

What it does not do: change anything (`store_table` does).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from shoal.node.store_rows import ObjectRow, SegmentRow
from shoal.store.segment import EVICTING_MAX

EVICTING_PER_SEGMENT_MAX = EVICTING_MAX // 2


def choose_victims(
    least_recent_first: list[ObjectRow],
    segments: Mapping[int, SegmentRow],
    pins: Collection[tuple[int, int]],
    wanted: int,
    spill_allowed: bool,
    disk_refuses: bool,
    spare_after: float,
) -> list[ObjectRow]:
    """Resident objects that nobody reads and whose room makes up `wanted` bytes, if there are so many.

    Args:
        disk_refuses: only what needs no writing may go.
        spare_after: what was asked for since then stays, so that its reader can pin it.
    """
    chosen: list[ObjectRow] = []
    if wanted <= 0:
        return chosen
    taken: dict[int, int] = {}
    candidates = [row for row in least_recent_first if row.copy_of]
    if spill_allowed:
        candidates += [row for row in least_recent_first if not row.copy_of]
    for row in candidates:
        if (
            row.gain == 0
            or (row.segment, row.offset) in pins
            or (disk_refuses and not row.file_generation and not row.copy_of)
            or row.used_at > spare_after
            or segments[row.segment].evicting + taken.get(row.segment, 0) >= EVICTING_PER_SEGMENT_MAX
        ):
            continue
        chosen.append(row)
        taken[row.segment] = taken.get(row.segment, 0) + 1
        wanted -= row.gain
        if wanted <= 0:
            break
    return chosen
