"""Writes docs/PROTOCOL.md: the table of every message, from the structs and their docstrings.

    python docs/write_protocol.py           writes the page
    python docs/write_protocol.py --check   says whether it is up to date (exit code 1 if not)

Tag, fields and meaning come from `shoal.protocol`; who sends a message to whom, and what answers it, stands in `ROUTES` here. A message without a
route, or a route without a message, is an error, and tests/docs holds the page against this script.
"""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

PAGE = Path(__file__).with_name("PROTOCOL.md")
sys.path.insert(0, str(PAGE.parent.parent / "src"))

from shoal.protocol import gcs_messages, limits, messages, node_messages  # noqa: E402
from shoal.wire.framing import encode_frame  # noqa: E402


@dataclass
class Route:
    """Who sends a message to whom, and what comes back ("" for nothing)."""

    sender: str
    receiver: str
    answer: str = ""


PEERS: dict[str, Route] = {
    "Hello": Route("any", "any", "(none; a wrong version is answered by `Shutdown` and the end)"),
    "DefineFunction": Route("submitter", "worker"),
    "ForgetFunction": Route("submitter", "worker"),
    "TaskTemplate": Route("submitter", "worker"),
    "PushTasks": Route("submitter", "worker", "`TaskReplies` or `TasksBounced`, for every task one of them"),
    "RecallTasks": Route("submitter", "worker", "`TasksBounced`, if anything was queued"),
    "CancelTask": Route("submitter", "worker", "the task's `TaskReplies`; with force `WorkerDied`"),
    "StreamCredit": Route("submitter", "worker"),
    "TaskReplies": Route("worker", "submitter"),
    "TasksBounced": Route("worker", "submitter", "the tasks are pushed elsewhere"),
    "StreamItem": Route("worker", "submitter", "`StreamCredit`, when backpressure was asked for"),
    "CallsSettled": Route("submitter", "worker"),
}
NODE: dict[str, Route] = {
    "Register": Route("process", "daemon", "`Registered`, or `Shutdown` and the end"),
    "Registered": Route("daemon", "process"),
    "RequestLeases": Route("process", "daemon", "`LeaseGranted` for each lease, some time; or `LeasesUnschedulable`"),
    "LeaseGranted": Route("daemon", "process", "`PushTasks` to the worker, or `ReturnLease`"),
    "LeasesUnschedulable": Route("daemon", "process"),
    "ReturnLease": Route("process", "daemon", "`RevokeLease` to the worker"),
    "LeaseStarted": Route("daemon", "worker"),
    "RevokeLease": Route("daemon", "worker", "`LeaseFinished`, once the running task has ended"),
    "LeaseFinished": Route("worker", "daemon"),
    "Blocked": Route("worker", "daemon"),
    "Unblocked": Route("worker", "daemon"),
    "WorkerDied": Route("daemon", "process"),
    "KillWorker": Route("process", "daemon", "`WorkerDied`"),
    "SignalWorker": Route("process", "daemon", "(the daemon sends SIGUSR1 to the worker)"),
    "WorkerExiting": Route("worker", "daemon"),
    "Shutdown": Route("daemon or driver", "process or daemon"),
    "LogLines": Route("daemon", "driver"),
    "TaskEvents": Route("worker", "daemon", "(passed on as `TaskEventBatch`)"),
    "Call": Route("process", "daemon", "`Answer`"),
    "Answer": Route("daemon", "process"),
    "Notice": Route("daemon", "driver"),
    "CancelObject": Route("process, then daemon", "daemon, then the owner", "the object's `Resolved`, with the error"),
}
OBJECTS: dict[str, Route] = {
    "TaskLineage": Route("(inside `Escape` and `Adopt`)", "-"),
    "Escape": Route("process", "daemon"),
    "LineageCode": Route("process", "daemon"),
    "Adopt": Route("daemon", "process", "`Publish` for each object, or `NotMade`"),
    "NotMade": Route("process", "daemon"),
    "SubmitterDied": Route("daemon", "worker", "`Claims`"),
    "Claims": Route("worker", "daemon"),
    "Publish": Route("process", "daemon", "`Resolved` to everybody who asked"),
    "Hold": Route("process", "daemon"),
    "Release": Route("process", "daemon"),
    "RefsReceived": Route("process", "daemon"),
    "Resolve": Route("process", "daemon", "`Resolved` for each, when it is known"),
    "Resolved": Route("daemon", "process"),
    "Remake": Route("daemon", "process", "`Publish`: the value, or why there is none"),
    "BeingRemade": Route("daemon", "process"),
    "NoRoomFor": Route("daemon", "process"),
    "Sealed": Route("process", "daemon"),
    "FreeObjects": Route("process", "daemon", "`FreeBlocks` to the writer, in time"),
    "HoldsConfirmed": Route("daemon", "process"),
    "Pull": Route("process", "daemon", "`Answer`"),
    "KeepCopies": Route("process", "daemon", "`Answer`"),
    "Relocated": Route("daemon", "process", "`FreeObjects`, of the place that is not the value's any more"),
    "FreeBlocks": Route("daemon", "process"),
    "OpenSegment": Route("process", "daemon", "`SegmentBudget`"),
    "SegmentBudget": Route("daemon", "process"),
    "TrimBudget": Route("daemon", "process", "`BudgetReturned`"),
    "AskRoom": Route("worker", "daemon", "`Answer`, when the task may read"),
    "UseRoom": Route("worker", "daemon"),
    "BudgetReturned": Route("process", "daemon"),
}
ACTORS: dict[str, Route] = {
    "ActorSpec": Route("(inside `CreateActor`, `BecomeActor`, `StartActor`)", "-"),
    "CreateActor": Route("process", "daemon", "`Answer`; the daemon asks the GCS by `gcs.actor_create`"),
    "FollowGroup": Route("process", "daemon", "`GroupState`, now (when it is known) and at every change"),
    "GroupState": Route("daemon", "process", ""),
    "SubscribeActor": Route("process", "daemon", "`ActorState`, now (if known) and at every change"),
    "ActorState": Route("daemon", "process"),
    "BecomeActor": Route("daemon", "worker", "`ActorStarted`"),
    "ActorStarted": Route("worker", "daemon", "(passed on as `ActorConstructed`)"),
    "KillActor": Route("process", "daemon", "`ActorState`"),
    "RecordCall": Route("worker", "daemon"),
    "StoreCheckpoint": Route("worker", "daemon"),
    "TerminateActor": Route("daemon", "worker", "`WorkerExiting`"),
    "MayAnswer": Route("daemon", "worker"),
}
VALUES: dict[str, Route] = {
    "Stored": Route("(a value inside other messages)", "-"),
    "Failed": Route("(a value inside other messages)", "-"),
    "Containing": Route("(a value inside other messages)", "-"),
    "Many": Route("(inside `TaskReplies`)", "-"),
}
GCS: dict[str, Route] = {
    "RegisterNode": Route("daemon", "GCS", "`NodeRegistered`"),
    "NodeRegistered": Route("GCS", "daemon"),
    "GcsCall": Route("daemon", "GCS", "`GcsAnswer`"),
    "GcsAnswer": Route("GCS", "daemon"),
    "StartActor": Route(
        "GCS",
        "daemon",
        "`ActorWorkerStarted`, then `ActorConstructed`; or `ActorPlacementRefused`; or `ActorWorkerDied`",
    ),
    "StopActor": Route("GCS", "daemon", "`ActorWorkerDied`, if there was a worker"),
    "ActorChanged": Route("GCS", "daemon", "(passed on as `ActorState`)"),
    "Published": Route("GCS", "daemon"),
    "ActorWorkerStarted": Route("daemon", "GCS"),
    "ActorConstructed": Route("daemon", "GCS"),
    "ActorPlacementRefused": Route("daemon", "GCS"),
    "ActorWorkerDied": Route("daemon", "GCS", "`StartActor` if it may be restarted"),
    "ActorRefsGone": Route("daemon", "GCS", "`StopActor`, when no node has handles any more"),
    "SubscribeKey": Route("daemon", "GCS", "`ActorChanged` or `Published`, at once and at every change"),
    "TaskEventBatch": Route("daemon", "GCS", "`Acknowledged`"),
    "NodeReport": Route("daemon", "GCS", "`StopActor` and `StartActor`, where the two disagree"),
    "Acknowledged": Route("GCS", "daemon"),
    "NodeLoad": Route("daemon", "GCS", "`HeartbeatAcknowledged`"),
    "HeartbeatAcknowledged": Route("GCS", "daemon"),
    "ClusterNodes": Route("GCS", "daemon"),
    "PlaceLeases": Route("daemon", "GCS", "`LeasesPlaced`, now or when there is room"),
    "LeasesPlaced": Route("GCS", "daemon", "`ForeignLeases` to the nodes named"),
    "GroupChanged": Route("GCS", "daemon", "(passed on as `GroupState`)"),
    "ReserveBundle": Route("GCS", "daemon", "`BundleReserved`"),
    "BundleReserved": Route("daemon", "GCS", "`CommitBundle` or `ReturnBundle`"),
    "CommitBundle": Route("GCS", "daemon"),
    "ReturnBundle": Route("GCS", "daemon"),
    "DrainNode": Route("GCS", "daemon"),
}
BETWEEN: dict[str, Route] = {
    "LinkHello": Route("daemon", "daemon", "`LinkWelcome`"),
    "LinkWelcome": Route("daemon", "daemon"),
    "LinkReceived": Route("daemon", "daemon"),
    "RouteToWorker": Route("process", "daemon", "one byte; then the worker speaks"),
    "OpenTransfer": Route("daemon", "daemon"),
    "ForeignLeases": Route("daemon", "daemon", "`ForProcess` with `LeaseGranted` for each lease"),
    "ForeignProcessDied": Route("daemon", "daemon"),
    "ForProcess": Route("daemon", "daemon"),
    "NodeHold": Route("daemon", "daemon", "`NodeHeld`"),
    "NodeHeld": Route("daemon", "daemon"),
    "NodeRelease": Route("daemon", "daemon"),
    "HoldFor": Route("daemon", "daemon", "`HoldForDone`"),
    "HoldForDone": Route("daemon", "daemon"),
    "ResolveFor": Route("daemon", "daemon", "`Resolved` for each, when it is known"),
    "MirrorLineage": Route("daemon of the home", "daemon"),
    "DropMirrors": Route("daemon of the home", "daemon"),
    "NeedLineage": Route("process, then daemon", "daemon, then that of the home"),
    "FreeStored": Route("daemon", "daemon"),
    "FreeCopies": Route("daemon", "daemon"),
    "KeepStored": Route("daemon", "daemon"),
    "AskForeignClaims": Route("daemon of the home, or heir", "daemon", "`ForeignClaims`"),
    "ForeignClaims": Route("daemon", "daemon that asked"),
    "TakeClaims": Route("daemon of the home, or heir", "daemon that claims", "`ClaimMade` for each, when it is made"),
    "ClaimMade": Route("daemon that claims", "daemon of the home"),
    "KeepCopy": Route("daemon", "daemon", "`CopyKept`"),
    "MoveStored": Route("daemon that drains", "daemon of the owner", "`FreeStored`, when the owner has the new place"),
    "CopyKept": Route("daemon", "daemon"),
    "KeepLogCopy": Route("daemon of an actor", "daemon", "`LogCopyKept`"),
    "LogCopyKept": Route("daemon", "daemon of an actor"),
    "FreeLogCopies": Route("daemon of an actor", "daemon"),
    "HoldForLog": Route("daemon of an actor", "daemon", "`HeldForLog`"),
    "HeldForLog": Route("daemon", "daemon of an actor"),
    "FreeLogHolds": Route("daemon of an actor", "daemon"),
    "FetchChunk": Route("daemon", "daemon", "the bytes on another connection, `ChunkRefused` or `ChunkReferred`"),
    "ChunkRefused": Route("daemon", "daemon"),
    "ChunkReferred": Route("daemon", "daemon"),
    "PullEnded": Route("daemon", "daemon"),
    "CopiesDropped": Route("daemon", "daemon"),
    "ChunksForgotten": Route("daemon", "daemon"),
    "ExpectActor": Route("daemon", "daemon", "`ActorExpected`"),
    "ActorExpected": Route("daemon", "daemon"),
    "JobLines": Route("daemon", "daemon", "nothing, or `JobLinesUnwanted`"),
    "JobLinesUnwanted": Route("daemon", "daemon"),
    "GcsTrouble": Route("daemon of the head", "daemon"),
}
SECTIONS: list[tuple[str, str, dict[str, Route]]] = [
    ("Values", "How a user value stands inside a message; plain `bytes` are an inline value.", VALUES),
    (
        "Between a submitter and a worker",
        "A submitter is any process that runs remote functions or calls actors.",
        PEERS,
    ),
    ("Between a process and its node daemon", "A process is a driver or a worker.", NODE),
    ("Objects", "Refs that leave their process, and the shared-memory store.", OBJECTS),
    ("Actors", "", ACTORS),
    ("Between a node daemon and the GCS", "", GCS),
    ("Between node daemons", "", BETWEEN),
]
ROUTES: dict[str, Route] = {name: route for _, _, routes in SECTIONS for name, route in routes.items()}

