"""What dead owners had running on other nodes: who is asked, who owes, and that nothing of it runs twice.

First single situations, each with one directory; then clusters of real directories, over lines that are queues, in which owners, workers and nodes
die whenever the dice say so. The twin knows which runs have begun, and whether anything died that could have ended one of them.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from tests.node.test_mirrors import HERE, THERE, THIRD, A, B, Node, X, Y, item
from tests.node.test_object_directory import stored

from shoal.node.foreign_holds import ConfirmHolds, SendNodeHold, SendNodeRelease
from shoal.node.object_directory import ObjectDirectory
from shoal.node.object_events import (
    Adopted,
    AskClaims,
    AskClaimsOf,
    AskHeir,
    Claimed,
    ClaimMade,
    ClaimsAsked,
    ClaimsOverdue,
    ClaimsTaken,
    ClaimsTold,
    DropMirrors,
    Escaped,
    EstateExpired,
    EstatesComplete,
    EstateSettled,
    ExpireLater,
    ForeignProcessDied,
    ForgetHeir,
    FreeStored,
    HeirTold,
    Held,
    HoldForArrived,
    KeepStored,
    MirrorsArrived,
    MirrorsDropped,
    NodeDied,
    NodeHoldArrived,
    NodeHoldConfirmed,
    NodeJoined,
    NodeReleaseArrived,
    OrphansSettled,
    ProcessDied,
    ProcessJoined,
    Published,
    Released,
    RequestSweep,
    ResolveAsked,
    ResolvedAbroad,
    SendHoldFor,
    SendMirrors,
    SendNodeHeld,
    SendResolved,
    SendResolveFor,
    Swept,
    TakeClaims,
    TellClaimMade,
    TellClaims,
)
from shoal.protocol.messages import Containing, Failed, Stored

P = b"p" * 16  #: a process of the node THERE
TASK = X[:16]


# ---------------------------------------------------------------- the node whose workers run it


def executor() -> Node:
    """A node with the worker A, which runs the task of X for P."""
    node = Node(A, B)
    node.tell(ForeignProcessDied(P, THERE, [A]))
    return node


def test_workers_are_asked_before_anybody_is_answered() -> None:
    node = Node(A, B)
    assert node.tell(ForeignProcessDied(P, THERE, [A])) == [AskClaims(A, P)]
    assert node.tell(ClaimsAsked(THERE, P, False)) == []
    answer = node.tell(Claimed(A, P, [TASK]))
    assert answer == [EstateSettled(P), ExpireLater(P), TellClaims(THERE, P, [TASK], False)]


def test_what_was_taken_is_told_when_it_is_made() -> None:
    node = executor()
    node.tell(Claimed(A, P, [TASK]), ClaimsAsked(THERE, P, False))
    assert node.tell(ClaimsTaken(THERE, P, [X])) == []
    assert node.tell(Published(A, X, b"value", P)) == [TellClaimMade(THERE, X, b"value")]
    assert node.directory.statistics()["claims"] == 0


def test_what_has_ended_is_told_when_it_is_taken() -> None:
    """Its worker may notice the end of its submitter before the daemon hears of it."""
    node = Node(A)
    node.tell(Published(A, X, b"value", P, THERE), ForeignProcessDied(P, THERE, [A]), Claimed(A, P, []))
    assert node.tell(ClaimsAsked(THERE, P, False)) == [TellClaims(THERE, P, [TASK], False)]
    assert node.tell(ClaimsTaken(THERE, P, [X])) == [TellClaimMade(THERE, X, b"value")]


def test_who_knows_nothing_of_a_process_says_so() -> None:
    assert Node(A).tell(ClaimsAsked(THERE, P, False)) == [TellClaims(THERE, P, [], False)]


def test_an_heir_is_answered_when_the_death_of_the_home_is_known_here_too() -> None:
    node = Node(A)
    assert node.tell(ClaimsAsked(THIRD, THERE, True)) == []
    node.tell(NodeDied(THERE, "killed"), ForeignProcessDied(P, THERE, [A]))
    assert node.tell(EstatesComplete(THERE)) == [], "a worker has not answered"
    assert node.tell(Claimed(A, P, [TASK]))[-1] == TellClaims(THIRD, THERE, [TASK], False)
    node.tell(ClaimsTaken(THIRD, THERE, [X]))
    assert node.tell(Published(A, X, b"value", P)) == [TellClaimMade(THIRD, X, b"value")]


def test_the_worker_dies_before_it_has_made_it() -> None:
    node = executor()
    node.tell(Claimed(A, P, [TASK]), ClaimsTaken(THERE, P, [X]))
    assert TellClaimMade(THERE, X, None) in node.tell(ProcessDied(A, "killed"))
    assert node.tell(ClaimsTaken(THERE, P, [X])) == [TellClaimMade(THERE, X, None)]


def test_the_worker_dies_before_it_has_answered() -> None:
    node = executor()
    node.tell(ClaimsAsked(THERE, P, False))
    assert TellClaims(THERE, P, [], True) in node.tell(ProcessDied(A, "killed"))


@pytest.mark.parametrize("first", [True, False])
def test_who_asks_after_a_death_is_told_that_there_was_one(first: bool) -> None:
    """Of the worker: with the claim that it had made, or before its submitter was known to be dead."""
    node = Node(A, B)
    if first:
        node.tell(ProcessDied(A, "killed", [], [], [P]), ForeignProcessDied(P, THERE, [B]), Claimed(B, P, []))
    else:
        node.tell(ForeignProcessDied(P, THERE, [A]), Claimed(A, P, [TASK]), ProcessDied(A, "killed"))
    assert node.tell(ClaimsAsked(THERE, P, False)) == [TellClaims(THERE, P, [], True)]


def test_an_heir_that_took_nothing_before_it_died_has_heirs() -> None:
    node = executor()
    node.tell(Claimed(A, P, [TASK]), NodeDied(THERE, "killed"), EstatesComplete(THERE))
    node.tell(NodeDied(THIRD, "killed"), EstatesComplete(THIRD))
    assert node.tell(ClaimsAsked(b"4" * 16, THIRD, True)) == [TellClaims(b"4" * 16, THIRD, [TASK], False)]
    assert node.tell(ClaimsTaken(b"4" * 16, THIRD, [X])) == []
    assert node.tell(ClaimsTaken(b"5" * 16, THIRD, [X])) == [TellClaimMade(b"5" * 16, X, None)], "taken by another"


def test_a_result_less_than_was_wanted_is_lost() -> None:
    node = executor()
    other = TASK + b"\0\0\0\2"
    node.tell(Claimed(A, P, [TASK]), ClaimsTaken(THERE, P, [X, other]))
    assert node.tell(Published(A, X, b"value", P)) == [
        TellClaimMade(THERE, X, b"value"),
        TellClaimMade(THERE, other, None),
    ]


def test_the_heir_dies_and_another_takes_it() -> None:
    node = executor()
    node.tell(Claimed(A, P, [TASK]), NodeDied(THERE, "killed"), EstatesComplete(THERE), ClaimsTaken(THIRD, THERE, [X]))
    node.tell(EstateExpired(P), NodeJoined(b"4" * 16))
    assert node.tell(NodeDied(THIRD, "killed"), EstatesComplete(THIRD)) == [ExpireLater(THIRD)]
    assert node.tell(Published(A, X, b"value", P)) == [], "kept for who comes"
    assert node.tell(ClaimsAsked(b"4" * 16, THIRD, True)) == [TellClaims(b"4" * 16, THIRD, [TASK], False)]
    assert node.tell(ClaimsTaken(b"4" * 16, THIRD, [X])) == [TellClaimMade(b"4" * 16, X, b"value")]


def test_what_nobody_takes_goes() -> None:
    node = executor()
    node.tell(Claimed(A, P, []), Published(A, X, stored(X), P), Published(A, Y, b"small", P))
    assert node.directory.keeps_for_heirs(X)
    assert node.tell(EstateExpired(P)) == [FreeStored(X)]
    counts = node.directory.statistics()
    assert counts["claims"] == counts["estates"] == counts["objects"] == 0


def test_what_runs_stays_claimed_for_who_comes_late() -> None:
    node = executor()
    node.tell(Claimed(A, P, [TASK]), EstateExpired(P))
    assert node.tell(ClaimsAsked(THERE, P, False)) == [TellClaims(THERE, P, [TASK], False)]
    assert node.tell(Published(A, X, stored(X), P)) == [FreeStored(X)], "too late"
    assert node.directory.statistics()["claims"] == 0


def test_refs_inside_are_handed_on_with_the_value() -> None:
    node = executor()
    node.tell(Claimed(A, P, [TASK]), Escaped(A, [Y]), Published(A, Y, b"small"))
    node.tell(Published(A, X, Containing(b"x", [Y]), P), Released(A, [Y]))
    assert node.settle() == [], "the value holds it"
    hand, told = [each for each in node.tell(ClaimsTaken(THERE, P, [X])) if not isinstance(each, SendMirrors)]
    assert hand == SendHoldFor(THERE, 0, b"", [Y], HERE) and isinstance(told, TellClaimMade)
    node.settle()
    assert node.directory.holders(Y) == {THERE: 1}
    node.tell(NodeReleaseArrived(THERE, [(Y, 1)]))
    node.settle()
    assert node.directory.statistics()["objects"] == 0


# ---------------------------------------------------------------- the node that was the owner's


def orphaned() -> Node:
    node = Node(A, B)
    node.tell(Escaped(A, [X], b"task"), Held(B, [X]), ResolveAsked(B, [X]))
    assert node.tell(ProcessDied(A, "killed", [], [THERE, THIRD])) == [
        AskClaimsOf(THERE, A, False),
        AskClaimsOf(THIRD, A, False),
    ]
    return node


def test_what_another_node_claims_does_not_run() -> None:
    node = orphaned()
    assert node.tell(ClaimsTold(THERE, A, [TASK])) == [TakeClaims(THERE, A, [X])]
    assert node.tell(ClaimsTold(THIRD, A, [])) == [OrphansSettled(A)]
    assert node.tell(ClaimMade(THERE, X, b"value")) == [SendResolved(B, X, b"value")]


def test_what_nobody_claims_runs_once() -> None:
    node = orphaned()
    adopted, _ = node.tell(ClaimsTold(THERE, A, []), ClaimsTold(THIRD, A, []), ClaimsTold(THIRD, A, [TASK]))
    assert isinstance(adopted, Adopted) and not adopted.begun


@pytest.mark.parametrize("silence", [NodeDied(THIRD, "killed"), ClaimsOverdue(THIRD, A)])
def test_a_node_that_does_not_answer_may_have_begun(silence: Any) -> None:
    node = orphaned()
    node.tell(ClaimsTold(THERE, A, []))
    [adopted] = [each for each in node.tell(silence) if isinstance(each, Adopted)]
    assert adopted.begun


@pytest.mark.parametrize("end", [NodeDied(THERE, "killed"), ClaimMade(THERE, X, None)])
def test_a_claim_that_fails_is_made_anew_once(end: Any) -> None:
    node = orphaned()
    node.tell(ClaimsTold(THERE, A, [TASK]), ClaimsTold(THIRD, A, []))
    [adopted] = [each for each in node.tell(end) if isinstance(each, Adopted)]
    assert adopted.begun
    assert not [each for each in node.tell(ClaimMade(THERE, X, None)) if isinstance(each, Adopted)], "heard twice"


def test_a_value_that_comes_when_nobody_refers_to_it_any_more_is_freed() -> None:
    node = orphaned()
    node.tell(ClaimsTold(THERE, A, [TASK]), ClaimsTold(THIRD, A, []), Released(B, [X]))
    node.settle()
    value = stored(X)
    value.node = THERE
    assert node.tell(ClaimMade(THERE, X, value)) == [FreeStored(X, THERE)]
    assert node.directory.statistics()["objects"] == 0


# ---------------------------------------------------------------- the heir


def test_the_heir_takes_what_lies_in_another_store() -> None:
    node = Node(A)
    node.tell(Held(A, [X], home=THERE), MirrorsArrived(THERE, [item(X, b"task")]), ResolveAsked(A, [X], home=THERE))
    node.tell(NodeDied(THERE, "killed"), HeirTold(X, HERE), ClaimsTold(HERE, THERE, []))
    assert node.tell(ClaimsTold(THIRD, THERE, [], [X])) == [TakeClaims(THIRD, THERE, [X])]
    value = stored(X)
    value.node = THIRD
    told = node.tell(ClaimMade(THIRD, X, value))
    assert told == [KeepStored(THIRD, X), SendResolved(A, X, value)]


def test_what_is_inherited_later_is_decided_by_the_same_answers() -> None:
    node = Node(A)
    node.tell(Held(A, [X, Y], home=THERE), MirrorsArrived(THERE, [item(X, b"x"), item(Y, b"y")]), NodeDied(THERE, "-"))
    node.tell(HeirTold(X, HERE), ClaimsTold(HERE, THERE, [Y[:16]]), ClaimsTold(THIRD, THERE, []))
    assert node.tell(HeirTold(Y, HERE)) == [TakeClaims(HERE, THERE, [Y])]
    node.tell(ClaimMade(HERE, Y, b"value"))
    assert node.tell(ResolveAsked(A, [Y])) == [SendResolved(A, Y, b"value")]


def test_a_question_of_a_former_seek_that_is_overdue_does_not_cut_the_next_one_short() -> None:
    node = Node(A)
    node.tell(Held(A, [X, Y], home=THERE), MirrorsArrived(THERE, [item(X, b"x"), item(Y, b"y")]), NodeDied(THERE, "-"))
    first = [each.number for each in node.tell(HeirTold(X, HERE)) if isinstance(each, AskClaimsOf)]
    node.tell(ClaimsTold(HERE, THERE, []), ClaimsTold(THIRD, THERE, []), EstateExpired(THERE))
    asked = [each for each in node.tell(HeirTold(Y, HERE)) if isinstance(each, AskClaimsOf)]
    assert {each.node for each in asked} == {HERE, THIRD}
    for late in (HERE, THIRD):  # these have answered then
        assert node.tell(ClaimsOverdue(late, THERE, first[0])) == []
    node.tell(ClaimsTold(HERE, THERE, []))
    assert node.tell(ClaimsTold(THIRD, THERE, [Y[:16]])) == [TakeClaims(THIRD, THERE, [Y])]


# ---------------------------------------------------------------- clusters


class PlayedNode:
    """A daemon: its directory, what lies in its store, and the effects that stand for messages to itself and for timers."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.node_id = bytes([65 + number]) * 16
        self.alive = True
        self.directory = ObjectDirectory(lambda error: f"{type(error).__name__}: {error}".encode(), self.node_id)
        self.directory.inherit()
        self.processes = [bytes([65 + number, each]) * 8 for each in range(3)]
        self.living = set(self.processes)
        #: in the store: oid -> the node whose directory frees it, empty for this one's own and for what is not told yet
        self.store: dict[bytes, bytes] = {}
        self.owners: dict[bytes, bytes] = {}
        self.soon: deque[Any] = deque()
        #: of which the GCS tells it, in their order
        self.deaths: deque[PlayedNode] = deque()
        self.late: list[Any] = []
        #: other nodes' processes of whose death it has heard
        self.buried: set[bytes] = set()
        for process in self.processes:
            self.tell(ProcessJoined(process))

    def tell(self, *events: Any) -> None:
        if self.alive:
            for event in events:
                for effect in self.directory.handle(event, 0.0):
                    self.world.perform(self, effect)


