"""How many refs have come in the results of each worker, and in the calls of each caller.

Purpose: the daemon must know, when one of them dies, which of the holds that it had written in our name belong to what came (`RefsReceived`,
`node/handed_refs.py`).

What it does not do: hold anything (`objects`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shoal.protocol.messages import Containing, Many, RefsReceived, Stored, Value
from shoal.protocol.values import refs_inside

if TYPE_CHECKING:
    from shoal.runtime.core import Runtime
    from shoal.runtime.objects import ObjectEntry
    from shoal.runtime.reactor import Connection, Reactor
    from shoal.runtime.tasks import WorkerPeer


class ReceivedRefs:
    """The counts of one process, written under the reactor's lock."""

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        #: workers from whom refs have come since the daemon was told how many
        self.givers: dict[WorkerPeer, None] = {}

    def count(self, peer: WorkerPeer, value: Any) -> None:
        """Count the refs in a result."""
        if type(value) is Many:
            for part in value.values:
                self.count(peer, part)
        elif type(value) is Containing or type(value) is Stored:
            nested = value.nested
            if nested:
                peer.refs += len(nested)
                self.givers[peer] = None

    def tell(self) -> None:
        """Tell the daemon the counts that have changed."""
        givers, self.givers = self.givers, {}
        daemon = self.reactor.causal
        if daemon is not None:
            for peer in givers:
                daemon.send(RefsReceived(peer.worker_id, peer.refs))

    def bury(self, peer: WorkerPeer) -> None:
        """All that a dead worker has written was read."""
        self.givers.pop(peer, None)
        self.end(peer.worker_id, peer.refs)

    def end(self, worker_id: bytes, count: int = 0) -> None:
        """No more than `count` refs have come from a dead worker; 0 also when that was said before."""
        daemon = self.reactor.causal
        if daemon is not None:
            daemon.send(RefsReceived(worker_id, count, True))


class CalledRefs:
    """Of one worker: the refs in calls of its actor, by the process that called. Written under the reactor's lock."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.reactor = runtime.reactor
        self._counts: dict[bytes, int] = {}
        #: in calls that were answered since the last tick: letting go of many costs the daemon little more than of one
        self._past: list[ObjectEntry] = []
        #: callers from whom refs have come since the daemon was told how many
        self._untold: dict[bytes, None] = {}

    def take_over(self, connection: Connection, args: Value) -> list[ObjectEntry] | None:
        """The refs inside of a call's arguments, which its caller has had the daemon hold in this worker's name; each counted once."""
        nested = refs_inside(args)
        if not nested:
            return None
        caller = connection.attachment.worker_id
        self._counts[caller] = self._counts.get(caller, 0) + len(nested)
        self._untold[caller] = None
        return self.runtime.objects.adopt_held(nested)

    def answered(self, held: list[ObjectEntry]) -> None:
        """A call has ended."""
        self._past += held
        self.reactor.attend()

    def tell(self) -> None:
        """Tell the daemon the counts that have changed, and what is over."""
        if self._past:
            past, self._past = self._past, []
            self.runtime.objects.let_go_of(past)
        untold, self._untold = self._untold, {}
        daemon = self.reactor.causal
        if daemon is not None:
            for caller in untold:
                daemon.send(RefsReceived(caller, self._counts[caller], False, True))

    def end(self, caller: bytes) -> int:
        """How many came of a dead caller: all that it wrote was read."""
        self._untold.pop(caller, None)
        return self._counts.pop(caller, 0)
