"""Leases on other nodes: which requests of this node's processes leave it, and what comes back.

Purpose: bottom-up scheduling (paper 4.2.2): a request is served here if it can be; else the global scheduler names nodes, and those grant.

Design: one machine beside the local scheduler, `handle(event) -> list[Effect]`. It remembers the last request of every class (process, number) that
waits, and has a record of those of which anything is abroad.

    Requested -> here (RequestHere), unless its strategy is the global scheduler's to follow, or its inputs are elsewhere (not while the GCS is away:
                 then inputs come here)
    RefusedHere (never possible here), Overdue (waits too long here) -> AskGlobal (PlaceLeases)
    Placed (nodes and counts) -> AskNode (ForeignLeases), or RequestHere when it is this node
    Placed(queued) -> AskNode besides: these have no room, and the global scheduler goes on looking for some; taken back when it has found it all
    Looked: a node was asked and has granted nothing for long -> it stays in that queue, and AskGlobal (and RequestHere) for room anywhere besides
    Granted by a node -> TellProcess; the lease is known here by its node until that says LeaseEnded

A node may have no room for what was placed there: it was filled before it could say so, or its queue was judged by leases that were shorter than
those that run now (actors never end). So nothing waits for one node only: after PLACED_WAIT_S, and the time in which the inputs could have been
moved, room is looked for without regard to inputs; what finds it first takes the rest back.

A request may be granted here and abroad at once, since tasks are counted in both places: the submitter returns the lease for which it has no task.
The number that a submitter believes to be asked for is therefore never more than what is asked for, so it never waits in vain. It is counted here
too, and when it has come down to zero, what is still asked of others is taken back.

When a node dies its leases end (WorkerDied to their holders: what ran there may have begun, and is charged a retry), and what was asked of it
is asked of the global scheduler again. One that does not know yet that a node is dead, and names it, is told so and asked again.

How to extend: an event gets a row in `_HANDLERS`.

What it does not do: choose nodes (`gcs.global_scheduler`); see single tasks; send (`node.io.foreign_leases`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from shoal.protocol.limits import ALL_STARTED
from shoal.protocol.messages import (
    UNSCHEDULABLE_BUNDLE_GONE,
    UNSCHEDULABLE_GROUP_REMOVED,
    LeaseGranted,
    LeasesUnschedulable,
    RequestLeases,
    WorkerDied,
)
from shoal.protocol.strategies import GLOBAL_KINDS, KIND, LOCALITY, NODE_AFFINITY, PLACEMENT_GROUP
from shoal.scheduling.node_policy import BANDWIDTH_BYTES_S

#: what is not for the local scheduler to decide: the global scheduler names nodes, or the places of the placement group do
ELSEWHERE_KINDS = GLOBAL_KINDS | {PLACEMENT_GROUP}
Key = tuple[bytes, int]  #: (process, class number)
#: where all nodes are overloaded the global scheduler does little else than to be told what they want less: with 16 instead of 2 it hears 40 to 60%
#: fewer questions, and starts and returned leases are the same (the simulator's scenario `growth`)
LESS = 16
#: nodes that refuse what the global scheduler thought possible, in a row, before the submitter is told
REFUSALS_MAX = 5
#: what was placed on a node with room is granted sooner, if a worker need not be started there; doubled each time that it was not
PLACED_WAIT_S = 0.5
PLACED_WAIT_DOUBLED_MAX = 6
DEAD_MAX = 1000  #: nodes that are remembered to be dead
#: inputs of which another node has so much more than this one may be worth a question where to run
MOVE_BYTES_MIN = 1 << 20


# ---------------------------------------------------------------- events


@dataclass(slots=True)
class Requested:
    """A process of this node has a backlog; 0 takes it back."""

    process: bytes
    request: RequestLeases


@dataclass(slots=True)
class GrantedHere:
    """This node has granted a lease to one of its processes."""

    process: bytes
    class_no: int


@dataclass(slots=True)
class RefusedHere:
    """This node can never serve a class."""

    process: bytes
    class_no: int
    reason: str
    kind: str = ""  #: as in LeasesUnschedulable


@dataclass(slots=True)
class Overdue:
    """A class waits here for too long, for `backlog` leases."""

    process: bytes
    class_no: int
    backlog: int


@dataclass(slots=True)
class Placed:
    """The global scheduler's answer; with `refused` no node can ever serve it. With `queued` these nodes have no room: what was asked for waits in
    their queues besides, and the global scheduler still owes it all."""

    process: bytes
    class_no: int
    placements: list[tuple[bytes, int]]
    refused: str = ""
    kind: str = ""
    queued: bool = False


@dataclass(slots=True)
class GrantedAbroad:
    """A node has granted a lease to a process of this one; `granted.address` is where it is reached from here."""

    node_id: bytes
    process: bytes
    granted: LeaseGranted


@dataclass(slots=True)
class RefusedAbroad:
    """A node cannot serve a class after all."""

    node_id: bytes
    process: bytes
    class_no: int
    reason: str
    kind: str = ""


@dataclass(slots=True)
class EndedAbroad:
    """A lease on another node is over."""

    lease_id: int


@dataclass(slots=True)
class Reached:
    """A process of this node was told where an actor on another node is."""

    process: bytes
    node_id: bytes
    worker_id: bytes
    lease_id: int


@dataclass(slots=True)
class ProcessDied:
    """A process of this node is dead."""

    process: bytes
    job_id: bytes = b""  #: of a driver, whose job has ended with it
    reason: str = ""


@dataclass(slots=True)
class NodeDied:
    """Another node is dead."""

    node_id: bytes
    cause: str


@dataclass(slots=True)
class Looked:
    """Time passes: nodes that were asked may have granted nothing for too long. Said again and again while `awaits_nodes`."""

    now: float


@dataclass(slots=True)
class GcsLost:
    """There is no connection to the GCS."""


@dataclass(slots=True)
class GcsReturned:
    """There is a new connection to the GCS, which has forgotten what was asked for."""


Event = (
    Requested
    | GrantedHere
    | RefusedHere
    | Overdue
    | Placed
    | GrantedAbroad
    | RefusedAbroad
    | EndedAbroad
    | Reached
    | ProcessDied
    | NodeDied
    | Looked
    | GcsLost
    | GcsReturned
)


# ---------------------------------------------------------------- effects


@dataclass(slots=True)
class RequestHere:
    """Ask the local scheduler: for as many leases as the request says, or for `more` than it is asked for now."""

    process: bytes
    request: RequestLeases
    more: int = 0


@dataclass(slots=True)
class AskGlobal:
    """Ask the global scheduler for `backlog` leases in all; 0 takes it back. It has named nodes that are `dead`, as a replica may."""

    process: bytes
    request: RequestLeases
    backlog: int
    anywhere: bool = False  #: wherever there is room, be the inputs where they may
    dead: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class AskNode:
    """Ask another node for `backlog` leases in all; 0 takes it back."""

    node_id: bytes
    process: bytes
    request: RequestLeases
    backlog: int


@dataclass(slots=True)
class TellProcess:
    """Send a message to a process of this node."""

    process: bytes
    message: LeaseGranted | LeasesUnschedulable | WorkerDied


@dataclass(slots=True)
class TellProcessDied:
    """Tell a node that a process is dead with which it had to do."""

    node_id: bytes
    process: bytes
    job_id: bytes
    reason: str


@dataclass(slots=True)
class GiveBack:
    """Return a lease to its node: nobody wants it."""

    node_id: bytes
    lease_id: int


Effect = RequestHere | AskGlobal | AskNode | TellProcess | TellProcessDied | GiveBack


@dataclass(slots=True)
class ClassAbroad:
    """What of a class is asked of others."""

    #: what the global scheduler was asked for and has not placed
    asked: int = 0
    #: what was asked of each node and is not granted
    placed: dict[bytes, int] = field(default_factory=dict)
    #: of what is counted in `asked`, what waits in the queues of nodes without room as well; empty when nothing is asked
    queued: dict[bytes, int] = field(default_factory=dict)
    refusals: int = 0
    #: more was placed than was asked for: a change of mind and an answer crossed, and the global scheduler may want to place what is left
    crossed: bool = False
    #: when nodes were first seen to owe leases since the last grant; None: not yet
    owed_since: float | None = None
    #: how often they owed them for too long. From the first time on any room will do, also this node's
    waits: int = 0

    def asked_of(self, node_id: bytes) -> int:
        """How many leases a node is asked for in all."""
        return self.placed.get(node_id, 0) + self.queued.get(node_id, 0)

    def nodes(self) -> list[bytes]:
        """All nodes that are asked for some."""
        return list({**self.placed, **self.queued})


@dataclass(slots=True)
class LeaseAbroad:
    """A lease that a process of this node has on another (or the bond to an actor there)."""

    node_id: bytes
    process: bytes
    worker_id: bytes


class Forwarding:
    """The machine of one node."""

    __slots__ = (
        "_abroad",
        "_believed",
        "_dead",
        "_dealt",
        "_gcs_away",
        "_in_cluster",
        "_leases",
        "_node_id",
        "_requests",
    )

    def __init__(self, node_id: bytes) -> None:
        self._node_id = node_id
        self._in_cluster = False
        self._gcs_away = False
        #: the classes that wait, by (process, class number)
        self._requests: dict[Key, RequestLeases] = {}
        #: how many leases the submitter of each believes to be asked for, or more; the same keys
        self._believed: dict[Key, int] = {}
        #: those of which something is asked of others; each is a key of `_requests`
        self._abroad: dict[Key, ClassAbroad] = {}
        self._leases: dict[int, LeaseAbroad] = {}
        #: process -> nodes that know it
        self._dealt: dict[bytes, dict[bytes, None]] = {}
        #: the nodes that died last; none of them ever answers
        self._dead: dict[bytes, None] = {}

    def join_cluster(self) -> None:
        """From now on there is a global scheduler that knows more than this node."""
        self._in_cluster = True

    def handle(self, event: Event) -> list[Effect]:
        """The one door. Time is the shell's: it says what is overdue."""
        effects: list[Effect] = []
        _HANDLERS[type(event)](self, event, effects)
        return effects

    # ------------------------------------------------------------ queries

    def nodes_of(self, process: bytes) -> list[bytes]:
        """The other nodes that have, or had, to do with a process of this one."""
        return list(self._dealt.get(process, ()))

    def node_of_lease(self, lease_id: int) -> bytes:
        """The node that granted a lease to a process of this one; b"" for one of this node's own."""
        lease = self._leases.get(lease_id)
        return b"" if lease is None else lease.node_id

    def request_of(self, process: bytes, class_no: int) -> RequestLeases | None:
        """What a class waits for."""
        return self._requests.get((process, class_no))

    def waits_abroad(self, process: bytes, class_no: int) -> ClassAbroad | None:
        """What of a class is asked of others."""
        return self._abroad.get((process, class_no))

    def awaits_nodes(self) -> bool:
        """Whether other nodes were asked for leases that they have not granted."""
        return any(abroad.placed for abroad in self._abroad.values())

    def has_abroad(self, process: bytes) -> bool:
        """Whether a process waits for leases of other nodes, or has some."""
        return any(key[0] == process for key in self._abroad) or any(
            lease.process == process for lease in self._leases.values()
        )

    def statistics(self) -> dict[str, int]:
        """Sizes of the tables."""
        return {"classes_abroad": len(self._abroad), "leases_abroad": len(self._leases)}

    # ------------------------------------------------------------ requests

    def _on_requested(self, event: Requested, effects: list[Effect]) -> None:
        request = event.request
        key = (event.process, request.class_no)
        if request.backlog <= 0:
            effects.append(RequestHere(event.process, request))
            self._forget(key, effects)
            return
        self._requests[key] = request
        self._believed[key] = request.backlog
        abroad = self._abroad.get(key)
        is_global = self._in_cluster and self._is_global(request)
        if is_global:
            self._ask(key, request.backlog, effects)
        if not is_global or (abroad is not None and abroad.waits and _may_run_here(request)):
            effects.append(RequestHere(event.process, request))

    def _is_global(self, request: RequestLeases) -> bool:
        """Whether the global scheduler says where it goes, be it here."""
        if request.strategy.get(KIND) in ELSEWHERE_KINDS:
            return True
        inputs = request.strategy.get(LOCALITY)
        if not inputs or self._gcs_away:
            return False
        here: int = inputs.get(self._node_id, 0)
        return bool(max(inputs.values()) - here >= MOVE_BYTES_MIN)

    def _ask(self, key: Key, backlog: int, effects: list[Effect], also_here: bool = False) -> None:
        """Let `backlog` leases be found elsewhere, but for those that were asked for already. What waits here in any case (`also_here`) is told by
        steps of a quarter; that it has become less, when a LESS-th is left."""
        abroad = self._abroad.get(key)
        if abroad is None:
            abroad = self._abroad[key] = ClassAbroad()
        wanted = backlog - sum(abroad.placed.values())
        # Less than the submitter believes to be asked for must never be asked for, here and elsewhere. What is too much costs leases that are
        # returned at once, and only if there is room.
        more = wanted - abroad.asked
        if (more > 0 and (not also_here or 4 * more >= abroad.asked)) or 0 < LESS * wanted <= abroad.asked:
            abroad.asked = wanted
            self._ask_global(key, abroad, effects)

    def _ask_global(self, key: Key, abroad: ClassAbroad, effects: list[Effect]) -> None:
        effects.append(AskGlobal(key[0], self._requests[key], abroad.asked, abroad.waits > 0))

    def _forget(self, key: Key, effects: list[Effect]) -> None:
        """The class waits no more."""
        request = self._requests.pop(key, None)
        self._believed.pop(key, None)
        if request is not None:
            self._withdraw(key, request, effects)

    def _on_granted_here(self, event: GrantedHere, effects: list[Effect]) -> None:
        self._count_grant((event.process, event.class_no), effects)

    def _count_grant(self, key: Key, effects: list[Effect]) -> None:
        believed = self._believed.get(key)
        if believed is None:
            return
        if believed > 1:
            self._believed[key] = believed - 1
        else:
            self._forget(key, effects)

    def _withdraw(self, key: Key, request: RequestLeases, effects: list[Effect]) -> None:
        abroad = self._abroad.pop(key, None)
        if abroad is None:
            return
        # Also when all was placed by now: what was asked and what was placed may have crossed on the way.
        effects.append(AskGlobal(key[0], request, 0))
        effects.extend(AskNode(node_id, key[0], request, 0) for node_id in abroad.nodes())

    def _on_refused_here(self, event: RefusedHere, effects: list[Effect]) -> None:
        key = (event.process, event.class_no)
        request = self._requests.get(key)
        if not self._in_cluster or event.kind == UNSCHEDULABLE_GROUP_REMOVED:
            self._refuse(key, event.reason, effects, event.kind)
        elif request is not None:
            self._ask(key, request.backlog, effects)

    def _refuse(self, key: Key, reason: str, effects: list[Effect], kind: str = "") -> None:
        self._forget(key, effects)
        effects.append(TellProcess(key[0], LeasesUnschedulable(key[1], reason, kind)))

    def _on_overdue(self, event: Overdue, effects: list[Effect]) -> None:
        key = (event.process, event.class_no)
        request = self._requests.get(key)
        if self._in_cluster and request is not None and not self._is_global(request):
            self._ask(key, event.backlog, effects, also_here=True)

    # ------------------------------------------------------------ answers

    def _on_placed(self, event: Placed, effects: list[Effect]) -> None:
        key = (event.process, event.class_no)
        request = self._requests.get(key)
        abroad = self._abroad.get(key)
        if request is None or abroad is None:
            return  # it was taken back meanwhile
        if event.refused:
            abroad.asked = 0
            self._refuse(key, event.refused, effects, event.kind)
            return
        if event.queued and not abroad.asked:
            effects.append(AskGlobal(event.process, request, 0))  # it answers what was said before
            return
        told: dict[bytes, None] = {}
        dead = [node_id for node_id, _ in event.placements if node_id in self._dead]
        for node_id, count in event.placements:
            if node_id in dead:
                continue
            if not event.queued:
                abroad.crossed = abroad.crossed or count > abroad.asked
                abroad.asked = max(0, abroad.asked - count)
            if node_id == self._node_id:
                if self._is_global(request):  # else it waits here anyway
                    effects.append(RequestHere(event.process, request, count))
                continue
            if event.queued:
                abroad.queued[node_id] = max(
                    count, abroad.queued.get(node_id, 0)
                )  # once a node, though a new global scheduler may say it again
            else:
                abroad.placed[node_id] = abroad.placed.get(node_id, 0) + count
            self._dealt.setdefault(event.process, {})[node_id] = None
            told[node_id] = None
        told.update(self._unqueue(abroad))
        for node_id in told:
            effects.append(AskNode(node_id, event.process, request, abroad.asked_of(node_id)))
        if dead and abroad.asked:
            effects.append(AskGlobal(event.process, request, abroad.asked, dead=dead))
        self._forget_served(key, abroad, effects)

    @staticmethod
    def _unqueue(abroad: ClassAbroad) -> dict[bytes, None]:
        """If nothing is left for which there is no room, nothing waits in queues for it either: the nodes to be told."""
        nodes: dict[bytes, None] = {}
        if not abroad.asked and abroad.queued:
            nodes = dict.fromkeys(abroad.queued)
            abroad.queued.clear()
        return nodes

    def _count_queued(self, key: Key, abroad: ClassAbroad, node_id: bytes, effects: list[Effect]) -> None:
        """A node had room in the end for what was queued there: for so much less the global scheduler needs to find some."""
        abroad.queued[node_id] -= 1
        if not abroad.queued[node_id]:
            del abroad.queued[node_id]
        abroad.asked -= 1
        self._ask_global(key, abroad, effects)
        for other in self._unqueue(abroad):
            effects.append(AskNode(other, key[0], self._requests[key], abroad.asked_of(other)))

    def _forget_served(self, key: Key, abroad: ClassAbroad, effects: list[Effect]) -> None:
        """Drop a record of nothing: its process may leave now, as far as this goes."""
        if abroad.asked or abroad.placed or self._abroad.get(key) is not abroad:
            return
        del self._abroad[key]
        if abroad.crossed and key in self._requests:
            effects.append(AskGlobal(key[0], self._requests[key], 0))

    def _on_granted(self, event: GrantedAbroad, effects: list[Effect]) -> None:
        granted, process = event.granted, event.process
        abroad = self._abroad.get((process, granted.class_no))
        if abroad is not None and abroad.asked_of(event.node_id):
            abroad.refusals = 0
            abroad.owed_since = None
            if event.node_id not in abroad.placed:
                self._count_queued((process, granted.class_no), abroad, event.node_id, effects)
            elif abroad.placed[event.node_id] > 1:
                abroad.placed[event.node_id] -= 1
            else:
                del abroad.placed[event.node_id]
            self._forget_served((process, granted.class_no), abroad, effects)
        if process not in self._dealt:
            effects.append(GiveBack(event.node_id, granted.lease_id))  # it has died
            return
        self._leases[granted.lease_id] = LeaseAbroad(event.node_id, process, granted.worker_id)
        effects.append(TellProcess(process, granted))
        self._count_grant((process, granted.class_no), effects)

    def _on_refused_abroad(self, event: RefusedAbroad, effects: list[Effect]) -> None:
        key = (event.process, event.class_no)
        abroad = self._abroad.get(key)
        if abroad is None or key not in self._requests:
            return
        lost = abroad.placed.pop(event.node_id, 0)
        abroad.queued.pop(event.node_id, None)
        if event.kind != UNSCHEDULABLE_BUNDLE_GONE:  # that node is not asked again before the group has moved
            abroad.refusals += 1
        if abroad.refusals > REFUSALS_MAX or event.kind == UNSCHEDULABLE_GROUP_REMOVED:
            self._refuse(key, event.reason, effects, event.kind)
        elif lost:
            self._ask(key, abroad.asked + lost + sum(abroad.placed.values()), effects)

    def _on_ended(self, event: EndedAbroad, effects: list[Effect]) -> None:
        self._leases.pop(event.lease_id, None)

    def _on_reached(self, event: Reached, effects: list[Effect]) -> None:
        self._dealt.setdefault(event.process, {})[event.node_id] = None
        self._leases[event.lease_id] = LeaseAbroad(event.node_id, event.process, event.worker_id)

    # ------------------------------------------------------------ ends

    def _on_process_died(self, event: ProcessDied, effects: list[Effect]) -> None:
        process = event.process
        for key in [key for key in self._requests if key[0] == process]:
            self._forget(key, effects)
        for lease_id in [number for number, lease in self._leases.items() if lease.process == process]:
            del self._leases[lease_id]
        for node_id in self._dealt.pop(process, ()):
            effects.append(TellProcessDied(node_id, process, event.job_id, event.reason))

    def _on_node_died(self, event: NodeDied, effects: list[Effect]) -> None:
        node_id = event.node_id
        self._dead[node_id] = None
        if len(self._dead) > DEAD_MAX:
            del self._dead[next(iter(self._dead))]
        for nodes in self._dealt.values():
            nodes.pop(node_id, None)
        for lease_id, lease in list(self._leases.items()):
            if lease.node_id == node_id:
                del self._leases[lease_id]
                died = WorkerDied(lease.worker_id, lease_id, ALL_STARTED, event.cause, 0)
                effects.append(TellProcess(lease.process, died))
        for key, abroad in self._abroad.items():
            lost = abroad.placed.pop(node_id, 0)
            abroad.queued.pop(node_id, None)
            if lost:
                self._ask(key, abroad.asked + lost + sum(abroad.placed.values()), effects)

    def _on_gcs_lost(self, event: GcsLost, effects: list[Effect]) -> None:
        asked = [
            key
            for key, abroad in self._abroad.items()
            if abroad.asked and self._requests[key].strategy.get(KIND) not in ELSEWHERE_KINDS
        ]
        were_global = [key for key in asked if self._is_global(self._requests[key])]
        self._gcs_away = True
        for key in were_global:  # it shall not wait for the GCS only because its inputs are elsewhere
            effects.append(RequestHere(key[0], self._requests[key]))

    def _on_gcs_returned(self, event: GcsReturned, effects: list[Effect]) -> None:
        self._gcs_away = False
        for key, abroad in self._abroad.items():
            if abroad.asked:
                self._ask_global(key, abroad, effects)

    # ------------------------------------------------------------ time

    def _on_looked(self, event: Looked, effects: list[Effect]) -> None:
        for key, abroad in self._abroad.items():
            request = self._requests[key]
            if not abroad.placed or request.strategy.get(KIND) in (NODE_AFFINITY, PLACEMENT_GROUP):
                continue  # it has no choice
            if abroad.owed_since is None:
                abroad.owed_since = event.now
            elif event.now - abroad.owed_since >= _patience_s(request, abroad.waits):
                self._look_elsewhere(key, abroad, request, effects)

    def _look_elsewhere(self, key: Key, abroad: ClassAbroad, request: RequestLeases, effects: list[Effect]) -> None:
        """What nodes owe for too long is asked for as if they had said that they have no room."""
        owed = sum(abroad.placed.values())
        for node_id, count in abroad.placed.items():
            abroad.queued[node_id] = abroad.queued.get(node_id, 0) + count
        abroad.placed.clear()
        abroad.owed_since = None
        if not abroad.waits and self._is_global(request) and _may_run_here(request):
            effects.append(RequestHere(key[0], request, owed))
        abroad.waits += 1
        abroad.asked += owed
        self._ask_global(key, abroad, effects)


