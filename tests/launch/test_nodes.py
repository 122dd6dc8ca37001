"""Whatever ends a node, and however it starts: nothing is left behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from shoal.launch.nodes import HeadOptions, NodeStartError, StartedNode, start_head
from shoal.system.interpreter import this_interpreter
from shoal.system.janitor import live_sessions, session_base
from shoal.system.start_plan import EntryPoints

HERE = Path(__file__).parent
GONE_S = 30.0


def options(tmp_path: Path, **changes: Any) -> HeadOptions:
    entries = EntryPoints(
        preload=changes.pop("preload", []),
        daemon=changes.pop("daemon", "stand_ins:daemon_main"),
        gcs=changes.pop("gcs", "stand_ins:gcs_main"),
        worker="stand_ins:worker_main",
        warm=changes.pop("warm", []),
    )
    interpreter = this_interpreter()
    interpreter.import_path.insert(0, str(HERE))
    return HeadOptions(entries=entries, interpreter=interpreter, parent_dir=str(tmp_path), **changes)


@pytest.fixture
def parent_dir() -> Iterator[Path]:
    # Not pytest's own: the names of sockets must be short.
    path = Path(f"/tmp/sht-{os.urandom(3).hex()}")
    path.mkdir()
    yield path
    subprocess.run(["rm", "-rf", str(path)], check=True)


@pytest.fixture
def head(parent_dir: Path) -> Iterator[StartedNode]:
    node = start_head(options(parent_dir))
    yield node
    node.stop()


def ask(node_socket: str, line: str) -> Any:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(node_socket)
        with sock.makefile("rw") as stream:
            stream.write(line + "\n")
            stream.flush()
            return json.loads(stream.readline())


def family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def wait_until(condition: Any, what: str, timeout_s: float = GONE_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def users_of(session_dir: str) -> list[str]:
    """Other processes that have a file of the session open."""
    users = []
    for fd in Path("/proc").glob("[0-9]*/fd/*"):
        if fd.parts[2] == str(os.getpid()):
            continue
        with contextlib.suppress(OSError):
            if os.readlink(fd).startswith(session_dir):
                users.append(str(fd))
    return users


def assert_nothing_left(session_dir: str, processes: list[psutil.Process]) -> None:
    wait_until(lambda: all(ended(p) for p in processes), f"still running: {[p for p in processes if not ended(p)]}")
    wait_until(lambda: not os.path.exists(session_dir), f"{session_dir} still exists")
    assert users_of(session_dir) == []
    assert [name for name in os.listdir("/dev/shm") if "shoal" in name] == []


# ---------------------------------------------------------------- a normal life


def test_roles_are_visible_in_ps(head: StartedNode) -> None:
    lines = subprocess.run(
        ["ps", "axo", "pid,comm,args"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    shown = {int(line.split()[0]): line.split()[1:] for line in lines[1:]}
    facts = ask(head.node_socket, "facts")
    assert shown[head.pid] == ["shoal:node", "shoal:node"]
    assert shown[facts["zygote"]] == ["shoal:zygote", "shoal:zygote"]
    assert shown[facts["gcs"]] == ["shoal:gcs", "shoal:gcs"]
    assert [shown[pid] for pid in facts["workers"].values()] == [["shoal:worker", "shoal:worker"]] * 2


def test_a_worker_is_a_clean_child_of_the_daemon(head: StartedNode) -> None:
    first = ask(head.node_socket, "spawn 10 wait")
    second = ask(head.node_socket, "spawn 11 wait")
    assert (first["token"], first["worker_id"]) == (10, (10).to_bytes(16, "big").hex())
    assert first["ppid"] == head.pid
    assert first["sid"] == first["pid"], "it leads its own session"
    assert first["env"] == "value 10" and second["env"] == "value 11"
    assert first["random"] != second["random"]
    assert first["hash"] == second["hash"]
    assert first["executable"] == sys.executable, "a virtual environment stays visible"
    # 0, 1, 2, the pipe that tells of life, its own socket, the listing itself
    assert len(first["fds"]) == 6, first["fds"]


def test_ends_of_workers_are_seen_by_the_daemon(head: StartedNode) -> None:
    for token, todo, status in ((20, "exit", 7), (21, "crash", -signal.SIGSEGV)):
        ask(head.node_socket, f"spawn {token} {todo}")
        assert ask(head.node_socket, f"status {token}") == status
    ask(head.node_socket, "spawn 22 raise")
    assert ask(head.node_socket, "status 22") == 1


def test_many_workers_at_once(head: StartedNode) -> None:
    pids = ask(head.node_socket, "many 40")
    assert len(set(pids)) == 40
    processes = family(head.pid)
    head.stop()
    assert_nothing_left(head.session_dir, processes)


def test_options_are_filled_in(parent_dir: Path) -> None:
    node = start_head(options(parent_dir, num_cpus=3.5, resources={"x": 2.0}, settings={"log_to_driver": False}))
    try:
        filled = ask(node.node_socket, "facts")["options"]
        assert filled["num_cpus"] == 3.5 and filled["resources"] == {"x": 2.0} and filled["log_to_driver"] is False
        assert filled["object_store_memory"] > 0 and filled["memory"] > 0 and filled["num_gpus"] >= 0
    finally:
        node.stop()


def test_files_are_private_and_the_session_lives(head: StartedNode, parent_dir: Path) -> None:
    assert os.stat(head.session_dir).st_mode & 0o777 == 0o700
    assert os.stat(os.path.dirname(head.session_dir)).st_mode & 0o777 == 0o700
    assert re.fullmatch(rf"/tmp/.*/shoal-{os.getuid()}/[0-9a-f]{{8}}", head.session_dir)
    assert live_sessions(str(parent_dir)) == [head.session_dir]


def test_warm_modules_come_after_the_first_workers(parent_dir: Path) -> None:
    pytest.importorskip("numpy")
    node = start_head(options(parent_dir, warm=["numpy", "no_such_module_at_all"]))
    try:
        assert not ask(node.node_socket, "spawn 10 wait")["numpy"]
        tokens = iter(range(11, 100))
        time.sleep(0.3)

        def warm() -> bool:
            time.sleep(0.3)
            return ask(node.node_socket, f"spawn {next(tokens)} wait")["numpy"]

        wait_until(warm, "numpy was never imported by the zygote")
    finally:
        node.stop()


def test_a_broken_import_of_workers_is_told_for_each_request(parent_dir: Path) -> None:
    with pytest.raises(
        NodeStartError, match=r"no worker: what workers need cannot be imported: ModuleNotFoundError.*'no_such_module'"
    ):
        start_head(options(parent_dir, preload=["no_such_module"]))


# ---------------------------------------------------------------- ends


def test_stop_is_quick_idempotent_and_complete(head: StartedNode) -> None:
    processes = family(head.pid)
    assert len(processes) == 5
    began = time.monotonic()
    head.stop()
    assert time.monotonic() - began < 10
    head.stop()
    assert not head.is_alive()
    assert all(not p.is_running() for p in processes)
    assert_nothing_left(head.session_dir, processes)


def name_of(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""  # it ended between being listed and being asked


def test_what_a_worker_started_ends_too(head: StartedNode) -> None:
    ask(head.node_socket, "spawn 10 subprocess")
    wait_until(lambda: any("sleep" in name_of(p) for p in family(head.pid)), "no sleep")
    processes = family(head.pid)
    head.stop()
    assert_nothing_left(head.session_dir, processes)


@pytest.mark.parametrize("victims", [["daemon"], ["daemon", "zygote"], ["daemon", "gcs"]])
def test_kill_of_the_daemon(head: StartedNode, victims: list[str]) -> None:
    processes = family(head.pid)
    facts = ask(head.node_socket, "facts") | {"daemon": head.pid}
    for victim in reversed(victims):
        os.kill(facts[victim], signal.SIGSTOP)
    for victim in victims:
        os.kill(facts[victim], signal.SIGKILL)
    assert_nothing_left(head.session_dir, processes)
    assert not head.is_alive()
    assert head.exit_reason() == "killed by SIGKILL (9)"
    assert "the daemon's first line" in head.log_tail(), "the story outlives the folder"
    head.stop()


def test_kill_of_the_zygote(head: StartedNode) -> None:
    before = ask(head.node_socket, "facts")
    hash_before = ask(head.node_socket, "spawn 29 wait")["hash"]
    os.kill(before["zygote"], signal.SIGKILL)
    fact = ask(head.node_socket, "spawn 30 wait")
    assert fact["ppid"] == head.pid
    assert fact["hash"] == hash_before, "all workers of a session partition alike"
    after = ask(head.node_socket, "facts")
    assert after["zygote"] != before["zygote"]
    assert psutil.Process(after["zygote"]).cmdline()[0] == "shoal:zygote"
    assert all(not ended(psutil.Process(pid)) for pid in before["workers"].values()), "workers live on"
    processes = family(head.pid)
    head.stop()
    assert_nothing_left(head.session_dir, processes)


def test_kill_of_the_daemon_after_the_zygote(head: StartedNode) -> None:
    os.kill(ask(head.node_socket, "facts")["zygote"], signal.SIGKILL)
    ask(head.node_socket, "spawn 30 wait")
    processes = family(head.pid)
    os.kill(head.pid, signal.SIGKILL)
    assert_nothing_left(head.session_dir, processes)


@pytest.mark.parametrize("changes", [{"gcs": "stand_ins:stuck_gcs_main"}, {"daemon": "stand_ins:stuck_daemon_main"}])
def test_stop_of_a_stuck_node(parent_dir: Path, changes: dict[str, str]) -> None:
    node = start_head(options(parent_dir, **changes))
    processes = family(node.pid)
    node.stop(grace_s=0.3)
    assert_nothing_left(node.session_dir, processes)


DRIVER = """
import sys, os, time
sys.path.insert(0, {here!r})
from pathlib import Path
from test_nodes import options, start_head
node = start_head(options(Path({parent!r})))
print(node.pid, node.session_dir, flush=True)
{then}
"""


@pytest.mark.parametrize(
    "then",
    [
        "os._exit(0)",
        "sys.exit()",
        "raise ValueError",
        "os.abort()",
        "time.sleep(60)",
        "os.fork() or time.sleep(2); time.sleep(60)",
    ],
)
def test_end_of_the_driver(parent_dir: Path, then: str) -> None:
    script = DRIVER.format(here=str(HERE), parent=str(parent_dir), then="time.sleep(0.2); " + then)
    driver = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        assert driver.stdout is not None
        pid, session_dir = driver.stdout.readline().split()
        processes = family(int(pid))
        if "sleep(60)" in then:
            driver.kill()
        driver.wait(10)
        # With a forked child of the driver alive, or not: the node ends with the driver itself.
        assert_nothing_left(session_dir, processes)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
        driver.stdout.close()


def test_ctrl_c_does_not_reach_the_node(parent_dir: Path) -> None:
    script = DRIVER.format(here=str(HERE), parent=str(parent_dir), then="time.sleep(60)")
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as driver:
        assert driver.stdout is not None
        pid, session_dir = driver.stdout.readline().split()
        processes = family(int(pid))
        assert {os.getpgid(p.pid) for p in processes} & {driver.pid} == set()
        driver.kill()
    assert_nothing_left(session_dir, processes)


# ---------------------------------------------------------------- failing starts


@pytest.mark.parametrize(
    ("daemon", "says"),
    [
        ("stand_ins:dying_daemon_main", r"died while starting: exit code 3\.\nIts log ends with:\nabout to die"),
        ("stand_ins:segfaulting_daemon_main", r"killed by SIGSEGV \(11\)"),
        ("stand_ins:failing_daemon_main", r"RuntimeError: no such luck"),
        ("no_such_module:main", r"ModuleNotFoundError"),
    ],
)
def test_a_failing_start_says_why_and_leaves_nothing(parent_dir: Path, daemon: str, says: str) -> None:
    with pytest.raises(NodeStartError, match=says):
        start_head(options(parent_dir, daemon=daemon))
    assert live_sessions(str(parent_dir)) == []
    assert [name for name in os.listdir(session_base(str(parent_dir))) if name != ".lock"] == []


def test_a_silent_start_times_out(parent_dir: Path) -> None:
    with pytest.raises(NodeStartError, match=r"did not listen within 0\.5 s"):
        start_head(options(parent_dir, daemon="stand_ins:silent_daemon_main", start_timeout_s=0.5))
    assert [name for name in os.listdir(session_base(str(parent_dir))) if name != ".lock"] == []


def test_ctrl_c_while_starting_leaves_nothing(parent_dir: Path) -> None:
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        start_head(options(parent_dir, daemon="stand_ins:silent_daemon_main"))
    timer.join()
    assert [name for name in os.listdir(session_base(str(parent_dir))) if name != ".lock"] == []


def test_stop_in_a_fork_of_the_driver_does_nothing(head: StartedNode) -> None:
    pid = os.fork()
    if pid == 0:
        head.stop()
        os._exit(0)
    os.waitpid(pid, 0)
    assert head.is_alive()
    assert len(ask(head.node_socket, "facts")["workers"]) == 2


def test_no_descriptor_of_the_driver_leaks(parent_dir: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    node = start_head(options(parent_dir))
    node.stop()
    assert sorted(os.listdir("/proc/self/fd")) == before
    with pytest.raises(NodeStartError):
        start_head(options(parent_dir, daemon="stand_ins:dying_daemon_main"))
    assert sorted(os.listdir("/proc/self/fd")) == before
