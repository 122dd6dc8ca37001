"""What every storage backend of the GCS must do. A new backend is added to BACKENDS and to nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.gcs.storage.backend import Backend, StorageError, Write, open_backend
from shoal.gcs.storage.memory import MemoryBackend

BACKENDS: dict[str, Callable[[], Backend]] = {"memory": MemoryBackend}

every_backend = pytest.mark.parametrize("make", BACKENDS.values(), ids=BACKENDS)


def running(make: Callable[[], Backend], body: Callable[[Backend], Any]) -> None:
    async def run() -> None:
        backend = make()
        try:
            await body(backend)
        finally:
            await backend.close()

    asyncio.run(run())


@every_backend
def test_a_row_is_read_back(make: Callable[[], Backend]) -> None:
    async def body(backend: Backend) -> None:
        assert await backend.get("t", b"k") is None
        await backend.commit([Write("t", b"k", b"v"), Write("u", b"k", b"w")])
        assert await backend.get("t", b"k") == b"v"
        assert await backend.get("u", b"k") == b"w"
        assert await backend.get("t", b"") is None

    running(make, body)


@every_backend
def test_later_writes_of_a_commit_win(make: Callable[[], Backend]) -> None:
    async def body(backend: Backend) -> None:
        await backend.commit([Write("t", b"k", b"1"), Write("t", b"k", None), Write("t", b"k", b"2")])
        assert await backend.get("t", b"k") == b"2"
        await backend.commit([Write("t", b"k", b"3"), Write("t", b"k", None)])
        assert await backend.get("t", b"k") is None

    running(make, body)


@every_backend
def test_deleting_what_is_not_there_is_no_error(make: Callable[[], Backend]) -> None:
    async def body(backend: Backend) -> None:
        await backend.commit([Write("t", b"k", None)])
        await backend.commit([])
        assert await backend.scan("t") == []

    running(make, body)


@every_backend
def test_empty_and_binary_keys_and_values(make: Callable[[], Backend]) -> None:
    rows = [
        (b"", b"empty key"),
        (b"\0", b""),
        (b"\0\xff'\"\\%_*", bytes(range(256))),
        (b"\xff" * 300, b"x" * (1 << 20)),
    ]

    async def body(backend: Backend) -> None:
        await backend.commit([Write("t", key, value) for key, value in reversed(rows)])
        assert await backend.scan("t") == sorted(rows)
        for key, value in rows:
            assert await backend.get("t", key) == value

    running(make, body)


WRITES = st.lists(
    st.lists(
        st.tuples(st.sampled_from(["t", "u"]), st.binary(max_size=2), st.none() | st.binary(max_size=3)), max_size=6
    ),
    max_size=12,
)


@every_backend
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(WRITES)
def test_commits_agree_with_a_dictionary(
    make: Callable[[], Backend], commits: list[list[tuple[str, bytes, bytes | None]]]
) -> None:
    async def body(backend: Backend) -> None:
        twin: dict[tuple[str, bytes], bytes] = {}
        for commit in commits:
            await backend.commit([Write(*write) for write in commit])
            for table, key, value in commit:
                if value is None:
                    twin.pop((table, key), None)
                else:
                    twin[table, key] = value
            for table in ("t", "u"):
                expected = sorted((key, value) for (other, key), value in twin.items() if other == table)
                assert await backend.scan(table) == expected

    running(make, body)


def test_backends_are_opened_by_name() -> None:
    assert isinstance(open_backend("memory"), MemoryBackend)
    with pytest.raises(StorageError, match="'memory'"):
        open_backend("papyrus")
