"""Every limit of the system, in one place, with its unit last in its name. Asserts at the end relate them to each other."""

from __future__ import annotations

PROTOCOL_VERSION = 1

# --- frames
FRAME_HEADER_BYTES = 4
FRAME_BYTES_MAX = 256 << 20  #: a longer frame is garbage or an attack: the connection is closed
CODE_BYTES_MAX = 96 << 20  #: a function or class with what it captured: it goes to every worker
RECEIVE_BUFFER_BYTES = 256 << 10

# --- values
INLINE_ARGUMENT_BYTES_MAX = 16 << 10  #: larger arguments go through the store (measured: 32 kB 24 us against 101)
INLINE_RESULT_BYTES_MAX = 100 << 10  #: larger results are sealed in the store
#: all inline values of one task, which go in one frame: its dependencies, or its returns
INLINE_TASK_BYTES_MAX = 64 << 20
INLINE_CROWDED_BYTES_MAX = 1 << 10  #: of several returns, those beyond that are stored unless they are tiny
INLINE_FEW = 8  #: a task with more dependencies is not gathered with others

# --- the hot path
SPIN_S = 80e-6  #: longer than one wake-up, so that one side's spinning shows its worth
SWITCH_INTERVAL_S = 0.0005
BACKGROUND_TICK_S = 0.005
QUEUED_WORK_S = 0.0015  #: work kept queued at a worker; a task that nobody knows is taken to fill a queue
STUCK_AFTER_S = 0.010  #: a lease without a reply for so long gives its queue to others
FLUSH_TASKS = 32  #: pushes gathered for one send
REPLY_FLUSH_S = 0.001

# --- scheduling
LEASE_IDLE_S = 1.0
LEASE_SLICE_S = 0.010  #: a lease is revoked after this when others wait
BLOCKED_AFTER_S = 0.001
SHORT_TASK_S = 100e-6  #: a task that takes less is not worth a lease on another node
LONG_TASK_S = 0.05  #: how much longer a task takes matters to nobody who decides where it waits
RESOURCE_UNIT = 10_000  #: resources are integers in 1/10,000 of a unit
WORKER_IDLE_S = 5.0  #: surplus idle workers leave after this
WORKER_SPARES = 2  #: warm workers kept ready beyond the CPUs' own

RESERVE_WAIT_S = 3.0  #: a node tries for so long to reserve a bundle of a placement group beside what its tasks hold
RESERVE_PAUSE_S = 0.1  #: before the next attempt to place a group, then doubled
RESERVE_PAUSE_MAX_S = 2.0
GROUPS_REMOVED_MAX = 1000  #: removed placement groups remembered
BUNDLES_MAX = 10_000  #: of one placement group

# --- objects
SEGMENT_GROW_BYTES = 64 << 20
BLOCK_ALIGN_BYTES = 64
BLOCK_HEADER_BYTES = 64
PIN_SLOTS_MAX = 1 << 20
PAGE_HEADER_BYTES = 4096
EVICTION_GRACE_S = 0.010
STORE_SHARE_OF_MEMORY = 0.3
RELEASE_SWEEP_S = 0.02
LINEAGE_BYTES_MAX = 256 << 20  #: what a process keeps of finished tasks, so that their stored results can be made anew

# --- life and death
START_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 10.0
WORKER_START_TIMEOUT_S = 60.0
SHUTDOWN_GRACE_S = 0.5
#: what SIGTERM leaves a node for moving what it has to others
DRAIN_GRACE_S = 30.0
GOODBYE_S = 0.05  #: a leaving driver waits so long for the last lines that workers printed
CALL_TIMEOUT_S = 30.0
PUT_COPIES_WAIT_S = 120.0  #: `put(copies=n)` waits so long for the other nodes

