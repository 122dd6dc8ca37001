"""What the storage of the GCS may be called: the names that users write, checked before anything is started.

    memory                               gone with the GCS server, and the session with it
    sqlite                               a file in the session's folder: the default
    sqlite:PATH                          a file that is kept; `?synchronous=off|normal|full` (gcs.storage.sqlite)
    redis://HOST:PORT/DB?prefix=NAME     a Redis or Valkey server; also rediss:// (TLS), unix:///path/of/its.sock
    redis+sentinel://HOST:PORT,HOST:PORT/SERVICE?prefix=NAME    the same with replicas, as its sentinels say (gcs.storage.redis)

With the last three another head goes on with the tables when the first is lost: with a file one on the same machine, as soon as no process of the
first has it open; with Redis one anywhere, and `&lease=SECONDS` after the prefix says when the first is taken for lost.

What it does not do: open anything (`gcs.storage.backend`).
"""

from __future__ import annotations

STORAGE_DEFAULT = "sqlite"
SENTINEL_SCHEME = "redis+sentinel"
REDIS_SCHEMES = ("redis", "rediss", "unix", SENTINEL_SCHEME)


def check_storage(storage: object) -> str:
    """The name, if it is one of those above.

    Raises:
        TypeError, ValueError: it is not; the text lists what there is.
    """
    if not isinstance(storage, str):
        raise TypeError(f"gcs_storage must be a string, got {storage!r} of type {type(storage).__name__}")
    scheme, _, rest = storage.partition(":")
    if storage in ("memory", "sqlite") or (rest and scheme in ("sqlite", *REDIS_SCHEMES)):
        return storage
    raise ValueError(
        f"there is no GCS storage {storage!r}; known are 'memory', 'sqlite' (a file in the session's folder), 'sqlite:PATH', "
        "'sqlite:PATH?synchronous=full', 'redis://HOST:PORT/DB?prefix=NAME', 'redis+sentinel://HOST:PORT,HOST:PORT/SERVICE?prefix=NAME'"
    )


def outlives_machine(storage: str) -> bool:
    """Whether a server on another machine can go on with what was committed."""
    return storage.partition(":")[0] in REDIS_SCHEMES


def outlives_session(storage: str) -> bool:
    """Whether another head, on the same machine at least, can go on with what was committed when its own was lost."""
    return outlives_machine(storage) or storage.startswith("sqlite:")


def outlives_server(storage: str) -> bool:
    """Whether what was committed is still there when the server that committed it was killed."""
    return storage != "memory"
