"""Actors with checkpoints: after any death their state is that of the serial program, and every call has one answer."""

from __future__ import annotations

import gc
import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.engine.node_counts import eventually

import shoal
from shoal.exceptions import ActorDiedError, TaskError
from shoal.protocol.limits import RECOVERIES_MAX
from shoal.runtime.core import current

pytestmark = pytest.mark.usefixtures("shoal_session")

WAIT_S = 60


def get(refs: Any) -> Any:
    """The values, in bounded time."""
    return shoal.get(refs, timeout=WAIT_S)


def kill(actor: Any) -> int:
    """kill -9 of the actor's process, when it has one; returns its pid or 0."""
    for row in current().call("node.workers")["workers"]:
        if row["actor_id"] == actor._actor_id.binary():
            try:
                os.kill(row["pid"], signal.SIGKILL)
            except ProcessLookupError:
                return 0  # it has died already
            return int(row["pid"])
    return 0


def state_of(actor: Any) -> str:
    """What the GCS says of it."""
    rows = current().call("gcs.actors_list")["actors"]
    return next(str(row["state"]) for row in rows if row["actor_id"] == actor._actor_id.binary())


def take(token: str) -> bool:
    """Whether this is the first to take the token, a file."""
    try:
        os.unlink(token)
    except FileNotFoundError:
        return False
    return True


def die() -> None:
    """kill -9 of this very process."""
    os.kill(os.getpid(), signal.SIGKILL)


class LogBase:
    """Appends what it is told, and says how many lines it has. Tokens are files: whoever takes one dies there."""

    def __init__(self) -> None:
        self.lines: list[Any] = []
        self.peer: Any = None

    def append(self, line: Any, before: str = "", after: str = "") -> int:
        if before and take(before):
            die()
        self.lines.append(line)
        if after and take(after):
            die()
        return len(self.lines)

    def meet(self, peers: list[Any]) -> None:
        self.peer = peers[0]

    def forward(self, line: Any, before: str = "", after: str = "") -> tuple[int, int]:
        """Append here and at the peer."""
        self.lines.append(line)
        if before and take(before):
            die()
        count = shoal.get(self.peer.append.remote(line))
        if after and take(after):
            die()
        return len(self.lines), count

    def pass_on(self, line: Any) -> int:
        """Append here and at all that follow."""
        self.lines.append(line)
        if self.peer is not None:
            assert shoal.get(self.peer.pass_on.remote(line)) == len(self.lines)
        return len(self.lines)

    def fail(self, line: Any) -> None:
        self.lines.append(line)
        raise ValueError(f"no {line}")

    @shoal.method(read_only=True)
    def all(self) -> list[Any]:
        return self.lines

    @shoal.method(read_only=True)
    def arm(self, step: str, count: int) -> None:
        """Die at the `count`-th time that this process comes to a step of its own machinery."""
        executor = current().executor
        exact = executor.host.exact
        left = count

        def dying(function: Callable[..., Any], first: bool) -> Callable[..., Any]:
            def instead(*args: Any, **kwargs: Any) -> Any:
                nonlocal left
                left -= 1
                if first and not left:
                    die()
                result = function(*args, **kwargs)
                if not first and not left:
                    die()
                return result

            return instead

        def flushing(function: Callable[..., Any]) -> Callable[..., Any]:
            def instead(*args: Any, **kwargs: Any) -> Any:
                with current().reactor.lock:
                    current().reactor.causal.flush()
                return function(*args, **kwargs)

            return instead

        owner, name, first = {
            "before the record": (exact, "_recordable", True),
            "after the record": (exact, "_recordable", False),
            "recorded, before the call": (exact, "_run", True),
            "after the call": (exact, "_run", False),
            "before the checkpoint": (exact, "checkpoint", True),
            "after the checkpoint": (exact, "checkpoint", False),
            "before the reply": (executor, "_flush_replies_of", True),
            "after the reply": (executor, "_flush_replies_of", False),
        }[step]
        setattr(owner, name, dying(getattr(owner, name), first))
        if step == "recorded, before the call":
            setattr(owner, name, flushing(getattr(owner, name)))


