"""Rows in a Redis or Valkey server, or in a set of them that fails over by Sentinel: for a GCS whose machine may be lost.

Purpose: durability and replication by an engine that has both. Needs redis-py (`pip install shoal[redis]`).

Design: a hash per table, `<prefix>:<table>`, a commit is one MULTI/EXEC. All tables of a session are in one database and none is split, so a
commit is whole in a single server and in one with replicas. While no server can be reached a commit is tried again for `RETRY_S`: its writes set
and delete rows, so doing them twice does no harm.

    redis://HOST:PORT/DB?prefix=NAME                              one server; also rediss:// (TLS), unix:///path/of/its.sock
    redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DB?prefix=NAME   the primary of a service, as these sentinels name it

What is lost when a server dies. Alone: what its own setting says (`appendonly yes` with `appendfsync everysec` at most a second, `always`
nothing). With Sentinel: nothing that was acknowledged, because a commit ends with WAIT until a replica has it; but while no replica answers
(REPLICA_WAIT_MS, once, and a warning says so) a commit is the primary's alone, and lost with it. A primary that is cut off from its sentinels
must not go on alone: give it `min-replicas-to-write 1`. Fail-over takes what Sentinel's `down-after-milliseconds` says; SENTINEL_RETRY_S is
waited for it, while running work goes on.

One server writes at a time. Who `claim`s gets a higher number (`<prefix>:epoch`), and a commit under a lower one is refused by the Redis server
itself (a script compares and writes in one step), however late it comes; one that comes a second time, after others, does nothing
(`<prefix>:commits`). `<prefix>:alive` says for LEASE_S (`&lease=SECONDS` in the URL) that the claimer lives: another session's server takes over
only when it is gone.

What it does not do: start a server, or decide a fail-over (Sentinel does).
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from shoal.gcs.storage.backend import SESSION_TABLE, ClaimRefusedError, StorageAwayError, StorageError, Write
from shoal.protocol.storage_names import SENTINEL_SCHEME

PREFIX = "shoal"
RETRY_S = 5.0
SENTINEL_RETRY_S = 60.0
TOLD_AFTER_S = 1.0  #: a server that is away is a line in the log
TIMEOUT_S = 5.0
SENTINEL_TIMEOUT_S = 1.0
REPLICA_WAIT_MS = 1000
#: with no replica to wait for a commit asks, and goes on
REPLICA_GLANCE_MS = 1
PAUSE_MAX_S = 0.5
LEASE_S = 5.0
RENEWALS = 5  #: within that time
#: renewals seen that say that a claimer lives: one may have been on its way when its server was killed
SIGNS_OF_LIFE = 2
LOOK_S = 0.1
#: a process that stood still finds all its time gone at once: that alone does not say that nobody answers
ATTEMPTS_MIN = 3
#: KEYS: epoch, alive, session row's table, commits. ARGV: session, whether it begins, lease in ms. The new epoch, or why not
_CLAIM = """
local alive, former = redis.call('get', KEYS[2]), redis.call('hget', KEYS[3], '')
if alive and alive ~= ARGV[1] then return 'alive' end
if former and former ~= ARGV[1] and ARGV[2] == '0' then return 'taken' end
redis.call('set', KEYS[2], ARGV[1], 'PX', ARGV[3])
redis.call('set', KEYS[4], 0)
return redis.call('incr', KEYS[1])
"""
_FENCE = "if redis.call('get', KEYS[1]) ~= ARGV[1] then return redis.error_reply('FENCED') end\n"
#: KEYS: epoch, alive. ARGV: own epoch, session, lease in ms
_RENEW = _FENCE + "return redis.call('set', KEYS[2], ARGV[2], 'PX', ARGV[3])"
#: KEYS: epoch, alive, session row's table, then the tables to drop. ARGV: own epoch
_RELEASE = (
    _FENCE
    + """
redis.call('hdel', KEYS[3], '', 'head')
redis.call('del', KEYS[2])
for n = 4, #KEYS do redis.call('del', KEYS[n]) end
return 1
"""
)
#: KEYS: epoch, commits, then tables. ARGV: own epoch, number of the commit, then for each write: the number of its table among KEYS, 0 to
#: delete, key, value. One that was given up and done again may still arrive, later than those after it: it is known by its number
_COMMIT = (
    _FENCE
    + """
if tonumber(redis.call('get', KEYS[2]) or 0) >= tonumber(ARGV[2]) then return 0 end
redis.call('set', KEYS[2], ARGV[2])
for n = 3, #ARGV, 4 do
  local table, key = KEYS[tonumber(ARGV[n])], ARGV[n + 2]
  if ARGV[n + 1] == '0' then redis.call('hdel', table, key) else redis.call('hset', table, key, ARGV[n + 3]) end
