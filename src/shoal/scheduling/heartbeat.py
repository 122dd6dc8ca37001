"""How often a node says what is free there.

Purpose: the GCS hears of a change soon, and is not drowned by the number of those who tell.

Design: up to a hundred nodes each tells LOAD_SOON_S after a change, and every HEARTBEAT_S anyway. More nodes tell less often, so that all together
tell LOADS_MAX_S times a second, but never so rarely that silence looks like death. The simulator's scenario `growth` shows both ends of it.
"""

from __future__ import annotations

from shoal.protocol.limits import HEARTBEAT_S, HEARTBEATS_MISSED_S

LOAD_SOON_S = 0.03
LOADS_MAX_S = 3000.0  #: of all nodes together; 20 us each for the GCS
RAREST_S = HEARTBEATS_MISSED_S / 2.5

assert LOAD_SOON_S < HEARTBEAT_S < RAREST_S


def soon_s(nodes: int) -> float:
    """After a change, how long it may wait to be told, in a cluster of so many nodes."""
    return min(max(LOAD_SOON_S, nodes / LOADS_MAX_S), RAREST_S)


def interval_s(nodes: int) -> float:
    """How often something is told without a change."""
    return min(max(HEARTBEAT_S, 2 * nodes / LOADS_MAX_S), RAREST_S)
