"""How many refs have come in the results of each worker.

Purpose: the daemon must know, when a worker dies, which of the holds that it had written in our name belong to results that came (`RefsReceived`,
`node/handed_refs.py`).

What it does not do: hold anything (`objects`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shoal.protocol.messages import Containing, Many, RefsReceived, Stored

if TYPE_CHECKING:
    from shoal.runtime.reactor import Reactor
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
