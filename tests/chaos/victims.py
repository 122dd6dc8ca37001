"""Who is killed, and when: a thread that ends processes of a cluster, drawn by a seed.

Kinds: `worker` (any that runs), `owner` (one that has submitted tasks of its own, as it says in a file of `owners`), `zygote`, `gcs` (any shard),
`node` (a whole node that is not the driver's: all its processes at once; another one takes its place), `leave` (SIGTERM, a notice, to such a
node, which drains; another one takes its place).

What must live is never killed: the head's daemon, the driver, and what would be the one too many of those deaths that a cluster is allowed
(`Allowance`: a server that dies again and again ends its cluster, as it should). A node is killed only when all that shall live know each other.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable

import psutil

from shoal.node.io.workers import ZYGOTE_DEATHS_MAX, ZYGOTE_DEATHS_WITHIN_S
from shoal.protocol.limits import GCS_DEATHS_MAX, GCS_DEATHS_WITHIN_S
from shoal.testing import Cluster, ClusterNode

TITLES = {"worker": "shoal:worker", "zygote": "shoal:zygote", "gcs": "shoal:gcs"}
START_TRIES = 3
GCS_PAUSE_S = 1.0  #: after the death of one, so that its node has noticed


def processes_of(session_dir: str) -> list[psutil.Process]:
    """The processes of a node, by the variable in their environment that all of them inherit."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("SHOAL_SESSION_DIR") == session_dir:
                found.append(process)
        except psutil.Error:
            continue
    return found


def family_of(pid: int) -> list[psutil.Process]:
    """What a node's daemon has started, without a look at all processes of the machine: what was orphaned is its child, too."""
    found: list[psutil.Process] = []
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            children = [int(word) for word in file.read().split()]
        for child in children:
            found += [psutil.Process(child), *family_of(child)]
    except (OSError, psutil.Error):
        pass  # it has ended meanwhile
    return found


class Allowance:
    """At most half as many deaths as a cluster stands, for each thing that is named. Shared by all killers of a cluster."""

    def __init__(self) -> None:
        self._deaths: dict[str, deque[float]] = {}

    def takes(self, name: str, deaths_max: int, within_s: float, pause_s: float = 0.0) -> bool:
        """Whether one more is allowed now; it counts, if so."""
        now = time.monotonic()
        deaths = self._deaths.setdefault(name, deque())
        while deaths and deaths[0] < now - within_s:
            deaths.popleft()
        if len(deaths) >= deaths_max // 2 or (deaths and now < deaths[-1] + pause_s):
            return False
        deaths.append(now)
        return True


class Killer:
    """Kills while a `with` lasts.

    Args:
        kinds: of victims, with how likely each is.
        pause_s: between two kills, drawn from half to twice as much.
        add_node: starts a node that takes the place of another, and does not wait for it.
        allowance: of the cluster.
        owners: a folder with a file for each process that says that it owns something, named by its pid.
    """

    def __init__(
        self,
        cluster: Cluster,
        seed: int,
        kinds: dict[str, float],
        pause_s: float,
        add_node: Callable[[], object],
        allowance: Allowance,
        owners: str = "",
    ) -> None:
        self.killed: Counter[str] = Counter()
        self.error: BaseException | None = None
        self._cluster, self._kinds, self._pause_s = cluster, kinds, pause_s
        self._dice = random.Random(seed)
        self._add_node, self._allowance, self._owners = add_node, allowance, owners
        self._leaving: list[ClusterNode] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="killer", daemon=True)

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._pause_s * self._dice.uniform(0.5, 2)):
                kind = self._dice.choices(list(self._kinds), list(self._kinds.values()))[0]
                # What may not die now is spared for a worker.
                for instead in dict.fromkeys((kind, "worker")):
                    if self._kill(instead):
                        self.killed[instead] += 1
                        break
            while self._leaving:
                self._bury_those_that_left()
                time.sleep(0.05)
        except BaseException as error:
            self.error = error

    def _kill(self, kind: str) -> bool:
        self._bury_those_that_left()
        if kind == "node":
            return self._end_node(self._kill_node)
        if kind == "leave":
            return self._end_node(self._tell_to_leave)
        victims = self._victims(kind)
        if not victims:
            return False
        victim = self._dice.choice(victims)
        if kind == "zygote" and not self._allowance.takes(
            _session_of(victim), ZYGOTE_DEATHS_MAX, ZYGOTE_DEATHS_WITHIN_S
        ):
            return False
        if kind == "gcs" and not self._may_kill_gcs():
            return False
        return _send(victim, signal.SIGKILL)

    def _victims(self, kind: str) -> list[psutil.Process]:
        found = [process for node in self._cluster.nodes for process in family_of(node.pid)]
        if kind == "owner":
            owners = {int(name) for name in os.listdir(self._owners)} if self._owners else set()
            found = [process for process in found if process.pid in owners and _is(process, TITLES["worker"])]
        else:
            found = [process for process in found if _is(process, TITLES[kind])]
        return sorted(found, key=lambda process: process.pid)

    def _may_kill_gcs(self) -> bool:
        """Whether the cluster can stand that: it has answered since it died last, which all its nodes have noticed."""
        record = self._cluster.head.call("node.stats")["gcs"]
        up = record["connected"] and all(shard["connected"] for shard in record["shards"])
        return bool(up) and self._allowance.takes("gcs", GCS_DEATHS_MAX, GCS_DEATHS_WITHIN_S, GCS_PAUSE_S)

    def _end_node(self, end: Callable[[ClusterNode], None]) -> bool:
        others = [node for node in self._cluster.nodes if not node.is_head and node not in self._leaving]
        if not others or self._leaving or not self._all_have_joined():
            return False
        end(self._dice.choice(others))
        for left in reversed(range(START_TRIES)):
            try:
                self._add_node()
                break
            except RuntimeError:  # a machine that is overloaded starts no node in time
                if not left:
                    raise
        return True

    def _all_have_joined(self) -> bool:
        """Whether every node knows all that live: then one may be missed."""
        try:
            self._cluster.wait_for_nodes(timeout=0.0)
        except (TimeoutError, RuntimeError):
            return False
        return True

    def _kill_node(self, victim: ClusterNode) -> None:
        # A machine that fails takes all its processes at once.
        for process in processes_of(victim.session_dir):
            _send(process, signal.SIGKILL)
        self._cluster.remove_node(victim, kill=True)

    def _tell_to_leave(self, victim: ClusterNode) -> None:
        self._leaving.append(victim)
        os.kill(victim.pid, signal.SIGTERM)

    def _bury_those_that_left(self) -> None:
        for node in [node for node in self._leaving if not node.is_alive()]:
            self._leaving.remove(node)
            self._cluster.remove_node(node, kill=True)


def _send(process: psutil.Process, number: int) -> bool:
    try:
        process.send_signal(number)
    except psutil.Error:
        return False
    return True


def _session_of(process: psutil.Process) -> str:
    try:
        return process.environ().get("SHOAL_SESSION_DIR", "")
    except psutil.Error:
        return ""


def _is(process: psutil.Process, title: str) -> bool:
    try:
        return title in " ".join(process.cmdline())
    except psutil.Error:
        return False
