"""Addresses and names."""

from __future__ import annotations

import ipaddress
from types import ModuleType

from shoal.util import get_node_ip_address, list_named_actors


def test_node_ip_address() -> None:
    assert ipaddress.ip_address(get_node_ip_address()).version == 4


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
