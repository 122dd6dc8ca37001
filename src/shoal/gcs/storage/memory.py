"""The reference backend: rows in dictionaries, gone with the process. What it does is what the others must do."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.gcs.storage.backend import Unclaimed, Write


class MemoryBackend(Unclaimed):
    """Rows in memory."""

    def __init__(self) -> None:
        #: table -> key -> value; no table is empty
        self._tables: dict[str, dict[bytes, bytes]] = {}

    async def commit(self, writes: Sequence[Write]) -> None:
        """Apply all writes; nothing can fail between the first and the last."""
        for write in writes:
            if write.value is not None:
                self._tables.setdefault(write.table, {})[write.key] = write.value
            elif (rows := self._tables.get(write.table)) is not None:
                rows.pop(write.key, None)
                if not rows:
                    del self._tables[write.table]

    async def get(self, table: str, key: bytes) -> bytes | None:
        """One row."""
        return self._tables.get(table, {}).get(key)

    async def scan(self, table: str) -> list[tuple[bytes, bytes]]:
        """All rows, ordered by key."""
        return sorted(self._tables.get(table, {}).items())

    async def close(self) -> None:
        """Nothing to release."""
