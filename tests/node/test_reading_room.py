"""Who may wait for arguments with others in hand: rules by example, and worlds of tasks that all must come to an end."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from hypothesis import example, given
from hypothesis import strategies as st

from shoal.node.reading_room import STANDSTILL_S, Admit, ReaderDied, ReadingRoom, RoomAsked, RoomUsed, Tick
from shoal.protocol.memory_messages import ROOM_LEFT, ROOM_RUNS, ROOM_WAITS

CAPACITY = 100


def ask(room: ReadingRoom, number: int, *sizes: int, name: str = "") -> list[int]:
    parts = [(f"{name or number}.{at}".encode(), size) for at, size in enumerate(sizes)]
    return [admitted.number for admitted in room.handle(RoomAsked(b"w%d" % number, number, parts), 0.0)]


def use(room: ReadingRoom, number: int, state: int) -> list[int]:
    return [admitted.number for admitted in room.handle(RoomUsed(b"w%d" % number, number, state), 0.0)]


def test_those_that_fit_are_let_in_by_the_order_of_asking() -> None:
    room = ReadingRoom(CAPACITY)
    assert ask(room, 1, 20, 10) == [1]
    assert ask(room, 2, 20) == [2]
    assert ask(room, 3, 15, 15) == []
    assert ask(room, 4, 1) == []  # it does not overtake
    assert use(room, 2, ROOM_LEFT) == []
    assert use(room, 1, ROOM_LEFT) == [3, 4]
    assert room.statistics() == {"reading": 2, "waiting": 0, "bytes": 31}


def test_one_that_is_larger_than_the_share_is_let_in_alone() -> None:
    room = ReadingRoom(CAPACITY)
    assert ask(room, 1, 10) == [1]
    assert ask(room, 2, 90) == []
    assert use(room, 1, ROOM_LEFT) == [2]
    assert ask(room, 3, 10) == []
    assert [admitted.number for admitted in room.handle(ReaderDied(b"w2"), 0.0)] == [3]


def test_what_several_read_counts_once() -> None:
    room = ReadingRoom(CAPACITY)
    assert [ask(room, number, 40, name="shared") for number in (1, 2, 3)] == [[1], [2], [3]]
    assert ask(room, 4, 20) == []
    assert use(room, 1, ROOM_LEFT) == use(room, 2, ROOM_LEFT) == []
    assert use(room, 3, ROOM_LEFT) == [4]


def test_when_all_that_are_in_only_wait_the_next_is_let_in() -> None:
    room = ReadingRoom(CAPACITY)
    assert ask(room, 1, 40) == [1]
    assert ask(room, 2, 40) == []
    assert use(room, 1, ROOM_WAITS) == [2]
    assert ask(room, 3, 1) == []  # what waits still holds what it has read
    assert use(room, 1, ROOM_RUNS) == []
    assert use(room, 2, ROOM_LEFT) == [3]


def test_who_gave_up_while_it_was_waiting_is_forgotten() -> None:
    room = ReadingRoom(CAPACITY)
    assert ask(room, 1, 40) == [1]
    assert ask(room, 2, 40) == ask(room, 3, 40) == []
    assert use(room, 2, ROOM_LEFT) == []
    assert room.handle(ReaderDied(b"w3"), 0.0) == []
    assert use(room, 1, ROOM_LEFT) == []
    assert room.statistics() == {"reading": 0, "waiting": 0, "bytes": 0}


def test_without_any_change_the_next_is_let_in_some_time() -> None:
    room = ReadingRoom(CAPACITY)
    assert ask(room, 1, 40) == [1]
    assert ask(room, 2, 40) == []
    assert room.tick_at == STANDSTILL_S
    assert room.handle(Tick(), STANDSTILL_S - 1) == []
    assert room.handle(Tick(), STANDSTILL_S) == [Admit(b"w2", 2)]


# ---------------------------------------------------------------- worlds


@dataclass
class Task:
    """As a worker has it: `at` objects are pinned; one that asked stands in the room until it ends or gives up."""

    number: int
    objects: list[int]
    remade: int = -1  #: it finds this one of its objects lost, and has to wait for the task that makes it
    maker: Task | None = None
    at: int = 0
    state: str = "queued"  #: queued, asks, reads, runs, lends (waits for its maker, holding nothing), done
    holds: list[int] = field(default_factory=list)


class World:
    """Tasks with CPUs and a store that holds only so much of what is read at a time. `room` None: nobody asks."""

    def __init__(self, seed: int, room: ReadingRoom | None) -> None:
        self.dice = random.Random(seed)
        dice = self.dice
        self.cpus = dice.randrange(1, 4)
        self.room = room
        self.sizes = [dice.randrange(1, 25) for _ in range(dice.randrange(4, 30))]
        self.tasks: list[Task] = []
        for number in range(dice.randrange(2, 12)):
            task = Task(number, self._some_objects())
            if dice.random() < 0.5:
                task.remade = dice.randrange(len(task.objects))
                task.maker = Task(100 + number, self._some_objects())
            self.tasks.append(task)

    def _some_objects(self) -> list[int]:
        """What fits into the store."""
        found: list[int] = []
        for oid in self.dice.sample(range(len(self.sizes)), self.dice.randrange(2, len(self.sizes) + 1)):
            if sum(self.sizes[other] for other in found) + self.sizes[oid] <= CAPACITY:
                found.append(oid)
        return found

    @property
    def pinned(self) -> int:
        return sum(self.sizes[oid] for oid in {oid for task in self.tasks for oid in task.holds})

    def fits(self, oid: int) -> bool:
        held = {oid for task in self.tasks for oid in task.holds}
        return oid in held or self.pinned + self.sizes[oid] <= CAPACITY

    def tell(self, event: object) -> None:
        assert self.room is not None
        for admitted in self.room.handle(event, 0.0):  # type: ignore[arg-type]
            task = next(task for task in self.tasks if task.number == admitted.number)
            assert task.state == "asks"
            task.state = "reads"

    def can_move(self, task: Task) -> bool:
        busy = sum(task.state in ("asks", "reads", "runs") for task in self.tasks)
        if task.state == "queued":
            return busy < self.cpus
        if task.state == "reads":
            return task.at == task.remade or task.at == len(task.objects) or self.fits(task.objects[task.at])
        if task.state == "lends":
            return task.maker is None or task.maker.state == "done"
        return task.state == "runs"

    def move(self, task: Task) -> None:
        if task.state in ("queued", "lends"):
            # All at once where it can: then it holds a CPU, and runs.
            if task.remade < 0 and self.dice.random() < 0.3 and all(self.fits(oid) for oid in task.objects):
                held = sum(self.sizes[oid] for oid in {*task.objects, *(o for t in self.tasks for o in t.holds)})
                if held <= CAPACITY:
                    task.holds, task.state = list(task.objects), "runs"
                    return
            task.state, task.at = "reads", 0
            if self.room is not None:
                task.state = "asks"
                parts = [(b"%d" % oid, self.sizes[oid]) for oid in task.objects]
                self.tell(RoomAsked(b"w%d" % task.number, task.number, parts))
        elif task.state == "reads" and task.at == task.remade:
            task.remade = -1
            assert task.maker is not None
            self.tasks.append(task.maker)
            if self.room is not None:  # as `Room.give_up`; without it, it keeps what it has read
                task.holds = []
                self.tell(RoomUsed(b"w%d" % task.number, task.number, ROOM_LEFT))
            task.state = "lends"
        elif task.state == "reads":
            if task.at == len(task.objects):
                task.state = "runs"
            else:
                task.holds.append(task.objects[task.at])
                task.at += 1
        else:
            task.state, task.holds = "done", []
            if self.room is not None:
                self.tell(RoomUsed(b"w%d" % task.number, task.number, ROOM_LEFT))

    def play(self) -> bool:
        """Until all are done; False when nobody can move."""
        while any(task.state != "done" for task in self.tasks):
            movable = [task for task in self.tasks if self.can_move(task)]
            if not movable:
                return False
            self.move(self.dice.choice(movable))
            assert self.pinned <= CAPACITY
        return True


@given(st.integers(0, 1 << 30))
@example(3)
def test_every_task_whose_arguments_fit_comes_to_its_end(seed: int) -> None:
    room = ReadingRoom(CAPACITY)
    world = World(seed, room)
    assert world.play(), [(task.number, task.state, task.at, task.objects) for task in world.tasks]
    assert room.statistics() == {"reading": 0, "waiting": 0, "bytes": 0}


def test_without_the_room_they_hold_each_other_up() -> None:
    """The check above can fail."""
    assert sum(not World(seed, None).play() for seed in range(100)) > 10
