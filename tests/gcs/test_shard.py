"""The shard: calls, subscriptions, tables, and what it refuses."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tests.gcs.actor_specs import actor_spec

from shoal.gcs.node_table import LOOKS
from shoal.gcs.node_views import REPLACED_WITHIN_S
from shoal.gcs.shard import GcsShard
from shoal.gcs.shard_events import CloseConnection, ConnectionLost, MessageReceived, Send, TimePassed
from shoal.gcs.storage.backend import Write
from shoal.gcs.tables import KeyValues, TaskEvents
from shoal.protocol.gcs_messages import (
    CHANNEL_ACTOR,
    CHANNEL_KV,
    Acknowledged,
    ActorChanged,
    ActorConstructed,
    ActorLife,
    ActorRefsGone,
    ActorWorkerDied,
    ActorWorkerStarted,
    ClusterNodes,
    FromGcs,
    GcsAnswer,
    GcsCall,
    NodeRegistered,
    NodeReport,
    Published,
    RegisterNode,
    StartActor,
    StopActor,
    SubscribeKey,
    TaskEventBatch,
    ToGcs,
)
from shoal.protocol.limits import NODE_AWAY_S, PROTOCOL_VERSION
from shoal.protocol.messages import ActorSpec, ActorState, Containing, Hello
from shoal.wire.framing import FrameDecoder, encode_frame

NODE = b"n" * 16
NOW = 1000.0


def spec(number: int = 1, **changes: Any) -> ActorSpec:
    needs = {"arguments": Containing(b"args", [b"r" * 20]), "dependencies": [("key", b"value"), (1, b"other")]}
    return actor_spec(number, **{**needs, **changes})


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
        [answer] = [e.message for e in sent if type(e) is Send and type(e.message) is NodeRegistered]
        assert answer.gcs_pid == 42 and not answer.refused
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


def test_a_node_that_stays_away_is_lost_with_its_jobs_and_subscriptions() -> None:
    gcs = Gcs().node()
    job_id = gcs.call("register_job", namespace="space", pid=77)["job_id"]
    gcs.call("actor_create", spec=spec(1, job_id=job_id))
    gcs.call("actor_create", spec=spec(2, job_id=job_id, detached=True))
    gcs.tell(1, SubscribeKey(CHANNEL_ACTOR, spec(1).actor_id))
    gcs.shard.handle(ConnectionLost(1, "killed"), NOW)
    gcs.shard.handle(ConnectionLost(1, "killed"), NOW)
    gcs.tell(2, Hello(PROTOCOL_VERSION, b"o" * 16, b"", 6))
    for _ in range(LOOKS):
        deadline = gcs.shard.next_deadline()
        assert deadline is not None and gcs.shard.handle(TimePassed(), deadline) == []
    assert gcs.shard.next_deadline() == NOW + NODE_AWAY_S
    assert gcs.shard.handle(TimePassed(), NOW + NODE_AWAY_S - 0.1) == []
    assert gcs.call("nodes", 2)["nodes"][0]["alive"]
    gcs.shard.handle(TimePassed(), NOW + NODE_AWAY_S)
    assert gcs.shard.next_deadline() == NOW + NODE_AWAY_S + REPLACED_WITHIN_S
    [node] = gcs.call("nodes", 2)["nodes"]
    assert (node["alive"], node["cause"]) == (False, "killed")
    [job] = gcs.call("jobs", 2)["jobs"]
    assert job["state"] == "ended" and "killed" in job["end_reason"]
    assert [row["state"] for row in gcs.call("actors_list", 2)["actors"]] == ["dead", "pending"]
    assert gcs.shard.statistics()["subscriptions"] == 0
    effects = gcs.tell(2, RegisterNode(b"o" * 16, 6, "host", "addr", {"CPU": 20_000}))
    assert [type(effect.message) for effect in effects if type(effect) is Send] == [
        NodeRegistered,
        ClusterNodes,
        StartActor,
    ]


def test_handles_are_counted_where_the_creator_lives_now() -> None:
    """A creator with checkpoints was replayed on another node; the heir of the first one has no say, unless nobody else has."""
    other, third = b"o" * 16, b"t" * 16
    gcs = Gcs().node(1, NODE).node(2, other).node(3, third)
    gcs.call("actor_create", 1, spec=spec(1, home=NODE))

    def state() -> str:
        [row] = gcs.call("actors_list", 3)["actors"]
        return str(row["state"])

    gcs.call("actor_create", 2, spec=spec(1, home=other))
    gcs.tell(3, ActorRefsGone(spec(1).actor_id))
    assert state() == "pending"
    gcs.call("leave", 2, reason="it ends")
    gcs.tell(3, ActorRefsGone(spec(1).actor_id))
    assert state() == "dead"


def test_a_node_that_connects_anew_replaces_its_former_connection() -> None:
    gcs = Gcs().node()
    gcs.tell(2, Hello(PROTOCOL_VERSION, NODE, b"", 6))
    [closed] = [e for e in gcs.tell(2, RegisterNode(NODE, 6, "host", "addr", {})) if type(e) is CloseConnection]
    assert closed == CloseConnection(1, "its node has connected anew")
    gcs.shard.handle(ConnectionLost(1, "closed"), NOW)
    assert gcs.shard.next_deadline() is None and gcs.call("statistics", 2)["nodes"] == 1


class Disk:
    """Rows that outlive shards; `restarted()` is the shard that a new server would be, its node connected anew."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, bytes], bytes] = {}

    def keep(self, effects: list[Any]) -> None:
        for effect in effects:
            if type(effect) is Write:
                if effect.value is None:
                    self.rows.pop((effect.table, effect.key), None)
                else:
                    self.rows[effect.table, effect.key] = effect.value

    def restarted(self) -> Gcs:
        gcs = Gcs()
        gcs.request = 1000  # numbers of a node go on growing
        for wanted in GcsShard.STORED_TABLES:
            for (table, key), value in sorted(self.rows.items()):
                if table == wanted:
                    gcs.shard.restore(table, key, value)
        gcs.shard.begin(NOW)
        return gcs


