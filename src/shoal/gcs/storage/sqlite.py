"""Rows in one SQLite file: the durable default.

Purpose: the GCS server may be killed at any moment, and the next one knows all that was acknowledged.

Design: one table of rows, a commit is one transaction, WAL mode, and the file is locked by the one server that has it open (so no shared-memory
index is needed, and a second server on the same file is an error, not a mixture). What may be lost depends on what dies:

    what dies                       off             normal                          full
    the process (kill -9)           nothing         nothing                         nothing
    the machine (power, kernel)     everything:     the last commits (those since   nothing that was acknowledged
                                    the file may    the last checkpoint); the
                                    be damaged      file stays whole
    cost of a small commit          10 us           80 us (a thread; fsync only     250 us and more: an
                                                    at checkpoints)                 fsync each

`off` is safe against the death of the process, because what was handed to the kernel by `write` is the kernel's to keep, and a transaction of
which only a part was written fails its checksums and is left out when the file is opened again. It is what a file in the session's folder
needs: the session does not outlive the machine. A file elsewhere is there to be kept: `normal`.

A file elsewhere also outlives its session: when that was not ended in order (`release`), the server of another one goes on with its rows. That is
another session's for good then: `claim` refuses a server of the first, should that live on. While its node does, another session's is refused.

Names, as in `init(_system={"gcs_storage": ...})`: "sqlite" (in the session's folder, off), "sqlite:PATH", "sqlite:PATH?synchronous=full".

How to extend: the layout has a version (`user_version`); a file of another version is refused.

What it does not do: share a file between servers, replicate.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Sequence
from typing import TypeVar

from shoal.gcs.storage.backend import HEAD_KEY, SESSION_TABLE, ClaimRefusedError, StorageError, Unclaimed, Write
from shoal.system.sockets import is_listened_at

LAYOUT_VERSION = 1
NODE_SOCKET = "node.sock"  #: in the folder of a session, which is its name
SYNCHRONOUS = ("off", "normal", "full")
#: a killed server's locks go with it, but it may still be dying
LOCK_WAIT_S = 5.0

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS rows (kind TEXT, key BLOB, value BLOB NOT NULL, PRIMARY KEY (kind, key)) WITHOUT ROWID"
)
_PUT = "INSERT INTO rows VALUES (?, ?, ?) ON CONFLICT (kind, key) DO UPDATE SET value = excluded.value"
_DELETE = "DELETE FROM rows WHERE kind = ? AND key = ?"

Result = TypeVar("Result")


class SqliteBackend(Unclaimed):
    """Rows in the file `path`, made if it is not there.

    Args:
        synchronous: "off", "normal" or "full": see the top.
        is_kept: it is no session's own file.

    Raises:
        StorageError: the file cannot be opened, is another program's, or another server uses it.
    """

    def __init__(self, path: str, synchronous: str = "off", is_kept: bool = False) -> None:
        if synchronous not in SYNCHRONOUS:
            raise StorageError(f"synchronous={synchronous!r}: it is one of {', '.join(SYNCHRONOUS)}")
        self._path = path
        self.is_kept = is_kept
        #: commits that wait for the disk must not stop the server's loop
        self._in_thread = synchronous != "off"
        former_mask = os.umask(0o077)
        try:
            self._connection = sqlite3.connect(
                path, timeout=LOCK_WAIT_S, isolation_level=None, check_same_thread=False, cached_statements=8
            )
            self._prepare(synchronous)
        except sqlite3.Error as error:
            raise StorageError(self._explained("opened", error)) from error
        finally:
            os.umask(former_mask)

    def _prepare(self, synchronous: str) -> None:
        run = self._connection.execute
        run("PRAGMA locking_mode = EXCLUSIVE")
        run("PRAGMA journal_mode = WAL")
        run(f"PRAGMA synchronous = {synchronous}")
        [version] = run("PRAGMA user_version").fetchone()
        if version not in (0, LAYOUT_VERSION):
            raise StorageError(
                f"{self._path} has layout {version} of the GCS's tables, this version of shoal knows {LAYOUT_VERSION}: "
                "use another file, or the version that wrote it"
            )
        run("BEGIN IMMEDIATE")
        run(_SCHEMA)
        run(f"PRAGMA user_version = {LAYOUT_VERSION}")
        run("COMMIT")

    async def claim(self, session: bytes, fresh: bool) -> None:
        """The file's lock keeps others from writing now; what is kept may have become another session's before.

        Raises:
            ClaimRefusedError: it has, or the node of the session whose it is lives.
        """
        former = await self.get(SESSION_TABLE, b"") if self.is_kept else None
        if not former or former == session:
            return
        if not fresh:
            raise ClaimRefusedError(
                f"another head has taken over the tables in {self._path}: that of {former.decode()}"
            )
        if await asyncio.to_thread(is_listened_at, os.path.join(former.decode(), NODE_SOCKET)):
            raise ClaimRefusedError(
                f"the tables in {self._path} are those of a cluster whose head runs, in {former.decode()}: end it first (shoal stop), "
                "or give another file"
            )

    async def release(self, tables: Sequence[str]) -> None:
        """The session ends in order: nobody shall go on with it."""
        if self.is_kept:
            await self._do("written", lambda: self._drop(tables))

    def _drop(self, tables: Sequence[str]) -> None:
        writes = [Write(SESSION_TABLE, key, None) for key in (b"", HEAD_KEY)]
        for table in tables:
            writes += [Write(table, key, None) for key, _ in self._select("kind = ?", (table,))]
        self._commit(writes)

    async def commit(self, writes: Sequence[Write]) -> None:
        """All writes in one transaction.

        Raises:
            StorageError: the disk is full or broken; nothing was written.
        """
        await self._do("written", lambda: self._commit(writes))

    def _commit(self, writes: Sequence[Write]) -> None:
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            for write in writes:
                if write.value is None:
                    connection.execute(_DELETE, (write.table, write.key))
                else:
                    connection.execute(_PUT, (write.table, write.key, write.value))
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    async def get(self, table: str, key: bytes) -> bytes | None:
        """One row."""
        found = await self._do("read", lambda: self._select("kind = ? AND key = ?", (table, key)))
        return found[0][1] if found else None

    async def scan(self, table: str) -> list[tuple[bytes, bytes]]:
        """All rows, ordered by key."""
        return await self._do("read", lambda: self._select("kind = ? ORDER BY key", (table,)))

    def _select(self, where: str, values: tuple[str | bytes, ...]) -> list[tuple[bytes, bytes]]:
        return self._connection.execute(f"SELECT key, value FROM rows WHERE {where}", values).fetchall()

    async def close(self) -> None:
        """Let go of the file; what is in the log beside it goes into it."""
        self._connection.close()

    async def _do(self, what: str, work: Callable[[], Result]) -> Result:
        try:
            return await asyncio.to_thread(work) if self._in_thread else work()
        except sqlite3.Error as error:
            raise StorageError(self._explained(what, error)) from error

    def _explained(self, what: str, error: sqlite3.Error) -> str:
        hint = ""
        text = str(error)
        if "locked" in text:
            hint = ": another GCS server uses it; give each session a file of its own"
        elif "full" in text:
            hint = ": make room on the disk, or give another file by init(_system={'gcs_storage': 'sqlite:PATH'})"
        return f"the file {self._path} of the GCS's tables cannot be {what}: {error}{hint}"
