"""The wrappers of the OS, each against the real one."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shoal.system import interpreter, janitor, machine, process, start_plan


def run(code: str, **options: object) -> str:
    """The output of `code` in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


# ---------------------------------------------------------------- titles


def test_title_shows_in_ps_and_leaves_the_environment_alone() -> None:
    shown = run(
        "import os, subprocess\n"
        "from shoal.system.process import set_process_title\n"
        "for title in ('shoal:' + 'x' * 500, 'shoal:worker'):\n"
        "    set_process_title(title)\n"
        "    print(subprocess.run(['ps', '-o', 'args=', '-p', str(os.getpid())], capture_output=True, text=True).stdout.strip())\n"
        "print(open('/proc/self/comm').read().strip())\n"
        "print(open('/proc/self/environ').read().count('SHOAL_MARK=here'))\n",
        env={**os.environ, "SHOAL_MARK": "here"},
    ).splitlines()
    assert shown[0].startswith("shoal:xxxx") and set(shown[0][6:]) == {"x"}
    assert shown[1:] == ["shoal:worker", "shoal:worker", "1"]


def test_title_survives_fork() -> None:
    shown = run(
        "import os\n"
        "from shoal.system.process import set_process_title\n"
        "set_process_title('shoal:one')\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    set_process_title('shoal:two')\n"
        "    print(open('/proc/self/cmdline').read().rstrip(chr(0)), flush=True); os._exit(0)\n"
        "os.waitpid(pid, 0)\n"
        "print(open('/proc/self/cmdline').read().rstrip(chr(0)))\n"
    )
    assert shown.split() == ["shoal:two", "shoal:one"]


# ---------------------------------------------------------------- descriptors


def test_close_all_except() -> None:
    left = run(
        "import os\n"
        "from shoal.system.process import close_all_except\n"
        "fds = [os.dup(0) for _ in range(20)]\n"
        "kept = [fds[3], fds[11]]\n"
        "close_all_except(kept + [1, 2])\n"
        "alive = [fd for fd in range(3, 200) if os.path.exists(f'/proc/self/fd/{fd}')]\n"
        "print(alive == kept)\n"
    )
    assert left.strip() == "True"


def test_file_limit_is_raised_or_refused() -> None:
    code = (
        "import resource\n"
        "from shoal.system.process import raise_file_limit, UnsupportedSystemError\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
        "try: print(raise_file_limit())\n"
        "except UnsupportedSystemError as error: print(error)\n"
    )
    assert run(code.format(soft=100, hard=400)).strip() == "400"
    refused = run(code.format(soft=50, hard=200))
    assert "only 200 open files" in refused and "ulimit -n" in refused
    assert process.raise_file_limit() == resource.getrlimit(resource.RLIMIT_NOFILE)[1]


# ---------------------------------------------------------------- ends


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (0, "exit code 0"),
        (3, "exit code 3"),
        (-9, "killed by SIGKILL (9)"),
        (-11, "killed by SIGSEGV (11)"),
        (-63, "killed by a signal (63)"),
    ],
)
def test_exit_text(status: int, text: str) -> None:
    assert process.exit_text(status) == text


def test_wait_ended_reaps_children_and_names_the_rest() -> None:
    quick = subprocess.Popen(["true"])
    slow = subprocess.Popen(["sleep", "60"])
    try:
        assert process.wait_ended([quick.pid, slow.pid, 0, 2**22 - 1], 0.3) == [slow.pid]
        assert process.reap(quick.pid) is None
    finally:
        slow.kill()
        slow.wait()
        quick.returncode = 0


def test_parent_death_signal() -> None:
    code = (
        "import os, time, signal\n"
        "from shoal.system.process import set_parent_death_signal\n"
        "if os.fork() == 0:\n"
        "    set_parent_death_signal(signal.SIGKILL); print(os.getpid(), flush=True); time.sleep(60)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pidfd = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
        assert process.wait_readable(pidfd, 60.0)
        os.close(pidfd)


def test_wait_readable_is_bounded() -> None:
    read, write = os.pipe()
    began = time.monotonic()
    assert not process.wait_readable(read, 0.05)
    assert time.monotonic() - began < 30
    os.close(write)
    assert process.wait_readable(read, 60.0), "the end counts as readable"
    os.close(read)


# ---------------------------------------------------------------- the machine


def test_visible_devices() -> None:
    assert machine.visible_devices("0,2") == ["0", "2"]
    assert machine.visible_devices("") == machine.visible_devices("-1") == machine.visible_devices("NoDevFiles") == []
    assert machine.visible_devices("1,-1,2") == ["1"]
    assert machine.visible_devices("GPU-8932f937, MIG-1") == ["GPU-8932f937", "MIG-1"]


def test_gpus_follow_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4,5")
    assert machine.gpus_available() == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine.gpus_available() == 0


def test_cpus_follow_the_affinity_mask() -> None:
    first = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, [{first}]); from shoal.system.machine import cpus_available; print(cpus_available())"
    assert run(code).strip() == "1.0"


