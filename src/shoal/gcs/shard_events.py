"""What happens to a shard of the GCS, and what it wants done.

What it does not do: mean anything by itself (`shard` decides, `io.server` performs).
"""

from __future__ import annotations

from dataclasses import dataclass

from shoal.gcs.storage.backend import Write
from shoal.protocol.gcs_messages import FromGcs, ToGcs


@dataclass(slots=True)
class MessageReceived:
    """A connection sent a message. The first event of a connection; numbers are never used again."""

    connection: int
    message: ToGcs


@dataclass(slots=True)
class ConnectionLost:
    """A connection ended, from whichever side."""

    connection: int
    cause: str


@dataclass(slots=True)
class TimePassed:
    """It may be time to give up nodes that are away: said when `next_deadline` has come."""


@dataclass(slots=True)
class NodeRefuses:
    """The answer to ProbeNode, if nobody listens there: the node's process is gone."""

    node_id: bytes


@dataclass(slots=True)
class NodeAnswers:
    """The answer to ProbeNode with `is_searching`: the node's daemon lives."""

    node_id: bytes


Event = MessageReceived | ConnectionLost | NodeRefuses | NodeAnswers | TimePassed


@dataclass(slots=True)
class Send:
    """Send a message, after the writes of this batch are durable."""

    connection: int
    message: FromGcs


@dataclass(slots=True)
class CloseConnection:
    """Say why (GcsAnswer 0) and close. A ConnectionLost follows."""

    connection: int
    reason: str


@dataclass(slots=True)
class ProbeNode:
    """See whether anybody listens at a node's address, "tcp:HOST:PORT"; if not, NodeRefuses follows, otherwise nothing.

    With `is_searching` the node may not know yet where this server is: until it is there or given up it is asked again and again whether it lives,
    and NodeAnswers follows each time that it does.
    """

    node_id: bytes
    address: str
    is_searching: bool = False


Effect = Write | Send | CloseConnection | ProbeNode
