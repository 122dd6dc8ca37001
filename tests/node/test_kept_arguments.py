"""Whose arguments a node holds, against a dumb twin; and that the object directory has no more of it in the end."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from shoal.node import object_events as events
from shoal.node.io.kept_arguments import KeptArguments, holder_of
from shoal.node.object_directory import ObjectDirectory
from shoal.protocol.messages import ActorSpec, Stored

HERE, THERE = b"here", b"there"


def actor_of(number: int) -> bytes:
    return number.to_bytes(16, "big")


def needs_of(number: int) -> list[tuple[bytes, bytes, str]]:
    """An object of this node and one of another, one of which the next actor needs too."""
    return [(b"%019d" % each + b"a", (HERE, THERE)[each % 2], "") for each in (number, number + 1)]


def spec_of(number: int, max_restarts: int = 0, detached: bool = False, arguments: Any = b"") -> ActorSpec:
    spec = ActorSpec(actor_of(number), b"", "A", b"", "", "", {}, {}, arguments, None, max_restarts, detached=detached)
    spec.needs = needs_of(number)
    return spec


class Shell:
    """What `io.objects` is to it."""

    def __init__(self) -> None:
        self.machine = ObjectDirectory(lambda error: str(error).encode(), HERE)
        self.effects: list[Any] = []
        self.handle(events.NodeJoined(THERE))

    def handle(self, event: events.Event) -> None:
        self.effects += self.machine.handle(event, 0.0)

    def hold_as(self, holder: bytes, oids: list[bytes], home: bytes) -> None:
        self.handle(events.Held(holder, oids, b"", home))


STEPS = st.lists(
    st.tuples(st.sampled_from(["keep", "lives", "dead"]), st.integers(0, 3), st.sampled_from([0, 1, -1]), st.booleans())
)


@given(STEPS)
def test_held_while_a_constructor_may_need_them_and_not_longer(steps: list[tuple[str, int, int, bool]]) -> None:
    shell = Shell()
    kept = KeptArguments(shell)  # type: ignore[arg-type]
    expected: dict[int, bool] = {}
    for what, number, max_restarts, detached in steps:
        if what == "keep":
            if number not in expected and (max_restarts or detached):
                expected[number] = bool(max_restarts)
            assert kept.keep(spec_of(number, max_restarts, detached)) is (number in expected)
        elif what == "dead" or not expected.get(number, True):
            expected.pop(number, None)
            (kept.drop if what == "dead" else kept.constructed)(actor_of(number))
        else:
            kept.constructed(actor_of(number))
        for each in range(4):
            held = [oid for oid, _, _ in needs_of(each) if holder_of(actor_of(each)) in shell.machine.holders(oid)]
            assert len(held) == (2 if each in expected else 0)
            assert kept.keeps(actor_of(each)) is (each in expected)
    for number in range(4):
        kept.drop(actor_of(number))
    for _ in range(2):  # a sweep that was asked for before the last change says nothing of it
        shell.handle(events.Swept(shell.machine.statistics()["sweeps"]))
    assert {name: shell.machine.statistics()[name] for name in ("objects", "holds", "candidates")} == {
        "objects": 0,
        "holds": 0,
        "candidates": 0,
    }


def test_arguments_in_the_store_get_a_copy_if_they_may_be_needed_again() -> None:
    for max_restarts in (0, 1):
        shell = Shell()
        place = Stored(needs_of(2)[0][0], 1, 0, 100, 1, [], HERE)
        shell.handle(events.ProcessJoined(b"maker"))
        shell.handle(events.Escaped(b"maker", [place.oid]))
        shell.handle(events.Published(b"maker", place.oid, place))
        KeptArguments(shell).keep(spec_of(2, max_restarts, True, place))  # type: ignore[arg-type]
        asked = [effect for effect in shell.effects if isinstance(effect, events.AskCopy)]
        assert [effect.node for effect in asked] == [THERE] * max_restarts
