"""`kill -9` of the GCS server at any moment: a pause, and nothing else."""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.engine.node_counts import eventually, pid_of, settled_counts, wait_for_counts

import shoal
from shoal.runtime import core

pytestmark = pytest.mark.usefixtures("shoal_session")

WITHIN_S = 60.0  #: for anything that a loaded machine does while the GCS server is started again


@shoal.remote
class Counter:
    def __init__(self, start: int = 0) -> None:
        self.count = start

    def add(self) -> int:
        self.count += 1
        return self.count

    def pid(self) -> int:
        return os.getpid()


@shoal.remote
def square(number: int) -> int:
    return number * number


def line() -> dict[str, int]:
    """The node's line to the GCS, and the process."""
    found: dict[str, int] = core.current().call("node.stats")["gcs"]
    return found


def kill_gcs() -> int:
    pid = line()["pid"]
    os.kill(pid, signal.SIGKILL)
    return pid


def wait_until_back(former_pid: int = 0) -> None:
    def back() -> bool:
        found = line()
        return bool(found["connected"]) and found["pid"] != former_pid

    eventually(back, WITHIN_S)


@pytest.fixture(autouse=True)
def gcs_is_up() -> Iterator[None]:
    wait_until_back()
    yield


def gcs_call(method: str, **body: Any) -> Any:
    return core.current().call(f"gcs.{method}", body)


def put(key: bytes, value: bytes, overwrite: bool = True) -> bool:
    added: bool = gcs_call("kv_put", namespace="test", key=key, value=value, overwrite=overwrite)["added"]
    return added


def value_of(key: bytes) -> bytes | None:
    value: bytes | None = gcs_call("kv_get", namespace="test", key=key)["value"]
    return value


def test_everything_is_still_there() -> None:
    named = Counter.options(name="named").remote()
    kept = Counter.options(name="kept", lifetime="detached").remote()
    assert shoal.get([named.add.remote(), kept.add.remote()], timeout=WITHIN_S) == [1, 1]
    pids = pid_of(named), pid_of(kept)
    put(b"key", b"value")
    assert shoal.get(square.remote(1), timeout=WITHIN_S) == 1
    eventually(lambda: any(row["name"].endswith("square") for row in gcs_call("task_events")["events"]), WITHIN_S)
    traced = {row["task_id"] for row in gcs_call("task_events")["events"]}
    kill_gcs()
    assert value_of(b"key") == b"value"
    assert traced <= {row["task_id"] for row in gcs_call("task_events")["events"]}
    for name, pid in zip(("named", "kept"), pids, strict=True):
        again = shoal.get_actor(name)
        assert shoal.get(again.add.remote(), timeout=WITHIN_S) == 2
        assert pid_of(again) == pid
    with pytest.raises(ValueError, match="taken"):
        Counter.options(name="named").remote()
    [job] = gcs_call("jobs")["jobs"]
    assert job["state"] == "running"
    shoal.kill(kept)
    eventually(lambda: "kept" not in [row["name"] for row in gcs_call("named_actors")["actors"]])


def test_running_work_is_not_disturbed() -> None:
    """Tasks and actor calls need no GCS: while it is away they take what they always take."""
    actor = Counter.remote()
    shoal.get([actor.add.remote(), square.remote(1)], timeout=WITHIN_S)
    os.kill(line()["pid"], signal.SIGSTOP)  # away for as long as we like
    try:
        stopped = line()["pid"]
        assert shoal.get([square.remote(n) for n in range(200)], timeout=60) == [n * n for n in range(200)]
        assert shoal.get([actor.add.remote() for _ in range(200)], timeout=60) == list(range(2, 202))
        created = Counter.remote()  # waits
        assert shoal.wait([created.add.remote()], timeout=0.2)[0] == []
    finally:
        os.kill(stopped, signal.SIGKILL)
    assert shoal.get(created.add.remote(), timeout=WITHIN_S) == 2


def test_what_is_asked_for_while_it_is_away_comes() -> None:
    kill_gcs()
    actors = [Counter.options(name=f"asked-{n}").remote(n) for n in range(4)]

    @shoal.remote
    class Fresh:  # its code goes to the GCS, and its worker asks for it there
        def hello(self) -> str:
            return "hello"

    fresh = Fresh.remote()
    kill_gcs()
    assert shoal.get([actor.add.remote() for actor in actors], timeout=WITHIN_S) == [1, 2, 3, 4]
    assert shoal.get(fresh.hello.remote(), timeout=WITHIN_S) == "hello"
    assert shoal.get(shoal.get_actor("asked-2").add.remote(), timeout=WITHIN_S) == 4


