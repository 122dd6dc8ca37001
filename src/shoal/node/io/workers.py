"""Worker processes: asked of the zygote, watched, listened to, ended.

Purpose: `start_workers` becomes registered workers or a reason why not; a worker's end becomes one notice with everything that is known
about it.

Design: a worker exists from the request on. The zygote's answer brings its pid; its `Register` carries the token; either may come first.

    start_workers -> spawn(token) -> SpawnReply(pid): watch, read its pipes ---+--> registered (told to the caller by `claim`)
                                   -> Register(token) -------------------------+
                                   -> dead, or WORKER_START_TIMEOUT_S over: on_start_failed(environment key, reason)

A zygote that dies is replaced and asked again for what it had not answered; one that dies again and again makes requests fail, so that
nobody waits for ever.

What it does not do: decide how many workers there are (`scheduling`), or what their death means (`daemon`).
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from shoal.node.io.logs import STDERR, STDOUT, LogRouter, LogStream
from shoal.node.io.processes import End, Watch, WatchTable, Worker
from shoal.protocol.errors import describe_exit
from shoal.protocol.limits import SHUTDOWN_GRACE_S, WORKER_START_TIMEOUT_S
from shoal.protocol.messages import Shutdown
from shoal.system.process import kill_orphans_of
from shoal.system.start_plan import DaemonStart
from shoal.system.zygote_client import SpawnReply, ZygoteClient, respawn_zygote

if TYPE_CHECKING:
    import asyncio

log = logging.getLogger("shoal.node")

#: so many zygotes may die within ZYGOTE_DEATHS_WITHIN_S before requests fail
ZYGOTE_DEATHS_MAX = 4
ZYGOTE_DEATHS_WITHIN_S = 30.0
#: how long a worker that was asked to leave may take
STOP_GRACE_S = 10 * SHUTDOWN_GRACE_S
#: the same for one that leaves by its own will: what users registered with atexit may take its time
EXIT_GRACE_S = 30.0
TAIL_SHOWN_LINES = 20


class WorkerPool:
    """All worker processes of the node, and the zygote.

    Args:
        on_start_failed: (environment key, reason) for every worker that did not come up.
        on_died: (worker, end) once for every registered worker, after its pipes were read to the end.
    """

    def __init__(
        self,
        start: DaemonStart,
        watches: WatchTable,
        router: LogRouter,
        on_start_failed: Callable[[str, str], None],
        on_died: Callable[[Worker, End], None],
    ) -> None:
        self._start = start
        self._watches = watches
        self._loop: asyncio.AbstractEventLoop = watches.loop
        self._router = router
        self._on_start_failed = on_start_failed
        self._on_died = on_died
        #: every worker that was asked for and is not known to be dead, by token
        self.by_token: dict[int, Worker] = {}
        self._last_token = 0
        self._zygote_deaths: deque[float] = deque()
        self.zygote_pid = start.zygote_pid
        self._zygote_watch: Watch | None = None
        self._logs_dir = os.path.join(start.session_dir, "logs")
        self._oom_kills = oom_kills()
        self._closed = False
        self._adopt_zygote(ZygoteClient(start.zygote_fd), start.zygote_pid)

    # ---------------------------------------------------------------- start

    def start_workers(self, environment_key: str, environment: dict[str, Any], count: int) -> None:
        """Ask for `count` workers that have `environment`."""
        for _ in range(count):
            self._last_token += 1
            worker = Worker(
                os.urandom(16), token=self._last_token, environment_key=environment_key, environment=environment
            )
            self.by_token[worker.token] = worker
            try:
                self._prepare(worker)
                self._spawn(worker)
            except (OSError, ValueError) as error:
                self._loop.call_soon(self._fail_start, worker, f"no worker process could be started: {error}")

    def _prepare(self, worker: Worker) -> None:
        out_read, out_write = os.pipe2(os.O_CLOEXEC)
        try:
            err_read, err_write = os.pipe2(os.O_CLOEXEC)
        except OSError:
            os.close(out_read)
            os.close(out_write)
            raise
        worker.pipe_fds = (out_write, err_write)
        worker.stdout = LogStream(out_read, STDOUT, self._path(worker, "out"), self._router.deliver, worker, self._loop)
        worker.stderr = LogStream(err_read, STDERR, self._path(worker, "err"), self._router.deliver, worker, self._loop)
        worker.start_timer = self._loop.call_later(
            WORKER_START_TIMEOUT_S,
            self._fail_start,
            worker,
            f"a worker process did not register within {WORKER_START_TIMEOUT_S:g} s",
        )

    def _path(self, worker: Worker, kind: str) -> Callable[[], str]:
        return lambda: os.path.join(self._logs_dir, f"worker-{worker.pid or worker.worker_id.hex()[:8]}.{kind}")

    def _spawn(self, worker: Worker) -> None:
        self._zygote.spawn(worker.token, worker.worker_id, worker.environment, *worker.pipe_fds)
        if self._zygote.closed:
            self._replace_zygote()

    def claim(self, token: int, worker_id: bytes) -> Worker | None:
        """The worker that registers with `token`; None for a stranger."""
        worker = self.by_token.get(token)
        if worker is None or worker.registered or worker.worker_id != worker_id:
            return None
        worker.registered = True
        if worker.start_timer is not None:
            worker.start_timer.cancel()
            worker.start_timer = None
        return worker

    # ---------------------------------------------------------------- the zygote

    def _adopt_zygote(self, client: ZygoteClient, pid: int) -> None:
        self._zygote = client
        self.zygote_pid = pid
        self._zygote_watch = self._watches.watch(pid, lambda _end: self._zygote_died(client))
        self._loop.add_reader(client.fileno(), self._read_replies, client)

    def _read_replies(self, client: ZygoteClient) -> None:
        for reply in client.read_replies():
            self._spawned(reply)
        if client.closed:
            self._zygote_died(client)

    def _zygote_died(self, client: ZygoteClient) -> None:
        if client is not self._zygote or self._closed:
            return
        if not client.closed:
            for reply in client.read_replies():
                self._spawned(reply)
        self._replace_zygote()

    def _replace_zygote(self) -> None:
        old = self._zygote
        self._loop.remove_reader(old.fileno())
        pending = list(old.pending)
        old.close()
        if self._zygote_watch is not None:
            self._zygote_watch.kill()  # its socket may have ended before itself
        now = self._loop.time()
        self._zygote_deaths.append(now)
        while self._zygote_deaths[0] < now - ZYGOTE_DEATHS_WITHIN_S:
            self._zygote_deaths.popleft()
        failing = len(self._zygote_deaths) > ZYGOTE_DEATHS_MAX
        log.warning("the zygote died; starting another one for %d workers to come", len(pending))
        try:
            sock, pid = respawn_zygote(self._start)
        except OSError as error:
            log.error("no zygote could be started: %s", error)
            failing = True
        else:
            self._adopt_zygote(ZygoteClient(sock), pid)
        for token in pending:
            worker = self.by_token.get(token)
            if worker is None:
                continue
            if failing:
                self._loop.call_soon(self._fail_start, worker, "the zygote, which starts workers, died again and again")
            elif worker.pipe_fds and not self._zygote.closed:
                self._rename(worker)
                self._zygote.spawn(worker.token, worker.worker_id, worker.environment, *worker.pipe_fds)

    def _rename(self, worker: Worker) -> None:
        """Give a worker that is asked for again another identity: the dead zygote may have forked the first one, which is then refused."""
        del self.by_token[worker.token]
        self._last_token += 1
        worker.token, worker.worker_id = self._last_token, os.urandom(16)
        self.by_token[worker.token] = worker

    def _spawned(self, reply: SpawnReply) -> None:
        worker = self.by_token.get(reply.token)
        if worker is None:  # given up meanwhile
            if reply.pid:
                os.kill(reply.pid, 9)
            return
        self._close_pipes(worker)
        if not reply.pid:
            self._fail_start(worker, f"no worker process could be started: {reply.error}")
            return
        worker.pid = reply.pid
        worker.watch = self._watches.watch(reply.pid, lambda end: self._died(worker, end))

    # ---------------------------------------------------------------- the end

    def stop(self, worker: Worker, reason: str, grace_s: float = STOP_GRACE_S) -> None:
        """Ask a worker to leave, and see that it does."""
        worker.leaving = worker.leaving or reason
        worker.send(Shutdown(reason))
        self.kill_later(worker, grace_s)

    def kill_later(self, worker: Worker, grace_s: float) -> None:
        """Kill a worker that has not ended by itself in `grace_s`."""
        watch = worker.watch
        if watch is not None:
            self._loop.call_later(grace_s, watch.kill)

    def kill(self, worker: Worker, reason: str) -> None:
        """Kill a worker at once; its death is told with `reason`."""
        worker.leaving = reason
        if worker.watch is not None:
            worker.watch.kill()

    def _fail_start(self, worker: Worker, reason: str) -> None:
        """A worker that has not registered is given up."""
        if self.by_token.pop(worker.token, None) is None:
            return
        if worker.watch is not None:
            worker.watch.kill()
        tail = worker.stderr.tail if worker.stderr is not None else []
        self._let_go(worker)
        log.error("%s", reason)
        self._on_start_failed(worker.environment_key, with_tail(reason, tail))

    def _died(self, worker: Worker, end: End) -> None:
        kill_orphans_of(worker.pid)
        for stream in (worker.stdout, worker.stderr):
            if stream is not None:
                stream.drain()
        if not worker.registered:
            self._fail_start(worker, f"a worker process ended before it registered: {describe_exit(end.exit_code)}")
            return
        if end.exit_code == -9 and not worker.leaving:
            kills = oom_kills()
            worker.out_of_memory = kills > self._oom_kills
            self._oom_kills = kills
        del self.by_token[worker.token]
        worker.watch = None
        self._on_died(worker, end)
        self._let_go(worker)

    def _let_go(self, worker: Worker) -> None:
        self._close_pipes(worker)
        if worker.start_timer is not None:
            worker.start_timer.cancel()
            worker.start_timer = None
        for stream in (worker.stdout, worker.stderr):
            if stream is not None:
                stream.close()

    def _close_pipes(self, worker: Worker) -> None:
        for fd in worker.pipe_fds:
            os.close(fd)
        worker.pipe_fds = ()

    def flush_logs(self) -> None:
        """Deliver what stands in the pipes now, also lines that are not complete: the last chance of a job's output."""
        for worker in self.by_token.values():
            for stream in (worker.stdout, worker.stderr):
                if stream is not None:
                    stream.flush()

    def close(self) -> list[int]:
        """The node ends: no zygote is started any more. Returns the pids of all workers."""
        self._closed = True
        if self._zygote_watch is not None:
            self._zygote_watch.cancel()
        self._loop.remove_reader(self._zygote.fileno())
        self._zygote.close()
        return [worker.pid for worker in self.by_token.values() if worker.pid]


