"""A cluster on one machine: a head and nodes that join it, started and ended by a test.

Purpose: what runs on many machines can be tried on one, with deaths of nodes.

Design: nodes are started as `shoal start` starts them (`launch.nodes`), with a token of the cluster's own. They end with this process, however it
ends; `shutdown` leaves nothing behind. Numbers are small unless said otherwise, because all nodes share one machine: 1 CPU, no GPU, a store of
OBJECT_STORE_BYTES each.

What it does not do: pretend a network (tests/cluster has one of namespaces).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import shoal
from shoal.launch.nodes import HeadOptions, NodeOptions, StartedNode, default_parent_dir, start_head, start_node
from shoal.launch.observer import Observer, SessionUnreachableError
from shoal.protocol.limits import DRAIN_GRACE_S
from shoal.protocol.storage_names import outlives_machine, outlives_session

OBJECT_STORE_BYTES = 256 << 20
WAIT_S = 30.0
POLL_S = 0.005
DRAIN_S = 30.0
#: of a node's options, what goes to its daemon as it is
SETTINGS = ("gcs_storage", "gcs_shards", "drain_grace_s", "gcs_reconnect_timeout_s")


class ClusterNode:
    """One node of a `Cluster`.

    Attributes:
        node_id: hexadecimal, as in `shoal.nodes()`.
        name: what it is called; no two nodes have the same.
        pid: its daemon's.
        is_head: whether the GCS is here.
        session_dir: its folder.
        node_socket: for `shoal.init(address=...)`: join the cluster through this node.
    """

    def __init__(self, started: StartedNode, is_head: bool) -> None:
        self._started = started
        self.is_head = is_head
        self.node_id = started.node_id
        self.name: str = started.ready["name"]
        self.pid = started.pid
        self.session_dir = started.session_dir
        self.node_socket = started.node_socket

    def is_alive(self) -> bool:
        """Whether its daemon runs."""
        return self._started.is_alive()

    def log(self) -> str:
        """The end of what its daemon has logged."""
        return self._started.log_tail()

    def call(self, method: str, **body: Any) -> Any:
        """The answer of its daemon to a question ("node.stats", "node.cluster", "gcs.nodes", ...).

        Raises:
            RuntimeError: it refused, or does not answer.
        """
        try:
            with Observer(self.session_dir) as observer:
                return observer.call(method, body)
        except SessionUnreachableError as error:
            raise RuntimeError(str(error)) from None

    def __repr__(self) -> str:
        return f"ClusterNode({self.name!r}, {self.node_id[:8]}{', head' if self.is_head else ''})"


class Cluster:
    """A head node, and as many more as are added. Usable in a `with` statement, which ends it.

    Args:
        connect: also begin a session of this process there (`connect`).
        host: where the nodes listen, an address of this machine.
        tls_folder: certificates, made by `shoal certificates`: then what nodes say to each other is encrypted.
        head_options: as for `add_node`, for the head; `port`, that of the GCS (default: any); `gcs_storage` and `gcs_shards`, as in
            `shoal.init(_system=...)`.

    Raises:
        RuntimeError: the head cannot be started.
    """

    def __init__(
        self, *, connect: bool = False, host: str = "127.0.0.1", tls_folder: str = "", **head_options: Any
    ) -> None:
        self.host = host
        self._tls_folder = tls_folder
        self.nodes: list[ClusterNode] = []
        self._connected = False
        #: of a cluster whose head may be lost: the token must be found elsewhere than in its session
        self._token_folder = tempfile.mkdtemp(prefix="shoal-token-") if "gcs_storage" in head_options else ""
        self._head_options = head_options
        try:
            self.head = self._start_head()
        except BaseException:
            shutil.rmtree(self._token_folder, ignore_errors=True)
            raise
        self.nodes.append(self.head)
        atexit.register(self.shutdown)
        if connect:
            self.connect()

    def _start_head(self) -> ClusterNode:
        token_path = os.path.join(self._token_folder, "token") if self._token_folder else ""
        options = HeadOptions(
            **_node_options(self.host, self._head_options), tls_folder=self._tls_folder, token_path=token_path
        )
        return ClusterNode(start_head(options), is_head=True)

    @property
    def address(self) -> str:
        """What `shoal.init(address=...)` and `shoal start --address` take."""
        return self.head._started.address

    @property
    def token_path(self) -> str:
        """The file with the cluster's token."""
        return self.head._started.token_path

    def connect(self, node: ClusterNode | None = None, **init_options: Any) -> Any:
        """Begin a session of this process through `node` (default: the head); returns what `shoal.init` does."""
        self._connected = True
        return shoal.init(address=(node or self.head).node_socket, **init_options)

    def add_node(
        self,
        *,
        num_cpus: float = 1,
        num_gpus: float = 0,
        resources: dict[str, float] | None = None,
        labels: dict[str, str] | None = None,
        object_store_memory: int = OBJECT_STORE_BYTES,
        memory: int | None = None,
        name: str = "",
        host: str = "",
        drain_grace: float = DRAIN_GRACE_S,
        gcs_reconnect_timeout: float | None = None,
        wait: bool = True,
    ) -> ClusterNode:
        """Start a node that joins the cluster.

        Args:
            num_cpus, num_gpus, resources, labels, object_store_memory, memory: as for `shoal.init`.
            name: no other node's.
            host: where it listens, if not where the others do.
            drain_grace: seconds that SIGTERM leaves it, as for `shoal start`.
            gcs_reconnect_timeout: seconds that its head may be silent, as for `shoal start`.
            wait: until all nodes know of it.

        Raises:
            ConnectionError: the head does not answer.
            RuntimeError: it cannot be started or may not join (its name is taken); says why.
        """
        given = {
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "resources": resources,
            "labels": labels,
            "object_store_memory": object_store_memory,
            "memory": memory,
            "name": name,
            "drain_grace_s": drain_grace,
            "gcs_reconnect_timeout_s": gcs_reconnect_timeout,
        }
        options = NodeOptions(
            **_node_options(host or self.host, given), token_path=self.token_path, tls_folder=self._tls_folder
        )
        node = ClusterNode(start_node(options, self.address), is_head=False)
        self.nodes.append(node)
        if wait:
            self.wait_for_nodes()
        return node

    def add_nodes(self, count: int, **options: Any) -> list[ClusterNode]:
        """Start `count` equal nodes, several at a time; see `add_node`."""
        with ThreadPoolExecutor(max_workers=4) as pool:
            nodes = [
                future.result() for future in [pool.submit(self.add_node, wait=False, **options) for _ in range(count)]
            ]
        self.wait_for_nodes()
        return nodes

    def remove_node(self, node: ClusterNode, *, kill: bool = False, timeout: float = DRAIN_S) -> None:
        """End a node, and wait until it is gone.

        Args:
            kill: as if its machine lost power (SIGKILL); otherwise it is drained: it takes nothing new, and leaves when what runs there has ended.
            timeout: seconds that draining may take, after which it ends all the same.

        Raises:
            ValueError: it is the head, or no node of this cluster.
        """
        if node.is_head:
            raise ValueError("the head cannot be removed: the GCS is there; shutdown() ends all nodes")
        if node not in self.nodes:
            raise ValueError(f"{node!r} is no node of this cluster (any more)")
        started = node._started
        if kill:
            with contextlib.suppress(ProcessLookupError):  # it is dead already
                os.kill(node.pid, signal.SIGKILL)
        else:
            self.head.call("gcs.drain_node", node_id=bytes.fromhex(node.node_id), deadline_s=timeout)
            started.exit_reason(within_s=timeout + 1.0)
        started.stop()
        self.nodes.remove(node)

    def replace_head(self, wait: bool = True) -> ClusterNode:
        """Kill all processes of the head, as if its machine were lost, and start another one that takes the cluster over.

        Args:
            wait: until all nodes know of it.

        Raises:
            ValueError: the cluster's tables are lost with its head; it needs a `gcs_storage` in Redis or a file ("sqlite:PATH"), which
                the new head finds at the former one's port.
            RuntimeError: the new head cannot be started; says why.
        """
        if not outlives_session(str(self._head_options.get("gcs_storage", ""))):
            raise ValueError(
                'the tables of this cluster are lost with its head: give it gcs_storage="redis://..." or "sqlite:PATH"'
            )
        lost = self.head
        for pid in [lost.pid, *_descendants(lost.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        lost._started.stop()
        self.nodes.remove(lost)
        if not outlives_machine(self._head_options["gcs_storage"]):  # nobody tells nodes of another place
            self._head_options["port"] = int(lost._started.address.rpartition(":")[2])
        self.head = self._start_head()
        self.nodes.insert(0, self.head)
        if wait:
            self.wait_for_nodes()
        return self.head

    def wait_for_nodes(self, count: int | None = None, timeout: float = WAIT_S) -> None:
        """Wait until every node knows that all (or `count`) nodes of this cluster live, and no others.

        Raises:
            TimeoutError: says who does not know whom.
        """
        deadline = time.monotonic() + timeout
        while True:
            wanted = {node.node_id for node in self.nodes if node.is_alive()}
            if count is not None and len(wanted) != count:
                lacking = f"{len(wanted)} nodes run"
            else:
                lacking = _who_lacks_whom(self.nodes, wanted)
            if not lacking:
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {timeout:g} s: {lacking}")
            time.sleep(POLL_S)

    def shutdown(self) -> None:
        """End this process's session there, and all nodes. Idempotent."""
        atexit.unregister(self.shutdown)
        if self._connected:
            self._connected = False
            shoal.shutdown()
        joined = [node._started for node in self.nodes if not node.is_head]
        for started in joined:
            started.tell_to_end()
        for started in joined:
            started.stop()
        self.head._started.stop()
        self.nodes.clear()
        if self._token_folder:
            shutil.rmtree(self._token_folder, ignore_errors=True)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()


def _node_options(host: str, given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `NodeOptions` for a node that poses as one of many on this machine."""
    settings = {name: given[name] for name in SETTINGS if name in given}
    known = {name: value for name, value in given.items() if name not in settings}
    return {
        "num_cpus": 1,
        "num_gpus": 0,
        "object_store_memory": OBJECT_STORE_BYTES,
        **known,
        "resources": dict(given.get("resources") or {}),
        "labels": dict(given.get("labels") or {}),
        "settings": settings,
        "listen": host,
        "ends_with_session": False,
        "parent_dir": default_parent_dir(),
    }


def _descendants(pid: int) -> list[int]:
    """All processes that a process has started, and those that these have."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            children = [int(word) for word in file.read().split()]
    except FileNotFoundError:
        return []
    return children + [each for child in children for each in _descendants(child)]


def _who_lacks_whom(nodes: list[ClusterNode], wanted: set[str]) -> str:
    """Which node does not know exactly the `wanted` ones; "" when all do."""
    for node in nodes:
        if node.node_id not in wanted:
            continue
        try:
            known = {row["node_id"].hex() for row in node.call("node.cluster")["nodes"]}
        except RuntimeError as error:
            return str(error)
        if known != wanted:
            missing, dead = wanted - known, known - wanted
            return f"{node!r} " + (f"does not know {missing}" if missing else f"still believes that {dead} live")
    return ""