HEAD = """# The messages

*Written by `python docs/write_protocol.py` from `src/shoal/protocol/messages.py`, `gcs_messages.py` and `node_messages.py`; do not edit.*

Everything that crosses a process boundary is one of the messages below (object bytes do not: they lie in shared memory). A message is a msgpack
array: its tag, then its fields in the order listed. On a stream each is preceded by its length, 4 bytes, little-endian; a frame longer than
{frame_mb} MB ends the connection, and so does anything that is not a message the receiver expects there. Fields are only ever appended, with
defaults. The present version of the protocol is {version}.

    {example}

Within a node connections are Unix sockets in the session's folder (mode 0700); between nodes they are TCP connections that begin with the mutual
proof of the cluster's token. Which messages go together is told by [the journey of a task](JOURNEY.md);
why some must be written before others, by "Causality" in [the architecture](ARCHITECTURE.md).
"""


def message_classes() -> dict[str, type[messages.Message]]:
    """Every message of the protocol, by name, in the order of the tags."""
    found = {
        name: value
        for module in (messages, gcs_messages, node_messages)
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, messages.Message) and value is not messages.Message
    }
    return dict(sorted(found.items(), key=lambda item: tag_of(item[1])))


def tag_of(message: type[messages.Message]) -> int:
    """The number that stands first in the array."""
    tag = message.__struct_config__.tag
    assert isinstance(tag, int), f"{message.__name__} has no number"
    return tag