def death_text(worker: Worker, end: End) -> str:
    """Why a worker died, as far as anybody knows, for the error that a user reads."""
    if worker.leaving:
        text = worker.leaving
    elif worker.out_of_memory:
        text = "killed by the kernel because memory ran out"
    else:
        text = describe_exit(end.exit_code)
    text = f"worker {worker.pid}: {text}"
    if end.peak_bytes and (worker.out_of_memory or not worker.leaving):
        text += f"; it used up to {end.peak_bytes >> 20} MB of memory"
    if worker.leaving and not end.exit_code:
        return text
    return with_tail(text, worker.stderr.tail if worker.stderr is not None else [])


def with_tail(text: str, tail: list[str]) -> str:
    """`text`, and below it the last lines that the worker wrote to stderr."""
    if not tail:
        return text
    shown = "\n".join(f"    {line}" for line in tail[-TAIL_SHOWN_LINES:])
    return f"{text}\n  last lines of the worker's stderr (also of earlier tasks):\n{shown}"


def oom_kills() -> int:
    """How many processes the kernel has killed for lack of memory, here or in our cgroup; 0 where it does not say."""
    count = 0
    for path in ("/proc/vmstat", "/sys/fs/cgroup/memory.events"):
        try:
            with open(path, encoding="ascii") as file:
                count += sum(int(line.split()[1]) for line in file if line.startswith("oom_kill "))
        except (OSError, ValueError):
            pass
    return count
