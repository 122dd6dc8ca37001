"""The GCS server process, as the daemon that started it sees it: when it dies, another one takes its place.

Purpose: the death of the GCS costs a pause of some tenths of a second, and no session.

Design: the process is watched by pidfd; a fresh interpreter is started on the same socket path and the same storage (the daemon has an event loop,
so it must not fork on). One that dies before it answered, or many deaths in a short time, mean that starting it again is no help: then
`on_failed` says so, once. So does the death of one whose storage does not outlive it. One that cannot reach its storage is started again without end:
what runs needs no GCS.

A node that joined a cluster has its GCS elsewhere (`GcsElsewhere`).

What it does not do: connect (`gcs_link`).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable

from shoal.node.io.processes import End, Watch, WatchTable
from shoal.protocol.errors import describe_exit
from shoal.protocol.limits import (
    CONNECT_TIMEOUT_S,
    GCS_AWAY_S,
    GCS_DEATHS_MAX,
    GCS_DEATHS_WITHIN_S,
    GCS_REFUSED_EXIT,
    GCS_STILLBIRTHS_MAX,
    GCS_STORAGE_AWAY_EXIT,
)
from shoal.protocol.storage_names import outlives_server
from shoal.system.gcs_process import respawn_gcs
from shoal.system.start_plan import DaemonStart

log = logging.getLogger("shoal.node")

#: how lines of the GCS server begin in the node's log
GCS_MARK = "shoal:gcs:"
LAST_WORDS_BYTES = 16 << 10


class GcsProcess:
    """A GCS server of a head node. `watch` it once (or `begin` it, a further shard); then it is replaced when it dies.

    Args:
        on_failed: called once, with the reason, when there is no GCS and will be none.
        shard: its number.
        listen_fd: the TCP socket that it and those after it listen on; -1 for none.
    """

    def __init__(
        self,
        start: DaemonStart,
        watches: WatchTable,
        on_failed: Callable[[str], None],
        shard: int = 0,
        listen_fd: int = -1,
    ) -> None:
        self.shard = shard
        self.listen_fd = listen_fd
        self._start = start
        self._watches = watches
        self._loop: asyncio.AbstractEventLoop = watches.loop
        self._on_failed = on_failed
        self.pid = 0 if shard else start.gcs_pid
        self._begun_at = 0.0
        self._watch: Watch | None = None
        self._closed = False
        #: when it died, those within GCS_DEATHS_WITHIN_S
        self._deaths: deque[float] = deque()
        #: deaths since it answered last
        self._stillbirths = 0
        self._ever_answered = False
        self.restarts = 0
        #: how the last one died, and what it had said
        self._death = ""
        self._said = ""
        #: how long the log was when it answered last: what stands before is of former troubles
        self._log_from = 0

    def watch(self) -> None:
        """Begin to watch the process of `self.pid`."""
        self._begun_at = self._loop.time()
        self._watch = self._watches.watch(self.pid, self._died)

    def begin(self) -> None:
        """Start it for the first time.

        Raises:
            OSError: it cannot be started.
        """
        self.pid = respawn_gcs(self._start, self.shard, self.listen_fd, fresh=not self._ever_answered)
        self.watch()

    def answered(self) -> None:
        """It is up: the node is registered there."""
        self._stillbirths = 0
        self._ever_answered = True
        self._death = ""
        self._log_from = log_size(self._start.log_path)

    def explain(self) -> str:
        """What is known of why it does not answer, or died last."""
        said = last_words(self._start.log_path, self._log_from) or self._said
        how = self._death or f"its server (process {self.pid}) runs"
        return f"{how}. It said: {said}" if said else how

    def recent_deaths(self) -> int:
        """How many there were within GCS_DEATHS_WITHIN_S."""
        return sum(at > self._loop.time() - GCS_DEATHS_WITHIN_S for at in self._deaths)

    def moved(self, address: str) -> None:
        """Only the GCS of another node moves."""

    def end(self, reason: str) -> None:
        """It is of no use as it is: end it, so that another one is started."""
        if self._loop.time() - self._begun_at < CONNECT_TIMEOUT_S:
            return  # it is another one by now, which has its time before it
        log.error("the GCS server (process %d) is ended: %s", self.pid, reason)
        if self._watch is not None:
            self._watch.kill()

    def close(self) -> None:
        """The node ends."""
        self._closed = True

    def _died(self, end: End) -> None:
        self._watch = None
        if self._closed:
            return
        which = f"shard {self.shard} of its GCS" if self.shard else "its GCS server"
        how = f"{which} (process {self.pid}) died: {describe_exit(end.exit_code)}"
        self._death = how
        self._said = last_words(self._start.log_path, self._log_from) or self._said
        storage = self._start.options["gcs_storage"]
        if not outlives_server(storage):
            self._fail(f"{how}, and with it the tables that gcs_storage={storage!r} keeps in its memory")
            return
        if end.exit_code == GCS_REFUSED_EXIT:
            self._fail(f"{which} may not begin")
            return
        if end.exit_code == GCS_STORAGE_AWAY_EXIT and self._ever_answered:
            log.warning("%s; starting another one", how)  # it waits for its storage itself, as long as that takes
            self._restart()
            return
        now = self._loop.time()
        self._deaths.append(now)
        while self._deaths[0] < now - GCS_DEATHS_WITHIN_S:
            self._deaths.popleft()
        self._stillbirths += 1
        if self._stillbirths > GCS_STILLBIRTHS_MAX:
            self._fail(f"{how}; it died {self._stillbirths} times without ever answering")
        elif len(self._deaths) > GCS_DEATHS_MAX:
            self._fail(f"{how}; it died {len(self._deaths)} times within {GCS_DEATHS_WITHIN_S:g} s")
        else:
            log.warning("%s; starting another one", how)
            self._restart()

    def _restart(self) -> None:
        try:
            self.begin()
        except OSError as error:
            self._fail(f"its GCS server died and no other could be started: {error}")
            return
        self.restarts += 1

    def _fail(self, reason: str) -> None:
        self._closed = True
        said = last_words(self._start.log_path)
        self._on_failed(f"{reason}. It said: {said}" if said else reason)


class GcsElsewhere:
    """The GCS server of another node, in the place of `GcsProcess`. A node that never belonged to the cluster gives it up after GCS_AWAY_S; for one
    that did `head_watch` says when.

    Args:
        on_failed: called with the reason when it is given up.
    """

    pid = 0
    restarts = 0

    def __init__(self, address: str, loop: asyncio.AbstractEventLoop, on_failed: Callable[[str], None]) -> None:
        self._address = address
        self._loop = loop
        self._on_failed = on_failed
        self._ever_answered = False
        #: what was said of that last
        self._why = ""
        #: when it was first in trouble since it answered last; None while it is not
        self._silent_since: float | None = None

    def watch(self) -> None:
        """There is no process to watch here."""

    def answered(self) -> None:
        """It is up: the node is registered there."""
        if self._silent_since is not None and self._ever_answered:
            log.info("the GCS server at %s is back after %.0f s", self._address, self._loop.time() - self._silent_since)
        self._ever_answered = True
        self._silent_since = None
        self._why = ""

    def moved(self, address: str) -> None:
        """It is another node's now."""
        self._address = address

    def end(self, reason: str) -> None:
        """It is of no use as it is."""
        now = self._loop.time()
        self._why = reason
        if self._silent_since is None:
            self._silent_since = now
            log.warning("the GCS server at %s is away: %s; trying again", self._address, reason)
        elif not self._ever_answered and now - self._silent_since >= GCS_AWAY_S:
            self._on_failed(
                f"the GCS server at {self._address} was away for {now - self._silent_since:.0f} s: {reason}"
            )

    def explain(self) -> str:
        """What is known of why it does not answer."""
        why = self._why or "it was connected until now"
        return f"nobody answers at {self._address} ({why}). `shoal status` on the head's machine may say why"

    def recent_deaths(self) -> int:
        """That is known on its own node."""
        return 0

    def close(self) -> None:
        """The node ends."""


def log_size(log_path: str) -> int:
    """How long the node's log is now."""
    try:
        return os.stat(log_path).st_size
    except OSError:
        return 0


def last_words(log_path: str, since: int = 0) -> str:
    """The last line that a GCS server wrote into the node's log, behind the first `since` bytes; empty if none is found."""
    try:
        with open(log_path, "rb") as log_file:
            log_file.seek(max(since, os.fstat(log_file.fileno()).st_size - LAST_WORDS_BYTES))
            lines = log_file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.removeprefix(GCS_MARK).strip() for line in reversed(lines) if line.startswith(GCS_MARK)), "")
