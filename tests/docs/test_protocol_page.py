"""docs/PROTOCOL.md lists every message as it is."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_protocol", DOCS / "write_protocol.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["write_protocol"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_page_is_up_to_date(writer: ModuleType) -> None:
    assert (DOCS / "PROTOCOL.md").read_text() == writer.page(), "run python docs/write_protocol.py"


def test_tags_are_unique(writer: ModuleType) -> None:
    tags: dict[int, str] = {}
    for name, message in writer.message_classes().items():
        tag = writer.tag_of(message)
        assert tag not in tags, f"{name} and {tags[tag]} have the same tag {tag}"
        tags[tag] = name


def test_every_message_is_in_a_union(writer: ModuleType) -> None:
    """A message in no union can be sent, but nobody can decode it."""
    from shoal.protocol import gcs_messages, messages, node_messages

    unions = [
        messages.ToRuntime,
        messages.ToDaemon,
        gcs_messages.ToGcs,
        gcs_messages.FromGcs,
        node_messages.BetweenNodes,
    ]
    inside = {"Stored", "Failed", "Containing", "Many", "ActorSpec", "TaskLineage"}
    listed = {kind.__name__ for union in unions for kind in union.__args__} | inside
    assert set(writer.message_classes()) - listed == set()


def test_every_message_named_in_an_answer_exists(writer: ModuleType) -> None:
    known = set(writer.message_classes())
    for name, route in writer.ROUTES.items():
        for word in re.findall(r"`([A-Z]\w+)`", route.answer + route.sender):
            assert word in known, f"the route of {name} names {word}, which is no message"
