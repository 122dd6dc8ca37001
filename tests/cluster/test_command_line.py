"""The commands that make, show and end clusters, as processes of their own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.session_logs import LOGS

import shoal
from shoal.cli import main

SOURCE = Path(__file__).resolve().parents[2] / "src"
SOON_S = 60.0


class Shell:
    """A user's shell with a home of its own; `with` ends all nodes that were started."""

    def __init__(self) -> None:
        self.home = Path(f"/tmp/shc-{os.urandom(3).hex()}")  # names of sockets must be short
        self.home.mkdir(0o700)
        LOGS.watch(self.home)
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(SOURCE),
            "HOME": str(self.home),
            "SHOAL_TMPDIR": str(self.home),
        }
        for name in ("SHOAL_ADDRESS", "RAY_ADDRESS", "SHOAL_TOKEN_FILE"):
            self.environment.pop(name, None)

    def run(self, *arguments: str, code: int = 0) -> str:
        """What `shoal ARGUMENTS` prints (both streams); its exit code must be `code`. Nodes that stay are started by processes of their own."""
        if arguments[0] != "start" or code:
            done = CliRunner().invoke(main, list(arguments), env=dict(self.environment))
            assert done.exit_code == code, done.output
            return done.output
        result = subprocess.run(
            [sys.executable, "-m", "shoal", *arguments],
            capture_output=True,
            text=True,
            timeout=40,
            env=self.environment,
        )
        assert result.returncode == code, result.stdout + result.stderr
        return result.stdout + result.stderr

    def start_head(self, *arguments: str) -> str:
        """The address of a new cluster."""
        said = self.run("start", "--head", "--port", "0", *arguments)
        found = re.search(r"Started a cluster at (\S+);", said)
        assert found is not None, said
        return found[1]

    def status(self) -> dict[str, Any]:
        """What `shoal status --json` tells."""
        return dict(json.loads(self.run("status", "--json")))

    def close(self) -> None:
        sessions = self.home / f"shoal-{os.geteuid()}"
        try:
            self.run("stop")
        finally:
            CliRunner().invoke(main, ["stop", "--force"], env=dict(self.environment))
            left = [path for path in sessions.iterdir() if path.is_dir()] if sessions.is_dir() else []
            shutil.rmtree(self.home)
        assert left == []


@pytest.fixture
def shell() -> Iterator[Shell]:
    shell = Shell()
    yield shell
    shell.close()


def test_a_cluster_from_the_shell(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    address = shell.start_head("--num-cpus", "1", "--name", "first")
    token = shell.home / ".shoal" / "token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    said = shell.run(
        "start",
        f"--address={address}",
        "--num-cpus",
        "2",
        "--resources",
        "two=3",
        "--labels",
        "zone=b,rack=7",
        "--name",
        "second",
    )
    assert f"Joined the cluster at {address} as node second" in said
    shoal.shutdown()
    for name in ("HOME", "SHOAL_TMPDIR"):
        monkeypatch.setenv(name, shell.environment[name])
    shoal.init("auto", log_to_driver=False)
    assert shoal.cluster_resources()["CPU"] == 3
    assert {row["NodeName"]: row["Labels"] for row in shoal.nodes()} == {
        "first": {},
        "second": {"zone": "b", "rack": "7"},
    }
    impossible = shoal.remote(lambda: time.sleep(600)).options(resources={"two": 2.5})
    waiting = [impossible.options(name="greedy").remote() for _ in range(2)]
    deadline = time.monotonic() + SOON_S
    # The text below wants one of them to run.
    while not (pending := shell.status()["clusters"][0]["waiting"]) or shoal.available_resources()["two"] > 1:
        assert time.monotonic() < deadline, pending
    # It waits at the global scheduler, or in the queue of the only node that can run it.
    assert pending[0]["name"] in ("greedy", "tasks or actors") and pending[0]["demand"]["two"] == 2.5
    text = shell.run("status")
    assert f"cluster at {address}: 2 nodes" in text
    assert "first (head)" in text
    assert re.search(r"second +alive +1/2 .*2.5/3 two +rack=7, zone=b", text), text
    assert re.search(r"pending\n +[12] x (greedy|tasks or actors) \(1 CPU, 2.5 two\): .+", text), text
    assert f"pid {os.getpid()} " in text
    del waiting
    shoal.shutdown()
    assert len(shell.status()["clusters"][0]["nodes"]) == 2, "a program's end ends no node"
    assert "Node second has left" in shell.run("drain", "second", "--deadline", "10")
    assert f"Ended the head first of the cluster at {address}" in shell.run("stop")
    assert "Nothing of yours runs" in shell.run("status", code=1)