def test_actors_that_die_while_it_is_away_are_restarted_or_declared_dead() -> None:
    stays = Counter.remote()
    restarts = Counter.options(max_restarts=1, max_task_retries=1).remote()
    dies = Counter.options(name="dies").remote()
    let_go = Counter.options(name="let go").remote()
    shoal.get([actor.add.remote() for actor in (stays, restarts, dies, let_go)], timeout=WITHIN_S)
    doomed = [pid_of(restarts), pid_of(dies)]
    former = kill_gcs()
    for pid in doomed:
        os.kill(pid, signal.SIGKILL)
    let_go_pid = pid_of(let_go)
    del let_go
    assert shoal.get(restarts.add.remote(), timeout=WITHIN_S) == 1  # a new life
    with pytest.raises(shoal.exceptions.ActorDiedError, match="SIGKILL"):
        shoal.get(dies.add.remote(), timeout=WITHIN_S)
    assert shoal.get(stays.add.remote(), timeout=WITHIN_S) == 2
    wait_until_back(former)
    eventually(lambda: not os.path.exists(f"/proc/{let_go_pid}"), WITHIN_S)
    with pytest.raises(ValueError):
        shoal.get_actor("dies")


def test_kill_while_it_is_away() -> None:
    victim = Counter.options(name="victim").remote()
    again = Counter.options(max_restarts=3, max_task_retries=3).remote()
    shoal.get([victim.add.remote(), again.add.remote()], timeout=WITHIN_S)
    kill_gcs()
    shoal.kill(victim)
    shoal.kill(again, no_restart=False)
    with pytest.raises(shoal.exceptions.ActorDiedError):
        shoal.get(victim.add.remote(), timeout=WITHIN_S)
    assert shoal.get(again.add.remote(), timeout=WITHIN_S) == 1
    assert shoal.get(again.add.remote(), timeout=WITHIN_S) == 2
    replacement = Counter.options(name="victim").remote()
    assert shoal.get(replacement.add.remote(), timeout=WITHIN_S) == 1


class Load:
    """Threads that do one thing again and again, and remember what went wrong and how long the slowest took."""

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self.errors: list[str] = []
        self.slowest_s: dict[str, float] = {}
        self.rounds: dict[str, int] = {}
        self.threads: list[threading.Thread] = []

    def start(self, name: str, once: Callable[[int], None]) -> None:
        def run() -> None:
            number = 0
            while not self.stopping.is_set() and not self.errors:
                begun = time.perf_counter()
                try:
                    once(number)
                except BaseException as error:
                    self.errors.append(f"{name} {number}: {type(error).__name__}: {error}")
                    return
                self.slowest_s[name] = max(self.slowest_s.get(name, 0.0), time.perf_counter() - begun)
                self.rounds[name] = number = number + 1
                time.sleep(0.002)

        thread = threading.Thread(target=run, name=name, daemon=True)
        self.threads.append(thread)
        thread.start()

    def finish(self) -> None:
        self.stopping.set()
        for thread in self.threads:
            thread.join(WITHIN_S)
            assert not thread.is_alive(), f"{thread.name} hangs"
        assert self.errors == []


def daemon_files() -> int:
    """Open files of the daemon, which is the parent of its GCS server."""
    with open(f"/proc/{line()['pid']}/stat") as stat:
        daemon_pid = stat.read().rpartition(")")[2].split()[1]
    return len(os.listdir(f"/proc/{daemon_pid}/fd"))