end
return 1
"""
)
#: refusals that end by themselves: a primary that is being replaced, or has just begun
_PASSING = ("NOREPLICAS", "READONLY", "LOADING", "MASTERDOWN", "TRYAGAIN", "CLUSTERDOWN")

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
        try:
            lease_s = float(options.pop("lease", LEASE_S))
        except ValueError as error:
            raise StorageError(f"GCS storage {url!r}: lease=SECONDS, not {error}") from None
        self._shown = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))
        self._lost: tuple[type[BaseException], ...] = (
            redis.exceptions.ConnectionError,
            redis.exceptions.TimeoutError,
            OSError,
        )
        self._error: type[BaseException] = redis.exceptions.RedisError
        #: whether commits wait for a replica
        self._replicated = parts.scheme == SENTINEL_SCHEME
        #: the last commit found one
        self._has_replica = True
        self._lease_s = lease_s
        self.is_kept = True
        self.renew_s = lease_s / RENEWALS
        #: as `claim` was told, and its number; empty before
        self._session = b""
        self._epoch = b""
        #: the last commit under that
        self._commit_no = 0
        self._retry_s = SENTINEL_RETRY_S if self._replicated else RETRY_S
        self._sentinel: Any = None
        try:
            if self._replicated:
                self._client: Any = self._find_primary(parts)
            else:
                self._client = redis.asyncio.Redis.from_url(
                    urlunsplit(parts._replace(query=urlencode(options))),
                    socket_timeout=TIMEOUT_S,
                    socket_connect_timeout=TIMEOUT_S,
                )
        except (ValueError, redis.exceptions.RedisError) as error:
            raise StorageError(f"GCS storage {self._shown!r}: {error}") from error

    def _find_primary(self, parts: SplitResult) -> Any:
        """A client that asks the sentinels for the primary at every new connection."""
        from redis.asyncio.retry import Retry
        from redis.asyncio.sentinel import Sentinel
        from redis.backoff import NoBackoff

        login, _, hosts = parts.netloc.rpartition("@")
        addresses = []
        for address in hosts.split(","):
            host, _, port = address.rpartition(":")
            if not host or not port.isdigit():
                raise ValueError(f"sentinels are written HOST:PORT,HOST:PORT, got {address!r}")
            addresses.append((host.removeprefix("[").removesuffix("]"), int(port)))
        service, _, database = parts.path.strip("/").partition("/")
        if not service or (database and not database.isdigit()):
            raise ValueError(
                "after the sentinels comes the name of the service, as in redis+sentinel://HOST:PORT/mymaster"
            )
        options: dict[str, Any] = {"socket_timeout": TIMEOUT_S, "socket_connect_timeout": SENTINEL_TIMEOUT_S}
        user, _, password = login.rpartition(":")
        if login:
            options |= {"username": unquote(user) or None, "password": unquote(password)}
        # A sentinel may be gone with the machine of the primary: then the next one is asked, at once (redis-py would ask ten times).
        asked_once: dict[str, Any] = {
            "socket_timeout": SENTINEL_TIMEOUT_S,
            "socket_connect_timeout": SENTINEL_TIMEOUT_S,
            "retry": Retry(NoBackoff(), 0),
        }
        self._sentinel = Sentinel(  # type: ignore[no-untyped-call]
            addresses, sentinel_kwargs=asked_once, **options
        )
        return self._sentinel.master_for(service, db=int(database or 0))

    async def commit(self, writes: Sequence[Write]) -> None:
        """All writes in one MULTI/EXEC, and, where there are replicas, in one of them too.

        Raises:
            StorageError: the server refused (full, read-only), or could not be reached for RETRY_S.
        """
        if not writes:
            return
        self._commit_no += 1

        async def attempt() -> None:
            # Spelled out: the connection that wrote must be the one that waits.
            async with self._client.pipeline(transaction=False) as pipeline:
                if self._epoch:
                    self._add_fenced(pipeline, writes)
                else:
                    self._add_plain(pipeline, writes)
                if self._replicated:
                    pipeline.execute_command("WAIT", 1, REPLICA_WAIT_MS if self._has_replica else REPLICA_GLANCE_MS)
                answers = await pipeline.execute()
            if self._replicated:
                self._note_replicas(int(answers[-1]))

        await self._retried(attempt)

    def _add_plain(self, pipeline: Any, writes: Sequence[Write]) -> None:
        pipeline.execute_command("MULTI")
        for write in writes:
            if write.value is None:
                pipeline.hdel(self._hash(write.table), write.key)
            else:
                pipeline.hset(self._hash(write.table), write.key, write.value)
        pipeline.execute_command("EXEC")

    def _add_fenced(self, pipeline: Any, writes: Sequence[Write]) -> None:
        keys = [self._key("epoch"), self._key("commits")]
        places: dict[str, int] = {}
        told: list[bytes | int] = [self._epoch, self._commit_no]
        for write in writes:
            if write.table not in places:
                keys.append(self._hash(write.table))
                places[write.table] = len(keys)
            told += [places[write.table], int(write.value is not None), write.key, write.value or b""]
        pipeline.execute_command("EVAL", _COMMIT, len(keys), *keys, *told)

    async def claim(self, session: bytes, fresh: bool) -> None:
        """Be the only one that commits; a claim that is not renewed any more is waited for.

        Raises:
            ClaimRefusedError: another session's server lives, or has taken over.
        """
        keys = [self._key("epoch"), self._key("alive"), self._hash(SESSION_TABLE), self._key("commits")]
        left_ms = renewals = 0
        while True:
            # Who begins, and waits for long without listening, would be taken for stuck.
            told: list[bytes | int] = [session, int(fresh), int(self._lease_s * 1000)]
            answer = await self._eval(_CLAIM, keys, told, min(RETRY_S, self._retry_s))
            if isinstance(answer, int):
                self._session, self._epoch, self._commit_no = session, b"%d" % answer, 0
                return
            if answer == b"taken":
                raise ClaimRefusedError(
                    f"another head has taken over the cluster of {self._shown} (prefix {self._prefix!r}): this one is of the past"
                )
            before_ms, left_ms = left_ms, await self._retried(lambda: self._client.pttl(keys[1]))
            renewals += bool(before_ms and left_ms > before_ms)
            if renewals == SIGNS_OF_LIFE:
                raise ClaimRefusedError(
                    f"the head of the cluster in {self._shown} (prefix {self._prefix!r}) lives: stop it first (`shoal stop` there), or give this one "
                    "another prefix"
                )
            await asyncio.sleep(LOOK_S)

    async def renew(self) -> None:
        """Say that this server lives. Raises StorageError when another one has claimed since."""
        keys = [self._key("epoch"), self._key("alive")]
        await self._eval(_RENEW, keys, [self._epoch, self._session, int(self._lease_s * 1000)])

    async def release(self, tables: Sequence[str]) -> None:
        """The session ends in order: drop these tables, and the claim."""
        keys = [self._key("epoch"), self._key("alive"), self._hash(SESSION_TABLE), *map(self._hash, tables)]
        await self._eval(_RELEASE, keys, [self._epoch])

    async def _eval(
        self, script: str, keys: Sequence[str], told: Sequence[bytes | int], retry_s: float | None = None
    ) -> Any:
        return await self._retried(lambda: self._client.eval(script, len(keys), *keys, *told), retry_s)

    def _note_replicas(self, count: int) -> None:
        if bool(count) != self._has_replica:
            self._has_replica = bool(count)
            state = (
                "has a replica again"
                if count
                else "has no replica that answers: what it acknowledges now is lost if it dies"
            )
            self._say(f"the primary of {self._shown} {state}")

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
        for sentinel in self._sentinel.sentinels if self._sentinel is not None else ():
            await sentinel.aclose()

    def _hash(self, table: str) -> str:
        return f"{self._prefix}:{table}"

    def _key(self, name: str) -> str:
        return f"{self._prefix}:{name}"

    def _say(self, text: str) -> None:
        print(f"shoal:gcs: {text}", file=sys.stderr, flush=True)

    async def _retried(self, attempt: Callable[[], Awaitable[Result]], retry_s: float | None = None) -> Result:
        loop = asyncio.get_running_loop()
        retry_s = self._retry_s if retry_s is None else retry_s
        deadline = loop.time() + retry_s
        tell_at = loop.time() + TOLD_AFTER_S
        told = False
        pause_s = 0.01
        attempts = 0
        while True:
            attempts += 1
            try:
                result = await attempt()
                if told:
                    self._say(f"the Redis server {self._shown} answers again")
                return result
            except self._lost as error:
                lost = error
            except self._error as error:
                if "FENCED" in str(error):
                    raise ClaimRefusedError(
                        f"another head has taken over the cluster of {self._shown} (prefix {self._prefix!r}): this one writes no more"
                    ) from None
                if not any(word in str(error) for word in _PASSING):  # it may be said by a script, or of a pipeline
                    raise StorageError(f"the Redis server {self._shown} refused: {error}") from error
                lost = error
            if not told and loop.time() >= tell_at:
                told = True
                self._say(f"the Redis server {self._shown} cannot be reached: {_reason(lost)}; trying again")
            if loop.time() >= deadline and attempts >= ATTEMPTS_MIN:
                raise StorageAwayError(
                    f"the Redis server {self._shown} could not be reached for {retry_s:g} s: {_reason(lost)}. Is it running?"
                ) from lost
            await asyncio.sleep(pause_s)
            pause_s = min(PAUSE_MAX_S, pause_s * 2)


def _reason(error: BaseException) -> str:
    return (str(error) or type(error).__name__).rstrip(".")
