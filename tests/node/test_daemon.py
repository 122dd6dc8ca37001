"""A real daemon with zygote and GCS, spoken to by plain sockets: registration, leases, deaths, logs, actors, the end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.node.fake_processes import Speaker, ask

from shoal.launch.nodes import HeadOptions, StartedNode, start_head
from shoal.protocol.ids import actor_handle_id
from shoal.protocol.messages import (
    ActorSpec,
    ActorState,
    Answer,
    Call,
    CreateActor,
    Escape,
    FreeObjects,
    Hello,
    Hold,
    KillActor,
    KillWorker,
    LeaseGranted,
    LeasesUnschedulable,
    LogLines,
    OpenSegment,
    Publish,
    Release,
    RequestLeases,
    Resolve,
    Resolved,
    ReturnLease,
    Sealed,
    SegmentBudget,
    Shutdown,
    SubscribeActor,
    WorkerDied,
)
from shoal.store.client import StoreClient
from shoal.system.process import open_pidfd, wait_readable
from shoal.system.start_plan import EntryPoints

CPU_1 = {"CPU": 10_000}


class Node:
    """A head node and its home driver."""

    def __init__(self, **options: Any) -> None:
        entries = EntryPoints(worker="tests.node.fake_processes:run_worker", warm=[])
        self.head: StartedNode = start_head(HeadOptions(num_cpus=2, num_gpus=0, entries=entries, **options))
        self.driver = Speaker(self.head.node_socket)
        self.registered = self.driver.register(job={"namespace": "tests"})

    def grant(self, backlog: int = 1, class_no: int = 1, **fields: Any) -> LeaseGranted:
        demand = fields.pop("demand", CPU_1)
        self.driver.send(RequestLeases(class_no, self.registered.job_id, demand, 0, backlog, **fields))
        granted: LeaseGranted = self.driver.expect(LeaseGranted)
        return granted

    def call(self, method: str, **body: Any) -> Any:
        self.driver.send(Call(77, method, body))
        answer: Answer = self.driver.expect(Answer)
        assert not answer.error, answer.error
        return answer.body


@pytest.fixture
def node() -> Iterator[Node]:
    made = Node()
    yield made
    made.head.stop()
    assert not os.path.exists(made.head.session_dir)


def eventually(condition: Callable[[], bool], within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def test_a_process_registers_and_gets_its_page(node: Node) -> None:
    registered = node.registered
    assert registered.job_id == b"\0\0\0\1" and registered.namespace == "tests"
    assert registered.config["num_cpus"] == 2.0 and registered.session_dir == node.head.session_dir
    assert node.call("node.resources")["total"]["CPU"] == 2.0


def test_a_lease_is_granted_after_the_worker_knows_it(node: Node) -> None:
    granted = node.grant()
    assert ask(granted.address, "lease?") == str(granted.lease_id)
    node.driver.send(ReturnLease(granted.lease_id))
    eventually(lambda: ask(granted.address, "lease?") == "0")
    again = node.grant(class_no=2)
    assert again.lease_id != granted.lease_id


def test_impossible_demands_are_refused(node: Node) -> None:
    node.driver.send(RequestLeases(1, node.registered.job_id, {"CPU": 990_000}, 0, 1))
    assert "99" in node.driver.expect(LeasesUnschedulable).reason


def test_a_death_is_told_with_its_cause_and_what_had_started(node: Node) -> None:
    granted = node.grant()
    ask(granted.address, "begin 41")
    ask(granted.address, "complain the last words")
    ask(granted.address, "die 7")
    died: WorkerDied = node.driver.expect(WorkerDied)
    assert (died.worker_id, died.lease_id, died.started_seq) == (granted.worker_id, granted.lease_id, 41)
    assert died.exit_code == 7 and "exit code 7" in died.cause and "the last words" in died.cause
    other = node.grant(class_no=2)  # the CPU is free again
    os.kill(other.pid, signal.SIGSEGV)
    died = node.driver.expect(WorkerDied)
    assert died.exit_code == -signal.SIGSEGV and died.started_seq == 0 and "SIGSEGV" in died.cause


def test_force_kills_only_the_task_that_was_meant(node: Node) -> None:
    granted = node.grant()
    ask(granted.address, "begin 5")
    node.driver.send(KillWorker(granted.lease_id, 4))
    node.driver.nothing()
    node.driver.send(KillWorker(granted.lease_id, 5))
    died = node.driver.expect(WorkerDied)
    assert died.exit_code == -9 and "cancel" in died.cause


def test_lines_reach_the_driver_named(node: Node) -> None:
    granted = node.grant()
    ask(granted.address, "print \x01shoal:name:f\nhello\nworld")
    heard: list[str] = []
    while len(heard) < 2:  # what is written in two pieces may come in two messages
        lines: LogLines = node.driver.expect(LogLines)
        assert (lines.pid, lines.name, lines.stream) == (granted.pid, "f", 1)
        heard += lines.lines
    assert heard == ["hello", "world"]
    path = os.path.join(node.head.session_dir, "logs", f"worker-{granted.pid}.out")
    assert open(path).read() == "hello\nworld\n"


def test_workers_that_cannot_start_are_reported(node: Node) -> None:
    environment = {"env_vars": {"CRASH_AT_START": "1"}}
    node.driver.send(RequestLeases(1, node.registered.job_id, CPU_1, 0, 1, environment=environment))
    refusal = node.driver.expect(LeasesUnschedulable, 30.0)
    assert "cannot start like this" in refusal.reason


def test_the_zygote_is_replaced_and_workers_live_on(node: Node) -> None:
    granted = node.grant()
    zygote = int(os.popen(f"pgrep -P {node.head.pid} -f shoal:zygote").read().split()[0])
    os.kill(zygote, signal.SIGKILL)
    more = node.grant(class_no=2, environment={"env_vars": {"NEW": "1"}})
    assert more.worker_id != granted.worker_id
    assert ask(granted.address, "lease?") == str(granted.lease_id)


def test_objects_are_held_resolved_and_freed(node: Node) -> None:
    driver = node.driver
    oid = b"o" * 20
    driver.send(Escape([oid]), Resolve([oid]))
    driver.nothing()
    driver.send(Publish(oid, b"value"))
    assert driver.expect(Resolved) == Resolved(oid, b"value")
    driver.send(Hold([oid]), Release([oid]), Release([oid]))
    eventually(lambda: node.call("node.stats")["objects"]["objects"] == 0, 1.0)


def test_stored_objects_come_and_go_with_their_holders(node: Node) -> None:
    driver = node.driver

    def open_segment(need: int) -> SegmentBudget:
        driver.send(OpenSegment(3, need))
        budget: SegmentBudget = driver.expect(SegmentBudget)
        return budget

    assert driver.page is not None
    store = StoreClient(node.registered.daemon_pid, driver.page, open_segment)
    oid, private = b"s" * 20, b"p" * 20
    for each in (oid, private):
        stored = store.put(each, b"x" * 1_000_000)
        item = (each, stored.segment, stored.offset, stored.size, stored.generation, driver.worker_id)
        driver.send(Sealed([item]))
        if each is oid:
            driver.send(Escape([oid]), Publish(oid, stored))
    guest = Speaker(node.head.node_socket)
    guest.register()
    guest.send(Hold([oid]), Resolve([oid]))
    resolved = guest.expect(Resolved)
    assert resolved.value.size == 1_000_000
    driver.send(Release([oid]))
    time.sleep(0.1)
    assert node.call("node.stats")["store"]["objects"] == 2
    guest.sock.close()
    eventually(lambda: node.call("node.stats")["store"]["objects"] == 1)
    driver.send(FreeObjects([private]))
    eventually(lambda: node.call("node.stats")["store"]["objects"] == 0, 1.0)


def test_another_driver_takes_its_workers_along_and_nothing_else(node: Node) -> None:
    guest = Speaker(node.head.node_socket)
    job_id = guest.register(job={"namespace": "other"}).job_id
    assert job_id != node.registered.job_id
    guest.send(RequestLeases(1, job_id, CPU_1, 0, 1))
    granted = guest.expect(LeaseGranted)
    fd = open_pidfd(granted.pid)
    mine = node.grant()
    guest.sock.close()
    assert wait_readable(fd, 60.0)
    os.close(fd)
    assert ask(mine.address, "lease?") == str(mine.lease_id)
    eventually(lambda: node.call("node.resources")["available"]["CPU"] == 1.0)


def spec_of(name: str, class_name: str = "Counter", **fields: Any) -> ActorSpec:
    job_id = fields.pop("job_id", b"\0\0\0\1")
    return ActorSpec(os.urandom(16), b"c" * 16, class_name, job_id, name, "tests", {}, CPU_1, b"", None, **fields)


def test_an_actor_lives_and_dies(node: Node) -> None:
    driver, spec = node.driver, spec_of("")
    driver.send(Escape([actor_handle_id(spec.actor_id)]), CreateActor(5, spec), SubscribeActor(spec.actor_id))
    assert driver.expect(Answer).body["actor_id"] == spec.actor_id
    while (state := driver.expect(ActorState)).state != "alive":
        assert state.state == "pending"
    assert ask(state.address, "lease?") == str(state.lease_id)
    driver.send(SubscribeActor(spec.actor_id))
    assert driver.expect(ActorState) == state
    driver.send(Release([actor_handle_id(spec.actor_id)]))
    died = driver.expect(WorkerDied)
    assert died.worker_id == state.worker_id and died.exit_code == 0
    assert driver.expect(ActorState).state == "dead"


def test_whoever_follows_an_actor_before_it_is_created_waits(node: Node) -> None:
    driver, spec = node.driver, spec_of("")
    handle = actor_handle_id(spec.actor_id)
    driver.send(Escape([handle]), SubscribeActor(spec.actor_id))
    driver.nothing()
    driver.send(CreateActor(5, spec))
    assert driver.expect(ActorState).state == "pending"
    other = spec_of("")
    driver.send(Escape([actor_handle_id(other.actor_id)]), SubscribeActor(other.actor_id))
    driver.send(Release([actor_handle_id(other.actor_id)]))
    while (state := driver.expect(ActorState)).actor_id != other.actor_id:
        pass
    assert state.state == "dead"
    racing = spec_of("")
    driver.send(Escape([actor_handle_id(racing.actor_id)]), SubscribeActor(racing.actor_id), CreateActor(6, racing))
    while (state := driver.expect(ActorState)).actor_id != racing.actor_id:
        pass
    assert state.state != "dead"


def test_an_actor_restarts_is_killed_and_a_failing_one_dies(node: Node) -> None:
    driver, spec = node.driver, spec_of("phoenix", max_restarts=1)
    driver.send(Escape([actor_handle_id(spec.actor_id)]), CreateActor(5, spec), SubscribeActor(spec.actor_id))
    while (state := driver.expect(ActorState)).state != "alive":
        pass
    os.kill(state.pid, signal.SIGKILL)
    while (state := driver.expect(ActorState)).state != "alive" or state.incarnation != 2:
        pass
    driver.send(KillActor(spec.actor_id, True))
    while (state := driver.expect(ActorState)).state != "dead":
        pass
    failing = spec_of("", "Failing")
    driver.send(CreateActor(6, failing), SubscribeActor(failing.actor_id))
    while (state := driver.expect(ActorState)).state != "dead":
        pass
    assert state.creation_error == b"failed" and state.death == "constructor"


def test_garbage_hurts_nobody_else(node: Node) -> None:
    stranger = Speaker(node.head.node_socket)
    stranger.sock.sendall(b"\xff" * 64)
    assert "garbage" in stranger.receive().reason
    with pytest.raises((EOFError, ConnectionResetError)):
        stranger.receive()
    old = Speaker(node.head.node_socket)
    old.send(Hello(99, b"", b"", 1))
    assert "version" in old.expect(Shutdown).reason
    early = Speaker(node.head.node_socket)
    early.send(ReturnLease(1))
    assert "does not belong" in early.receive().reason
    with pytest.raises(EOFError):
        early.receive()
    node.grant()


def test_the_node_ends_with_its_driver_and_leaves_nothing() -> None:
    node = Node()
    granted = node.grant()
    pids = [granted.pid, node.head.pid]
    fds = [open_pidfd(pid) for pid in pids]
    start = time.monotonic()
    node.driver.send(Shutdown("done"))
    for fd in fds:
        assert wait_readable(fd, 5.0)
    took_s = time.monotonic() - start
    assert not os.path.exists(node.head.session_dir)
    node.head.stop()
    assert took_s < 10, "nobody is waited for"
