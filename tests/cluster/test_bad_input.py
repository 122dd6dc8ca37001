"""What does not fit together says so, and what to do; nothing hangs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.engine.driver_process import SOURCE

import shoal
from shoal.launch.nodes import HeadOptions, NodeOptions, NodeStartError, start_head, start_node
from shoal.testing import Cluster
from shoal.wire import handshake

StartCluster = Callable[..., Cluster]


def test_other_versions_are_named_to_who_dials(start_cluster: StartCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = start_cluster()
    options = NodeOptions(token_path=cluster.token_path)
    protocol, major, minor = handshake._VERSIONS
    for versions, text in (
        (
            bytes([protocol, major, minor + 1]),
            rf"runs protocol {protocol} on Python {major}.{minor}, this end .*Python {major}.{minor + 1}",
        ),
        (bytes([protocol + 1, major, minor]), rf"runs protocol {protocol} on .*, this end protocol {protocol + 1}"),
    ):
        monkeypatch.setattr(handshake, "_VERSIONS", versions)
        with pytest.raises(ConnectionError, match=text + ".*run the same versions"):
            start_node(options, cluster.address)


def test_a_program_with_another_python(start_cluster: StartCluster) -> None:
    cluster = start_cluster()
    program = f"""
import types, shoal.api.session as session
session.sys = types.SimpleNamespace(version_info=(3, 99))
session.init({cluster.address!r})
"""
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 1
    assert "runs Python 3.99, the workers of this node 3." in result.stderr
    assert "Run both with the same Python" in result.stderr


def test_names_are_unique(start_cluster: StartCluster) -> None:
    cluster = start_cluster(name="first")
    cluster.add_node(name="second")
    for name in ("first", "second"):
        with pytest.raises(
            NodeStartError, match=rf"the node name '{name}' is taken by a node at .*choose another one[^\n]*$"
        ):
            cluster.add_node(name=name)
    cluster.remove_node(cluster.nodes[1], kill=True)
    cluster.wait_for_nodes(1)
    cluster.add_node(name="second")


@pytest.mark.parametrize(
    ("storage", "says"),
    [("sqlite:/no/such/folder/gcs.db", r"/no/such/folder/gcs\.db"), ("redis://127.0.0.1:1", r"redis://127\.0\.0\.1:1")],
)
def test_a_storage_that_is_not_there(storage: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if storage.startswith("redis"):
        monkeypatch.setattr(pytest.importorskip("shoal.gcs.storage.redis"), "RETRY_S", 0.05)
        pytest.importorskip("redis")
    with pytest.raises(NodeStartError, match=f"the GCS cannot use its storage: .*{says}"):
        start_head(HeadOptions(num_cpus=1, parent_dir=str(tmp_path), settings={"gcs_storage": storage}))
    assert not list(tmp_path.iterdir()), "nothing was started"


def test_modules_beside_a_program(start_cluster: StartCluster, tmp_path: Path) -> None:
    """A node that others have started does not know the program's folder: its workers are told."""
    cluster = start_cluster(num_cpus=1)
    cluster.add_node(num_cpus=1, resources={"two": 1})
    (tmp_path / "beside.py").write_text(
        "def double(number):\n    return 2 * number\nclass Box:\n    def open(self):\n        return double(4)\n"
    )
    (tmp_path / "program.py").write_text(f"""
import shoal
import beside
shoal.init({cluster.address!r}, runtime_env={{"env_vars": {{"COLOUR": "blue"}}}})
@shoal.remote
def nested():
    import beside, os
    assert shoal.get_runtime_context().runtime_env == {{"env_vars": {{"COLOUR": "blue"}}}}
    return beside.double(3), os.environ["COLOUR"]
@shoal.remote
def outer():
    return shoal.get(nested.options(resources={{"two": 0.1}}).remote())
print(shoal.get(shoal.remote(beside.double).remote(2)), shoal.get(outer.remote()))
print(shoal.get(shoal.remote(beside.double).options(resources={{"two": 0.1}}).remote(5)))
print(shoal.get(shoal.remote(beside.Box).options(resources={{"two": 0.1}}).remote().open.remote()))
""")
    result = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.stdout == "4 (6, 'blue')\n10\n8\n", result.stderr


@pytest.fixture
def small_disk() -> Iterator[str]:
    """A file system with room for next to nothing."""
    folder = f"/tmp/shd-{os.urandom(3).hex()}"
    os.mkdir(folder)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=100", "tmpfs", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        os.rmdir(folder)
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)
    os.rmdir(folder)


def test_a_full_disk(start_cluster: StartCluster, small_disk: str) -> None:
    cluster = start_cluster()
    (Path(small_disk) / "filler").write_bytes(bytes(48 << 10))
    options = NodeOptions(
        num_cpus=1, object_store_memory=64 << 20, token_path=cluster.token_path, parent_dir=small_disk
    )
    node = start_node(options, cluster.address)  # there is just room enough
    node.stop()
    with open(f"{small_disk}/more", "wb") as file, pytest.raises(OSError, match="No space left"):
        while True:
            os.write(file.fileno(), bytes(1024))
    with pytest.raises((NodeStartError, OSError), match=r"(?s)space.*(SHOAL_TMPDIR|log)"):
        start_node(options, cluster.address)
    with pytest.raises((NodeStartError, OSError), match=r"(?s)space.*(SHOAL_TMPDIR|log)"):
        start_head(HeadOptions(num_cpus=1, parent_dir=small_disk, listen="127.0.0.1"))
    assert [name for name in os.listdir(f"{small_disk}/shoal-{os.geteuid()}") if name != ".lock"] == []


def test_a_node_may_not_listen_everywhere() -> None:
    for host in ("0.0.0.0", "::", "*"):
        with pytest.raises(ValueError, match="one address of this machine"):
            Cluster(host=host)
    assert not shoal.is_initialized()