def test_a_call_that_is_repeated_after_a_crash_is_done_once() -> None:
    disk = Disk()
    gcs = Gcs().node()
    put = GcsCall(1, "gcs.kv_put", {"namespace": "s", "key": b"k", "value": b"v", "overwrite": False})
    delete = GcsCall(2, "gcs.kv_del", {"namespace": "s", "key": b"k"})
    for call in (put, delete):
        disk.keep(gcs.tell(1, call))
    gcs = disk.restarted().node()
    assert gcs.tell(1, put) == [Send(1, GcsAnswer(1, {"added": True}))]
    assert gcs.tell(1, delete) == [Send(1, GcsAnswer(2, {"deleted": 1}))]
    assert gcs.call("statistics")["answers"] == 2
    disk.keep(gcs.tell(1, GcsCall(3, put.method, put.body, settled=2)))
    assert gcs.call("statistics")["answers"] == 1
    assert [key for table, key in disk.rows if table == "answers"] == [NODE + (3).to_bytes(8, "big")]


def test_reports_are_acknowledged_by_count() -> None:
    gcs = Gcs().node()
    gcs.call("actor_create", spec=spec())
    for count, message in enumerate(
        [ActorWorkerStarted(spec().actor_id, 1, b"w" * 16, "/w", 1, 1), batch(1), batch(1)], 1
    ):
        assert gcs.tell(1, message)[-1] == Send(1, Acknowledged(count))


def lives(*found: tuple[int, int, bool]) -> NodeReport:
    """A report of (actor number, incarnation, constructed); one that is not constructed waits for a worker."""
    return NodeReport(
        [
            ActorLife(number.to_bytes(16, "big"), life, b"w" * 16, "/w", 8, 3, True)
            if constructed
            else ActorLife(number.to_bytes(16, "big"), life)
            for number, life, constructed in found
        ]
    )


def told(effects: list[Any]) -> list[Any]:
    """What a node is told to do."""
    messages = [effect.message for effect in effects if type(effect) is Send]
    return [
        (type(m).__name__, int.from_bytes(m.actor_id, "big"), m.incarnation)
        for m in messages
        if type(m) in (StartActor, StopActor)
    ]