# --- the GCS
TASK_EVENTS_MAX = 100_000  #: trace events kept; the oldest are dropped and counted
TASK_EVENT_SENDERS_MAX = 4096  #: processes whose last batch number is remembered
#: before the second restart in a row of an actor whose process dies in its constructor; then doubled
RESTART_DELAY_S = 0.1
RESTART_DELAY_MAX_S = 10.0
ACTORS_DEAD_MAX = 1000  #: dead actors remembered, without their arguments
JOBS_ENDED_MAX = 1000
NODES_DEAD_MAX = 1000  #: dead nodes remembered
STORY_LINES_MAX = 64
#: the exit code of a GCS server whose tables are another head's: none started after it would fare better
GCS_REFUSED_EXIT = 3
GCS_STORAGE_AWAY_EXIT = 4  #: that of one whose storage does not answer: the next one may find it there
TAKEN_OVER_AWAY_S = 30.0  #: nodes have so long to find a head that has taken over
NODE_AWAY_S = 5.0  #: a node whose connection ended is declared dead when it has not come back after this
HEARTBEAT_S = 0.5
#: an actor that could be restarted elsewhere says nothing so long after its node was heard
ANSWERS_WITHHELD_AFTER_S = 3.0
LEASE_NUMBER_BITS = 40  #: a lease's number is the number of its node, then so many bits of its own
ALL_STARTED = 1 << 62  #: in WorkerDied of a node that died: nobody knows what had begun, so everything may have
HEARTBEATS_MISSED_S = 5.0  #: a node that says nothing for so long is declared dead
#: a GCS server that says nothing for so long to a node that waits for it is ended, and another one started
GCS_SILENT_S = 20.0
#: what may wait for a GCS server that is away: calls beyond it are refused, trace events dropped
GCS_QUEUE_MAX = 100_000
GCS_DEATHS_MAX = 30  #: so many deaths of the GCS server within GCS_DEATHS_WITHIN_S end the node
GCS_DEATHS_WITHIN_S = 60.0
GCS_AWAY_S = 30.0  #: a node that wants to join ends when the GCS server cannot be reached for so long
#: a node of a cluster ends when its head, which nobody can replace, is silent for so long
GCS_RECONNECT_TIMEOUT_S = 60.0
GCS_RETURN_TIMEOUT_S = 600.0  #: for so long when that may be started again with its tables
GCS_STILLBIRTHS_MAX = 3  #: so many in a row that never answered, too

# --- actors with checkpoints
RECORD_ARGUMENT_BYTES_MAX = 1 << 20  #: larger arguments are recorded as objects in the store
#: in a cluster both, and checkpoints, go to the GCS up to this; larger ones have a copy on another node
CLUSTER_LOG_BYTES_MAX = 16 << 20
RECORDS_BYTES_MAX = 16 << 20  #: arguments recorded since the last checkpoint: then there is another one
REPLIES_KEPT_MAX = 100_000  #: answers that callers may ask for again; the oldest are let go beyond it
REPLIES_KEPT_BYTES_MAX = 64 << 20
CALLS_POSTPONED_MAX = 1000  #: calls that are to come again with arguments made anew; the oldest are forgotten
CALLERS_MARKED_MAX = 10_000  #: callers whose last call is known; those that have not called for longest are forgotten
RECOVERIES_MAX = 10  #: so many lives in a row that came no further than the one before end the actor
SETTLE_BATCH = 64  #: answers received before the actor is told at once

# --- defaults of options
MAX_RETRIES_DEFAULT = 3
ASYNC_CONCURRENCY_DEFAULT = 1000

assert INLINE_ARGUMENT_BYTES_MAX <= INLINE_RESULT_BYTES_MAX < FRAME_BYTES_MAX
assert SHORT_TASK_S < REPLY_FLUSH_S
assert REPLY_FLUSH_S <= QUEUED_WORK_S <= LEASE_SLICE_S < LEASE_IDLE_S
assert 2 * INLINE_TASK_BYTES_MAX < FRAME_BYTES_MAX
assert CODE_BYTES_MAX < FRAME_BYTES_MAX
assert 2 * HEARTBEAT_S < ANSWERS_WITHHELD_AFTER_S < min(HEARTBEATS_MISSED_S, NODE_AWAY_S)
assert BLOCK_HEADER_BYTES % BLOCK_ALIGN_BYTES == 0