def oid_of(task: int) -> bytes:
    return task.to_bytes(16, "big") + b"\0\0\0\1"


class Run:
    """A task that runs on a worker."""

    def __init__(self, task: int, submitter: bytes, worker: bytes) -> None:
        self.task, self.submitter, self.worker = task, submitter, worker


class World:
    """Nodes, tasks, and what is on its way. Processes are read at once; lines between nodes and answers of workers and of the GCS take their time."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.nodes = [PlayedNode(self, number) for number in range(3 + seed % 2)]
        ids = [node.node_id for node in self.nodes]
        self.lines: dict[tuple[bytes, bytes], deque[Any]] = {(a, b): deque() for a in ids for b in ids if a != b}
        self.slow: list[Any] = []  #: answers of workers and of the GCS: in any order
        self.heirs: dict[bytes, bytes] = {}
        self.runs: list[Run] = []
        self.begun: dict[int, int] = {}
        self.answers: dict[tuple[bytes, bytes], Any] = {}
        self.holders: dict[bytes, list[bytes]] = {}
        self.killed: list[str] = []
        for node in self.nodes:
            node.tell(*(NodeJoined(other) for other in ids if other != node.node_id))

    def node(self, node_id: bytes) -> PlayedNode:
        return next(node for node in self.nodes if node.node_id == node_id)

    def node_of(self, process: bytes) -> PlayedNode:
        return next(node for node in self.nodes if process in node.processes)

    def is_dead(self, node_id: bytes) -> bool:
        return bool(node_id) and not self.node(node_id).alive

    def is_living(self, process: bytes) -> bool:
        return process in self.node_of(process).living

    # -------- effects

    def perform(self, node: PlayedNode, effect: Any) -> None:
        here = node.node_id
        line = {
            SendNodeHold: lambda e: NodeHoldArrived(here, e.number, e.oids),
            SendNodeHeld: lambda e: NodeHoldConfirmed(here, e.number),
            SendNodeRelease: lambda e: NodeReleaseArrived(here, e.items),
            SendHoldFor: lambda e: HoldForArrived(here, e.number, e.process, e.oids, e.home, e.giver),
            SendMirrors: lambda e: MirrorsArrived(here, e.items),
            DropMirrors: lambda e: MirrorsDropped(here, e.oids),
            SendResolveFor: lambda e: ResolveAsked(here, e.oids, e.stale_generation, b"", e.stale_node),
            AskClaimsOf: lambda e: ClaimsAsked(here, e.of, e.is_node),
            TakeClaims: lambda e: ("taken", here, e.of, e.oids),
            TellClaimMade: lambda e: ClaimMade(here, e.oid, e.value),
            KeepStored: lambda e: ("keep", here, e.oid),
            TellClaims: lambda e: ClaimsTold(
                here, e.of, e.task_ids, [o for o, k in node.store.items() if self.is_dead(k)], e.begun
            ),
        }.get(type(effect))
        if type(effect) is TellClaimMade and type(effect.value) is Stored:
            node.store[effect.oid] = effect.node
        if line is not None:
            self.say(node, effect.node, line(effect))
        elif type(effect) is FreeStored and effect.node:
            self.say(node, effect.node, ("free", here, effect.oid))
        elif type(effect) is FreeStored:
            node.store.pop(effect.oid, None)
        elif type(effect) is SendResolved and effect.process in node.processes:
            self.answers[effect.process, effect.oid] = effect.value
        elif type(effect) is SendResolved:
            self.say(node, effect.process, ResolvedAbroad(here, effect.oid, effect.value))
        elif type(effect) is RequestSweep:
            node.soon.append(Swept(effect.token))
        elif type(effect) is ExpireLater:
            node.late.append(EstateExpired(effect.of))
        elif type(effect) is AskClaims:
            self.slow.append(lambda: self.claim(node, effect))
        elif type(effect) is AskHeir:
            self.slow.append(lambda: self.heir(node, effect))
        elif type(effect) is ForgetHeir:
            self.heirs.pop(effect.oid, None)
        elif type(effect) is Adopted:
            self.adopt(node, effect)
        elif type(effect) is EstateSettled:
            for oid in [oid for oid, owner in node.owners.items() if owner == effect.process]:
                public = type(node.directory.value_of(oid)) is Stored or node.directory.keeps_for_heirs(oid)
                if not public and not node.store.get(oid):
                    node.store.pop(oid, None)
        else:
            assert type(effect) in (OrphansSettled, ConfirmHolds), effect

    def say(self, node: PlayedNode, to: bytes, event: Any) -> None:
        if to == node.node_id:
            node.soon.append(event)
        elif self.node(to).alive:
            self.lines[node.node_id, to].append(event)

    def hear(self, node: PlayedNode, event: Any) -> None:
        if type(event) is ForeignProcessDied:
            node.buried.add(event.process)
        if type(event) is not tuple:
            node.tell(event)
        elif event[0] == "keep":
            node.store[event[2]] = event[1]
        elif event[0] == "free":
            node.store.pop(event[2], None)
        else:  # as the shell: what it has kept for a dead home it gives
            _, sender, of, oids = event
            for oid in oids:
                if not self.is_dead(node.store.get(oid, b"")):
                    node.tell(ClaimsTaken(sender, of, [oid]))
                else:
                    node.store[oid] = sender if sender != node.node_id else b""
                    self.say(node, sender, ClaimMade(node.node_id, oid, Stored(oid, 1, 0, 1, 1, [], node.node_id)))

    def heir(self, node: PlayedNode, effect: AskHeir) -> None:
        heir = self.heirs.get(effect.oid, b"")
        if effect.able and (not heir or not self.node(heir).alive):
            heir = self.heirs[effect.oid] = node.node_id
        node.tell(HeirTold(effect.oid, heir))

    # -------- tasks

    def submit(self, task: int, owner: bytes) -> None:
        oid = oid_of(task)
        node = self.node_of(owner)
        node.tell(Escaped(owner, [oid], b"task %d" % task))
        self.begin(task, owner)
        others = [process for each in self.nodes for process in each.processes if process != owner]
        self.holders[oid] = self.dice.sample(others, 2)
        for holder in self.holders[oid]:
            home = self.node_of(holder)
            home.tell(Held(holder, [oid], home=node.node_id), ResolveAsked(holder, [oid], home=node.node_id))

    def begin(self, task: int, submitter: bytes) -> None:
        workers = [process for node in self.nodes for process in sorted(node.living) if process != submitter]
        self.begun[task] = self.begun.get(task, 0) + 1
        if workers:
            self.runs.append(Run(task, submitter, self.dice.choice(workers)))

    def adopt(self, node: PlayedNode, effect: Adopted) -> None:
        task = int(effect.lineage.split()[1])
        assert not [run for run in self.runs if run.task == task], f"task {task} runs already; {self.killed}"
        if effect.begun and not task % 3:  # max_retries=0
            node.tell(*(Published(effect.process, oid, Failed(b"begun")) for oid in effect.oids))
        else:
            self.begin(task, effect.process)

    def end(self, run: Run) -> None:
        self.runs.remove(run)
        oid = oid_of(run.task)
        node = self.node_of(run.worker)
        value: Any = b"value"
        if run.task % 2:
            value = Stored(oid, 1, 0, 1, 1, [], node.node_id)
            node.store[oid], node.owners[oid] = b"", run.submitter
        if self.is_living(run.submitter):
            self.node_of(run.submitter).tell(Published(run.submitter, oid, value))
        else:
            home = self.node_of(run.submitter).node_id
            known = run.submitter in node.buried or home == node.node_id
            node.tell(Published(run.worker, oid, value, run.submitter, b"" if known else home))

    def claim(self, node: PlayedNode, effect: AskClaims) -> None:
        if effect.worker in node.living:
            tasks = [r.task for r in self.runs if (r.worker, r.submitter) == (effect.worker, effect.process)]
            node.tell(Claimed(effect.worker, effect.process, [task.to_bytes(16, "big") for task in tasks]))

    # -------- deaths

    def kill(self, process: bytes) -> None:
        node = self.node_of(process)
        self.killed.append(process.hex()[:4])
        node.living.discard(process)
        node.buried.add(process)
        lost = [run for run in self.runs if run.worker == process]
        self.runs = [run for run in self.runs if run.worker != process]
        others = [other.node_id for other in self.nodes if other.alive and other is not node]
        for other in others:
            self.say(node, other, ForeignProcessDied(process, node.node_id, sorted(self.node(other).living)))
        submitters = [run.submitter for run in lost if run.submitter not in node.buried]
        node.tell(ProcessDied(process, "killed", sorted(node.living), others, submitters))
        self.retry(lost)

    def retry(self, lost: list[Run]) -> None:
        """What submitters do whose worker died."""
        for run in lost:
            if not self.is_living(run.submitter):
                continue
            if run.task % 3:
                self.begin(run.task, run.submitter)
            else:
                failed = Published(run.submitter, oid_of(run.task), Failed(b"its worker died"))
                self.node_of(run.submitter).tell(failed)

    def kill_node(self, node: PlayedNode) -> None:
        self.killed.append(node.node_id.hex()[:2])
        node.alive = False
        lost = [run for run in self.runs if run.worker in node.processes]
        self.runs = [run for run in self.runs if run.worker not in node.processes]
        node.living.clear()
        for key, line in self.lines.items():
            if node.node_id in key:
                line.clear()
        for other in self.nodes:
            if other.alive:
                other.deaths.append(node)
                self.slow.append(lambda other=other: self.bury(other, other.deaths.popleft()))
        self.retry(lost)

    def bury(self, other: PlayedNode, node: PlayedNode) -> None:
        """The GCS tells a node of another's death."""
        other.tell(NodeDied(node.node_id, "killed"))
        for process in node.processes:
            other.tell(ForeignProcessDied(process, node.node_id, sorted(other.living)))
            other.buried.add(process)
        other.tell(EstatesComplete(node.node_id))
        kept = [oid for oid, keeper in other.store.items() if keeper == node.node_id]
        other.late.append(("orphaned", node.node_id, kept))

    # -------- time

    def moves(self) -> list[Any]:
        out = [
            lambda key=key: self.hear(self.node(key[1]), self.lines[key].popleft())
            for key, line in self.lines.items()
            if line
        ]
        out += [
            lambda node=node: self.hear(node, node.soon.popleft()) for node in self.nodes if node.alive and node.soon
        ]
        out += [lambda call=call: self.answer(call) for call in self.slow]
        return out

    def answer(self, call: Callable[[], None]) -> None:
        self.slow.remove(call)
        call()

    def settle(self) -> None:
        for _ in range(100_000):
            moves = self.moves()
            if not moves:
                return
            self.dice.choice(moves)()
        raise AssertionError("it never comes to rest")

    def expire(self) -> None:
        for node in self.nodes:
            while node.alive and node.late:
                event = node.late.pop(0)
                if type(event) is not tuple:
                    node.tell(event)
                else:
                    for oid in event[2]:
                        if node.store.get(oid) == event[1]:
                            del node.store[oid]
        self.settle()


