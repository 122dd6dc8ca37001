"""Real Redis servers for tests: a primary, a replica of it and a sentinel, on loopback, ended whatever happens."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

REDIS_SERVER = shutil.which("redis-server") or shutil.which("valkey-server")
SENTINEL = shutil.which("redis-sentinel") or shutil.which("valkey-sentinel")
CLI = shutil.which("redis-cli") or shutil.which("valkey-cli")
SERVICE = "tables"
STARTED_WITHIN_S = 60.0


def skip_without_redis(with_sentinel: bool = False) -> None:
    """Skip a test where there is nothing to run it with."""
    pytest.importorskip("redis", reason="redis-py is not installed (pip install 'shoal[redis]')")
    if REDIS_SERVER is None:
        pytest.skip("neither redis-server nor valkey-server is installed (apt-get install redis-server)")
    if with_sentinel and (SENTINEL is None or CLI is None):
        pytest.skip("there is no redis-sentinel (apt-get install redis-sentinel)")


class ReplicaSet:
    """The servers of one service. `servers` are the primary and its replica, at first in this order.

    Args:
        password: what they ask for; "" for nothing.
    """

    def __init__(self, folder: Path, password: str = "") -> None:
        self.folder = folder
        self.password = password
        self.ports = [free_port(), free_port()]
        self.sentinel_port = free_port()
        self.servers = [self.start_server(0), self.start_server(1, self.ports[0])]
        # A sentinel asks who the replicas are when it begins, and then every 10 s.
        wait_until(lambda: "master_link_status:up" in self.ask(self.ports[1], "info", "replication"))
        self.sentinel = self.start_sentinel()
        wait_until(lambda: "flags\nmaster\n" in self.ask(self.sentinel_port, "sentinel", "master", SERVICE))
        wait_until(lambda: "num-slaves\n1\n" in self.ask(self.sentinel_port, "sentinel", "master", SERVICE))

    @property
    def url(self) -> str:
        """For `open_backend`."""
        login = f":{self.password}@" if self.password else ""
        return f"redis+sentinel://{login}127.0.0.1:{self.sentinel_port}/{SERVICE}?prefix=test"

    def start_server(self, index: int, primary: int = 0) -> subprocess.Popen[bytes]:
        """Start server `index`, as a replica of the port `primary` if one is given."""
        assert REDIS_SERVER is not None
        folder = self.folder / f"redis{index}"
        folder.mkdir(exist_ok=True)
        options = ["--port", str(self.ports[index]), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
        options += ["--appendonly", "no", "--repl-diskless-sync-delay", "0"]
        if self.password:
            options += ["--requirepass", self.password, "--masterauth", self.password]
        if primary:
            options += ["--replicaof", "127.0.0.1", str(primary)]
        return subprocess.Popen([REDIS_SERVER, *options], stdout=subprocess.DEVNULL)

    def start_sentinel(self) -> subprocess.Popen[bytes]:
        assert SENTINEL is not None
        config = self.folder / "sentinel.conf"
        config.write_text(
            f"port {self.sentinel_port}\nbind 127.0.0.1\ndir {self.folder}\n"
            f"sentinel monitor {SERVICE} 127.0.0.1 {self.ports[0]} 1\n"
            f"sentinel down-after-milliseconds {SERVICE} 300\nsentinel failover-timeout {SERVICE} 3000\n"
            + (f"sentinel auth-pass {SERVICE} {self.password}\n" if self.password else "")
        )
        return subprocess.Popen([SENTINEL, str(config)], stdout=subprocess.DEVNULL)

    def primary(self) -> int:
        """The port of the server that the sentinel takes for the primary."""
        return int(self.ask(self.sentinel_port, "sentinel", "get-master-addr-by-name", SERVICE).split()[1])

    def kill_primary(self) -> None:
        """Let the primary die as by a power failure."""
        server = self.servers[self.ports.index(self.primary())]
        server.kill()
        server.wait()

    def ask(self, port: int, *words: str) -> str:
        """What a server answers; empty if it does not."""
        assert CLI is not None
        login = {"REDISCLI_AUTH": self.password} if self.password and port != self.sentinel_port else {}
        command = [CLI, "-p", str(port), *words]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **login})
        return answer.stdout.replace("\r", "")

    def end(self) -> None:
        """Kill all."""
        for server in (*self.servers, self.sentinel):
            server.kill()
            server.wait()


@contextmanager
def replica_set(folder: Path, password: str = "") -> Iterator[ReplicaSet]:
    """A replica set that is ended at the end."""
    skip_without_redis(with_sentinel=True)
    replicas = ReplicaSet(folder, password)
    try:
        yield replicas
    finally:
        replicas.end()


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for something that is soon true."""
    deadline = time.monotonic() + STARTED_WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, "the Redis servers do not find each other"
        time.sleep(0.02)


def free_port() -> int:
    """A port that nobody listens on, of those that the kernel does not hand out itself: it stays free until it is taken."""
    dice = random.SystemRandom()
    while True:
        port = dice.randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


@contextmanager
def running_redis(folder: Path, kept: bool = False) -> Iterator[Path]:
    """One server, on a socket in `folder`, ended at the end; its path. `kept`: the next one in that folder has its rows."""
    skip_without_redis()
    assert REDIS_SERVER is not None
    path = folder / "redis.sock"
    path.unlink(missing_ok=True)
    options = ["--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(folder), "--appendonly"]
    options += ["yes", "--appendfsync", "always"] if kept else ["no"]
    server = subprocess.Popen([REDIS_SERVER, *options], stdout=subprocess.DEVNULL)
    try:
        wait_until(path.exists)
        yield path
    finally:
        server.kill()
        server.wait()
