"""The shard: calls, subscriptions, tables, and what it refuses."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from shoal.gcs.shard import CloseConnection, ConnectionLost, GcsShard, MessageReceived, Send
from shoal.gcs.storage.backend import Write
from shoal.gcs.tables import KeyValues, TaskEvents
from shoal.protocol.gcs_messages import (
    CHANNEL_ACTOR,
    CHANNEL_KV,
    ActorChanged,
    ActorConstructed,
    ActorRefsGone,
    ActorWorkerStarted,
    FromGcs,
    GcsAnswer,
    GcsCall,
    NodeRegistered,
    Published,
    RegisterNode,
    StartActor,
    StopActor,
    SubscribeKey,
    TaskEventBatch,
    ToGcs,
)
from shoal.protocol.limits import PROTOCOL_VERSION
from shoal.protocol.messages import ActorSpec, ActorState, Containing, Hello
from shoal.wire.framing import FrameDecoder, encode_frame

NODE = b"n" * 16
NOW = 1000.0


def spec(number: int = 1, **changes: Any) -> ActorSpec:
    fields: dict[str, Any] = {
        "actor_id": number.to_bytes(16, "big"),
        "class_id": b"c" * 16,
        "class_name": "Counter",
        "job_id": b"\0\0\0\1",
        "name": "",
        "namespace": "space",
        "demand": {},
        "placement": {"CPU": 10_000},
        "arguments": Containing(b"args", [b"r" * 20]),
        "dependencies": [("key", b"value"), (1, b"other")],
    }
    return ActorSpec(**{**fields, **changes})


class Gcs:
    """A shard, and messages that go through real frames both ways."""

    def __init__(self) -> None:
        self.shard = GcsShard(42)
        self.request = 0

    def tell(self, connection: int, message: Any) -> list[Any]:
        [received] = FrameDecoder(ToGcs).receive_data(encode_frame(message))
        effects = self.shard.handle(MessageReceived(connection, received), NOW)
        for effect in effects:
            if type(effect) is Send:
                [sent] = FrameDecoder(FromGcs).receive_data(encode_frame(effect.message))
                assert sent == effect.message or type(sent) is GcsAnswer
                effect.message = sent
        return effects

    def node(self, connection: int = 1, node_id: bytes = NODE) -> Gcs:
        self.tell(connection, Hello(PROTOCOL_VERSION, node_id, b"", 5))
        sent = self.tell(connection, RegisterNode(node_id, 5, "host", "addr", {"CPU": 20_000}, {"zone": "a"}))
        assert Send(connection, NodeRegistered(42)) in sent
        return self

    def call(self, method: str, connection: int = 1, **body: Any) -> Any:
        """The answer's body, or its error."""
        self.request += 1
        effects = self.tell(connection, GcsCall(self.request, f"gcs.{method}", body))
        answer = effects[-1].message
        assert type(answer) is GcsAnswer and answer.request == self.request
        return answer.error or answer.body


def test_the_first_frame_is_hello_of_our_version() -> None:
    gcs = Gcs()
    [refused] = gcs.tell(1, GcsCall(1, "gcs.jobs", {}))
    assert type(refused) is CloseConnection and "Hello" in refused.reason
    [refused] = gcs.tell(1, Hello(PROTOCOL_VERSION + 1, NODE, b"", 5))
    assert f"version {PROTOCOL_VERSION + 1}" in refused.reason
    assert gcs.tell(1, Hello(PROTOCOL_VERSION, NODE, b"", 5)) == []
    [refused] = gcs.tell(1, Hello(PROTOCOL_VERSION, NODE, b"", 5))
    assert type(refused) is CloseConnection


def test_only_nodes_report_on_actors() -> None:
    gcs = Gcs()
    gcs.tell(1, Hello(PROTOCOL_VERSION, NODE, b"", 5))
    [refused] = gcs.tell(1, ActorRefsGone(b"a" * 16))
    assert "RegisterNode" in refused.reason


