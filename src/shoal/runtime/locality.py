"""Where the inputs of a task lie, and the scheduling class that follows from it.

Purpose: a task goes where its large inputs are, if that is cheaper than moving them (paper 4.2.2, figure 8a).

Design: workers are leased for classes, so where inputs lie must be part of a class: the class of a task with large inputs differs from that of its
function by "locality" in the strategy, the node that has most of them and a rounded size. The functions's template has a variant for each; there
are as many as nodes with inputs, times SIZES. Who weighs moving against waiting is the node's forwarding and the global scheduler.

Inputs on this node count only from HERE_BYTES_MIN on, and once a value of another node was seen: a program on one node has one class a function.

A lease can run many short tasks, one after the other, where their inputs are. So for such a class one more lease is asked for, which may be
anywhere, only if what waits is more work than moving the inputs (`leases_wanted`); a class without inputs asks for as many as it has tasks.

What it does not do: know of copies (only originals count), or choose nodes.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

import msgspec

from shoal.protocol.messages import Stored
from shoal.protocol.strategies import KIND, LOCALITY
from shoal.runtime import outlook
from shoal.runtime.abroad import is_abroad
from shoal.runtime.tasks import PendingTask, SchedulingClass, Template, WorkerLease

if TYPE_CHECKING:
    from shoal.runtime.core import Runtime

MB = 1 << 20
#: what a class says of the size of its inputs: the first that is not exceeded, or the last
SIZES = (MB, 4 * MB, 16 * MB, 64 * MB, 256 * MB)
ABROAD_BYTES_MIN = 900_000  #: less is moved in the time in which another node is asked for a worker
HERE_BYTES_MIN = 4 * MB
MOVED_BYTES_S = 1e9


class Locality:
    """The classes of one process's tasks by the place of their inputs. Written under the reactor's lock."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._met_others = False
        self.enabled = True  #: benchmarks compare

    def choose(self, task: PendingTask) -> None:
        """All inputs of a task are known: give it the template, and so the class, for where they lie. Caller holds the lock."""
        klass = task.template.klass
        if klass is None or klass.strategy.get(KIND) or not self.enabled:
            return
        sizes: dict[bytes, int] = {}
        for value in (task.args, *(entry.value for _, entry in task.deps or ())):
            if type(value) is Stored and value.node:
                sizes[value.node] = sizes.get(value.node, 0) + value.size
        if not sizes:
            return
        node = max(sizes, key=sizes.__getitem__)
        here = self._runtime.node_id
        self._met_others |= node != here
        least = ABROAD_BYTES_MIN if node != here else HERE_BYTES_MIN
        if sizes[node] >= least and self._met_others:
            rounded = next((size for size in SIZES if sizes[node] <= size), SIZES[-1])
            task.template = self._variant(task.template, node, rounded)

    def leases_wanted(self, klass: SchedulingClass) -> int:
        """How many more leases a class with inputs asks for. Caller holds the lock."""
        if not klass.queue:
            return 0
        estimate_s = outlook.estimate_s(klass, perf_counter())
        move_s = max(klass.strategy[LOCALITY].values()) / MOVED_BYTES_S
        waiting = len(klass.queue)
        has = len(klass.leases) + self._runtime.submitter.dialler.grants_under_way(klass.number)
        return max(min(waiting, 1 + int(waiting * estimate_s / move_s)) - has, 0)

    def is_misplaced(self, lease: WorkerLease) -> bool:
        """Whether the worker of a lease is on this node and the inputs of its class are not, or the other way round."""
        if lease.klass is None:
            return False
        abroad = is_abroad(lease.connection.attachment.address)
        return abroad == (self._runtime.node_id in lease.klass.strategy[LOCALITY])

    def _variant(self, template: Template, node: bytes, size: int) -> Template:
        variants = template.variants
        if variants is None:
            variants = template.variants = {}
        found = variants.get((node, size))
        if found is None:
            runtime = self._runtime
            klass = template.klass
            assert klass is not None, "a task has a scheduling class"
            wire = msgspec.structs.replace(template.wire, number=runtime.new_number())
            strategy = {**klass.strategy, LOCALITY: {node: size}}
            there = runtime.submitter.class_of(klass.demand, klass.depth, strategy, klass.environment, klass.name)
            found = Template(wire, template.code, there, template.max_retries, template.retry_exceptions, template.gone)
            found.exported = template.exported
            found.estimate_s = template.estimate_s
            variants[node, size] = found
        return found
