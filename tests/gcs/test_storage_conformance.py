"""What every storage backend of the GCS must do. A new backend is added to BACKENDS and to nothing else."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.gcs.redis_servers import SERVICE, ReplicaSet, replica_set, running_redis

from shoal.gcs.storage.backend import Backend, StorageError, Write, open_backend
from shoal.gcs.storage.memory import MemoryBackend
from shoal.gcs.storage.sqlite import SqliteBackend
from shoal.protocol.storage_names import check_storage

#: what each is opened by; {folder} is a folder of the test's own
BACKENDS = {
    "memory": "memory",
    "sqlite": "sqlite",
    "sqlite-full": "sqlite:{folder}/full.sqlite?synchronous=full",
    "redis": "unix://{folder}/redis.sock?prefix=test",
    "sentinel": "redis+sentinel://127.0.0.1:{port}/{service}?prefix=test",
}
DURABLE = [name for name in BACKENDS if name != "memory"]

Make = Callable[[], Backend]


@pytest.fixture
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Opens the backend of `request.param`, each time on the same rows where these outlive the object."""
    name = request.param
    servers = {"redis": running_redis, "sentinel": replica_set}.get(name, nullcontext)
    with servers(tmp_path) as running:  # type: ignore[operator]
        replicas = running if isinstance(running, ReplicaSet) else None
        places = {"folder": tmp_path} if replicas is None else {"port": replicas.sentinel_port, "service": SERVICE}
        yield lambda: open_backend(BACKENDS[name].format(**places), str(tmp_path))


every_backend = pytest.mark.parametrize("make", BACKENDS, indirect=True)
every_durable_backend = pytest.mark.parametrize("make", DURABLE, indirect=True)


def running(make: Make, body: Callable[[Backend], Any]) -> None:
    async def run() -> None:
        backend = make()
        try:
            await body(backend)
        finally:
            await backend.close()

    asyncio.run(run())


@every_backend
def test_a_row_is_read_back(make: Make) -> None:
    async def body(backend: Backend) -> None:
        assert await backend.get("t", b"k") is None
        await backend.commit([Write("t", b"k", b"v"), Write("u", b"k", b"w")])
        assert await backend.get("t", b"k") == b"v"
        assert await backend.get("u", b"k") == b"w"
        assert await backend.get("t", b"") is None

    running(make, body)


@every_backend
def test_later_writes_of_a_commit_win(make: Make) -> None:
    async def body(backend: Backend) -> None:
        await backend.commit([Write("t", b"k", b"1"), Write("t", b"k", None), Write("t", b"k", b"2")])
        assert await backend.get("t", b"k") == b"2"
        await backend.commit([Write("t", b"k", b"3"), Write("t", b"k", None)])
        assert await backend.get("t", b"k") is None

    running(make, body)


@every_backend
def test_deleting_what_is_not_there_is_no_error(make: Make) -> None:
    async def body(backend: Backend) -> None:
        await backend.commit([Write("t", b"k", None)])
        await backend.commit([])
        assert await backend.scan("t") == []

    running(make, body)


@every_backend
def test_empty_and_binary_keys_and_values(make: Make) -> None:
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
def test_commits_agree_with_a_dictionary(make: Make, commits: list[list[tuple[str, bytes, bytes | None]]]) -> None:
    async def body(backend: Backend) -> None:
        for table in ("t", "u"):  # rows of the example before
            await backend.commit([Write(table, key, None) for key, _ in await backend.scan(table)])
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


@every_backend
def test_a_large_commit(make: Make) -> None:
    async def body(backend: Backend) -> None:
        await backend.commit([Write("t", number.to_bytes(4, "big"), b"v" * 100) for number in range(3000)])
        rows = await backend.scan("t")
        assert [int.from_bytes(key, "big") for key, _ in rows] == list(range(3000))

    running(make, body)


@every_durable_backend
def test_rows_outlive_the_backend(make: Make) -> None:
    async def write(backend: Backend) -> None:
        await backend.commit([Write("t", b"k", b"v"), Write("t", b"l", b"w")])
        await backend.commit([Write("t", b"l", None)])

    async def read(backend: Backend) -> None:
        assert await backend.scan("t") == [(b"k", b"v")]

    running(make, write)
    running(make, read)