@pytest.mark.parametrize(
    ("files", "cpus", "memory_bytes"),
    [
        ({"cgroup": "0::/a/b\n", "a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000", "a/memory.max": "1048576"}, 1.0, 1 << 20),
        ({"cgroup": "0::/host/path\n", "cpu.max": "50000 100000", "memory.max": "max"}, 1.0, None),
        ({"cgroup": "4:memory:/x\n3:cpu,cpuacct:/x\n", "memory/x/memory.limit_in_bytes": "2097152",
          "cpu/x/cpu.cfs_quota_us": "100000", "cpu/x/cpu.cfs_period_us": "100000"}, 1.0, 2 << 20),
        ({"cgroup": "4:memory:/x\n", "memory/memory.limit_in_bytes": str(2**63 - 4096), "cpu/cpu.cfs_quota_us": "-1"}, None, None),
        ({}, None, None),
    ],
)  # fmt: skip
def test_limits_of_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cpus: float | None, memory_bytes: int | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    real_read = machine._read
    monkeypatch.setattr(machine, "_CGROUP_ROOT", str(tmp_path))
    monkeypatch.setattr(
        machine, "_read", lambda path: real_read(str(tmp_path / "cgroup") if path == "/proc/self/cgroup" else path)
    )
    assert machine.cpus_available() == (cpus if cpus is not None else float(len(os.sched_getaffinity(0))))
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert machine.memory_available_bytes() == (memory_bytes if memory_bytes is not None else whole)


# ---------------------------------------------------------------- sessions on disk


def test_dead_sessions_are_collected_and_living_ones_kept(tmp_path: Path) -> None:
    dead, dead_lock = janitor.create_session(str(tmp_path))
    live, live_lock = janitor.create_session(str(tmp_path))
    half_removed = Path(live).parent / "0123abcd"
    half_removed.mkdir()
    foreign = Path(live).parent / "not-a-session"
    foreign.mkdir()
    (Path(dead) / "spill").mkdir()
    (Path(dead) / "spill" / "object").write_bytes(b"x" * 1000)
    os.close(dead_lock)
    assert janitor.live_sessions(str(tmp_path)) == [live]
    third, third_lock = janitor.create_session(str(tmp_path))
    assert not os.path.exists(dead) and not half_removed.exists()
    assert os.path.isdir(live) and foreign.exists()
    assert sorted(janitor.live_sessions(str(tmp_path))) == sorted([live, third])
    os.close(live_lock)
    os.close(third_lock)


def test_a_base_folder_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = Path(janitor.session_base(str(tmp_path)))
    base.chmod(0o755)
    janitor.session_base(str(tmp_path))
    assert base.stat().st_mode & 0o777 == 0o700, "ours, but too open: closed"
    target = tmp_path / "target"
    base.rmdir()
    target.mkdir()
    base.symlink_to(target)
    with pytest.raises(PermissionError, match="not a folder of yours"):
        janitor.create_session(str(tmp_path))
    base.unlink()
    mine = os.geteuid()
    (tmp_path / f"shoal-{mine + 1}").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    with pytest.raises(PermissionError, match=f"owner: uid {mine}"):
        janitor.session_base(str(tmp_path))


def test_only_sessions_are_removed(tmp_path: Path) -> None:
    for name in ("a", "shoal-0/xyz", f"shoal-{os.geteuid()}/not-a-session", f"shoal-{os.geteuid() + 1}/0123abcd"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        assert not janitor.remove_session(str(folder))
        assert folder.exists()
    assert janitor.remove_session(str(tmp_path / f"shoal-{os.geteuid()}" / "0123abcd")), "gone already"


# ---------------------------------------------------------------- interpreters


def test_spawned_interpreter_sees_what_this_one_sees(tmp_path: Path) -> None:
    (tmp_path / "an_entry.py").write_text(
        "import json, os, sys\n"
        "def main(plan):\n"
        "    import msgspec\n"
        "    facts = {'word': plan['word'], 'none': plan['none_fd'], 'executable': sys.executable, 'prefix': sys.prefix,\n"
        "             'sid': os.getsid(0) == os.getpid(), 'site': 'site' in sys.modules,\n"
        "             'fds': sorted(int(fd) for fd in os.listdir('/proc/self/fd')), 'cwd': os.getcwd()}\n"
        "    os.write(plan['out_fd'], json.dumps(facts).encode())\n"
        "    print('a line for the log')\n"
    )
    import json

    plan = interpreter.this_interpreter()
    plan.import_path.insert(0, str(tmp_path))
    leaked = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(leaked, True)
    ours, theirs = socket.socketpair()
    log = tmp_path / "log"
    try:
        pid = interpreter.spawn_interpreter(
            plan,
            "an_entry:main",
            {"word": "hello"},
            log_path=str(log),
            kept_fds={"out_fd": theirs.fileno(), "none_fd": -1},
        )
        theirs.close()
        ours.settimeout(10)
        facts = json.loads(ours.recv(1 << 16))
        assert process.wait_ended([pid], 5.0) == []
    finally:
        os.close(leaked)
        ours.close()
    assert facts["word"] == "hello" and facts["none"] == -1
    assert (facts["executable"], facts["prefix"]) == (sys.executable, sys.prefix)
    assert facts["sid"] and not facts["site"] and facts["cwd"] == os.getcwd()
    assert len(facts["fds"]) == 5, "stdio, the one kept, and the listing itself"
    assert log.read_text() == "a line for the log\n"


def test_plans_survive_the_journey() -> None:
    import marshal

    start = start_plan.ZygoteStart(interpreter.this_interpreter(), start_plan.EntryPoints(), "/s", "/s/node.sock", 7)
    assert start_plan.zygote_start_of(marshal.loads(marshal.dumps(start_plan.to_plain(start)))) == start


@pytest.mark.parametrize("entry", ["", "module", ":function", "module:"])
def test_ill_formed_entries(entry: str) -> None:
    with pytest.raises(ValueError, match="module:function"):
        start_plan.entry_function(entry)


def test_signals_to_the_dead_are_no_error() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    assert not process.send_signal(child.pid, signal.SIGTERM)
    assert not process.send_signal(0, signal.SIGTERM)
    assert process.open_pidfd(child.pid) == -1
    process.kill_group(child.pid)