Log = shoal.remote(checkpoint_interval=5)(LogBase)


def test_state_survives_a_kill() -> None:
    log = Log.remote()
    assert get([log.append.remote(i) for i in range(13)]) == list(range(1, 14))
    assert kill(log)
    assert get(log.append.remote(13)) == 14
    assert get(log.all.remote()) == list(range(14))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    "step",
    [
        "before the record",
        "after the record",
        "recorded, before the call",
        "after the call",
        "before the checkpoint",
        "after the checkpoint",
        "before the reply",
        "after the reply",
    ],
)
def test_killed_at_every_step(step: str, count: int) -> None:
    log = Log.remote()
    get(log.append.remote("first"))
    get(log.arm.remote(step, count + ("reply" in step)))  # the next reply is that of `arm`
    refs = [log.append.remote(i) for i in range(17)]
    assert get(refs) == list(range(2, 19))
    assert get(log.all.remote()) == ["first", *range(17)]


@pytest.mark.parametrize("where", ["before", "after"])
def test_killed_within_a_call_and_within_its_replay(where: str, tmp_path: Path) -> None:
    log = shoal.remote(checkpoint_interval=1000)(LogBase).remote()
    refs = []
    for i in range(12):
        token = tmp_path / str(i)
        if i in (2, 3, 8):
            token.touch()
        refs.append(log.append.remote(i, **{where: str(token)}))
    # Killed while it replays: the former life took the token that its replay finds again.
    again = tmp_path / "again"
    refs.append(log.append.remote(12, after=str(again)))
    assert get(refs) == list(range(1, 14))
    again.touch()
    assert kill(log)
    assert get(log.append.remote(13)) == 14
    assert not again.exists()
    assert get(log.all.remote()) == list(range(14))


def test_two_callers_and_many_kills() -> None:
    log = Log.remote()

    @shoal.remote
    def write(logs: list[Any], who: str) -> list[int]:
        return [get(logs[0].append.remote((who, i))) for i in range(60)]

    writers = [write.remote([log], who) for who in "ab"]
    mine = []
    for i in range(60):
        mine.append(get(log.append.remote(("c", i))))
        if i % 12 == 5:
            kill(log)
    positions = [*get(writers), mine]
    lines = get(log.all.remote())
    assert len(lines) == 180
    for who, places in zip("abc", positions, strict=True):
        assert [lines[place - 1] for place in places] == [(who, i) for i in range(60)]


@pytest.mark.parametrize("where", ["before", "after"])
def test_calls_of_a_replayed_caller_are_known_again(where: str, tmp_path: Path) -> None:
    front, back = Log.remote(), Log.remote()
    get(front.meet.remote([back]))
    refs = []
    for i in range(14):
        token = tmp_path / str(i)
        if i in (1, 4, 9):
            token.touch()
        refs.append(front.forward.remote(i, **{where: str(token)}))
    assert get(refs) == [(i + 1, i + 1) for i in range(14)]
    assert get(front.all.remote()) == get(back.all.remote()) == list(range(14))


def chain(seed: int, length: int, seconds: float) -> None:
    """A chain of actors, each calls the next, all killed at random."""
    dice = random.Random(seed)
    actors = [shoal.remote(checkpoint_interval=dice.choice((1, 3, 10)))(LogBase).remote() for _ in range(length)]
    for one, following in itertools.pairwise(actors):
        get(one.meet.remote([following]))
    ends = threading.Event()
    kills = 0

    def murder() -> None:
        nonlocal kills
        in_vain = dict.fromkeys(range(length), 0)
        while not ends.wait(dice.uniform(0.01, 0.15)):
            victim = dice.randrange(length)
            # Now and then one that still recovers, but not as often in a row as ends an actor: on a loaded machine a recovery takes long.
            if state_of(actors[victim]) == "alive":
                in_vain[victim] = 0
            elif dice.random() < 0.8 or in_vain[victim] == RECOVERIES_MAX // 2:
                continue
            else:
                in_vain[victim] += 1
            kills += bool(kill(actors[victim]))

    killer = threading.Thread(target=murder)
    killer.start()
    answers, until = [], time.perf_counter() + seconds
    pending: list[Any] = []
    number = 0
    try:
        while time.perf_counter() < until or kills < 3 or number < 12:
            pending.append(actors[0].pass_on.remote(number))
            number += 1
            if len(pending) > dice.randrange(8):
                answers.append(get(pending.pop(0)))
    finally:
        ends.set()
        killer.join()
    answers += get(pending)
    assert answers == list(range(1, number + 1)), f"seed {seed}"
    for actor in actors:
        assert get(actor.all.remote()) == list(range(number)), f"seed {seed}"