def test_an_unknown_method_and_a_bad_body_are_answered() -> None:
    gcs = Gcs().node()
    assert gcs.call("cook")[0] == "UnknownMethod"
    for method, body in [
        ("actor_create", {}),
        ("actor_create", {"spec": [70, b"too short"]}),
        ("actor_create", {"spec": 5}),
        ("kv_put", {"namespace": "s", "key": "text", "value": b""}),
        ("kv_get", {"namespace": "a\0b", "key": b""}),
        ("function_put", {"function_id": 7, "code": b""}),
        ("actor_kill", {"actor_id": 3, "no_restart": True}),
        ("register_job", {}),
        ("actors_list", {"limit": "many"}),
    ]:
        kind, text = gcs.call(method, **body)
        assert kind == "BadRequest", (method, text)
    counts = gcs.shard.statistics()
    assert counts["kv"] == counts["functions"] == counts["jobs"] == 0 and not any(counts["actors"].values())


def test_an_actor_survives_the_wire_and_storage() -> None:
    gcs = Gcs().node()
    effects = gcs.tell(1, GcsCall(1, "gcs.actor_create", {"spec": spec(name="bob")}))
    writes = [effect for effect in effects if type(effect) is Write]
    [start] = [e.message for e in effects if type(e) is Send and type(e.message) is StartActor]
    assert start.spec == spec(name="bob")
    restored = GcsShard(1)
    for write in writes:
        assert write.value is not None
        restored.restore(write.table, write.key, write.value)
    record = restored.actors.find("space", "bob")
    assert record is not None and record.spec == spec(name="bob")


def test_names_are_unique_and_can_be_shared_on_purpose() -> None:
    gcs = Gcs().node()
    gcs.call("actor_create", spec=spec(1, name="bob"))
    kind, text = gcs.call("actor_create", spec=spec(2, name="bob"))
    assert kind == "ActorAlreadyExists" and "'bob'" in text and "get_if_exists" in text
    answer = gcs.call("actor_create", spec=spec(2, name="bob"), get_if_exists=True)
    existing = msgspec.convert(answer["existing"], ActorSpec)
    assert answer["actor_id"] == existing.actor_id == spec(1).actor_id
    assert existing.arguments == b"" and existing.dependencies is None
    found = gcs.call("actor_by_name", name="bob", namespace="space")
    assert found["actor_id"] == spec(1).actor_id
    kind, text = gcs.call("actor_by_name", name="bob", namespace="elsewhere")
    assert kind == "ActorNotFound" and "there is one in 'space'" in text
    assert gcs.call("actor_create", spec=spec(1, name="bob")) == {"actor_id": spec(1).actor_id, "existing": None}
    assert [row["name"] for row in gcs.call("named_actors", namespace="space")["actors"]] == ["bob"]
    assert gcs.call("named_actors", namespace="other") == {"actors": []}
    assert len(gcs.call("named_actors")["actors"]) == 1


def test_subscribers_see_every_state_and_nothing_after_death() -> None:
    gcs = Gcs().node()
    gcs.tell(2, Hello(PROTOCOL_VERSION, b"o" * 16, b"", 6))
    actor_id = spec(1).actor_id
    gcs.call("actor_create", spec=spec(1))
    [first] = gcs.tell(2, SubscribeKey(CHANNEL_ACTOR, actor_id))
    assert first.message.state.state == "pending"
    seen = [first.message]
    for message in (
        ActorWorkerStarted(actor_id, 1, b"w" * 16, "addr", 9, 3),
        ActorConstructed(actor_id, 1),
        GcsCall(99, "gcs.actor_kill", {"actor_id": actor_id, "no_restart": True}),
    ):
        effects = gcs.tell(1, message)
        seen += [e.message for e in effects if type(e) is Send and type(e.message) is ActorChanged]
    assert [change.state.state for change in seen] == ["pending", "pending", "alive", "dead"]
    assert [change.version for change in seen] == [1, 2, 3, 4]
    assert any(type(e) is Send and type(e.message) is StopActor for e in effects)
    assert gcs.shard.statistics()["subscriptions"] == 0
    [late] = gcs.tell(2, SubscribeKey(CHANNEL_ACTOR, actor_id))
    assert late.message.state.death == "killed"
    [unknown] = gcs.tell(2, SubscribeKey(CHANNEL_ACTOR, b"?" * 16))
    assert unknown.message.state.state == "dead"
    assert gcs.shard.statistics()["subscriptions"] == 0
    [refused] = gcs.tell(2, SubscribeKey("weather", b""))
    assert type(refused) is CloseConnection