def test_stop_ends_all_or_one_cluster_and_no_program(shell: Shell) -> None:
    one, two = shell.start_head(), shell.start_head()
    shell.run("start", f"--address={one}")
    program = subprocess.Popen(
        [sys.executable, "-c", "import shoal, time; shoal.init(num_cpus=1); print('up', flush=True); time.sleep(600)"],
        env=shell.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert program.stdout is not None
        assert program.stdout.readline() == "up\n"
        said = shell.run("stop", "--address", one)
        assert said.count("Ended") == 2
        assert [cluster["address"] for cluster in shell.status()["clusters"]] == [two]
        assert "Killed the head" in shell.run("stop", "--force")
        assert "No node" in shell.run("stop")
        left = shell.status()
        assert (len(left["sessions"]), left["clusters"]) == (1, [])
        assert program.poll() is None
    finally:
        program.kill()
        program.communicate()
        deadline = time.monotonic() + SOON_S
        while (
            "Nothing"
            not in subprocess.run(
                [sys.executable, "-m", "shoal", "status"],
                capture_output=True,
                text=True,
                env=shell.environment,
                timeout=60,
            ).stdout
        ):
            assert time.monotonic() < deadline, "the program's session ends with it"


def test_block_stays_and_ends_the_node(shell: Shell) -> None:
    command = subprocess.Popen(
        [sys.executable, "-m", "shoal", "start", "--head", "--port", "0", "--block"],
        env=shell.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert command.stdout is not None
    assert "Started a cluster" in command.stdout.readline()
    assert len(shell.status()["clusters"]) == 1
    command.send_signal(signal.SIGTERM)
    said, _ = command.communicate(timeout=SOON_S)
    assert command.returncode == 0, said
    assert "ending the node" in said
    assert shell.run("status", code=1)


def test_tls_from_the_shell(shell: Shell) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command makes the certificates")
    assert "shoal certificates" in shell.run("start", "--head", "--tls", code=1)
    assert "Made an authority" in shell.run("certificates")
    assert "remove the folder" in shell.run("certificates", code=1)
    address = shell.start_head("--tls")
    assert "uses TLS (--tls)" in shell.run("start", f"--address={address}", code=1)
    assert "Joined" in shell.run("start", f"--address={address}", "--tls")
    assert f"cluster at {address}: 2 nodes" in shell.run("status")


def test_wrong_options_say_so(shell: Shell) -> None:
    for arguments, text in (
        ((), "either --head.*or --address"),
        (("--head", "--address=127.0.0.1:1"), "either --head.*or --address"),
        (("--address=127.0.0.1:1", "--port=7"), "--port: only the head"),
        (("--head", "--resources", "gripper"), "not of the form NAME=VALUE"),
        (("--head", "--resources", "CPU=3"), "use num_cpus"),
        (("--head", "--resources", "a=b"), "is no number"),
        (("--head", "--resources", "{oops"), "is no JSON"),
        (("--head", "--storage", "paper"), "there is no GCS storage 'paper'"),
        (("--head", "--host", "0.0.0.0"), "cannot listen on '0.0.0.0'.*one address of this machine"),
        (("--head", "--host", "192.0.2.1"), "no address of this machine"),
        (("--address=nonsense",), "HOST:PORT"),
        (("--address=127.0.0.1:1",), "nobody answers at 127.0.0.1:1"),
    ):
        said = shell.run(
            "start", *arguments, code=1 if "NAME" not in text and "number" not in text and "JSON" not in text else 2
        )
        assert re.search(text, said, re.DOTALL), said
    assert "no session of yours runs" in shell.run("drain", "x", code=1)
    address = shell.start_head("--name", "first")
    assert "no node is called 'second'; there are first" in shell.run("drain", "second", code=1)
    assert "is the head node" in shell.run("drain", "first", code=1)
    shell.run("start", f"--address={address}", "--name", "twin")
    said = shell.run("start", f"--address={address}", "--name", "twin", code=1)
    assert "the node name 'twin' is taken" in said
    port = address.rpartition(":")[2]
    assert "another program listens there" in shell.run("start", "--head", "--port", port, code=1)