@pytest.mark.timeout(240)
def test_killed_again_and_again_under_load() -> None:
    """Tasks, new actors, names and keys go on through 8 deaths: each thing is done once, and nothing is left over."""
    dice = random.Random(int(os.environ.get("SHOAL_TEST_SEED", "20")))
    long_lived = Counter.options(name="long-lived").remote()
    assert shoal.get(long_lived.add.remote(), timeout=WITHIN_S) == 1
    shoal.get([square.remote(n) for n in range(8)], timeout=WITHIN_S)
    before, files_before = settled_counts(), daemon_files()
    restarts_before = line()["restarts"]
    load = Load()

    def tasks(number: int) -> None:
        assert shoal.get(square.remote(number), timeout=WITHIN_S) == number * number

    def creations(number: int) -> None:
        actor = Counter.remote(number)
        assert shoal.get([actor.add.remote(), actor.add.remote()], timeout=WITHIN_S) == [number + 1, number + 2]

    def names(number: int) -> None:
        found = shoal.get_actor("long-lived")
        assert shoal.get(found.add.remote(), timeout=WITHIN_S) == number + 2

    def keys(number: int) -> None:
        key = b"key-%d" % number
        assert put(key, b"first", overwrite=False), "a put was done twice"
        assert not put(key, b"second", overwrite=False)
        assert value_of(key) == b"first"
        assert gcs_call("kv_del", namespace="test", key=key) == {"deleted": 1}, "a deletion was done twice"

    for name, once in (("task", tasks), ("creation", creations), ("name", names), ("key", keys)):
        load.start(name, once)
    kills = 0
    while kills < 8 and not load.errors:
        time.sleep(dice.uniform(0.0, 0.3))
        pid = kill_gcs()
        kills += 1
        if dice.random() < 0.4:  # once more while it starts
            time.sleep(dice.uniform(0.0, 0.15))
            if line()["pid"] != pid:
                pid = kill_gcs()
                kills += 1
        wait_until_back(pid)
    load.finish()
    slowest = {name: f"{seconds * 1000:.0f} ms" for name, seconds in load.slowest_s.items()}
    print(f"\n{kills} deaths of the GCS server; rounds {load.rounds}; slowest {slowest}")
    assert line()["restarts"] - restarts_before == kills
    wait_until_back()
    eventually(lambda: line()["kept"] == 0, WITHIN_S)
    wait_for_counts(before, within_s=10.0)
    eventually(lambda: gcs_call("statistics")["actors"]["alive"] <= 6, WITHIN_S)
    eventually(lambda: daemon_files() <= files_before + 4, WITHIN_S)
    statistics = gcs_call("statistics")
    assert (statistics["answers"], statistics["nodes_away"], statistics["connections"]) == (0, 0, 1)
    assert gcs_call("kv_list", namespace="test", prefix=b"key-")["keys"] == []


def test_the_session_ends_and_leaves_nothing() -> None:
    """After deaths, and in the middle of one."""
    session_dir = core.current().session_dir
    pids = [pid_of(Counter.remote())]
    pids.append(line()["pid"])
    kill_gcs()
    shoal.shutdown()
    assert not os.path.exists(session_dir)
    assert [pid for pid in pids if os.path.exists(f"/proc/{pid}")] == []
    own = f"SHOAL_SESSION_DIR={session_dir}".encode()
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/environ", "rb") as environment:
                assert own not in environment.read(), f"process {name} is left"
        except OSError:
            continue


def test_a_server_that_cannot_live_ends_the_session_with_its_reason(tmp_path: Any) -> None:
    shoal.shutdown()
    (tmp_path / "folder").mkdir()
    shoal.init(num_cpus=1, log_to_driver=False, _system={"gcs_storage": f"sqlite:{tmp_path}/folder/file"})
    try:
        shutil.rmtree(tmp_path / "folder")  # so that the next server finds no place for its tables
        kill_gcs()
        with pytest.raises(shoal.exceptions.NodeDaemonDiedError, match="unable to open database file"):
            gcs_call("jobs")
    finally:
        shoal.shutdown()


def test_a_storage_that_is_not_there_is_refused_at_the_start(tmp_path: Any) -> None:
    shoal.shutdown()
    with pytest.raises(RuntimeError, match="unable to open database file"):
        shoal.init(num_cpus=1, _system={"gcs_storage": f"sqlite:{tmp_path}/no/such/folder/file"})
    assert not shoal.is_initialized()


def test_with_tables_in_memory_the_session_ends_with_an_error() -> None:
    shoal.shutdown()
    shoal.init(num_cpus=1, log_to_driver=False, _system={"gcs_storage": "memory"})
    try:
        kill_gcs()
        with pytest.raises(shoal.exceptions.NodeDaemonDiedError, match="memory"):
            gcs_call("jobs")
    finally:
        shoal.shutdown()


def test_settings_are_checked() -> None:
    shoal.shutdown()
    for settings, error in (({"gcs_storage": "papyrus"}, ValueError), ({"gcs": 1}, ValueError), (7, TypeError)):
        with pytest.raises(error, match=r"GCS storage|gcs_storage|dict"):
            shoal.init(num_cpus=1, _system=settings)