def test_a_lost_connection_is_a_lost_node_with_its_jobs_and_subscriptions() -> None:
    gcs = Gcs().node()
    job_id = gcs.call("register_job", namespace="space", pid=77)["job_id"]
    gcs.call("actor_create", spec=spec(1, job_id=job_id))
    gcs.call("actor_create", spec=spec(2, job_id=job_id, detached=True))
    gcs.tell(1, SubscribeKey(CHANNEL_ACTOR, spec(1).actor_id))
    gcs.shard.handle(ConnectionLost(1, "killed"), NOW)
    gcs.shard.handle(ConnectionLost(1, "killed"), NOW)
    gcs.tell(2, Hello(PROTOCOL_VERSION, b"o" * 16, b"", 6))
    [node] = gcs.call("nodes", 2)["nodes"]
    assert (node["alive"], node["cause"]) == (False, "killed")
    [job] = gcs.call("jobs", 2)["jobs"]
    assert job["state"] == "ended" and "killed" in job["end_reason"]
    assert [row["state"] for row in gcs.call("actors_list", 2)["actors"]] == ["dead", "pending"]
    assert gcs.shard.statistics()["subscriptions"] == 0
    effects = gcs.tell(2, RegisterNode(b"o" * 16, 6, "host", "addr", {}))
    assert [type(effect.message) for effect in effects if type(effect) is Send] == [NodeRegistered, StartActor]


def test_a_node_is_connected_once() -> None:
    gcs = Gcs().node()
    gcs.tell(2, Hello(PROTOCOL_VERSION, NODE, b"", 6))
    [refused] = gcs.tell(2, RegisterNode(NODE, 6, "host", "addr", {}))
    assert "connected already" in refused.reason


def test_jobs_get_numbers_and_end_once() -> None:
    gcs = Gcs().node()
    assert gcs.call("register_job", namespace="a", pid=1)["job_id"] == b"\0\0\0\1"
    assert gcs.call("register_job", job_id=b"\0\0\0\7", namespace="b", pid=2, config={"x": 1})["job_id"] == b"\0\0\0\7"
    assert gcs.call("register_job", job_id=b"\0\0\0\7", namespace="b", pid=2)["job_id"] == b"\0\0\0\7"
    assert gcs.call("register_job", namespace="c", pid=3)["job_id"] == b"\0\0\0\x08"
    gcs.call("actor_create", spec=spec(1))
    assert gcs.call("end_job", job_id=b"\0\0\0\1", reason="done") == {"ended": True}
    assert gcs.call("end_job", job_id=b"\0\0\0\1") == {"ended": False}
    jobs = gcs.call("jobs")["jobs"]
    assert [(job["state"], job["end_reason"]) for job in jobs] == [("ended", "done"), ("running", ""), ("running", "")]
    [row] = gcs.call("actors_list", state="dead")["actors"]
    assert row["death"] == "job_ended"
    story = gcs.call("actor_story", actor_id=spec(1).actor_id)["story"]
    assert "requested" in story[0] and "job_ended" in story[-1]


def test_functions_are_written_once() -> None:
    gcs = Gcs().node()
    assert gcs.call("function_put", function_id=b"f" * 16, code=b"one") == {"added": True}
    assert gcs.call("function_put", function_id=b"f" * 16, code=b"two") == {"added": False}
    assert gcs.call("function_get", function_id=b"f" * 16) == {"code": b"one"}
    assert gcs.call("function_get", function_id=b"g" * 16) == {"code": None}


def test_keys_and_values() -> None:
    gcs = Gcs().node()
    row_key = KeyValues.row_key("s", b"k1")
    [now] = gcs.tell(1, SubscribeKey(CHANNEL_KV, row_key))
    assert now.message == Published(CHANNEL_KV, row_key, 0, None)
    assert gcs.call("kv_put", namespace="s", key=b"k1", value=b"1") == {"added": True}
    assert gcs.call("kv_put", namespace="s", key=b"k1", value=b"2", overwrite=False) == {"added": False}
    assert gcs.call("kv_get", namespace="s", key=b"k1") == {"value": b"1"}
    gcs.call("kv_put", namespace="s", key=b"k2", value=b"")
    gcs.call("kv_put", namespace="s2", key=b"k3", value=b"")
    gcs.call("kv_put", namespace="", key=b"k4", value=b"")
    assert gcs.call("kv_exists", namespace="s", key=b"k2") == {"exists": True}
    assert gcs.call("kv_list", namespace="s", prefix=b"") == {"keys": [b"k1", b"k2"]}
    assert gcs.call("kv_list", namespace="", prefix=b"k") == {"keys": [b"k4"]}
    assert gcs.call("kv_del", namespace="s", key=b"nothing") == {"deleted": 0}
    effects = gcs.tell(1, GcsCall(50, "gcs.kv_del", {"namespace": "s", "key": b"k", "prefix": True}))
    assert effects[-1].message.body == {"deleted": 2}
    published = [e.message for e in effects if type(e) is Send and type(e.message) is Published]
    assert [(push.key, push.value) for push in published] == [(row_key, None)] and published[0].version > 0
    assert gcs.call("kv_list", namespace="s2", prefix=b"") == {"keys": [b"k3"]}
    assert gcs.call("kv_exists", namespace="s", key=b"k2") == {"exists": False}