@pytest.mark.parametrize(
    ("report", "expected", "states"),
    [
        # All is as it was known: nothing to do.
        (lives((1, 1, True), (2, 1, False)), [], ["alive", "pending"]),
        # One has got its worker meanwhile.
        (lives((1, 1, True), (2, 1, True)), [], ["alive", "alive"]),
        # One was never told to begin.
        (lives((1, 1, True)), [("StartActor", 2, 1)], ["alive", "pending"]),
        # One has ended unheard, and may be restarted.
        (lives((2, 1, False)), [("StartActor", 1, 2)], ["restarting", "pending"]),
        # A former life goes on where it must not, and an actor that nobody knows.
        (
            lives((1, 1, True), (2, 0, False), (9, 1, True)),
            [("StopActor", 2, 0), ("StopActor", 9, 1), ("StartActor", 2, 1)],
            ["alive", "pending"],
        ),
    ],
)
def test_a_report_brings_node_and_gcs_together(report: NodeReport, expected: list[Any], states: list[str]) -> None:
    disk = Disk()
    gcs = Gcs().node()
    for number in (1, 2):
        disk.keep(gcs.tell(1, GcsCall(number, "gcs.actor_create", {"spec": spec(number, max_restarts=1)})))
    disk.keep(gcs.tell(1, ActorWorkerStarted(spec(1).actor_id, 1, b"w" * 16, "/w", 8, 3)))
    disk.keep(gcs.tell(1, ActorConstructed(spec(1).actor_id, 1)))
    gcs = disk.restarted().node()
    assert told(gcs.tell(1, report)) == expected
    assert [row["state"] for row in gcs.call("actors_list")["actors"]] == states
    assert gcs.call("statistics")["nodes_away"] == 0


def test_what_is_said_between_joining_and_reporting_is_not_said_twice() -> None:
    disk = Disk()
    gcs = Gcs().node()
    disk.keep(gcs.tell(1, GcsCall(1, "gcs.actor_create", {"spec": spec(1, max_restarts=1)})))
    disk.keep(gcs.tell(1, ActorWorkerStarted(spec(1).actor_id, 1, b"w" * 16, "/w", 8, 3)))
    gcs = disk.restarted().node()
    assert told(gcs.tell(1, GcsCall(2, "gcs.actor_create", {"spec": spec(2)}))) == [("StartActor", 2, 1)]
    assert told(gcs.tell(1, ActorWorkerDied(spec(1).actor_id, 1, "killed"))) == [("StartActor", 1, 2)]
    assert told(gcs.tell(1, lives())) == []
    assert told(gcs.tell(1, ActorWorkerDied(spec(1).actor_id, 1, "killed"))) == []


def test_the_head_holds_what_constructors_need_that_others_have_asked_for() -> None:
    disk = Disk()
    gcs = Gcs()
    head = RegisterNode(b"h" * 16, 6, "host", "head", {}, is_head=True)
    gcs.tell(2, Hello(PROTOCOL_VERSION, head.node_id, b"", 6))
    gcs.tell(2, head)
    gcs.node()
    needs = [(b"o" * 20, NODE, "")]
    wanted = {1: {"max_restarts": 1}, 2: {}, 3: {"detached": True}, 4: {"max_restarts": -1}}
    for number, changes in wanted.items():
        asker = 2 if number == 4 else 1
        effects = gcs.tell(asker, GcsCall(number, "gcs.actor_create", {"spec": spec(number, needs=needs, **changes)}))
        disk.keep(effects)
        assert (("StartActor", number, 0) in told(effects)) is (number in (1, 3)), "it has asked for 4 itself"
    disk.keep(gcs.tell(1, ActorWorkerStarted(spec(3).actor_id, 1, b"w" * 16, "/w", 8, 3)))
    disk.keep(gcs.tell(1, ActorConstructed(spec(3).actor_id, 1)))
    disk.keep(gcs.tell(1, GcsCall(9, "gcs.actor_kill", {"actor_id": spec(1).actor_id, "no_restart": True})))
    gcs = disk.restarted()
    gcs.tell(2, Hello(PROTOCOL_VERSION, head.node_id, b"", 6))
    again = told(gcs.tell(2, head))
    assert ("StartActor", 4, 0) in again, "it restarts"
    assert {number for _, number, incarnation in again if not incarnation} == {4}, (
        "1 is dead, and 3 constructed for good"
    )


