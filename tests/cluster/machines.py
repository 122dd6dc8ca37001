"""Machines of a network of their own: a namespace each, with an address, joined by a bridge in another namespace.

    host                shoal-XXXX-hub: bridge
                           |        |        |
                        10.77.0.1  10.77.0.2  ...     one namespace a machine: shoal-XXXX-1, shoal-XXXX-2

A machine has a home and a folder for sessions of its own, so that its nodes are found there only. Needs root and iproute2; `why_not` says what lacks.

What it does not do: reach the world outside, or anything of the host's network.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.session_logs import LOGS

SOURCE = Path(__file__).resolve().parents[2] / "src"
SLOW_LINK = Path(__file__).with_name("slow_link.py")
NETWORK = "10.77.0"


@functools.cache
def why_not() -> str:
    """Why there can be no such machines here; "" when there can."""
    if os.geteuid() != 0:
        return "namespaces of the network need root"
    if shutil.which("ip") is None:
        return "iproute2 is not installed"
    name = f"shoal-{os.urandom(2).hex()}"
    for command in (
        f"ip netns add {name}",
        f"ip -n {name} link add type veth peer",
        f"ip -n {name} link add type bridge",
    ):
        done = _call(command)
        if done.returncode:
            _call(f"ip netns del {name}")
            return f"`{command}`: {done.stderr.strip()}"
    _call(f"ip netns del {name}")
    return ""


@functools.cache
def why_not_slow() -> str:
    """Why links cannot be made slow and lossy here; "" when they can."""
    if why_not():
        return why_not()
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError as error:
        return f"/dev/net/tun: {error}"
    return ""


def _call(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command.split(), capture_output=True, text=True, timeout=20, check=False)


def _must(command: str) -> None:
    done = _call(command)
    assert done.returncode == 0, f"{command}: {done.stderr}"


class Machine:
    """One of them."""

    def __init__(self, network: Network, number: int) -> None:
        self.network = network
        self.number = number
        self.space = f"{network.name}-{number}"
        self.address = f"{NETWORK}.{number}"
        self.home = Path(f"/tmp/{self.space}")  # names of sockets must be short
        self.home.mkdir(0o700)
        LOGS.watch(self.home)
        self.link: subprocess.Popen[str] | None = None  #: carries what goes over a slow cable
        link = f"v{number}"
        _must(f"ip netns add {self.space}")
        _must(f"ip -n {network.hub} link add {link} type veth peer name eth0 netns {self.space}")
        _must(f"ip -n {network.hub} link set {link} master bridge up")
        _must(f"ip -n {self.space} addr add {self.address}/24 dev eth0")
        _must(f"ip -n {self.space} link set eth0 up")
        _must(f"ip -n {self.space} link set lo up")

    def environment(self) -> dict[str, str]:
        """Of a process on this machine."""
        own = {"HOME": str(self.home), "SHOAL_TMPDIR": str(self.home), "PYTHONPATH": str(SOURCE)}
        return {**{name: value for name, value in os.environ.items() if not name.startswith(("SHOAL_", "RAY_"))}, **own}

    def command(self, *arguments: str) -> list[str]:
        """`arguments` as a command that runs here."""
        return ["ip", "netns", "exec", self.space, *arguments]

    def shoal(self, *arguments: str, code: int = 0) -> str:
        """What `shoal ARGUMENTS` prints here."""
        done = subprocess.run(
            self.command(sys.executable, "-m", "shoal", *arguments),
            capture_output=True,
            text=True,
            timeout=60,
            env=self.environment(),
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def python(self, program: str, **options: Any) -> subprocess.Popen[str]:
        """Start a program here."""
        command = self.command(sys.executable, "-u", "-c", program)
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment(), **options
        )

    def start_head(self, *arguments: str) -> str:
        """Begin a cluster here; its address."""
        said = self.shoal("start", "--head", "--host", self.address, "--port", "0", *arguments)
        found = re.search(r"Started a cluster at (\S+);", said)
        assert found is not None, said
        return found[1]

    def take_token(self, other: Machine) -> None:
        """Copy the token of another machine."""
        (self.home / ".shoal").mkdir(0o700, exist_ok=True)
        shutil.copy2(other.home / ".shoal" / "token", self.home / ".shoal" / "token")

    def cable(self, plugged: bool) -> None:
        """Pull the cable out, or plug it in."""
        _must(f"ip -n {self.network.hub} link set v{self.number} {'up' if plugged else 'down'}")

    def slow(self, delay_s: float, jitter_s: float, loss: float) -> None:
        """Replace the cable by one that takes its time and loses a share of what it carries (see `slow_link`)."""
        hub, link = self.network.hub, f"v{self.number}"
        _must(f"ip -n {hub} link del {link}")
        command = [sys.executable, str(SLOW_LINK), hub, link, self.space, "eth0"]
        numbers = [str(delay_s), str(jitter_s), str(loss)]
        self.link = subprocess.Popen([*command, *numbers], stdout=subprocess.PIPE, text=True)
        assert self.link.stdout is not None
        assert self.link.stdout.readline() == "ready\n"
        _must(f"ip -n {hub} link set {link} master bridge up")
        _must(f"ip -n {self.space} addr add {self.address}/24 dev eth0")
        _must(f"ip -n {self.space} link set eth0 up")

    def close(self) -> list[str]:
        """End what runs here; what was left in the folder of sessions."""
        subprocess.run(
            self.command(sys.executable, "-m", "shoal", "stop", "--force"),
            capture_output=True,
            timeout=60,
            env=self.environment(),
            check=False,
        )
        pids = _call(f"ip netns pids {self.space}").stdout.split()
        for pid in pids:
            _call(f"kill -9 {pid}")
        if self.link is not None:
            self.link.kill()
            self.link.communicate()
        _must(f"ip netns del {self.space}")
        sessions = self.home / f"shoal-{os.geteuid()}"
        left = [str(path) for path in sessions.iterdir() if path.is_dir()] if sessions.is_dir() else []
        shutil.rmtree(self.home, ignore_errors=True)
        return left


class Network:
    """Some machines and what joins them; `with` ends it all."""

    def __init__(self, machines: int) -> None:
        self.name = f"sn{os.urandom(2).hex()}"
        self.hub = f"{self.name}-hub"
        self.machines: list[Machine] = []
        _must(f"ip netns add {self.hub}")
        try:
            _must(f"ip -n {self.hub} link add bridge type bridge")
            _must(f"ip -n {self.hub} link set bridge up")
            for number in range(1, machines + 1):
                self.machines.append(Machine(self, number))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End everything."""
        left = [path for machine in self.machines for path in machine.close()]
        _call(f"ip netns del {self.hub}")
        assert left == []

    def __enter__(self) -> Network:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
