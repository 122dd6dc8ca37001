"""Rows in a Redis or Valkey server: for a GCS whose machine may be lost.

Purpose: durability and replication by an engine that has both. Needs redis-py (`pip install shoal[redis]`).

Design: a hash per table, `<prefix>:<table>`, a commit is one MULTI/EXEC. All tables of a session are in one database and none is split, so a
commit is whole in a single server and in one with replicas. What survives the death of the Redis server is its own setting:
`appendonly yes` with `appendfsync everysec` loses at most a second, `always` nothing. While it cannot be reached a commit is tried again for
`RETRY_S`: its writes set and delete rows, so doing them twice does no harm.

Name: "redis://HOST:PORT/DB?prefix=NAME" and others (`protocol.storage_names`), as redis-py reads it.

What it does not do: start a server, fail over (Sentinel does), or lock the prefix against a second GCS.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from shoal.gcs.storage.backend import StorageError, Write

PREFIX = "shoal"
RETRY_S = 5.0
TIMEOUT_S = 5.0

Result = TypeVar("Result")


class RedisBackend:
    """Rows in the server that `url` names, under its prefix and `suffix`.

    Raises:
        StorageError: redis-py is not installed, or the URL makes no sense.
    """

    def __init__(self, url: str, suffix: str = "") -> None:
        try:
            import redis.asyncio
            import redis.exceptions
        except ImportError as error:
            raise StorageError(f"GCS storage {url!r} needs redis-py: pip install 'shoal[redis]' ({error})") from error
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query))
        self._prefix = options.pop("prefix", PREFIX) + suffix
        self._url = urlunsplit(parts._replace(query=urlencode(options)))
        self._shown = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))
        self._lost: tuple[type[BaseException], ...] = (
            redis.exceptions.ConnectionError,
            redis.exceptions.TimeoutError,
            OSError,
        )
        self._error: type[BaseException] = redis.exceptions.RedisError
        try:
            self._client: Any = redis.asyncio.Redis.from_url(
                self._url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S
            )
        except (ValueError, redis.exceptions.RedisError) as error:
            raise StorageError(f"GCS storage {self._shown!r}: {error}") from error

    async def commit(self, writes: Sequence[Write]) -> None:
        """All writes in one MULTI/EXEC.

        Raises:
            StorageError: the server refused (full, read-only), or could not be reached for RETRY_S.
        """
        if not writes:
            return

        async def attempt() -> None:
            async with self._client.pipeline(transaction=True) as pipeline:
                for write in writes:
                    if write.value is None:
                        pipeline.hdel(self._hash(write.table), write.key)
                    else:
                        pipeline.hset(self._hash(write.table), write.key, write.value)
                await pipeline.execute()

        await self._retried(attempt)

    async def get(self, table: str, key: bytes) -> bytes | None:
        """One row."""
        value: bytes | None = await self._retried(lambda: self._client.hget(self._hash(table), key))
        return value

    async def scan(self, table: str) -> list[tuple[bytes, bytes]]:
        """All rows, ordered by key."""
        rows: dict[bytes, bytes] = await self._retried(lambda: self._client.hgetall(self._hash(table)))
        return sorted(rows.items())

    async def close(self) -> None:
        """End the connections."""
        await self._client.aclose()

    def _hash(self, table: str) -> str:
        return f"{self._prefix}:{table}"

    async def _retried(self, attempt: Callable[[], Awaitable[Result]]) -> Result:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + RETRY_S
        pause_s = 0.01
        while True:
            try:
                return await attempt()
            except self._lost as error:
                if loop.time() >= deadline:
                    raise StorageError(
                        f"the Redis server {self._shown} could not be reached for {RETRY_S:g} s: {error}. Is it running?"
                    ) from error
            except self._error as error:
                raise StorageError(f"the Redis server {self._shown} refused: {error}") from error
            await asyncio.sleep(pause_s)
            pause_s = min(0.5, pause_s * 2)