def fields_of(message: type[messages.Message]) -> str:
    """The fields as in a signature."""
    shown = []
    for field in msgspec.structs.fields(message):
        kind = inspect.get_annotations(message)[field.encode_name]
        shown.append(f"{field.encode_name}: {kind}" + ("" if field.required else " = ..."))
    return ", ".join(shown)


def meaning_of(message: type[messages.Message]) -> str:
    """The docstring as one line of a table."""
    text = inspect.cleandoc(message.__doc__ or "")
    assert text, f"{message.__name__} has no docstring"
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


def page() -> str:
    """The whole page."""
    known = message_classes()
    without = sorted(set(known) - set(ROUTES))
    if without:
        raise SystemExit(f"no route for {', '.join(without)}: say in docs/write_protocol.py who sends it to whom")
    gone = sorted(set(ROUTES) - set(known))
    if gone:
        raise SystemExit(f"routes without a message: {', '.join(gone)}: take them out of docs/write_protocol.py")
    sample = messages.ReturnLease(7)
    example = f"ReturnLease(lease_id=7) is  {encode_frame(sample).hex(' ')}  (length 3; array of 2; tag {tag_of(messages.ReturnLease)}; 7)"
    head = HEAD.format(frame_mb=limits.FRAME_BYTES_MAX >> 20, version=limits.PROTOCOL_VERSION, example=example)
    out = [head]
    for title, about, routes in SECTIONS:
        out.append(f"## {title}\n")
        if about:
            out.append(f"{about}\n")
        out.append("| tag | message | from | to | meaning | answer |")
        out.append("|---|---|---|---|---|---|")
        for name in sorted(routes, key=lambda each: tag_of(known[each])):
            route = routes[name]
            fields = fields_of(known[name]).replace("|", "\\|")
            cells = [
                str(tag_of(known[name])),
                f"**{name}**<br>`{fields}`",
                route.sender,
                route.receiver,
                meaning_of(known[name]),
                route.answer or "-",
            ]
            out.append(f"| {' | '.join(cells)} |")
        out.append("")
    out.append(calls())
    return "\n".join(out)


def calls() -> str:
    """The methods of Call and GcsCall, from the docstrings that list them."""
    from shoal.node.io import calls as node_calls

    def listed(text: str | None, prefix: str) -> str:
        lines = [line.strip() for line in (text or "").splitlines()]
        return "\n".join(line for line in lines if line.startswith(prefix))

    return (
        "## Calls\n\n"
        "What `Call` and `GcsCall` may ask for: method, body, and the body of the answer (with the errors in parentheses). "
        "A process reaches those of the GCS through its daemon.\n\n"
        f"```text\n{listed(node_calls.__doc__, 'node.')}\n```\n\n"
        f"```text\n{listed(gcs_messages.__doc__, 'gcs.')}\n```\n"
    )


def main(arguments: list[str]) -> int:
    """Write the page, or check it."""
    text = page()
    if "--check" in arguments:
        fresh = PAGE.exists() and PAGE.read_text() == text
        print(f"{PAGE} is {'up to date' if fresh else 'stale: run python docs/write_protocol.py'}")
        return 0 if fresh else 1
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
