"""Several machines for real: namespaces of the network, each with its own address."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.cluster.machines import Machine, Network, why_not, why_not_slow
from tests.engine.driver_process import HEARD

SOON_S = 60.0
pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

PROGRAM = (
    HEARD
    + """
sys.stdout = Heard(sys.stdout)
import shoal
shoal.init(sys.argv[1] if len(sys.argv) > 1 else "auto", log_to_driver=True)
def here():
    return shoal.get_runtime_context().get_node_id()
addresses = {row["NodeID"]: row["NodeManagerAddress"] for row in shoal.nodes() if row["Alive"]}
"""
)


@pytest.fixture
def network() -> Iterator[Callable[[int], list[Machine]]]:
    """`network(count)` gives machines."""
    made: list[Network] = []

    def make(count: int) -> list[Machine]:
        made.append(Network(count))
        return made[-1].machines

    yield make
    for each in made:
        each.close()


def cluster_of(machines: list[Machine]) -> str:
    """Start a head on the first and a node with the resource mN on each other machine N; the cluster's address."""
    head, *others = machines
    address = head.start_head("--num-cpus", "1")
    for machine in others:
        machine.take_token(head)
        machine.shoal("start", f"--address={address}", "--num-cpus", "2", "--resources", f"m{machine.number}=1")
    return address


def run(machine: Machine, program: str, timeout_s: float = SOON_S) -> str:
    """What a program prints on a machine, at its good end."""
    process = machine.python(PROGRAM + program)
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"it did not end: {out}\n{err}") from None
    assert process.returncode == 0, out + err
    return out


EVERYTHING = """
work = shoal.remote(lambda *inputs: (addresses.get(here()), sum(len(each) for each in inputs)))
for number in (2, 3):
    for size in (10, 50_000, 3_000_000):
        value = bytes(size)
        assert shoal.get(work.options(resources={f"m{number}": 0.1}).remote(value)) == (f"10.77.0.{number}", size)
        made = shoal.remote(lambda size: bytes(size)).options(resources={f"m{number}": 0.1}).remote(size)
        assert len(shoal.get(made)) == size
        other = 5 - number
        assert shoal.get(work.options(resources={f"m{other}": 0.1}).remote(made)) == (f"10.77.0.{other}", size)
@shoal.remote
class Counter:
    def __init__(self):
        self.count = 0
    def add(self):
        self.count += 1
        return self.count
    def where(self):
        assert shoal.util.get_node_ip_address() == addresses[here()]
        return addresses[here()]
counter = Counter.options(resources={"m2": 0.1}).remote()
@shoal.remote(resources={"m3": 0.1})
def use(counter):
    return [shoal.get(counter.add.remote()) for _ in range(5)]
assert shoal.get(counter.where.remote()) == "10.77.0.2"
assert shoal.get(use.remote(counter)) == [1, 2, 3, 4, 5]
assert shoal.get([counter.add.remote() for _ in range(100)]) == list(range(6, 106))
@shoal.remote(resources={"m3": 0.1})
def say():
    print("from afar")
shoal.get(say.remote())
results = shoal.get([work.options(resources={f"m{2 + n % 2}": 0.1}).remote(b"x") for n in range(200)])
assert results == [(f"10.77.0.{2 + n % 2}", 1) for n in range(200)]
sys.stdout.wait_for("from afar")
print("DONE")
"""


def test_tasks_actors_and_objects(network: Callable[[int], list[Machine]]) -> None:
    machines = network(3)
    address = cluster_of(machines)
    assert address.startswith("10.77.0.1:")
    out = run(machines[0], EVERYTHING)
    assert "DONE" in out
    assert re.search(r"^\(say pid=\d+, node=10\.77\.0\.3:\d+\) from afar$", out, re.MULTILINE), out
    # A program may be on any machine.
    assert "DONE" in run(machines[2], EVERYTHING)
    text = machines[1].shoal("status")
    assert f"cluster at {address}: 3 nodes" in text
    machines[2].shoal("drain", _name_of(machines[2]))
    assert f"cluster at {address}: 2 nodes" in machines[0].shoal("status")


def _name_of(machine: Machine) -> str:
    return str(json.loads(machine.shoal("status", "--json"))["sessions"][0]["name"])