def _may_run_here(request: RequestLeases) -> bool:
    """Whether nothing but its inputs sends it elsewhere."""
    return request.strategy.get(KIND) not in ELSEWHERE_KINDS


def _patience_s(request: RequestLeases, waits: int) -> float:
    """How long nodes may owe leases: at least as long as it takes to move the inputs."""
    inputs = request.strategy.get(LOCALITY)
    move_s = max(inputs.values()) / BANDWIDTH_BYTES_S if inputs else 0.0
    return max(PLACED_WAIT_S, move_s) * 2.0 ** min(waits, PLACED_WAIT_DOUBLED_MAX)


_HANDLERS: dict[type, Callable[[Forwarding, Any, list[Effect]], None]] = {
    Requested: Forwarding._on_requested,
    GrantedHere: Forwarding._on_granted_here,
    RefusedHere: Forwarding._on_refused_here,
    Overdue: Forwarding._on_overdue,
    Placed: Forwarding._on_placed,
    GrantedAbroad: Forwarding._on_granted,
    RefusedAbroad: Forwarding._on_refused_abroad,
    EndedAbroad: Forwarding._on_ended,
    Reached: Forwarding._on_reached,
    ProcessDied: Forwarding._on_process_died,
    NodeDied: Forwarding._on_node_died,
    Looked: Forwarding._on_looked,
    GcsLost: Forwarding._on_gcs_lost,
    GcsReturned: Forwarding._on_gcs_returned,
}
