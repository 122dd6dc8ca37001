"""Lines of workers whose driver is on another node.

Purpose: what a worker prints reaches the driver of its job, wherever that is.

Design: a job's number begins with the number of its driver's node, which hands the lines on (`JobLines`). It answers JobLinesUnwanted when nobody
there wants them (the driver is gone, or init(log_to_driver=False)): then they stay in this node's files. To a node that is slow to take them at most
LINES_WAITING_MAX messages wait; what comes then is dropped and counted, and the count is told later.

What it does not do: read pipes, or send to drivers of this node (`logs`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.node.io.logs import send_lines
from shoal.protocol.messages import LogLines
from shoal.protocol.node_messages import JobLines, JobLinesUnwanted

if TYPE_CHECKING:
    from shoal.node.io.node_links import NodeLinks
    from shoal.node.io.processes import ProcessTable, Worker

LINES_WAITING_MAX = 1000
UNWANTED_MAX = 1000


class ForeignLogs:
    """Both ends of the way of lines between nodes.

    Args:
        name: what people call this node.
    """

    def __init__(self, links: NodeLinks, table: ProcessTable, name: str) -> None:
        self._links = links
        self._table = table
        self._name = name
        #: jobs whose lines nobody wants, oldest first
        self._unwanted: dict[bytes, None] = {}
        #: lines dropped since the last that were sent, by job
        self._dropped: dict[bytes, int] = {}
        links.handlers[JobLines] = self._on_lines
        links.handlers[JobLinesUnwanted] = self._on_unwanted

    def deliver(self, worker: Worker, name: str, stream: int, lines: list[str]) -> None:
        """A worker of a job that has no driver here has printed `lines`."""
        job_id = worker.job_id
        if not job_id or job_id in self._unwanted:
            return
        node_id = self._links.node_of_number(int.from_bytes(job_id, "big") >> 16)
        if not node_id:
            return
        if self._links.waiting_for(node_id) > LINES_WAITING_MAX:
            self._dropped[job_id] = self._dropped.get(job_id, 0) + len(lines)
            return
        dropped = self._dropped.pop(job_id, 0)
        if dropped:
            note = f"[{dropped} lines of node {self._name} are not shown: they came faster than they could be sent; its log files have them]"
            lines = [note, *lines]
        self._links.send(node_id, JobLines(job_id, worker.pid, name, stream, lines, self._name))

    def _on_lines(self, node_id: bytes, message: JobLines) -> None:
        wanted = False
        for driver in self._table.drivers():
            if driver.job_id == message.job_id and driver.log_to_driver:
                wanted = True
                send_lines(driver, LogLines(message.pid, message.name, message.stream, message.lines, message.node))
        if not wanted:
            self._links.send(node_id, JobLinesUnwanted(message.job_id))

    def _on_unwanted(self, node_id: bytes, message: JobLinesUnwanted) -> None:
        self._unwanted[message.job_id] = None
        if len(self._unwanted) > UNWANTED_MAX:
            del self._unwanted[next(iter(self._unwanted))]
