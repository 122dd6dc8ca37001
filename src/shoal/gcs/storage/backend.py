"""What the GCS asks of a place that keeps its tables.

Purpose: the seam between the tables, which live in memory and decide, and durability.

Design: rows are bytes under (table, key). The GCS commits the writes of one or more transitions at once, and sends what depends on them only
after `commit` returned. It reads when it starts (`scan`), and single rows that it did not keep in memory (`get`). Coroutines, because some
backends are on a network; the shard itself never waits inside a transition.

How to extend: implement `Backend`, give it a name in `open_backend`, and add it to tests/gcs/test_storage_conformance.py.

What it does not do: know what is in a row.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from shoal.protocol.storage_names import check_storage

#: the file of "sqlite" without a path, in the session's folder
SESSION_FILE = "gcs.sqlite"
#: the table of what the server itself notes: under the empty key the session whose rows these are, under HEAD_KEY where its head's GCS listens
SESSION_TABLE = "session"
HEAD_KEY = b"head"


@dataclass(slots=True)
class Write:
    """One row becomes `value`; None deletes it."""

    table: str
    key: bytes
    value: bytes | None


class Unclaimed:
    """For a backend that only one session can open: there is nobody to be kept from writing."""

    #: whether another session's server may go on with the rows
    is_kept = False
    #: seconds between `renew`s; 0: never
    renew_s = 0.0

    async def claim(self, session: bytes, fresh: bool) -> None:
        """There is nobody else."""

    async def renew(self) -> None:
        """There is nobody else."""

    async def release(self, tables: Sequence[str]) -> None:
        """There is nobody else."""


class StorageError(Exception):
    """The backend cannot do what was asked; the text says why and what to do."""


class StorageAwayError(StorageError):
    """It does not answer, and may do so later."""


class ClaimRefusedError(StorageError):
    """Another session's server has what was to be claimed: trying again is no use."""


class Backend(Protocol):
    """A store of rows. All methods raise StorageError when the backend fails."""

    async def commit(self, writes: Sequence[Write]) -> None:
        """Make all writes durable, in order, or none of them."""

    async def get(self, table: str, key: bytes) -> bytes | None:
        """One row, None if there is none."""

    async def scan(self, table: str) -> list[tuple[bytes, bytes]]:
        """All (key, value) of a table, ordered by key."""

    #: whether another session's server may go on with the rows
    is_kept: bool
    #: seconds between `renew`s of what was claimed; 0: never
    renew_s: float

    async def claim(self, session: bytes, fresh: bool) -> None:
        """Be the only one that commits, from now on: a commit of whoever claimed before fails.

        Args:
            session: whose server this is: another one of the same session may always claim.
            fresh: the session begins, so it may take over the rows of one that is lost (`is_kept`).

        Raises:
            ClaimRefusedError: another session's server lives, or has taken over.
        """

    async def renew(self) -> None:
        """Say that this server lives. Raises ClaimRefusedError when another one has claimed since, StorageError when nobody can be told."""

    async def release(self, tables: Sequence[str]) -> None:
        """The session ends in order: drop these tables, and the claim."""

    async def close(self) -> None:
        """Release what the backend holds; nothing is called after this."""


def open_backend(storage: str, folder: str = ".", shard: int = 0) -> Backend:
    """The backend that `storage` names.

    Args:
        folder: the session's: where a file is that has no path of its own.
        shard: of the GCS; each has rows of its own: a file "PATH.1" beside the first one, a prefix "NAME.1".

    Raises:
        StorageError: nothing is known under this name, or it cannot be opened.
    """
    try:
        scheme, _, rest = check_storage(storage).partition(":")
    except ValueError as error:
        raise StorageError(str(error)) from None
    suffix = f".{shard}" if shard else ""
    if scheme == "memory":
        from shoal.gcs.storage.memory import MemoryBackend

        return MemoryBackend()
    if scheme == "sqlite":
        from shoal.gcs.storage.sqlite import SqliteBackend

        if not rest:
            return SqliteBackend(os.path.join(folder, SESSION_FILE) + suffix)
        path, _, option = rest.partition("?")
        name, _, value = option.partition("=")
        if option and name != "synchronous":
            raise StorageError(f"GCS storage {storage!r} has an unknown option {name!r}; there is 'synchronous'")
        return SqliteBackend(os.path.abspath(path) + suffix, value.lower() or "normal", is_kept=True)
    from shoal.gcs.storage.redis import RedisBackend

    return RedisBackend(storage, suffix)


def try_backend(storage: str) -> None:
    """Open what `storage` names, read from it and close it again. In a thread: the caller may have a loop that runs.

    Raises:
        StorageError: it cannot be used.
    """
    failures: list[BaseException] = []

    async def read() -> None:
        backend = open_backend(storage)
        try:
            await backend.get(SESSION_TABLE, b"")
        finally:
            await backend.close()

    def run() -> None:
        try:
            asyncio.run(read())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)  # Ctrl-C does not wait for it
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