#: writes commits of 3 rows each and says their numbers when they are acknowledged
WRITER = """
import asyncio, sys
from shoal.gcs.storage.backend import Write, open_backend

async def main(name, folder, number):
    backend = open_backend(name, folder)
    while True:
        number += 1
        row = number.to_bytes(8, "big")
        await backend.commit([Write("t", b"%d" % part + row, row * 50) for part in range(3)] + [Write("u", b"last", row)])
        sys.stdout.write(f"{number}\\n")
        sys.stdout.flush()

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


@every_durable_backend
def test_a_killed_writer_loses_nothing_that_was_acknowledged(
    make: Make, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if request.node.callspec.params["make"] == "sentinel":
        pytest.skip("its servers are killed in test_redis_sentinel")
    name = BACKENDS[request.node.callspec.params["make"]].format(folder=tmp_path)
    dice = random.Random(1)
    acknowledged = 0
    for _ in range(4):
        arguments = [sys.executable, "-c", WRITER, name, str(tmp_path), str(acknowledged)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, env={**os.environ}) as writer:
            assert writer.stdout is not None
            lines = [writer.stdout.readline()]
            time.sleep(dice.uniform(0.0, 0.03))
            writer.send_signal(signal.SIGKILL)
            lines += writer.stdout.readlines()
        whole = [int(line) for line in lines if line.endswith(b"\n")]
        assert whole, "the writer did not start"
        acknowledged = whole[-1]

        async def check(backend: Backend) -> None:
            nonlocal acknowledged
            [(_, last)] = await backend.scan("u")
            stored = int.from_bytes(last, "big")
            assert stored >= acknowledged
            rows = dict(await backend.scan("t"))
            expected = [b"%d" % part + n.to_bytes(8, "big") for part in range(3) for n in range(1, stored + 1)]
            assert sorted(rows) == sorted(expected), "a commit is there in part, or missing"
            assert all(value == key[1:] * 50 for key, value in rows.items())
            acknowledged = stored

        running(make, check)


def test_a_file_has_one_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.gcs.storage.sqlite.LOCK_WAIT_S", 0.05)

    async def body(backend: Backend) -> None:
        with pytest.raises(StorageError, match="another GCS server"):
            SqliteBackend(str(tmp_path / "f"))

    running(lambda: SqliteBackend(str(tmp_path / "f")), body)


def test_a_file_is_private_and_no_other_programs(tmp_path: Path) -> None:
    path = tmp_path / "f"
    running(lambda: SqliteBackend(str(path)), lambda backend: backend.commit([Write("t", b"", b"")]))
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(b"this is no database, " * 100)
    with pytest.raises(StorageError, match="not a database"):
        SqliteBackend(str(path))
    with pytest.raises(StorageError, match=r"unable to open.*"):
        SqliteBackend(str(tmp_path / "no" / "such" / "folder"))


def test_a_full_disk_is_an_error_and_loses_nothing(tmp_path: Path) -> None:
    async def body(backend: Backend) -> None:
        assert isinstance(backend, SqliteBackend)
        await backend.commit([Write("t", b"k", b"v")])
        backend._connection.execute("PRAGMA max_page_count = 10")
        with pytest.raises(StorageError, match="make room"):
            await backend.commit([Write("t", b"l", b"x" * 1_000_000)])
        assert await backend.scan("t") == [(b"k", b"v")]
        await backend.commit([Write("t", b"m", b"v")])

    running(lambda: SqliteBackend(str(tmp_path / "f")), body)


def test_an_unreachable_redis_is_an_error_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("redis", reason="redis-py is not installed (pip install 'shoal[redis]')")
    monkeypatch.setattr("shoal.gcs.storage.redis.RETRY_S", 0.1)

    async def body(backend: Backend) -> None:
        with pytest.raises(StorageError, match="Is it running"):
            await backend.commit([Write("t", b"k", b"v")])

    running(lambda: open_backend(f"unix://{tmp_path}/none.sock"), body)


def test_backends_are_opened_by_name(tmp_path: Path) -> None:
    assert isinstance(open_backend("memory"), MemoryBackend)
    for wrong in ("papyrus", "sqlite:", "", "redis:"):
        with pytest.raises(StorageError, match="'memory'"):
            open_backend(wrong)
    with pytest.raises(TypeError, match="gcs_storage"):
        check_storage(7)
    with pytest.raises(StorageError, match="synchronous"):
        open_backend(f"sqlite:{tmp_path}/f?journal=off")
    with pytest.raises(StorageError, match="one of off"):
        open_backend(f"sqlite:{tmp_path}/f?synchronous=perhaps")