@pytest.mark.parametrize("length", [2, 3])
def test_a_chain_under_random_kills(length: int) -> None:
    chain(length, length, 2.5)


# ---------------------------------------------------------------- what is in a state, an argument, an answer


@shoal.remote(checkpoint_interval=3)
class Keeper:
    """Keeps things."""

    def __init__(self) -> None:
        self.things: list[Any] = []

    def keep(self, thing: Any) -> int:
        self.things.append(thing)
        return len(self.things)

    def make(self, size: int) -> Any:
        array = np.full(size, len(self.things), np.uint8)
        self.things.append(array)
        return array

    def change(self, index: int) -> int:
        self.things[index] += 1
        return int(self.things[index][0])

    def give(self, index: int) -> Any:
        return self.things[index]

    def give_ref(self) -> Any:
        self.things.append(shoal.put(np.arange(50_000)))
        return [self.things[-1]]


@pytest.mark.parametrize("size", [10, 300_000, 3_000_000])
def test_large_states_arguments_and_answers(size: int) -> None:
    keeper = Keeper.remote()
    argument = np.arange(size, dtype=np.uint8)
    for round_no in range(5):
        assert get(keeper.keep.remote(argument)) == 2 * round_no + 1
        assert len(get(keeper.make.remote(size))) == size
        kill(keeper)
    assert get(keeper.change.remote(9)) == 10  # an array of its own may be changed after a recovery too
    kill(keeper)
    assert get(keeper.change.remote(9)) == 11
    assert np.array_equal(get(keeper.give.remote(2)), argument)
    assert np.array_equal(get(keeper.give.remote(9)), np.full(size, 11, np.uint8))


def test_refs_in_states_and_arguments_are_held() -> None:
    keeper = Keeper.remote()
    for round_no in range(5):
        ref = shoal.put(np.full(50_000, round_no))
        assert get(keeper.keep.remote([ref])) == round_no + 1
        del ref
        kill(keeper)
    for round_no in range(5):
        (ref,) = get(keeper.give.remote(round_no))
        assert int(get(ref)[-1]) == round_no
    (own,) = get(keeper.give_ref.remote())
    kill(keeper)
    assert int(get(own)[-1]) == 49_999


def test_nothing_is_left_behind() -> None:
    def known() -> tuple[int, int]:
        stats = current().call("node.stats")
        return stats["actors"]["logs"], stats["objects"]["objects"]

    def stands_still() -> bool:
        """Of the tests before nothing is on its way any more."""
        gc.collect()
        first = known()
        time.sleep(0.3)
        return known() == first

    eventually(stands_still)
    before = known()
    keeper = Keeper.remote()
    get(keeper.keep.remote([shoal.put(np.arange(50_000))]))
    get(keeper.keep.remote(np.arange(3_000_000)))
    kill(keeper)
    assert get(keeper.keep.remote(1)) == 3
    assert known()[0] == before[0] + 1
    del keeper
    eventually(lambda: known() == before)


def test_arguments_by_ref() -> None:
    keeper = Keeper.remote()
    for round_no in range(4):
        get(keeper.keep.remote(shoal.put(np.full(200_000, round_no))))
        kill(keeper)
    assert [int(get(keeper.give.remote(i))[0]) for i in range(4)] == [0, 1, 2, 3]


