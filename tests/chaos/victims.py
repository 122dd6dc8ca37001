"""Who is killed, and when: a thread that sends SIGKILL to processes of a cluster, drawn by a seed.

Kinds: `worker` (any that runs), `owner` (one that has submitted tasks of its own: every worker of a nested program may be one), `zygote`, `gcs`
(any shard), `node` (a whole node that is not the driver's: all its processes at once; another one takes its place).
"""

from __future__ import annotations

import random
import signal
import threading
from collections import Counter

import psutil

from shoal.testing import Cluster

TITLES = {"worker": "shoal:worker", "zygote": "shoal:zygote", "gcs": "shoal:gcs"}
#: a GCS that dies more often than GCS_DEATHS_MAX a minute ends its cluster, as it should
GCS_KILLS_A_MINUTE = 15


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


class Killer:
    """Kills while a `with` lasts.

    Args:
        kinds: of victims, with how likely each is.
        pause_s: between two kills, drawn from half to twice as much.
        store_bytes: the store of a node that takes the place of another.
    """

    def __init__(self, cluster: Cluster, seed: int, kinds: dict[str, float], pause_s: float, store_bytes: int) -> None:
        self.killed: Counter[str] = Counter()
        self.error: BaseException | None = None
        self._cluster, self._kinds, self._pause_s = cluster, kinds, pause_s
        self._dice = random.Random(seed)
        self._store_bytes = store_bytes
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
        waited_s = 0.0
        while not self._stop.wait(pause := self._pause_s * self._dice.uniform(0.5, 2)):
            waited_s += pause
            kind = self._dice.choices(list(self._kinds), list(self._kinds.values()))[0]
            try:
                if kind == "gcs" and not self._may_kill_gcs(waited_s):
                    kind = "worker"
                if self._kill(kind):
                    self.killed[kind] += 1
            except BaseException as error:
                self.error = error
                return

    def _may_kill_gcs(self, waited_s: float) -> bool:
        """Whether its cluster can stand that: one that dies again and again before it has answered is given up."""
        if self.killed["gcs"] >= 2 + GCS_KILLS_A_MINUTE * waited_s / 60:
            return False
        return bool(self._cluster.head.call("node.stats")["gcs"]["connected"])

    def _kill(self, kind: str) -> bool:
        if kind == "node":
            return self._kill_node()
        victims = sorted(
            (
                process
                for node in self._cluster.nodes
                for process in processes_of(node.session_dir)
                if _is(process, TITLES[kind])
            ),
            key=lambda process: process.pid,
        )
        if not victims:
            return False
        try:
            self._dice.choice(victims).send_signal(signal.SIGKILL)
        except psutil.Error:
            return False
        return True

    def _kill_node(self) -> bool:
        others = [node for node in self._cluster.nodes if not node.is_head]
        if not others:
            return False
        victim = self._dice.choice(others)
        # A machine that fails takes all its processes at once.
        for process in processes_of(victim.session_dir):
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.Error:
                pass
        self._cluster.remove_node(victim, kill=True)
        self._cluster.add_node(num_cpus=2, object_store_memory=self._store_bytes, resources={"spare": 2}, wait=False)
        return True


def _is(process: psutil.Process, title: str) -> bool:
    try:
        return title in " ".join(process.cmdline())
    except psutil.Error:
        return False
