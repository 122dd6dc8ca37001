"""Addresses and names."""

from __future__ import annotations

from types import ModuleType

import pytest

import shoal
from shoal.testing import Cluster
from shoal.util import get_node_ip_address, list_named_actors


@pytest.mark.usefixtures("shoal_start")
def test_the_address_of_a_node_is_where_others_reach_it() -> None:
    assert get_node_ip_address() == "127.0.0.1"
    with Cluster(connect=True, host="127.0.0.2"):
        assert get_node_ip_address() == "127.0.0.2" == shoal.nodes()[0]["NodeManagerAddress"]
        assert shoal.get(shoal.remote(get_node_ip_address).remote(), timeout=60) == "127.0.0.2"


def test_named_actors(shoal_shared: ModuleType) -> None:
    @shoal_shared.remote
    class Named:
        def ping(self) -> int:
            return 1

    before = list_named_actors()
    here = Named.options(name="tests-placement").remote()
    there = Named.options(name="tests-elsewhere", namespace="another").remote()
    shoal_shared.get([here.ping.remote(), there.ping.remote()])
    assert set(list_named_actors()) - set(before) == {"tests-placement"}
    assert {"name": "tests-elsewhere", "namespace": "another"} in list_named_actors(all_namespaces=True)
    shoal_shared.kill(here)
    shoal_shared.kill(there)
