"""The command line: what each command prints and how it ends."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import click
import pytest
from click.testing import CliRunner

import shoal
from shoal.cli import main
from shoal.cli.amounts import bytes_of
from shoal.cli.status import size
from shoal.launch.observer import Observer, SessionUnreachableError
from shoal.protocol.messages import Shutdown
from shoal.runtime import core
from shoal.wire.framing import encode_frame


def run_module(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    return subprocess.run(
        [sys.executable, "-m", "shoal", *arguments], capture_output=True, text=True, timeout=90, env=environment
    )


def test_version() -> None:
    result = CliRunner().invoke(main, ["version"])
    assert result.exit_code == 0
    assert result.output.strip() == f"shoal {shoal.__version__}"


def test_help_names_the_commands() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert all(
        command in result.output
        for command in ["start", "stop", "drain", "status", "demo", "version", "microbenchmark"]
    )


def test_status_shows_this_session(shoal_shared: ModuleType) -> None:
    @shoal_shared.remote
    class Resident:
        def ping(self) -> int:
            return 1

    resident = Resident.remote()
    shoal_shared.get(resident.ping.remote())
    result = CliRunner().invoke(main, ["status", "--json"])
    assert result.exit_code == 0, result.output
    sessions = json.loads(result.output)["sessions"]
    ours = [s for s in sessions if any(job["pid"] == os.getpid() for job in s.get("jobs", []))]
    assert len(ours) == 1
    assert ours[0]["actors"]["alive"] >= 1
    assert ours[0]["resources"]["total"]["CPU"] == 4
    assert ours[0]["processes"] >= 3
    assert ours[0]["memory_bytes"] > 1_000_000
    text = CliRunner().invoke(main, ["status"]).output
    assert f"pid {os.getpid()}" in text
    assert "of 4 CPU" in text


def test_status_without_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.launch.local_nodes.live_sessions", lambda parent: [])
    result = CliRunner().invoke(main, ["status"])
    assert result.exit_code == 1
    assert "shoal.init()" in result.output
    assert json.loads(CliRunner().invoke(main, ["status", "--json"]).output) == {"sessions": [], "clusters": []}


def test_a_daemon_that_is_silent_or_gone_is_an_error_not_a_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SessionUnreachableError, match="does not answer"):
        Observer(str(tmp_path))
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "node.sock"))
        silent.listen(2)
        with (
            Observer(str(tmp_path), timeout_s=0.1) as observer,
            pytest.raises(SessionUnreachableError, match="stopped"),
        ):
            observer.call("node.ping")
        monkeypatch.setattr("shoal.launch.observer.ANSWER_TIMEOUT_S", 0.1)
        monkeypatch.setattr(Observer.__init__, "__defaults__", (0.1,))
        monkeypatch.setattr("shoal.launch.local_nodes.live_sessions", lambda parent: [str(tmp_path)])
        result = CliRunner().invoke(main, ["status"])
    assert "stopped answering" in result.output


def test_a_daemon_that_closes_the_connection_is_quoted(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(str(tmp_path / "node.sock"))
        daemon.listen(1)
        with Observer(str(tmp_path)) as observer:
            there, _ = daemon.accept()
            with there, pytest.raises(SessionUnreachableError, match="it is tired"):
                there.sendall(encode_frame(Shutdown("it is tired")))
                observer.call("node.ping")


def test_a_refused_call_says_why(shoal_shared: ModuleType) -> None:
    with Observer(core.current().session_dir) as observer, pytest.raises(RuntimeError, match="no method"):
        observer.call("node.nonsense")


@pytest.mark.parametrize(
    ("text", "count"),
    [("1000", 1000), ("1e9", 10**9), ("1E+9", 10**9), ("1GB", 10**9), ("1g", 10**9), ("1.5 gb", 1_500_000_000)]
    + [("512MiB", 512 * 2**20), ("2Gi", 2**31), ("10_000", 10_000), ("100kB", 100_000), ("7b", 7), (None, None)]
    + [(text, "is no size") for text in ("", "0", "-1", "1e-9", "1 GX", "GB", "1..5", "nan", "inf", "1e99", "1,000")],
)
def test_sizes_are_taken_as_people_write_them(text: str | None, count: object) -> None:
    option = click.Option(["--size"])
    if isinstance(count, str):
        with pytest.raises(click.BadParameter, match=f"{re.escape(repr(text))} {count}: write bytes .* or a unit"):
            bytes_of(click.Context(main), option, text)
    else:
        assert bytes_of(click.Context(main), option, text) == count


def test_demo_runs_from_the_module() -> None:
    result = run_module("demo", "--num-cpus", "2")
    assert result.returncode == 0, result.stderr
    assert "ZeroDivisionError" in result.stdout
    assert "Everything was gone" in result.stdout


def test_microbenchmark() -> None:
    result = run_module("microbenchmark", "--seconds", "0.05", "--num-cpus", "2", "--json")
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    assert len(figures) >= 10
    assert all(figure["value"] > 0 for figure in figures.values())


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (7.58e9, "7.58 GB"), (2e15, "2e+03 TB")]
)
def test_size(count: float, text: str) -> None:
    assert size(count) == text
