"""How actors end, restart, and how long they live: handles, kill, exits, crashes."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal.exceptions import ActorDiedError, ActorUnavailableError, TaskError
from shoal.runtime.core import current

pytestmark = pytest.mark.usefixtures("shoal_session")

WAIT_S = 60


def get(refs: Any) -> Any:
    """The values, in bounded time."""
    return shoal.get(refs, timeout=WAIT_S)


def eventually(is_so: Callable[[], bool], within_s: float = 60.0) -> bool:
    """Whether it becomes so within the time."""
    deadline = time.perf_counter() + within_s
    while time.perf_counter() < deadline:
        if is_so():
            return True
        time.sleep(0.01)
    return is_so()


def lives(pid: int) -> bool:
    """Whether the process exists."""
    return os.path.exists(f"/proc/{pid}")


@shoal.remote
class Subject:
    def __init__(self, value: int = 0) -> None:
        self.value = value
        self.kept: Any = None

    def add(self, count: int = 1) -> int:
        self.value += count
        return self.value

    def sleep(self, seconds: float) -> int:
        time.sleep(seconds)
        return self.value

    def hold(self, path: str) -> None:
        """Run, visibly, until the process ends."""
        Path(path).touch()
        time.sleep(100)

    def pid(self) -> int:
        return os.getpid()

    def die(self, code: int = 3) -> None:
        os._exit(code)

    def leave(self) -> None:
        shoal.actor.exit_actor()

    def sys_exit(self) -> None:
        sys.exit(7)

    def keep(self, thing: Any) -> None:
        self.kept = thing

    def give(self) -> Any:
        return self.kept

    def call_kept(self) -> Any:
        return shoal.get(self.kept[0].add.remote())

    def restarted(self) -> bool:
        return shoal.get_runtime_context().was_current_actor_reconstructed

    def register(self, path: str) -> None:
        import atexit

        atexit.register(lambda: Path(path).write_text("left in order"))

    def append(self, path: str, line: str) -> None:
        with open(path, "a") as file:
            file.write(line + "\n")

    def append_and_die_once(self, path: str) -> str:
        self.append(path, "tried")
        if len(Path(path).read_text().splitlines()) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return "done"


@shoal.remote
def call_add(handles: list[Any]) -> int:
    return int(shoal.get(handles[0].add.remote()))


@shoal.remote
def same(thing: Any) -> Any:
    return thing


# ---------------------------------------------------------------- handles


def test_actor_ends_with_its_last_handle() -> None:
    actor = Subject.remote()
    pid = get(actor.pid.remote())
    other = get(same.remote(actor))
    del actor
    time.sleep(0.2)
    assert lives(pid)
    assert get(other.add.remote()) == 1
    del other
    assert eventually(lambda: not lives(pid))


def test_calls_made_before_the_last_handle_went_still_run(tmp_path: Path) -> None:
    path = str(tmp_path / "calls")
    actor = Subject.remote()
    actor.sleep.remote(0.2)
    for number in range(5):
        actor.append.remote(path, str(number))
    del actor
    assert eventually(lambda: os.path.exists(path) and len(Path(path).read_text().split()) == 5)


def test_temporary_handle() -> None:
    assert get(Subject.remote(3).add.remote()) == 4
    assert get(Subject.remote(3).sleep.remote(0.2)) == 3
    method = Subject.remote(5).add
    assert get(method.remote()) == 6


def test_temporary_actor_with_a_slow_argument() -> None:
    @shoal.remote
    def later() -> int:
        time.sleep(0.3)
        return 10

    assert get(Subject.remote(later.remote()).add.remote(later.remote())) == 20


def test_handle_in_containers_closures_and_objects() -> None:
    actor = Subject.remote()
    assert get(call_add.remote([actor])) == 1

    @shoal.remote
    def closure() -> int:
        return int(shoal.get(actor.add.remote()))

    assert get(closure.remote()) == 2
    stored = shoal.put({"handle": actor})
    assert get(get(stored)["handle"].add.remote()) == 3


@pytest.mark.parametrize("way", ["object", "other actor", "task result", "argument of a pending call"])
def test_handles_elsewhere_keep_the_actor_alive(way: str) -> None:
    actor = Subject.remote(1)
    pid = get(actor.pid.remote())
    place: Any
    if way == "object":
        place = shoal.put([actor])
    elif way == "other actor":
        place = Subject.remote()
        get(place.keep.remote([actor]))
    elif way == "task result":
        place = same.remote([actor])
        shoal.wait([place], timeout=WAIT_S)
    else:
        busy = Subject.remote()
        busy.sleep.remote(0.5)
        busy.keep.remote([actor])
        place = busy.call_kept.remote()
    del actor
    time.sleep(0.3)
    assert lives(pid)
    if way == "other actor":
        assert get(place.call_kept.remote()) == 2
    elif way == "argument of a pending call":
        assert get(place) == 2
        del busy
    else:
        assert get(get(place)[0].add.remote()) == 2
    del place
    assert eventually(lambda: not lives(pid)), way


def test_handle_there_and_back_again() -> None:
    holder = Subject.remote()
    actor = Subject.remote(1)
    pid = get(actor.pid.remote())
    get(holder.keep.remote(actor))
    del actor
    back = get(holder.give.remote())
    get(holder.keep.remote(None))
    time.sleep(0.2)
    assert get(back.add.remote()) == 2
    del back
    assert eventually(lambda: not lives(pid))


def test_actor_made_in_a_task_and_returned() -> None:
    @shoal.remote
    def make() -> Any:
        return Subject.remote(7)

    @shoal.remote
    def make_and_forget() -> int:
        return int(shoal.get(Subject.remote().pid.remote()))

    actor = get(make.remote())
    assert get(actor.add.remote()) == 8
    pid = get(make_and_forget.remote())
    assert eventually(lambda: not lives(pid))


def test_actor_that_holds_its_own_handle_ends_with_kill() -> None:
    actor = Subject.remote()
    pid = get(actor.pid.remote())
    get(actor.keep.remote(actor))
    shoal.kill(actor)
    assert eventually(lambda: not lives(pid))


def test_actor_dies_with_the_actor_that_made_it() -> None:
    @shoal.remote
    class Parent:
        def __init__(self) -> None:
            self.child = Subject.remote()

        def child_pid(self) -> int:
            return int(shoal.get(self.child.pid.remote()))

    parent = Parent.remote()
    pid = get(parent.child_pid.remote())
    shoal.kill(parent)
    assert eventually(lambda: not lives(pid))


# ---------------------------------------------------------------- leaving


@pytest.mark.parametrize(
    ("method", "words"), [("leave", r"exit_actor\(\)"), ("sys_exit", r"sys\.exit\(7\)"), ("die", "exit code 3")]
)
def test_ends_from_within(method: str, words: str) -> None:
    actor = Subject.options(max_restarts=0 if method == "die" else 3).remote()
    pid = get(actor.pid.remote())
    ending = getattr(actor, method).remote()
    queued = actor.add.remote()
    for ref in (ending, queued):
        with pytest.raises(ActorDiedError, match=words) as caught:
            get(ref)
        assert not caught.value.actor_init_failed
        assert caught.value.actor_id == actor._actor_id.hex()
    assert eventually(lambda: not lives(pid))
    with pytest.raises(ActorDiedError, match=words):
        get(actor.add.remote())


@pytest.mark.parametrize("options", [{"max_concurrency": 3}, {}], ids=["threads", "loop"])
def test_exit_actor_from_threads_and_coroutines(options: dict[str, Any]) -> None:
    @shoal.remote
    class Threads:
        def leave(self) -> None:
            shoal.actor.exit_actor()

    @shoal.remote
    class Loop:
        async def leave(self) -> None:
            await asyncio.sleep(0)
            shoal.actor.exit_actor()

    actor = (Threads if options else Loop).options(**options).remote()
    with pytest.raises(ActorDiedError, match="exit_actor"):
        get(actor.leave.remote())
    with pytest.raises(ActorDiedError):
        get(actor.leave.remote())


def test_exit_actor_is_for_actors() -> None:
    with pytest.raises(TypeError, match="actor"):
        shoal.actor.exit_actor()

    @shoal.remote
    def task() -> None:
        shoal.actor.exit_actor()

    with pytest.raises(TypeError, match="actor"):
        get(task.remote())


def test_terminate_finishes_what_was_queued(tmp_path: Path) -> None:
    actor = Subject.remote()
    get(actor.register.remote(str(tmp_path / "atexit")))
    before = [actor.add.remote() for _ in range(10)]
    actor.__ray_terminate__.remote()
    assert get(before) == list(range(1, 11))
    with pytest.raises(ActorDiedError):
        get([actor.add.remote() for _ in range(3)])
    assert eventually((tmp_path / "atexit").exists)


def test_terminate_lets_threads_finish() -> None:
    actor = Subject.options(max_concurrency=3).remote(5)
    running = [actor.sleep.remote(0.3) for _ in range(2)]
    actor.__ray_terminate__.remote()
    assert get(running) == [5, 5]


# ---------------------------------------------------------------- kill


def test_kill_ends_running_and_queued_calls_at_once() -> None:
    actor = Subject.remote()
    pid = get(actor.pid.remote())
    refs = [actor.sleep.remote(100), actor.add.remote(), actor.add.remote()]
    time.sleep(0.05)
    shoal.kill(actor)
    for ref in [*refs, actor.add.remote()]:
        with pytest.raises(ActorDiedError, match="kill"):
            get(ref)
    assert eventually(lambda: not lives(pid))
    shoal.kill(actor)  # once more is no error


def test_kill_from_another_process_reaches_every_caller() -> None:
    actor = Subject.remote()
    get(actor.pid.remote())

    @shoal.remote
    def call(handles: list[Any]) -> None:
        shoal.get(handles[0].sleep.remote(100))

    @shoal.remote
    def kill(handles: list[Any]) -> None:
        shoal.kill(handles[0])

    waiting = call.remote([actor])
    mine = actor.sleep.remote(100)
    time.sleep(0.1)
    get(kill.remote([actor]))
    for ref in (mine, waiting):
        with pytest.raises(ActorDiedError, match="kill"):
            get(ref)


def test_kill_before_the_constructor_has_returned() -> None:
    @shoal.remote
    class Slow:
        def __init__(self) -> None:
            time.sleep(100)

        def call(self) -> None: ...

    slow = Slow.remote()
    ref = slow.call.remote()
    shoal.kill(slow)
    with pytest.raises(ActorDiedError):
        get(ref)


def test_kill_with_restart() -> None:
    actor = Subject.options(max_restarts=1).remote()
    pid = get(actor.pid.remote())
    get(actor.add.remote())
    assert get(actor.restarted.remote()) is False
    shoal.kill(actor, no_restart=False)
    assert eventually(lambda: not lives(pid))
    assert get(actor.add.remote()) == 1
    assert get(actor.restarted.remote()) is True
    shoal.kill(actor, no_restart=False)
    with pytest.raises(ActorDiedError):
        for _ in range(100):
            get(actor.add.remote())
            time.sleep(0.01)


def test_kill_of_something_else() -> None:
    with pytest.raises(ValueError, match="handle"):
        shoal.kill(shoal.put(1))


# ---------------------------------------------------------------- crashes


def test_crash_without_restarts_names_its_cause() -> None:
    actor = Subject.remote()
    pid = get(actor.pid.remote())
    refs = [actor.sleep.remote(100), actor.add.remote()]
    time.sleep(0.2)
    os.kill(pid, signal.SIGKILL)
    for ref in [*refs, actor.add.remote()]:
        with pytest.raises(ActorDiedError, match="SIGKILL") as caught:
            get(ref)
        assert str(pid) in str(caught.value)


def test_crash_with_restarts_loses_only_the_started_call(tmp_path: Path) -> None:
    actor = Subject.options(max_restarts=1).remote()
    pid = get(actor.pid.remote())
    started = actor.hold.remote(str(tmp_path / "held"))
    unstarted = [actor.add.remote() for _ in range(20)]
    assert eventually((tmp_path / "held").exists)
    os.kill(pid, signal.SIGKILL)
    after = [actor.add.remote() for _ in range(3)]
    with pytest.raises(ActorUnavailableError, match=r"SIGKILL.*Subject\.hold") as caught:
        get(started)
    assert not isinstance(caught.value, ActorDiedError)
    assert get(unstarted) == list(range(1, 21))
    assert get(after) == [21, 22, 23]
    os.kill(get(actor.pid.remote()), signal.SIGKILL)
    with pytest.raises(ActorDiedError, match="restarts are used up"):
        for _ in range(100):
            get(actor.add.remote())
            time.sleep(0.01)


def test_started_call_is_told_apart_among_callers() -> None:
    actor = Subject.options(max_restarts=1).remote()

    @shoal.remote
    def crash(handles: list[Any]) -> str:
        handle = handles[0]
        shoal.get([handle.add.remote() for _ in range(30)])
        try:
            shoal.get(handle.die.remote())
        except ActorUnavailableError:
            return "unavailable"
        return "nothing"

    crashing = crash.remote([actor])
    values = []
    while True:
        ready, _ = shoal.wait([crashing], timeout=0)
        values.append(get(actor.add.remote()))  # never ActorUnavailableError: it was not ours that ran
        if ready:
            break
    assert get(crashing) == "unavailable"
    assert values[-1] < sum(1 for _ in values) + 31


def test_task_retries_repeat_the_started_call(tmp_path: Path) -> None:
    path = str(tmp_path / "tries")
    actor = Subject.options(max_restarts=-1, max_task_retries=-1).remote()
    first = actor.append_and_die_once.remote(path)
    following = [actor.add.remote() for _ in range(5)]
    assert get(first) == "done"
    assert get(following) == [1, 2, 3, 4, 5]
    assert Path(path).read_text() == "tried\ntried\n"


def test_task_retries_of_a_method_alone(tmp_path: Path) -> None:
    actor = Subject.options(max_restarts=-1).remote()
    with pytest.raises(ActorUnavailableError):
        get(actor.append_and_die_once.remote(str(tmp_path / "none")))
    assert get(actor.append_and_die_once.options(max_task_retries=1).remote(str(tmp_path / "one"))) == "done"


def test_task_retries_are_counted() -> None:
    actor = Subject.options(max_restarts=-1, max_task_retries=2).remote()
    with pytest.raises(ActorUnavailableError, match=r"exit code 3.*tried 3 times, .* max_task_retries=2 allows"):
        get(actor.die.remote())
    assert get(actor.add.remote()) == 1
    assert get(actor.restarted.remote())


def test_restart_constructs_with_the_same_arguments() -> None:
    ref = shoal.put(40)
    nested = shoal.put(2)

    @shoal.remote
    class Sum:
        def __init__(self, value: int, refs: list[Any]) -> None:
            self.total = value + shoal.get(refs[0])

        def get(self) -> int:
            return self.total

        def pid(self) -> int:
            return os.getpid()

    actor = Sum.options(max_restarts=1, max_task_retries=1).remote(ref, [nested])
    pid = get(actor.pid.remote())
    del ref, nested
    time.sleep(0.2)
    os.kill(pid, signal.SIGKILL)
    assert get(actor.get.remote()) == 42


def test_crash_of_threads_and_coroutines(tmp_path: Path) -> None:
    @shoal.remote(max_restarts=1)
    class Loop:
        async def hold(self, path: str) -> None:
            Path(path).touch()
            await asyncio.sleep(100)

        async def pid(self) -> int:
            return os.getpid()

    for actor in (Loop.remote(), Subject.options(max_restarts=1, max_concurrency=2).remote()):
        pid = get(actor.pid.remote())
        running = actor.hold.remote(str(tmp_path / str(pid)))
        assert eventually((tmp_path / str(pid)).exists)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ActorUnavailableError):
            get(running)
        assert get(actor.pid.remote()) != pid


def test_crash_in_the_constructor() -> None:
    @shoal.remote
    class Crashes:
        def __init__(self) -> None:
            os._exit(5)

        def call(self) -> None: ...

    with pytest.raises(ActorDiedError, match=r"exit code 5.*max_restarts=0") as caught:
        get(Crashes.remote().call.remote())
    assert not caught.value.actor_init_failed
    with pytest.raises(ActorDiedError, match="2 restarts are used up"):
        get(Crashes.options(max_restarts=2).remote().call.remote())


def test_constructor_that_crashes_for_ever_is_slowed_down(tmp_path: Path) -> None:
    path = tmp_path / "lives"

    @shoal.remote
    class Crashes:
        def __init__(self) -> None:
            with open(path, "a") as file:
                file.write("x")
            os._exit(5)

        def call(self) -> None: ...

    actor = Crashes.options(max_restarts=-1).remote()
    ref = actor.call.remote()
    assert eventually(lambda: path.exists() and len(path.read_text()) >= 2)
    time.sleep(0.8)
    assert len(path.read_text()) <= 6
    shoal.kill(actor)
    with pytest.raises(ActorDiedError):
        get(ref)


def test_constructor_may_fail_the_first_time(tmp_path: Path) -> None:
    path = tmp_path / "seen"

    @shoal.remote(max_restarts=1)
    class Second:
        def __init__(self) -> None:
            if not path.exists():
                path.write_text("")
                os._exit(5)

        def call(self) -> str:
            return "alive"

    assert get(Second.remote().call.remote()) == "alive"


def test_calls_of_a_stream_that_crashes(tmp_path: Path) -> None:
    @shoal.remote(max_restarts=1)
    class Streams:
        def items(self, came: Path) -> Any:
            yield 1
            yield 2
            eventually(came.exists)
            os._exit(4)

        def alive(self) -> bool:
            return True

    actor = Streams.remote()
    got = []
    with pytest.raises(ActorUnavailableError, match="exit code 4"):
        for ref in actor.items.remote(tmp_path / "came"):
            got.append(get(ref))
            if len(got) == 2:
                (tmp_path / "came").touch()
    assert got == [1, 2]
    assert get(actor.alive.remote())


def test_errors_of_dead_actors_travel() -> None:
    actor = Subject.remote()
    shoal.kill(actor)

    @shoal.remote
    def call(handles: list[Any]) -> Any:
        return shoal.get(handles[0].add.remote())

    with pytest.raises(ActorDiedError) as caught:
        get(call.remote([actor]))
    assert isinstance(caught.value, TaskError)


def test_many_lives_leave_nothing_behind() -> None:
    def living() -> int:
        return int(current().call("node.stats")["actors"]["placed"])

    for _ in range(30):
        actor = Subject.remote()
        get(actor.add.remote())
        shoal.kill(actor)
    del actor
    gc.collect()  # tests before this one left handles in the frames of their exceptions
    assert eventually(lambda: living() == 0)
    assert eventually(lambda: len(current().call("node.workers")["workers"]) <= 6)


def test_actor_forgotten_before_it_was_asked_for() -> None:
    @shoal.remote
    def later(path: str) -> str:
        time.sleep(0.3)
        return path

    gc.collect()
    assert eventually(lambda: current().call("node.stats")["actors"]["placed"] == 0)
    ref = later.remote("")
    Subject.remote(ref)  # the handle goes at once; the actor is made when its argument is there, and ends
    shoal.wait([ref], timeout=WAIT_S)
    time.sleep(0.2)
    assert eventually(lambda: current().call("node.stats")["actors"]["placed"] == 0)


def test_actor_whose_creator_died_before_its_argument_was_there() -> None:
    @shoal.remote(num_cpus=0)
    def later() -> int:
        time.sleep(20.0)
        return 1

    class Creator:
        def make(self) -> Any:
            return Subject.remote(later.remote())

        def pid(self) -> int:
            return os.getpid()

    creator = shoal.remote(Creator).remote()
    pid = get(creator.pid.remote())
    orphan = get(creator.make.remote())
    ref = orphan.add.remote()
    time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ActorDiedError):
        get(ref)
