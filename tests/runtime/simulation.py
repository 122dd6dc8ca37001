"""A whole node in one thread of control: production runtimes over sockets in memory, a fake daemon, a clock of its own, one seed.

`World` holds drivers (Submitter, ActorCalls), workers (Executor, each in a thread that runs only when it is given the turn) and the daemon. Every
step is drawn from one random generator, so a seed repeats a run exactly. Faults: workers die at any moment, leases are revoked, connects are
refused. `finish` stops the faults and expects everything to end. Sockets and the like are in `played_machine`, what must be true in
`simulation_checks`.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections import defaultdict
from functools import partial
from types import SimpleNamespace
from typing import Any

from tests.runtime.plans import ACTOR_CLASS_CODE, ACTOR_CLASS_ID, RUN_CODE, RUN_ID, FakeActor, Plan
from tests.runtime.played_machine import CURRENT, FakePage, FakeSocket, Killed, SimReactor, bytes_waiting
from tests.runtime.simulation_checks import check_results, check_submitter, known

from shoal import serialization
from shoal.protocol import messages
from shoal.protocol.messages import ActorSpec
from shoal.runtime import actor_host, core, dialling, executor, reactor, submitter, worker
from shoal.runtime.executor import Executor
from shoal.runtime.jobs import SubmitterPeer
from shoal.runtime.objects import ObjectRef
from shoal.runtime.streams import ObjectRefGenerator
from shoal.wire.framing import FrameDecoder, encode_frame

UNIT = 10_000


class Process:
    """A driver or worker with its production runtime."""

    def __init__(self, world: World, role: str) -> None:
        self.world = world
        self.number = next(world.numbers)
        self.worker_id = self.number.to_bytes(4, "big") * 4
        self.address = f"w{self.number}"
        self.dead = False
        self.buried = False
        self.runtime = core.Runtime(role, self.worker_id)
        self.runtime.pid = self.number
        self.reactor = self.runtime.reactor
        self.reactor.process = self  # type: ignore[attr-defined]
        mine, daemons = FakeSocket.pair(world)
        self.daemon_end = daemons
        self.daemon_out = bytearray()
        self.decoder: FrameDecoder[Any] = FrameDecoder(messages.ToDaemon)
        self.reactor.add(mine, self.runtime.on_daemon_lost, causal=True)  # type: ignore[arg-type]
        self.sockets = [mine]
        # as seen by the daemon
        self.lease_id = 0
        self.actor: FakeActor | None = None
        self.subscribers: dict[Process, None] = {}

    def deliver(self) -> None:
        """Read some of what has arrived, as the background thread does."""
        events = self.reactor.epoll.poll(0)
        if events:
            self.reactor._dispatch(events)

    def tick(self) -> None:
        if self.reactor.is_active():
            self.reactor._tick()

    def from_daemon(self, message: Any) -> None:
        self.daemon_out += encode_frame(message)
        self.flush_daemon()

    def flush_daemon(self) -> None:
        if self.daemon_out and not self.dead:
            try:
                del self.daemon_out[: self.daemon_end.send(self.daemon_out)]
            except BlockingIOError:
                pass
            except OSError:
                self.daemon_out.clear()

    def to_daemon(self, limit: int | None = None) -> list[Any]:
        """What the daemon reads now from this process."""
        out = []
        while self.daemon_end.incoming:
            try:
                count = self.daemon_end.recv_into(self.decoder.writable())
            except OSError:
                break
            out += list(self.decoder.received(count))
            if limit is not None:
                break
        return out


class Worker(Process):
    """A worker: its main loop runs in a thread that has the turn only when it is stepped."""

    def __init__(self, world: World) -> None:
        super().__init__(world, "worker")
        self.page = FakePage()
        self.interrupted = False
        self.state = "new"  #: where its thread stands: new, wait, code, ended
        self.go = threading.Semaphore(0)
        self.executor = Executor(self.runtime)
        self.executor.page = self.page  # type: ignore[assignment]
        self.executor.functions[ACTOR_CLASS_ID] = ACTOR_CLASS_CODE
        self.reactor.handlers[messages.Hello] = partial(worker.on_hello, self.executor)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.executor._main_thread_id = -self.number
        self.thread.start()

    def accept(self, sock: FakeSocket) -> None:
        connection = self.reactor.add(sock, self.executor.on_submitter_gone)  # type: ignore[arg-type]
        connection.attachment = SubmitterPeer()
        self.sockets.append(sock)

    def _run(self) -> None:
        self.go.acquire()
        self.executor._main_thread_id = threading.get_ident()
        self.world.here.process = self
        try:
            self.executor.run()
        except Killed:
            pass
        except BaseException as error:
            self.world.failures.append(error)
        self.state = "ended"
        self.world.turn.release()

    def step(self) -> None:
        """Give the thread the turn until it pauses."""
        if self.state != "ended":
            self.go.release()
            assert self.world.turn.acquire(timeout=20), f"worker {self.number} does not give the turn back"

    def pause(self, state: str) -> None:
        """Called by the worker's thread: others have the turn."""
        if self.dead:
            raise Killed
        self.state = state
        self.world.turn.release()
        self.go.acquire()
        if self.dead:
            raise Killed
        if state == "code":
            self.state = "running"
            if self.interrupted:
                self.interrupted = False
                self.executor._on_interrupt(10, None)

    def die(self) -> None:
        """End at once, as by SIGKILL: bytes written stay readable, others are lost."""
        if self.dead:
            return
        self.dead = True
        self.executor.page = FakePage()  # type: ignore[assignment]  # what its thread does now, as it unwinds, nobody sees
        for connection in list(self.reactor.connections.values()):
            connection.sock.close()
        if self.thread is not threading.current_thread():
            for _ in range(20):
                if self.state == "ended":
                    break
                self.step()
            assert self.state == "ended", "a killed worker's thread goes on"


