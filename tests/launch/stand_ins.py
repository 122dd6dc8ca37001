"""Tiny stand-ins for the daemon, the GCS server and the worker: only what starting and ending needs."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import socket
import sys
import time
from pathlib import Path

from shoal.system.janitor import end_children
from shoal.system.process import reap
from shoal.system.start_plan import DaemonStart, WorkerStart
from shoal.system.zygote_client import SpawnReply, ZygoteClient, respawn_zygote


def gcs_main(socket_path: str, storage: str = "memory", parent_pid: int = 0) -> None:
    assert parent_pid == os.getppid()
    server = socket.socket(socket.AF_UNIX)
    server.bind(socket_path)
    server.listen()
    while True:
        time.sleep(3600)


def stuck_gcs_main(socket_path: str, storage: str = "memory", parent_pid: int = 0) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    gcs_main(socket_path, storage, parent_pid)


def worker_main(start: WorkerStart) -> int:
    """Print facts about the process, then wait to be killed, or do what the environment says."""

    sock = socket.socket(socket.AF_UNIX)
    sock.bind(os.path.join(start.session_dir, "w", start.worker_id.hex() + ".sock"))
    facts = {
        "token": start.startup_token,
        "worker_id": start.worker_id.hex(),
        "pid": os.getpid(),
        "ppid": os.getppid(),
        "sid": os.getsid(0),
        "random": random.random(),
        "hash": hash("a text"),
        "fds": sorted(int(fd) for fd in os.listdir("/proc/self/fd")),
        "env": os.environ.get("SHOAL_TEST_VARIABLE", ""),
        "numpy": "numpy" in sys.modules,
        "executable": sys.executable,
        "time": time.time(),
    }
    if "numpy.random" in sys.modules:
        import numpy

        facts["numpy_random"] = float(numpy.random.random())
    print(json.dumps(facts))
    todo = start.environment.get("todo", "wait")
    if todo == "exit":
        return 7
    if todo == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if todo == "raise":
        raise ValueError("on purpose")
    if todo == "subprocess":
        os.system("sleep 1000 &")
    while True:
        time.sleep(3600)


class StandInDaemon:
    """Workers on request (a line "token todo" on the node socket), facts of them back; ends as a daemon should."""

    def __init__(self, start: DaemonStart) -> None:
        self.start = start
        self.zygote_pid = start.zygote_pid
        self.client = ZygoteClient(start.zygote_fd)
        self.workers: dict[int, int] = {}
        self.outputs: dict[int, int] = {}
        self.environments: dict[int, dict] = {}
        self.log: list[str] = []

    def spawn(self, token: int, environment: dict) -> None:
        self.environments[token] = environment
        read, write = os.pipe()
        with contextlib.suppress(KeyError):
            os.close(self.outputs.pop(token))
        self.outputs[token] = read
        self.client.spawn(token, token.to_bytes(16, "big"), environment, write, write)
        os.close(write)

    def replies(self) -> list[SpawnReply]:
        replies = self.client.read_replies()
        for reply in replies:
            if reply.error:
                raise RuntimeError(f"no worker: {reply.error}")
            self.workers[reply.token] = reply.pid
        if self.client.closed:
            pending = dict(self.client.pending)
            self.client.close()
            reap(self.zygote_pid)
            sock, self.zygote_pid = respawn_zygote(self.start)
            self.client = ZygoteClient(sock)
            for token in pending:
                self.spawn(token, self.environments[token])
        return replies

    def wait_for(self, token: int) -> None:
        while token not in self.workers:
            select.select([self.client], [], [], 10)
            self.replies()

    def answer(self, line: str) -> object:
        word, *rest = line.split()
        if word == "spawn":
            token, todo = int(rest[0]), rest[1]
            self.spawn(token, {"todo": todo, "env_vars": {"SHOAL_TEST_VARIABLE": f"value {token}"}})
            self.wait_for(token)
            if todo == "raise":
                time.sleep(0.2)
            output = os.read(self.outputs[token], 1 << 16).decode()
            assert output.startswith("{"), output
            return json.loads(output.splitlines()[0])
        if word == "many":
            tokens = range(1000, 1000 + int(rest[0]))
            for token in tokens:
                self.spawn(token, {})
            for token in tokens:
                self.wait_for(token)
            return [self.workers[token] for token in tokens]
        if word == "status":
            pid = self.workers[int(rest[0])]
            _, status = os.waitpid(pid, 0)
            return os.waitstatus_to_exitcode(status)
        if word == "facts":
            return {
                "zygote": self.zygote_pid,
                "gcs": self.start.gcs_pid,
                "workers": self.workers,
                "options": self.start.options,
            }
        raise ValueError(line)


def daemon_main(start: DaemonStart) -> None:
    print("the daemon's first line", flush=True)
    daemon = StandInDaemon(start)
    server = socket.socket(socket.AF_UNIX)
    server.bind(start.node_socket)
    server.listen()
    for token in (1, 2):
        daemon.spawn(token, {})
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    for token in (1, 2):
        daemon.wait_for(token)
    os.write(start.ready_fd, json.dumps({"ok": True, "at": time.time()}).encode() + b"\n")
    os.close(start.ready_fd)
    watched = [server, wake_read, daemon.client] + ([start.driver_fd] if start.driver_fd >= 0 else [])
    while True:
        watched[2] = daemon.client
        ready, _, _ = select.select(watched, [], [])
        if wake_read in ready or start.driver_fd in ready:
            break
        if daemon.client in ready:
            daemon.replies()
        if server in ready:
            connection, _ = server.accept()
            with connection, connection.makefile("rw") as stream:
                stream.write(json.dumps(daemon.answer(stream.readline())) + "\n")
    end_children(start.session_dir, daemon.zygote_pid, [start.gcs_pid], daemon.workers.values())


def dying_daemon_main(start: DaemonStart) -> None:
    print("about to die", flush=True)
    os._exit(3)


def segfaulting_daemon_main(start: DaemonStart) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def failing_daemon_main(start: DaemonStart) -> None:
    raise RuntimeError("no such luck")


def silent_daemon_main(start: DaemonStart) -> None:
    time.sleep(3600)


def stuck_daemon_main(start: DaemonStart) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(start.node_socket).touch()
    os.write(start.ready_fd, b'{"ok": true}\n')
    time.sleep(3600)