def test_errors_are_answers_too() -> None:
    log = Log.remote()
    for i in range(3):
        with pytest.raises(TaskError, match=f"no {i}"):
            get(log.fail.remote(i))
        kill(log)
    assert get(log.append.remote(3)) == 4


@shoal.remote(checkpoint_seconds=0.05)
class Simulator:
    """A thing that cannot be pickled, with a state that can."""

    def __init__(self, factor: int) -> None:
        self.lock = threading.Lock()
        self.factor = factor
        self.sum = 0

    def add(self, number: int) -> int:
        self.sum += self.factor * number
        return self.sum

    def save_checkpoint(self) -> int:
        return self.sum

    def load_checkpoint(self, state: int) -> None:
        self.sum = state


def test_own_checkpoints_and_checkpoints_by_time() -> None:
    simulator = Simulator.remote(3)
    total = 0
    for number in range(20):
        total += 3 * number
        assert get(simulator.add.remote(number)) == total
        if number % 6 == 5:
            time.sleep(0.06)
            kill(simulator)


def test_the_state_is_what_getstate_gives() -> None:
    @shoal.remote(checkpoint_interval=2)
    class Locked:
        def __init__(self) -> None:
            self.lock = threading.Lock()
            self.sum = 0

        def __getstate__(self) -> int:
            return self.sum

        def __setstate__(self, state: int) -> None:
            self.lock, self.sum, self.loaded = threading.Lock(), state, True

        def add(self, number: int) -> int:
            with self.lock:
                self.sum += number
            return self.sum

        @shoal.method(read_only=True)
        def was_loaded(self) -> bool:
            return hasattr(self, "loaded")

    locked = Locked.remote()
    assert get([locked.add.remote(number) for number in range(5)]) == [0, 1, 3, 6, 10]
    assert kill(locked)
    assert get(locked.add.remote(5)) == 15
    assert get(locked.was_loaded.remote())


def test_a_state_that_cannot_be_pickled_is_refused_at_the_start() -> None:
    @shoal.remote(checkpoint_interval=1)
    class Locked:
        def __init__(self) -> None:
            self.lock = threading.Lock()

        def use(self) -> None: ...

    with pytest.raises(ActorDiedError, match="lock"):
        get(Locked.remote().use.remote())


def test_a_call_that_kills_its_process_each_time_ends_the_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    @shoal.remote(checkpoint_interval=5, max_restarts=2)
    class Fragile:
        def crash(self) -> None:
            die()

    with pytest.raises(ActorDiedError, match="2 restarts are used up"):
        get(Fragile.remote().crash.remote())


def test_cancel_takes_only_what_has_not_begun(tmp_path: Path) -> None:
    begun, go = tmp_path / "begun", tmp_path / "go"

    @shoal.remote(checkpoint_interval=100)
    class Slow:
        def __init__(self) -> None:
            self.count = 0

        def add(self, held: bool = False) -> int:
            if held:
                begun.touch()
                eventually(go.exists)
            self.count += 1
            return self.count

    slow = Slow.remote()
    assert get(slow.add.remote()) == 1
    running, queued = slow.add.remote(True), slow.add.remote()
    eventually(begun.exists)
    shoal.cancel(running)
    shoal.cancel(queued)
    with pytest.raises(shoal.exceptions.TaskCancelledError):
        get(queued)
    go.touch()
    assert get(running) == 2
    assert get(slow.add.remote()) == 3
    kill(slow)
    assert get(slow.add.remote()) == 4