# ---------------------------------------------------------------- the world


class World:
    """One run; see the module's page. Use as a context manager."""

    def __init__(self, seed: int, cpus: int = 2, classes: int = 2, capacity: int = 1 << 20, drivers: int = 1) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.cpus = cpus
        self.capacity = capacity
        self.now = 100.0
        self.fds = itertools.count(1 << 20)
        self.numbers = itertools.count(1)
        self.lease_ids = itertools.count(1)
        self.turn = threading.Semaphore(0)
        self.here = threading.local()
        self.failures: list[BaseException] = []
        self.faults = True
        self.whole = False  #: read all there is at once
        self.plans: dict[int, Plan] = {}
        self.by_address: dict[str, Worker] = {}
        self.by_id: dict[bytes, Process] = {}
        self.workers: list[Worker] = []
        self.drivers: list[Process] = []
        self.class_count = classes
        self.driver_count = drivers
        # the daemon's tables
        self.backlog: dict[tuple[Process, int], int] = {}
        self.depth: dict[tuple[Process, int], int] = {}
        self.leases: dict[int, SimpleNamespace] = {}
        self.actors: dict[bytes, FakeActor] = {}
        self.calls_seen: dict[tuple[bytes, int, Process], list[int]] = defaultdict(list)
        self._patched: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> World:
        CURRENT.append(self)
        self._patch()
        for _ in range(self.driver_count):
            driver = Process(self, "driver")
            self.drivers.append(driver)
            self.by_id[driver.worker_id] = driver
        return self

    def __exit__(self, *exc: object) -> None:
        for each in self.workers:
            if not each.dead:
                each.die()
        for process in [*self.drivers, *self.workers]:
            import os

            try:
                os.close(process.reactor._poke_fd)
            except OSError:
                pass
        for target, name, value in reversed(self._patched):
            setattr(target, name, value)
        CURRENT.pop()
        core.dropped.clear()

    def _patch(self) -> None:
        def put(target: Any, name: str, value: Any) -> None:
            self._patched.append((target, name, getattr(target, name)))
            setattr(target, name, value)

        for module in (reactor, submitter, executor, core, actor_host, dialling):
            put(module, "perf_counter", self.clock)
        put(core, "Reactor", SimReactor)
        put(core, "forgotten", ())  # finalizers' lists belong to a process, and these runtimes share one
        put(reactor, "_bytes_waiting", bytes_waiting)
        put(dialling, "socket", SimpleNamespace(socket=lambda *a: FakeSocket(self), AF_UNIX=1, SOCK_STREAM=1))
        put(
            executor,
            "signal",
            SimpleNamespace(signal=lambda *a: None, pthread_kill=self._interrupt, SIGUSR1=10, SIGKILL=9),
        )
        put(executor, "os", SimpleNamespace(kill=self._killed_itself, getpid=lambda: 0, _exit=self._killed_itself))
        put(executor, "apply_assignment", lambda started: None)
        put(executor, "remember_environment", lambda: None)

    # ------------------------------------------------------------ time and dice

    def clock(self) -> float:
        self.now += 2e-6
        return self.now

    def piece(self, size: int) -> int:
        """How many bytes one receive gives."""
        if self.whole or self.random.random() < 0.7:
            return size
        return self.random.randint(1, size)

    def some(self, events: list[Any]) -> list[Any]:
        if self.whole or len(events) < 2:
            return events
        self.random.shuffle(events)
        return events[: self.random.randint(1, len(events))]

    def refuses_connect(self) -> bool:
        return self.faults and self.random.random() < 0.03

    def is_full(self) -> bool:
        """Whether a socket that listens has no room for one who connects."""
        return self.faults and self.random.random() < 0.05

    def _interrupt(self, thread_id: int, number: int) -> None:
        for each in self.workers:
            if each.executor._main_thread_id == thread_id:
                each.interrupted = True

    def _killed_itself(self, *args: Any) -> None:
        process = getattr(self.here, "process", None) or self.delivering
        for connection in list(process.reactor.connections.values()):
            connection.sock.close()
        process.dead = True
        process.executor.page = FakePage()
        raise Killed

    # ------------------------------------------------------------ submitting

    def submit(self, plan: Plan, process: Process) -> Any:
        """Submit a planned task (or call) from a process; returns what the runtime returns."""
        runtime = process.runtime
        plan.owner = process
        args = (plan.number, *[self.ref_of(dep) for dep in plan.deps])
        returns = {"plain": 1, "multiple": 3, "stream": messages.NUM_RETURNS_STREAMING}[plan.kind]
        queue = None
        if plan.is_call:
            actor = self.plans_actor(plan)
            with runtime.reactor.lock:
                queue = runtime.actor_calls.queue_of(actor.actor_id, "SimActor", actor.in_order)
        key = (plan.is_call, plan.kind, plan.klass, plan.max_retries, plan.retry_exceptions, plan.backpressure)
        templates = runtime.__dict__.setdefault("sim_templates", {})
        template = templates.get(key)
        if template is None:
            klass = None
            if not plan.is_call:
                depth = 1 if process in self.drivers else 2
                klass = runtime.submitter.class_of({"CPU": UNIT + plan.klass}, depth, {}, {}, "run_script")
            template = templates[key] = runtime.new_template(
                b"" if plan.is_call else RUN_ID,
                b"" if plan.is_call else RUN_CODE,
                "run_script",
                messages.KIND_ACTOR_CALL if plan.is_call else messages.KIND_TASK,
                returns,
                klass=klass,
                max_retries=plan.max_retries,
                retry_exceptions=plan.retry_exceptions,
                backpressure=plan.backpressure,
                method="run" if plan.is_call else "",
            )
        plan.result = runtime.submit(template, args, {}, queue)
        if self.random.random() < 0.5 and plan.kind == "plain":
            runtime.when_known(plan.result._entry, lambda entry: self._told(plan))
        return plan.result

    def plans_actor(self, plan: Plan) -> FakeActor:
        return list(self.actors.values())[plan.klass % len(self.actors)]

    def _told(self, plan: Plan) -> None:
        plan.told += 1
        assert plan.told == 1, f"task {plan.number} ended twice"

    def ref_of(self, number: int) -> ObjectRef:
        result = self.plans[number].result
        return result[0] if isinstance(result, list) else result

    def note_start(self, plan: Plan, process: Worker, context: Any) -> None:
        """An execution begins: hold what must be true of it."""
        if process.dead:
            raise Killed
        lease_id = context.lease.lease_id
        lease = self.leases.get(lease_id)
        assert lease is not None and lease.worker is process, f"task {plan.number} runs under a lease that has ended"
        assert lease_id in process.executor.leases
        assert context.attempt not in [attempt for attempt, _ in plan.started], (
            f"attempt {context.attempt} of {plan.number} runs twice"
        )
        plan.started.append((context.attempt, process.number))
        assert len(plan.started) <= 1 + plan.max_retries, (
            f"task {plan.number} runs more often than {1 + plan.max_retries} times"
        )
        if plan.is_call and process.actor is not None:
            assert plan.owner is not None
            self.calls_seen[process.actor.actor_id, process.actor.incarnation, plan.owner].append(plan.number)

    # ------------------------------------------------------------ the daemon

    def spawn(self) -> Worker:
        fresh = Worker(self)
        self.workers.append(fresh)
        self.by_address[fresh.address] = fresh
        self.by_id[fresh.worker_id] = fresh
        return fresh

    def idle_worker(self) -> Worker:
        idle = [each for each in self.workers if not each.dead and not each.lease_id and each.actor is None]
        return self.random.choice(idle) if idle else self.spawn()

    def running_leases(self) -> int:
        return sum(1 for lease in self.leases.values() if not lease.blocked and lease.submitter is not None)

    def grantable(self) -> list[tuple[Process, int]]:
        if self.running_leases() >= self.cpus:
            return []
        wanted = [key for key, count in self.backlog.items() if count > 0 and not key[0].dead]
        deepest = max((self.depth[key] for key in wanted), default=0)
        return [key for key in wanted if self.depth[key] == deepest]

    def grant(self, key: tuple[Process, int]) -> None:
        process, number = key
        self.backlog[key] -= 1
        leased = self.idle_worker()
        lease_id = next(self.lease_ids)
        self.leases[lease_id] = SimpleNamespace(
            worker=leased, submitter=process, class_no=number, blocked=False, revoked=False
        )
        leased.lease_id = lease_id
        leased.subscribers[process] = None
        started = messages.LeaseStarted(lease_id, process.worker_id, b"job1", {"CPU": UNIT}, depth=self.depth[key])
        leased.from_daemon(started)
        while leased.daemon_out:  # LeaseStarted is in the worker's socket before LeaseGranted is written
            leased.deliver()
            leased.flush_daemon()
        process.from_daemon(messages.LeaseGranted(number, lease_id, leased.worker_id, leased.address, leased.number))

    def revoke(self, lease_id: int) -> None:
        lease = self.leases[lease_id]
        if not lease.revoked and lease.submitter is not None:
            lease.revoked = True
            lease.worker.from_daemon(messages.RevokeLease(lease_id))

    def read(self, process: Process, limit: int | None = None) -> None:
        for message in process.to_daemon(limit):
            self._received(process, message)

    def _received(self, process: Process, message: Any) -> None:
        kind = type(message)
        if kind is messages.RequestLeases:
            self.backlog[process, message.class_no] = message.backlog
            self.depth[process, message.class_no] = message.depth
        elif kind is messages.ReturnLease:
            if message.lease_id in self.leases:
                self.revoke(message.lease_id)
        elif kind is messages.LeaseFinished:
            lease = self.leases.get(message.lease_id)
            if lease is not None and lease.worker is process:
                del self.leases[message.lease_id]
                process.lease_id = 0
        elif kind is messages.Blocked or kind is messages.Unblocked:
            lease = self.leases.get(message.lease_id)
            if lease is not None:
                lease.blocked = kind is messages.Blocked
        elif kind is messages.SignalWorker:
            runner = self._runner(message)
            if runner is not None:
                runner.interrupted = True
        elif kind is messages.KillWorker:
            runner = self._runner(message)
            if runner is not None:
                runner.die()
        elif kind is messages.SubscribeActor:
            actor = self.actors[message.actor_id]
            actor.subscribers[process] = None
            process.from_daemon(actor.message())
        elif kind is messages.ActorStarted:
            actor = self.actors[message.actor_id]
            if actor.worker is process and actor.incarnation == message.incarnation:
                self.set_actor(actor, "alive")

    def _runner(self, message: Any) -> Worker | None:
        lease = self.leases.get(message.lease_id)
        if lease is None or lease.worker.dead or lease.worker.page.started != (message.lease_id, message.seq):
            return None
        return lease.worker

    def bury(self, dead: Worker) -> None:
        """The daemon notices a death: it reads the dead one's socket to the end and tells who is concerned."""
        dead.buried = True
        self.read(dead)
        lease_id, seq = dead.page.started
        untaken = list(dead.page.kept)
        if dead.lease_id and lease_id != dead.lease_id:
            untaken.append((lease_id, seq))
            lease_id, seq = dead.lease_id, 0
        concerned = dict(dead.subscribers)
        if dead.actor is not None:
            concerned.update(dead.actor.subscribers)
        for process in concerned:
            if not process.dead:
                process.from_daemon(
                    messages.WorkerDied(
                        dead.worker_id, lease_id, seq, f"worker {dead.number} was killed", -9, untaken=untaken
                    )
                )
        lease = self.leases.pop(dead.lease_id, None)
        if lease is not None and not lease.revoked and lease.submitter is not None:
            self.backlog[lease.submitter, lease.class_no] = self.backlog.get((lease.submitter, lease.class_no), 0) + 1
        for key in [key for key in self.backlog if key[0] is dead]:
            del self.backlog[key]
        for lease_id, lease in self.leases.items():
            if lease.submitter is dead:
                self.revoke(lease_id)
        for each in self.workers:
            each.subscribers.pop(dead, None)
        actor = dead.actor
        if actor is not None and actor.worker is dead:
            actor.worker = None
            if actor.restarts > 0:
                actor.restarts -= 1
                self.set_actor(actor, "restarting")
            else:
                self.set_actor(actor, "dead")

    # ------------------------------------------------------------ actors

    def add_actor(self, restarts: int, in_order: bool = True) -> FakeActor:
        actor = FakeActor(len(self.actors) + 1, restarts, in_order)
        self.actors[actor.actor_id] = actor
        return actor

    def set_actor(self, actor: FakeActor, state: str) -> None:
        actor.state = state
        for process in actor.subscribers:
            if not process.dead:
                process.from_daemon(actor.message())

    def place(self, actor: FakeActor) -> None:
        """Find a worker for an actor that waits for one."""
        host = self.idle_worker()
        actor.incarnation += 1
        actor.worker = host
        actor.lease_id = next(self.lease_ids)
        host.actor = actor
        host.lease_id = actor.lease_id
        self.leases[actor.lease_id] = SimpleNamespace(
            worker=host, submitter=None, class_no=0, blocked=False, revoked=False
        )
        empty = serialization.dumps(())[0]
        spec = ActorSpec(
            actor.actor_id,
            ACTOR_CLASS_ID,
            "SimActor",
            b"job1",
            "",
            "",
            {},
            {},
            empty,
            None,
            max_concurrency=1,
        )
        host.from_daemon(messages.LeaseStarted(actor.lease_id, b"", b"job1", {}))
        host.from_daemon(messages.BecomeActor(actor.lease_id, actor.incarnation, spec))

    def unplaced(self) -> list[FakeActor]:
        return [
            each for each in self.actors.values() if each.state in ("pending", "restarting") and each.worker is None
        ]

    # ------------------------------------------------------------ steps

    def processes(self) -> list[Process]:
        return [*self.drivers, *[each for each in self.workers if not each.dead]]

    def step_worker(self, each: Worker) -> None:
        each.step()
        self.raise_failures()

    def deliver(self, process: Process) -> None:
        """A process reads: its own thread when that waits, else the background thread."""
        if isinstance(process, Worker):
            if process.state != "code":
                self.step_worker(process)
                return
            self.delivering = process
            try:
                process.deliver()
            except Killed:
                process.dead = False
                process.die()
        else:
            process.deliver()

    def raise_failures(self) -> None:
        if self.failures:
            raise self.failures[0]

    def random_step(self) -> None:
        """One thing happens."""
        dice = self.random
        self.now += dice.choice((0.0, 0.0, 2e-5, 2e-4, 3e-3))
        process = dice.choice(self.processes())
        what = dice.random()
        if what < 0.30:
            self.deliver(process)
        elif what < 0.45:
            process.flush_daemon()
            self.read(process, 1)
        elif what < 0.60:
            alive = [each for each in self.workers if not each.dead]
            if alive:
                self.step_worker(dice.choice(alive))
        elif what < 0.72:
            keys = self.grantable()
            if keys:
                self.grant(dice.choice(keys))
            elif self.unplaced():
                self.place(dice.choice(self.unplaced()))
        elif what < 0.80:
            self.now += 0.005
            process.tick()
        elif what < 0.86:
            process.runtime.submitter.flush()
            process.reactor.flush_dirty()
        elif what < 0.90:
            self.take(dice)
        elif self.faults and what < 0.93:
            if self.leases:
                self.revoke(dice.choice(list(self.leases)))
        elif self.faults and what < 0.945:
            victims = [each for each in self.workers if not each.dead and each.state != "new"]
            if victims:
                dice.choice(victims).die()
        elif what < 0.98:
            for each in self.workers:
                if each.dead and not each.buried:
                    self.bury(each)
                    break
        elif self.faults:
            self.cancel(dice)

    def take(self, dice: random.Random) -> None:
        """Somebody consumes an item of a stream."""
        for plan in self.plans.values():
            if isinstance(plan.result, ObjectRefGenerator) and dice.random() < 0.5:
                ref = plan.result._take()
                if ref is not None:
                    plan.taken.append(ref)

    def cancel(self, dice: random.Random) -> None:
        running = [
            each
            for each in self.plans.values()
            if each.owner in self.drivers and each.result is not None and not known(each)
        ]
        if running and dice.random() < 0.5:
            plan = dice.choice(running)
            plan.cancelled = True
            result = plan.result[0] if isinstance(plan.result, list) else plan.result
            assert plan.owner is not None
            plan.owner.runtime.cancel(result, not plan.is_call and dice.random() < 0.3, True)

    def calm_round(self) -> None:
        """Everybody does all that can be done now; no faults."""
        self.whole = True
        self.now += 0.003
        for each in [each for each in self.workers if each.dead and not each.buried]:
            self.bury(each)
        for process in self.processes():
            process.flush_daemon()
            self.read(process)
        for key in self.grantable()[:1]:
            self.grant(key)
        for actor in self.unplaced():
            self.place(actor)
        if self.running_leases() >= self.cpus and any(count > 0 for count in self.backlog.values()):
            self._revoke_for_others()
        for process in self.processes():
            self.deliver(process)
            if isinstance(process, Worker) and not process.dead:
                self.step_worker(process)
            process.tick()
        self.take(self.random)

    def _revoke_for_others(self) -> None:
        """Leases are time-sliced when another class waits."""
        waiting = {key for key, count in self.backlog.items() if count > 0}
        for lease_id, lease in list(self.leases.items()):
            if not lease.blocked and waiting - {(lease.submitter, lease.class_no)} and self.random.random() < 0.2:
                self.revoke(lease_id)

    def finish(self, rounds: int = 3000) -> None:
        """The faults end: everything must come to its end in bounded time."""
        self.faults = False
        for _ in range(rounds):
            self.calm_round()
            self.check()
            if all(known(plan) for plan in self.plans.values() if plan.owner in self.drivers):
                break
        else:
            raise AssertionError(f"seed {self.seed}: not everything ended\n{self.story()}")
        for _ in range(700):  # idle leases go back after a second
            self.calm_round()
            if not self.leases_of_tasks() and all(
                process.runtime.submitter.pending == 0 for process in self.processes()
            ):
                break
        self.check()
        for process in self.processes():
            mine = process.runtime.submitter
            assert mine.pending == 0, f"{mine.pending} tasks are counted as pending\n{self.story()}"
            assert mine.lease_count == 0 and not self.leases_of_tasks(), f"leases are left\n{self.story()}"
            assert not mine.waiting
        check_results(self)

    def leases_of_tasks(self) -> list[int]:
        return [number for number, lease in self.leases.items() if lease.submitter is not None]

    # ------------------------------------------------------------ invariants

    def check(self) -> None:
        """What must be true after every step."""
        for process in self.processes():
            check_submitter(process.runtime.submitter)
        for driver in self.drivers:
            mine = [plan for plan in self.plans.values() if plan.owner is driver and plan.result is not None]
            unknown = sum(1 for plan in mine if not known(plan))
            pending = driver.runtime.submitter.pending
            assert pending == unknown, f"{pending} pending, but {unknown} results are not known"
        for (actor_id, incarnation, _), numbers in self.calls_seen.items():
            in_order = not self.actors[actor_id].in_order or numbers == sorted(numbers)
            assert in_order, f"calls out of order in life {incarnation}: {numbers}"

    def story(self) -> str:
        """Where everything stands."""
        lines = []
        for process in self.processes():
            mine = process.runtime.submitter
            for klass in mine.classes.values():
                leases = [
                    (each.lease_id, sorted(each.inflight), round(each.load_s, 5), each.is_open)
                    for each in klass.leases.values()
                ]
                told = self.backlog.get((process, klass.number))
                lines.append(
                    f"{process.number}: class {klass.number} queue {len(klass.queue)} told {klass.backlog_told} ({told}) {leases}"
                )
            for queue in process.runtime.actor_calls.queues.values():
                held = sorted(queue.lease.inflight) if queue.lease else None
                lines.append(
                    f"{process.number}: actor {queue.state} unsent {len(queue.unsent)} lost {len(queue.lost)} inflight {held}"
                )
        for each in self.workers:
            if not each.dead:
                queued = [job.seq for job in each.executor.queue]
                running = each.executor.running.seq if each.executor.running else None
                lines.append(
                    f"worker {each.number}: {each.state} lease {each.lease_id} {list(each.executor.leases)} queue {queued} running {running} "
                    f"blocked {each.executor._blocked}"
                )
        lines.append(f"leases {self.leases}")
        for plan in self.plans.values():
            if plan.owner in self.drivers and not known(plan):
                lines.append(
                    f"task {plan.number} {plan.kind} deps {plan.deps} started {plan.started} cancelled {plan.cancelled}"
                )
        return "\n".join(lines)