def test_who_is_not_on_the_network_of_the_head(network: Callable[[int], list[Machine]]) -> None:
    """The head listens on its own address only; a machine without the token, or without a node, is told so."""
    head, other = network(2)
    loopback = head.shoal("start", "--head", "--port", "0", "--num-cpus", "1")
    found = re.search(r"Started a cluster at 127\.0\.0\.1:(\d+);", loopback)
    assert found is not None, loopback
    other.take_token(head)
    said = other.shoal("start", f"--address={head.address}:{found[1]}", code=1)
    assert "nobody answers at" in said
    address = head.start_head("--num-cpus", "1")
    (other.home / ".shoal" / "token").unlink()
    assert "no cluster token at" in other.shoal("start", f"--address={address}", code=1)
    process = other.python(f"import shoal; shoal.init({address!r})")
    _, err = process.communicate(timeout=SOON_S)
    assert f"Something answers at {address}: start a node here with `shoal start --address={address}`" in err


def test_a_cable_that_is_pulled_out(network: Callable[[int], list[Machine]], tmp_path: Path) -> None:
    """The machine is missed after some seconds; its task runs elsewhere; when it comes back it is told that it is dead, and ends."""
    machines = network(3)
    cluster_of(machines)
    program = machines[0].python(
        PROGRAM
        + f"""
from pathlib import Path
pulled = Path({str(tmp_path / "pulled")!r})
"""
        + """
@shoal.remote(num_cpus=2, max_retries=3)
def long():
    print("BEGUN", addresses[here()], flush=True)
    while not pulled.exists():
        time.sleep(0.01)
    return addresses[here()]
refs = [long.remote(), long.remote()]
print("RESULT", *shoal.get(refs, timeout=60), flush=True)
"""
    )
    try:
        assert program.stdout is not None
        begun: set[str] = set()
        while len(begun) < 2:
            line = program.stdout.readline()
            assert line, program.stderr and program.stderr.read()
            if "BEGUN" in line:
                begun.add(line.split("BEGUN ")[1].strip())
        assert begun == {"10.77.0.2", "10.77.0.3"}
        pulled_at = time.monotonic()
        machines[2].cable(False)
        (tmp_path / "pulled").touch()
        result = ""
        while not result.startswith("RESULT"):
            result = program.stdout.readline()
            assert result, program.stderr and program.stderr.read()
        assert result.split()[1:] == ["10.77.0.2", "10.77.0.2"]
        assert time.monotonic() - pulled_at < SOON_S
        assert program.wait(SOON_S) == 0
    finally:
        program.kill()
        program.communicate()
    assert "2 nodes" in machines[0].shoal("status")
    machines[2].cable(True)
    deadline = time.monotonic() + SOON_S
    while "Nothing of yours" not in _status(machines[2]):
        assert time.monotonic() < deadline, machines[2].shoal("status")
        time.sleep(0.2)


def _status(machine: Machine) -> str:
    result = subprocess.run(
        machine.command(sys.executable, "-m", "shoal", "status"),
        capture_output=True,
        text=True,
        env=machine.environment(),
        check=False,
        timeout=SOON_S,
    )
    return result.stdout


SOME_OF_IT = """
work = shoal.remote(lambda value: (addresses.get(here()), len(value))).options(resources={"m2": 0.1})
assert shoal.get(work.remote(bytes(10))) == ("10.77.0.2", 10)
assert shoal.get(work.remote(bytes(300_000))) == ("10.77.0.2", 300_000)
assert len(shoal.get(shoal.remote(lambda: bytes(300_000)).options(resources={"m2": 0.1}).remote())) == 300_000
results = shoal.get([work.remote(b"x") for _ in range(200)])
assert results == [("10.77.0.2", 1)] * 200
print("DONE")
"""


@pytest.mark.skipif(bool(why_not_slow()), reason=why_not_slow())
def test_a_slow_network_that_loses_packets(network: Callable[[int], list[Machine]]) -> None:
    """Each way takes 2 to 4 ms, and one frame of a hundred is lost: TCP repeats it, and nothing else notices."""
    machines = network(2)
    machines[1].slow(delay_s=0.002, jitter_s=0.002, loss=0.01)
    cluster_of(machines)
    assert "DONE" in run(machines[0], SOME_OF_IT)