def test_read_only_calls_are_not_replayed(tmp_path: Path) -> None:
    @shoal.remote(checkpoint_interval=100)
    class Counted:
        def __init__(self) -> None:
            self.count = 0

        def note(self, path: str) -> None:
            with open(path, "a") as file:
                file.write("x")

        @shoal.method(read_only=True)
        def look(self, path: str) -> int:
            self.note(path)
            return self.count

        def add(self, path: str) -> int:
            self.note(path)
            self.count += 1
            return self.count

    looks, adds = tmp_path / "looks", tmp_path / "adds"
    counted = Counted.remote()
    assert get([counted.add.remote(str(adds)) for _ in range(3)]) == [1, 2, 3]
    assert get([counted.look.remote(str(looks)) for _ in range(3)]) == [3, 3, 3]
    kill(counted)
    assert get(counted.look.remote(str(looks))) == 3
    assert (len(looks.read_text()), len(adds.read_text())) == (4, 6)


# ---------------------------------------------------------------- what is refused


def test_what_cannot_be_replayed_is_refused_at_decoration() -> None:
    exact = shoal.remote(checkpoint_interval=1)

    class Async:
        async def f(self) -> None: ...

    class Stream:
        def f(self) -> Any:
            yield 1

    class Retried:
        @shoal.method(retry_exceptions=True)
        def f(self) -> None: ...

    class Half:
        def save_checkpoint(self) -> int:
            return 1

    class Plain:
        def f(self) -> None: ...

    for cls, reason in ((Async, "async methods"), (Stream, "f is a generator"), (Retried, "would run twice")):
        with pytest.raises(ValueError, match=reason):
            exact(cls)
    with pytest.raises(TypeError, match=r"no load_checkpoint\(\)"):
        exact(Half)
    for options, reason in (
        ({"max_concurrency": 2}, "max_concurrency=2"),
        ({"concurrency_groups": {"io": 1}}, "concurrency_groups"),
        ({"max_restarts": 0}, "max_restarts=0"),
        ({"allow_out_of_order_execution": True}, "out_of_order"),
    ):
        with pytest.raises(ValueError, match=reason):
            shoal.remote(checkpoint_seconds=1, **options)(Plain)
    with pytest.raises(ValueError, match="async methods"):
        shoal.remote(Async).options(checkpoint_interval=3)
    for bad in (0, -1, 1.5, "many"):
        with pytest.raises((ValueError, TypeError), match="checkpoint_interval"):
            shoal.remote(checkpoint_interval=bad)(Plain)
    with pytest.raises(ValueError, match="every call runs once"):
        exact(Plain).remote().f.options(retry_exceptions=True).remote()


# ---------------------------------------------------------------- calls that nobody waits for


@shoal.remote(checkpoint_interval=3)
class Sender:
    """Has lines appended elsewhere, and does not wait."""

    def __init__(self, peers: list[Any]) -> None:
        self.peer = peers[0]
        self.sent = 0

    def send(self, token: str = "") -> int:
        self.peer.append.remote(self.sent)
        self.sent += 1
        if token and take(token):
            die()
        return self.sent


def test_calls_that_the_caller_does_not_wait_for_are_not_lost(tmp_path: Path) -> None:
    log = Log.remote()
    sender = Sender.remote([log])
    for i in range(30):
        token = tmp_path / str(i)
        if i % 7 == 3:
            token.touch()
        if i % 5 == 2:
            kill(log)  # so that calls to it wait in the sender
        assert get(sender.send.remote(str(token))) == i + 1
        if i % 6 == 5:
            kill(sender)
    get(sender.send.remote())
    deadline = time.perf_counter() + 60
    while len(get(log.all.remote())) < 31 and time.perf_counter() < deadline:
        time.sleep(0.02)
    assert get(log.all.remote()) == list(range(31))


def test_more_records_than_the_page_holds() -> None:
    log = shoal.remote(checkpoint_interval=1000)(LogBase).remote()
    lines = [f"{i}" * 1000 for i in range(100, 300)]  # 600 kB
    half = len(lines) // 2
    assert get([log.append.remote(line) for line in lines[:half]]) == list(range(1, half + 1))
    kill(log)
    refs = [log.append.remote(line) for line in lines[half:]]
    get(refs[20])
    kill(log)
    assert get(refs) == list(range(half + 1, len(lines) + 1))
    kill(log)
    assert get(log.all.remote()) == lines