@pytest.mark.parametrize("seed", range(120))
def test_nothing_runs_beside_itself_and_everybody_gets_an_answer(seed: int) -> None:
    world = World(seed)
    dice = world.dice
    tasks = range(1, 9)
    for task in tasks:
        world.submit(task, dice.choice([process for node in world.nodes for process in node.processes[:2]]))
    world.settle()
    deaths = dice.choice([1, 2, 3])
    for _ in range(200):
        moves = world.moves()
        if moves and dice.random() < 0.7:
            dice.choice(moves)()
        elif dice.random() < 0.1 and world.runs:
            world.end(dice.choice(world.runs))
        elif dice.random() < 0.1 and deaths and sum(node.alive for node in world.nodes) > 1:
            deaths -= 1
            node = dice.choice([node for node in world.nodes if node.alive])
            if dice.random() < 0.6:
                world.kill_node(node)
            elif node.living:
                world.kill(dice.choice(sorted(node.living)))
    for _ in range(50):
        world.settle()
        for run in list(world.runs):
            world.end(run)
    world.settle()
    assert not world.runs
    for task in tasks:
        assert task % 3 or world.begun[task] == 1, f"task {task} may run once; {world.killed}"
        assert world.killed or world.begun[task] == 1
    for oid, holders in world.holders.items():
        for holder in holders:
            if world.is_living(holder):
                assert (holder, oid) in world.answers, f"{holder.hex()[:4]} waits for {oid.hex()}; {world.killed}"
    world.expire()
    for oid, holders in world.holders.items():
        for holder in holders:
            if world.is_living(holder):
                world.node_of(holder).tell(Released(holder, [oid]))
    for node in world.nodes:
        for process in sorted(node.living):
            world.kill(process)
    world.settle()
    world.expire()
    for node in world.nodes:
        if node.alive:
            counts = node.directory.statistics()
            left = {name: count for name, count in counts.items() if count and name not in ("processes", "sweeps")}
            assert not left and not node.store, f"{left}, {node.store}; {world.killed}"