def test_what_was_killed_or_let_go_while_the_node_was_away_ends() -> None:
    disk = Disk()
    gcs = Gcs().node()
    for number in (1, 2):
        disk.keep(gcs.tell(1, GcsCall(number, "gcs.actor_create", {"spec": spec(number)})))
        disk.keep(gcs.tell(1, ActorWorkerStarted(spec(number).actor_id, 1, b"w" * 16, "/w", 8, 3)))
        disk.keep(gcs.tell(1, ActorConstructed(spec(number).actor_id, 1)))
    disk.keep(gcs.tell(1, ActorRefsGone(spec(2).actor_id)))
    gcs = disk.restarted()
    gcs.tell(5, Hello(PROTOCOL_VERSION, b"c" * 16, b"", 6))  # a tool on the command line
    disk.keep(gcs.tell(5, GcsCall(1, "gcs.actor_kill", {"actor_id": spec(1).actor_id, "no_restart": True})))
    gcs.node()
    effects = gcs.tell(1, lives((1, 1, True), (2, 1, True)))
    assert told(effects) == [("StopActor", 1, 1), ("StopActor", 2, 1)]
    assert [effect.message.kill for effect in effects if type(getattr(effect, "message", None)) is StopActor] == [
        True,
        False,
    ]


def test_a_repeated_kill_spares_the_next_life() -> None:
    gcs = Gcs().node()
    gcs.call("actor_create", spec=spec(1, max_restarts=3))
    gcs.tell(1, ActorWorkerStarted(spec(1).actor_id, 1, b"w" * 16, "/w", 8, 3))
    kill = GcsCall(7, "gcs.actor_kill", {"actor_id": spec(1).actor_id, "no_restart": False, "incarnation": 1})
    assert told(gcs.tell(1, kill)) == [("StopActor", 1, 1)]
    gcs.tell(1, ActorWorkerDied(spec(1).actor_id, 1, "killed"))
    gcs.tell(1, ActorWorkerStarted(spec(1).actor_id, 2, b"w" * 16, "/w", 8, 3))
    assert told(gcs.tell(1, kill)) == []


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
    disk = Disk()
    gcs = Gcs().node()
    for message in (batch(1), batch(2), batch(2), batch(1), batch(1, sender=b"v" * 16, job_id=b"\0\0\0\2")):
        disk.keep(gcs.tell(1, message))
    gcs = disk.restarted().node()
    gcs.tell(1, batch(2))
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
    writes: list[Write] = []
    for seq in range(1, 6):
        ring.add(batch(seq), writes)
    kept = {write.key for write in writes if write.value is not None} - {w.key for w in writes if w.value is None}
    assert sorted(kept) == [number.to_bytes(8, "big") for number in (4, 5)]
    assert (len(ring), ring.dropped) == (4, 6)
    assert [row["task_id"] for row in ring.rows(10, None)] == [b"400", b"401", b"500", b"501"]
    assert ring.add(batch(6, count=50), writes) and len(ring) == 50  # a batch is never split
    bad = TaskEventBatch(b"w" * 16, 7, 9, NODE, b"", 1, b"\xc1")
    assert ring.add(bad, writes) and ring.rows(10, b"") == []


@pytest.mark.parametrize("message", [NodeRegistered(1), GcsAnswer(1, None), StartActor(b"a", 1, spec())])
def test_messages_of_the_gcs_itself_are_garbage_here(message: Any) -> None:
    from shoal.wire.framing import ProtocolError

    with pytest.raises(ProtocolError):
        list(FrameDecoder(ToGcs).receive_data(encode_frame(message)))


ALL = [
    lives((1, 1, True), (2, 1, False)),
    Acknowledged(7),
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
