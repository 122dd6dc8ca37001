"""Virtual time, and the network that messages cross.

Purpose: what takes hours on a thousand machines happens here in minutes, and again exactly the same from the same seed.

Design: a heap of (time, number, what to do). A `Station` is somebody who handles one message after the other, each at a cost: what comes while it is
busy waits, so what saturates shows. A `Channel` is a connection: what is sent on it arrives in order, after a latency drawn for each message; two
channels between the same two places overtake each other. Partitions hold back what crosses them until they heal, as TCP does.

    send -> (latency; held while partitioned) -> arrives -> (the station is busy) -> handled

All dice are one `random.Random(seed)`; no clock and no order of a set or of hashes reaches a decision.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

GCS = -1  #: the place of the GCS; nodes are 0, 1, ...


@dataclass(slots=True)
class Costs:
    """What things take, in seconds. The defaults are measured (docs/simulation.md says how); `network_s` is a data centre's."""

    submit_s: float = 3.9e-6  #: a submitter's work for one task, twice: encode and push; take the reply
    execute_s: float = 4.0e-6  #: a worker's work for one task, the user's function apart
    daemon_message_s: float = 30e-6  #: a node daemon's work for one message
    gcs_message_s: float = 20e-6  #: the GCS's work for one message ...
    gcs_node_s: float = 0.9e-6  #: ... and for each node that it looks at when it places something
    local_s: float = 25e-6  #: between processes of one node
    network_s: float = 100e-6  #: between nodes, one way
    network_spread: float = 0.5  #: latencies are drawn from network_s to (1 + this) times as much
    worker_start_s: float = 0.006
    added_scheduling_s: float = 0.0  #: paper figure 12b: a delay in front of every request for leases


class World:
    """Time and dice, and the network between places."""

    def __init__(self, seed: int, costs: Costs) -> None:
        self.now = 0.0
        self.dice = random.Random(seed)
        self.costs = costs
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0
        #: messages by (kind of receiver, type)
        self.messages: Counter[tuple[str, str]] = Counter()
        #: places that cannot be reached, each with the time when they can again
        self._cut_off: dict[int, float] = {}
        #: places whose network is slow, each with until when, and how much later at most what leaves or comes is
        self._slow: dict[int, tuple[float, float]] = {}

    def at(self, time: float, call: Callable[..., None], *args: Any) -> None:
        """Have something happen at a time, not before now."""
        self._number += 1
        heapq.heappush(self._heap, (max(time, self.now), self._number, call, args))

    def after(self, delay: float, call: Callable[..., None], *args: Any) -> None:
        """Have something happen `delay` seconds from now."""
        self.at(self.now + delay, call, *args)

    def run(self, until: float, done: Callable[[], bool] = lambda: False) -> None:
        """Let time pass: to `until`, or to the event after which `done()` holds (looked at now and then)."""
        heap, pop, looked = self._heap, heapq.heappop, 0
        while heap and heap[0][0] <= until:
            self.now, _, call, args = pop(heap)
            call(*args)
            looked += 1
            if not looked % 64 and done():
                return
        if not done():
            self.now = until

    # ---------------------------------------------------------------- network

    def latency(self, source: int, target: int) -> float:
        """How long one message takes."""
        if source == target:
            return self.costs.local_s
        latency = self.costs.network_s * (1 + self.costs.network_spread * self.dice.random())
        if self._slow:
            for place in (source, target):
                until, delay = self._slow.get(place, (0.0, 0.0))
                if until > self.now:
                    latency += delay * self.dice.random()
        return latency

    def slow_down(self, place: int, seconds: float, delay: float) -> None:
        """For a while each message from and to a place takes up to `delay` longer."""
        self._slow[place] = (self.now + seconds, delay)

    def cut_off(self, place: int, seconds: float) -> None:
        """A place is partitioned from all others for a while."""
        self._cut_off[place] = max(self._cut_off.get(place, 0.0), self.now + seconds)

    def passes_at(self, source: int, target: int, arrival: float) -> float:
        """When what would arrive at `arrival` does, given the partitions."""
        if self._cut_off and source != target:
            for place in (source, target):
                until = self._cut_off.get(place, 0.0)
                if until > self.now:
                    arrival = max(arrival, until)
        return arrival


class Station:
    """Somebody who handles one thing after the other. `busy_s` is the time this took so far."""

    __slots__ = ("busy_s", "free_at", "kind", "place", "world")

    def __init__(self, world: World, place: int, kind: str) -> None:
        self.world, self.place, self.kind = world, place, kind
        self.free_at = 0.0
        self.busy_s = 0.0

    def take(self, cost: float, call: Callable[..., None], *args: Any) -> None:
        """Handle something that has arrived now, when all before it is done."""
        world = self.world
        start = self.free_at
        if start <= world.now:
            self.free_at = world.now + cost
            self.busy_s += cost
            call(*args)
        else:
            self.free_at = start + cost
            self.busy_s += cost
            world.at(start, call, *args)

    def spend(self, cost: float) -> None:
        """What is handled just now takes so much more."""
        self.free_at = max(self.free_at, self.world.now) + cost
        self.busy_s += cost


class Channel:
    """One direction of a connection. Closed, it delivers nothing more."""

    __slots__ = ("closed", "last", "source", "target", "world")

    def __init__(self, world: World, source: int, target: int) -> None:
        self.world, self.source, self.target = world, source, target
        self.last = 0.0
        self.closed = False

    def send(self, station: Station, cost: float, call: Callable[..., None], *args: Any) -> None:
        """Deliver `call(*args)` to a station, in order."""
        world = self.world
        arrival = world.passes_at(self.source, self.target, world.now + world.latency(self.source, self.target))
        self.last = arrival = max(arrival, self.last)
        world.at(arrival, self._arrive, station, cost, call, args)

    def _arrive(self, station: Station, cost: float, call: Callable[..., None], args: tuple[Any, ...]) -> None:
        if not self.closed:
            station.take(cost, self._handle, call, args)

    def _handle(self, call: Callable[..., None], args: tuple[Any, ...]) -> None:
        if not self.closed:
            call(*args)
