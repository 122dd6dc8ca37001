"""How often nodes tell: soon in small clusters, bearable in large ones, never so rarely that silence looks like death."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal.protocol.limits import HEARTBEAT_S, HEARTBEATS_MISSED_S
from shoal.scheduling.heartbeat import LOAD_SOON_S, LOADS_MAX_S, RAREST_S, interval_s, soon_s


@given(st.integers(1, 1_000_000))
def test_loads_are_told_soon_and_in_bounded_number_on_any_cluster(nodes: int) -> None:
    assert LOAD_SOON_S <= soon_s(nodes) <= interval_s(nodes) <= RAREST_S < HEARTBEATS_MISSED_S / 2
    assert nodes / soon_s(nodes) <= max(LOADS_MAX_S, nodes / RAREST_S) * 1.2
    if nodes <= 90:
        assert soon_s(nodes) == LOAD_SOON_S and interval_s(nodes) == HEARTBEAT_S