def batch(seq: int, count: int = 2, sender: bytes = b"w" * 16, job_id: bytes = b"\0\0\0\1") -> TaskEventBatch:
    events = [(b"%d" % (seq * 100 + number), "f", 0, "finished", 1.0, 2.0, "") for number in range(count)]
    return TaskEventBatch(sender, seq, 9, NODE, job_id, count, msgspec.msgpack.encode(events))


def test_task_events_are_kept_once_and_listed_in_order() -> None:
    gcs = Gcs().node()
    for message in (batch(1), batch(2), batch(2), batch(1), batch(1, sender=b"v" * 16, job_id=b"\0\0\0\2")):
        assert gcs.tell(1, message) == []
    found = gcs.call("task_events")
    assert [row["task_id"] for row in found["events"]] == [b"100", b"101", b"200", b"201", b"100", b"101"]
    assert found["events"][0]["pid"] == 9 and found["dropped"] == 0
    assert [row["task_id"] for row in gcs.call("task_events", limit=3, job_id=b"\0\0\0\1")["events"]] == [
        b"101",
        b"200",
        b"201",
    ]


def test_the_oldest_task_events_make_room_and_are_counted() -> None:
    ring = TaskEvents(events_max=5)
    for seq in range(1, 6):
        ring.add(batch(seq))
    assert (len(ring), ring.dropped) == (4, 6)
    assert [row["task_id"] for row in ring.rows(10, None)] == [b"400", b"401", b"500", b"501"]
    assert ring.add(batch(6, count=50)) and len(ring) == 50  # a batch is never split
    bad = TaskEventBatch(b"w" * 16, 7, 9, NODE, b"", 1, b"\xc1")
    assert ring.add(bad) and ring.rows(10, b"") == []


@pytest.mark.parametrize("message", [NodeRegistered(1), GcsAnswer(1, None), StartActor(b"a", 1, spec())])
def test_messages_of_the_gcs_itself_are_garbage_here(message: Any) -> None:
    from shoal.wire.framing import ProtocolError

    with pytest.raises(ProtocolError):
        list(FrameDecoder(ToGcs).receive_data(encode_frame(message)))


ALL = [
    RegisterNode(NODE, 1, "host", "addr", {"CPU": 1}, {"a": "b"}, "/tmp/x"),
    GcsCall(1, "gcs.jobs", {"a": [1, b"2", None]}),
    ActorWorkerStarted(b"a" * 16, 1, b"w" * 16, "addr", 5, 6),
    ActorConstructed(b"a" * 16, 1, b"error"),
    ActorRefsGone(b"a" * 16),
    SubscribeKey(CHANNEL_KV, b"key"),
    batch(1),
    NodeRegistered(5),
    GcsAnswer(1, {"x": 1}, ["Kind", "text"]),
    StartActor(b"a" * 16, 1, spec()),
    StopActor(b"a" * 16, 1, True, "reason"),
    ActorChanged(1, ActorState(b"a" * 16, "alive", 1, 2, b"w" * 16, "addr", 3)),
    Published(CHANNEL_KV, b"key", 1, None),
]


@pytest.mark.parametrize("message", ALL, ids=lambda message: type(message).__name__)
def test_each_message_whole_and_byte_by_byte(message: Any) -> None:
    frame = bytes(encode_frame(message))
    expected = ToGcs | FromGcs
    assert list(FrameDecoder(expected).receive_data(frame)) == [message]
    decoder: FrameDecoder[Any] = FrameDecoder(expected)
    got = [found for byte in frame + frame[:4] for found in decoder.receive_data(bytes([byte]))]
    assert got == [message]
