"""Placement groups on this node: bundles that the GCS wants here, and where the groups are that processes here use.

Purpose: between the GCS, the local scheduler and the processes. Leases for a group's tasks go to the nodes of its bundles, and the global
scheduler has no part in that: whoever needs to know where a group is follows it.

    GCS --ReserveBundle, CommitBundle, ReturnBundle--> | --BundleRequested ...--> local scheduler --BundleDone--> | --BundleReserved--> GCS
    process --RequestLeases (of a group)--> | --SubscribeKey--> GCS --GroupChanged--> | --> leases here, or `foreign_leases` asks the bundle's node
    process --FollowGroup--> | --GroupState--> process

Design: a request waits here until its group has places for it; it is answered at once when that is known. A group is followed until it is
removed. Where it has several bundles on several nodes and any will do, all of them are asked, for as many leases as they have room for (and for all
that are wanted, by equal shares): leases too many are returned at once by who gets them. A node that said that it has no such bundle is not asked
again before there is news of the group; nor is this one.

Drivers are told of groups of their job that wait for long, and why.

What it does not do: decide where bundles are (the GCS), or what runs in them (`scheduling.local_scheduler`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shoal.node.io.gcs_link import GcsLink
from shoal.node.io.leases import Leases
from shoal.node.io.processes import Process, ProcessTable
from shoal.protocol.gcs_messages import (
    CHANNEL_GROUP,
    BundleReserved,
    CommitBundle,
    GroupChanged,
    ReserveBundle,
    ReturnBundle,
    SubscribeKey,
)
from shoal.protocol.group_messages import FollowGroup, GroupState
from shoal.protocol.messages import (
    UNSCHEDULABLE_GROUP_REMOVED,
    LeasesUnschedulable,
    Notice,
    RequestLeases,
)
from shoal.protocol.resources import fits, format_resources
from shoal.scheduling import events

if TYPE_CHECKING:
    import asyncio

REMOVED = "removed"
PLACED = "placed"
WARN_AFTER_S = 5.0
WARN_AGAIN_FACTOR = 6
LOOK_S = 1.0
SLOTS_MAX = 1_000  #: of a node for tasks that ask for nothing

Key = tuple[bytes, int]  #: (process, class number)
#: (process, class number, (node, how many leases) ..., why never, the kind of that)
Answer = Callable[[bytes, int, list[tuple[bytes, int]], str, str], None]


@dataclass(slots=True)
class FollowedGroup:
    """A group that processes of this node use."""

    state: GroupState | None = None  #: None until the GCS has answered
    version: int = -1
    since: float = 0.0  #: it waits since
    warn_after_s: float = WARN_AFTER_S
    subscribers: dict[bytes, None] = field(default_factory=dict)
    #: requests that wait for a place, each with how many leases are wanted
    requests: dict[Key, tuple[RequestLeases, int]] = field(default_factory=dict)
    #: nodes that do not have what the state says that they have
    avoided: set[bytes] = field(default_factory=set)


class Groups:
    """The placement groups of one node."""

    def __init__(
        self,
        node_id: bytes,
        leases: Leases,
        table: ProcessTable,
        gcs: GcsLink,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._node_id = node_id
        self._leases = leases
        self._table = table
        self._gcs = gcs
        self._loop = loop
        self._followed: dict[bytes, FollowedGroup] = {}
        self._looking = False
        #: the request that is being answered
        self._answered: tuple[RequestLeases, int]
        #: how requests are answered; those of a cluster go through `foreign_leases`
        self.answer: Answer = self._answer_alone
        leases.groups = self

    # ---------------------------------------------------------------- bundles here

    def on_bundle_message(self, message: ReserveBundle | CommitBundle | ReturnBundle) -> None:
        """What the GCS wants of a bundle."""
        about = (message.group_id, message.index, message.attempt)
        if type(message) is ReserveBundle:
            self._leases.handle(events.BundleRequested(*about, message.job_id, message.resources))
        elif type(message) is CommitBundle:
            self._leases.handle(events.BundleCommitted(*about))
        else:
            assert type(message) is ReturnBundle
            self._leases.handle(events.BundleReturned(*about, message.reason, message.removed))

    def on_done(self, effect: events.BundleDone) -> None:
        """A bundle is reserved or could not be. Without a connection it is not said: the next report says what is there."""
        self._gcs.tell(BundleReserved(effect.group_id, effect.index, effect.attempt, effect.done, effect.reason))

    # ---------------------------------------------------------------- groups that are used here

    def on_connected(self) -> None:
        """The GCS listens (again)."""
        for group_id in self._followed:
            self._gcs.tell(SubscribeKey(CHANNEL_GROUP, group_id))

    def on_follow(self, process: Process, message: FollowGroup) -> None:
        """A process wants to know a group's state, now and later."""
        followed = self._follow(message.group_id)
        followed.subscribers[process.worker_id] = None
        if followed.state is not None:
            process.send(followed.state)

    def _follow(self, group_id: bytes) -> FollowedGroup:
        followed = self._followed.get(group_id)
        if followed is None:
            followed = self._followed[group_id] = FollowedGroup(since=self._loop.time())
            self._gcs.tell(SubscribeKey(CHANNEL_GROUP, group_id))
            self._look_later()
        return followed

    def on_changed(self, message: GroupChanged) -> None:
        """A group that somebody here follows has changed."""
        state = message.state
        followed = self._followed.get(state.group_id)
        if followed is None or (message.version <= followed.version and state.state != REMOVED):
            return
        if followed.state is not None and followed.state.state == PLACED:
            followed.since, followed.warn_after_s = self._loop.time(), WARN_AFTER_S
        followed.state, followed.version = state, message.version
        followed.avoided.clear()
        for worker_id in followed.subscribers:
            self._table.send(worker_id, state)
        if state.state == REMOVED:
            del self._followed[state.group_id]  # who asks later asks the GCS anew
        for key in list(followed.requests):
            self._route(followed, key)
        self._look_later()

    def process_died(self, process: bytes) -> None:
        """A process of this node is dead."""
        for followed in self._followed.values():
            followed.subscribers.pop(process, None)
            for key in [key for key in followed.requests if key[0] == process]:
                del followed.requests[key]

    def node_died(self, node_id: bytes) -> None:
        """Another node is dead. The news that it has no bundles any more follows."""
        for followed in self._followed.values():
            followed.avoided.add(node_id)

    def avoid(self, request: RequestLeases, node_id: bytes) -> None:
        """A node says that it does not have the bundle of a request (yet, or any more)."""
        followed = self._followed.get(request.strategy["group_id"])
        if followed is not None:
            followed.avoided.add(node_id)

    # ---------------------------------------------------------------- requests

    def request(self, process: bytes, request: RequestLeases, backlog: int) -> None:
        """A process here wants `backlog` leases of a class of a group; 0 takes it back."""
        key = (process, request.class_no)
        group_id = request.strategy["group_id"]
        if backlog <= 0:
            followed = self._followed.get(group_id)
            if followed is not None:
                followed.requests.pop(key, None)
            if self._leases.foreign is None:
                self._leases.request(process, request, 0)
            return
        followed = self._follow(group_id)
        followed.requests[key] = (request, backlog)
        self._route(followed, key)

    def _route(self, followed: FollowedGroup, key: Key) -> None:
        """Answer a request, if what is known is enough for that."""
        state = followed.state
        if state is None:
            return
        request, backlog = followed.requests[key]
        if state.state == REMOVED:
            del followed.requests[key]
            text = f"placement group {state.group_id.hex()} of {request.name or 'the task'} is removed: {state.reason}"
            self.answer(*key, [], text, UNSCHEDULABLE_GROUP_REMOVED)
            return
        index = request.strategy["bundle"]
        indices = [index] if index >= 0 else list(range(len(state.bundles)))
        able = [each for each in indices if each < len(state.bundles) and fits(request.demand, state.bundles[each])]
        if not able:
            del followed.requests[key]
            self.answer(*key, [], _too_large(request, state), "")
            return
        slots: dict[bytes, int] = {}
        for each in able:
            node_id = state.nodes[each]
            if node_id and node_id not in followed.avoided and self._has(node_id, state.group_id, each):
                slots[node_id] = slots.get(node_id, 0) + _slots(request.demand, state.bundles[each])
        if not slots:
            return  # it waits for news of the group
        self._answered = followed.requests.pop(key)
        share = -(-backlog // len(slots))
        self.answer(*key, [(node_id, max(min(backlog, room), share)) for node_id, room in slots.items()], "", "")

    def _has(self, node_id: bytes, group_id: bytes, index: int) -> bool:
        """Whether a bundle is where it should be, as far as that can be seen from here."""
        return node_id != self._node_id or self._leases.machine.has_bundle(group_id, index)

    def _answer_alone(
        self, process: bytes, class_no: int, placements: list[tuple[bytes, int]], refused: str, kind: str
    ) -> None:
        """On a node that is alone every bundle is here."""
        if refused:
            self._table.send(process, LeasesUnschedulable(class_no, refused, kind))
        else:
            request, backlog = self._answered
            self._leases.request(process, request, backlog)

    # ---------------------------------------------------------------- words

    def explain(self, process: bytes, class_no: int) -> str:
        """Why a class of a group waits, if it does for a place of its group."""
        for group_id, followed in self._followed.items():
            if (process, class_no) in followed.requests:
                return f"its placement group {group_id.hex()} {_why(followed.state)}"
        return ""

    def explain_group(self, group_id: bytes) -> str:
        """Why a group is not placed; empty when it is, or is not known here."""
        followed = self._followed.get(group_id)
        if followed is None or (followed.state is not None and followed.state.state == PLACED):
            return ""
        return f"placement group {group_id.hex()} {_why(followed.state)}"

    def _look_later(self) -> None:
        if not self._looking and any(
            each.state is None or each.state.state != PLACED for each in self._followed.values()
        ):
            self._looking = True
            self._loop.call_later(LOOK_S, self._look)

    def _look(self) -> None:
        """Tell drivers of groups that wait for long."""
        self._looking = False
        now = self._loop.time()
        for followed in self._followed.values():
            state = followed.state
            if state is None or state.state == PLACED or now - followed.since < followed.warn_after_s:
                continue
            followed.warn_after_s *= WARN_AGAIN_FACTOR
            name = f"{state.name!r}" if state.name else state.group_id.hex()
            for driver in self._table.drivers():
                if driver.job_id == state.job_id:
                    text = f"for {now - followed.since:.0f} s now, placement group {name} {_why(state)}"
                    driver.send(Notice("warning", text))
        self._look_later()

    def statistics(self) -> dict[str, int]:
        """Sizes of the tables."""
        return {
            "followed": len(self._followed),
            "requests_waiting": sum(len(each.requests) for each in self._followed.values()),
            "bundles": len(self._leases.machine.bundles()),
        }


def _why(state: GroupState | None) -> str:
    if state is None:
        return "is not known yet: the GCS has not answered"
    return f"is {state.state}{': ' if state.reason else ''}{state.reason}"


def _too_large(request: RequestLeases, state: GroupState) -> str:
    sizes = "; ".join(f"bundle {index} has {format_resources(each)}" for index, each in enumerate(state.bundles[:5]))
    asked = format_resources(request.demand)
    return f"{request.name or 'the task'} asks for {asked} in placement group {state.group_id.hex()}, but {sizes}"


def _slots(demand: dict[str, int], bundle: dict[str, int]) -> int:
    """How many tasks fit into a bundle side by side."""
    return min((bundle.get(name, 0) // units for name, units in demand.items()), default=SLOTS_MAX)
