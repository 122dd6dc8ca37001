"""Who reads the sockets: leader and followers.

Purpose: the thread that waits for a value is the thread that reads the socket on which it comes. No I/O thread stands in the latency path:
a reply costs its reader one poll and one receive (15 us a round trip against 70-90 with a thread between).

Design:

    leader      holds `_lead`; polls epoll (spinning for SPIN_S at most, then blocking), receives, dispatches messages under `lock`.
    followers   other threads that wait: each sleeps on a lock of its own until its waiter is done or it is promoted.
    background  one daemon thread. It ticks every 5 ms while something is going on, and leads only when no user thread did since
                the last tick; when nothing is going on it blocks in epoll as the leader, and hands over when poked through an eventfd.

    wait(waiter):  done? -> return.   lead free? -> lead until done, then promote a follower.   else -> follow.

One lock (`lock`, re-entrant: a user's `__del__` may call the API at any time) protects all tables of the runtime and the out-buffers of all
connections. Whoever holds it may send. Messages to the node daemon are *causal*: they are written before any peer frame (docs/ARCHITECTURE.md,
"Causality"), see `connection.Connection.flush`.

Its measured cost: 15 us a round trip spinning, 1 us to lead when data is there.

What it does not do: know any message. Handlers are given by type (`handlers`); a connection's end is told to its `on_closed`.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any

from shoal.protocol.limits import BACKGROUND_TICK_S, SPIN_S
from shoal.protocol.messages import ToRuntime
from shoal.runtime.connection import Connection as Connection
from shoal.runtime.spinning import Spinning
from shoal.wire.framing import FrameDecoder, ProtocolError

if TYPE_CHECKING:
    from shoal.store.page import ProcessPage

PARK_AFTER_TICKS = 20
QUIET_TICK_S = 0.5  #: between ticks while a thread leads and nothing needs them
LOCK_LOOK_S = 0.01  #: a leader that waits for the lock looks so often whether it must give up the lead
WRITTEN_LOOK_S = 0.01  #: a process that exits looks so often whether all is written
STOP_PATIENCE_S = 1.0  #: for the reading thread to leave; if it does not, two file descriptors stay open

Handler = Callable[["Connection", Any], None]


class Waiter:
    """One thread's wait for something: `pending` things are still to come, then it is done."""

    __slots__ = ("done", "fail_fast", "pending", "reader", "sleep")

    def __init__(self, pending: int = 1, fail_fast: bool = False) -> None:
        self.pending = pending
        self.fail_fast = fail_fast  #: done at the first failed object
        self.done = pending <= 0
        #: the private lock a follower sleeps on; None while its thread leads or has not slept.
        self.sleep: threading.Lock | None = None
        self.reader: Reactor | None = None  #: whose sockets its thread reads now, as the leader

    def arrived(self) -> None:
        """One of the pending things came."""
        self.pending -= 1
        if self.pending <= 0:
            self.finish()

    def finish(self) -> None:
        """No more waiting, whatever is pending."""
        self.done = True
        wake(self)


def wake(waiter: Waiter) -> None:
    """End a follower's sleep, if it sleeps, or a leader's, if another thread than the leader says so."""
    sleep = waiter.sleep
    if sleep is None:
        reader = waiter.reader
        if reader is not None and not reader._lead._is_owned():  # type: ignore[attr-defined]
            reader.poke()
    else:
        waiter.sleep = None
        try:
            sleep.release()
        except RuntimeError:
            pass  # two wakers met; the sleeper is awake


class Reactor:
    """Reads all sockets of one process; see the module's page."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.epoll = select.epoll()
        self.connections: dict[int, Connection] = {}
        self.handlers: dict[type, Handler] = {}
        self.dirty: list[Connection] = []
        #: calls into user code (futures' callbacks), made by the reading thread after it let go of the lock
        self.later: deque[Callable[[], None]] = deque()
        self.causal: Connection | None = None
        #: gathered holds and releases stand to be written to the daemon: `write_notes` turns them into messages
        self.has_notes = False
        self.write_notes: Callable[[], None] = lambda: None
        #: messages to the daemon that hold objects of other nodes: written, and known there; whether the numbers differ
        self.holds_written = 0
        self.holds_confirmed = 0
        self.unconfirmed = False
        #: connections with something that waits for that, in order
        self.withheld: dict[Connection, None] = {}
        self._confirmation: list[Waiter] = []
        #: of an actor that could be restarted elsewhere: the page that says until when it may speak
        self.leash: ProcessPage | None = None
        #: connections that wait until it may speak again, and other things to be done then
        self.silenced: dict[Connection, None] = {}
        self._silenced_steps: list[Callable[[], None]] = []
        #: called under the lock before the leader or a follower sleeps, and at every background tick
        self.before_sleep: list[Callable[[], None]] = []
        self.on_tick: list[Callable[[float], None]] = []
        #: whether something is going on that the background must tend (replies expected, leases held)
        self.is_active: Callable[[], bool] = lambda: False
        #: whether it can do without ticks, as long as somebody leads: a thousand tasks that wait for their children must cost nothing
        self.is_quiet: Callable[[], bool] = lambda: False
        #: ends the process after a fault, where that helps (a worker's tasks run again elsewhere)
        self.exit_on_fault: Callable[[], None] = lambda: None
        self._lead = threading.RLock()
        self._claimed = False  #: an event loop's thread leads for good
        self._inside = 0  #: waits begun under the lock, by finalizers: the leader makes room for them
        self._followers: deque[Waiter] = deque()
        self._decoders: list[FrameDecoder[Any]] = []  #: free ones
        self._listeners: dict[int, Callable[[], None]] = {}
        self._poke_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.epoll.register(self._poke_fd, select.EPOLLIN)
        self._leads = 0  #: how often a user thread led: the background compares it between ticks
        self._background: threading.Thread | None = None
        self._background_blocked = False  #: the background leads, blocked in epoll: whoever wants to lead pokes
        self._parked = False  #: the background sleeps without a tick; `attend` wakes it
        self._background_idle = False  #: it is blocked without a time limit, as nothing is going on
        self._tick_sleep = threading.Lock()
        self._tick_sleep.acquire()
        self._attended = False  #: somebody called `attend` since the last tick began
        self._async_waits = 0
        self._spinning = Spinning()
        self.stopping = False
        self.pid = os.getpid()

    # ------------------------------------------------------------ connections

    def add(self, sock: socket.socket, on_closed: Callable[[Connection], None], causal: bool = False) -> Connection:
        """Watch a connected socket."""
        sock.setblocking(False)
        connection = Connection(self, sock, on_closed, causal)
        self.connections[connection.fd] = connection
        if causal:
            self.causal = connection
        self.epoll.register(connection.fd, select.EPOLLIN)
        return connection

    def add_listener(self, fd: int, on_ready: Callable[[], None], events: int = select.EPOLLIN) -> None:
        """Watch a socket that is no connection: one that listens, or is being connected. `on_ready` is called under the lock."""
        self._listeners[fd] = on_ready
        self.epoll.register(fd, events)

    def remove_listener(self, fd: int) -> None:
        """The counterpart of `add_listener`, before the socket is closed. Caller holds the lock."""
        del self._listeners[fd]
        self.epoll.unregister(fd)

    def watch(self, connection: Connection) -> None:
        """Watch for room to write only while a connection is stalled."""
        if not connection.closed:
            self.epoll.modify(connection.fd, select.EPOLLIN | select.EPOLLOUT if connection.stalled else select.EPOLLIN)

    def close(self, connection: Connection) -> None:
        """Forget a connection and close its socket; `on_closed` is not called."""
        if connection.closed:
            return
        connection.closed = True
        connection.out.clear()
        self.withheld.pop(connection, None)
        self.silenced.pop(connection, None)
        self.connections.pop(connection.fd, None)
        try:
            self.epoll.unregister(connection.fd)
        except (OSError, ValueError):
            pass
        connection.sock.close()
        if self.causal is connection:
            self.causal = None

    # ------------------------------------------------------------ holds on other nodes

    def await_confirmation(self) -> None:
        """A hold on objects of another node was written: `withholds` counts from now on. Caller holds the lock."""
        self.holds_written += 1
        self.unconfirmed = True

    def on_holds_confirmed(self, count: int) -> None:
        """The first `count` of them are known where they belong. Caller holds the lock."""
        self.holds_confirmed = count
        self.unconfirmed = count < self.holds_written
        withheld, self.withheld = self.withheld, {}
        for connection in withheld:
            if self.unconfirmed:
                connection._flush_confirmed()
            else:
                connection.marks = None
                connection.flush()
        if not self.unconfirmed:
            waiting, self._confirmation = self._confirmation, []
            for waiter in waiting:
                waiter.finish()

    def wait_confirmed(self, timeout_s: float) -> None:
        """Wait until nothing is withheld, at most so long."""
        with self.lock:
            if self.has_notes and self.causal is not None:
                self.causal.flush()
            if not self.unconfirmed or self.causal is None:
                return
            waiter = Waiter()
            self._confirmation.append(waiter)
        self.wait(waiter, perf_counter() + timeout_s)

    def on_may_answer(self) -> None:
        """This actor is the one that lives. Caller holds the lock."""
        steps, self._silenced_steps = self._silenced_steps, []
        for step in steps:
            self.unless_silenced(step)
        silenced, self.silenced = self.silenced, {}
        for connection in silenced:
            connection.flush()

    @property
    def is_silenced(self) -> bool:
        """Whether this is an actor that may live elsewhere by now: nothing that it says may leave."""
        return self.leash is not None and self.leash.is_silenced()

    def unless_silenced(self, step: Callable[[], None]) -> None:
        """Do something that answers others by another way than a connection; later, when this process is silenced. Caller holds the lock."""
        if self.is_silenced:
            self._silenced_steps.append(step)
        else:
            step()

    # ------------------------------------------------------------ waiting

    def wait(self, waiter: Waiter, deadline: float | None = None) -> bool:
        """Wait until `waiter` is done or the clock (perf_counter) reaches `deadline`; returns whether it is done."""
        lead = self._lead
        leads_already: bool = lead._is_owned()  # type: ignore[attr-defined]  # an event loop's thread, or a callback's
        if not leads_already and self.lock._is_owned():  # type: ignore[attr-defined]
            return self._wait_inside(waiter, deadline)
        try:
            while not (waiter.done or self.stopping):  # once the session is over nothing is read any more
                if deadline is not None and perf_counter() >= deadline:
                    break
                if self._inside and not leads_already:
                    with self.lock:
                        pass  # it is not free before that wait has ended
                try:
                    if leads_already or lead.acquire(False):
                        self._leads += 1
                        waiter.reader = self  # before the look at `done` below
                        if not waiter.done:
                            self._lead_until(waiter, deadline)
                    else:
                        self._follow(waiter, deadline)
                finally:
                    # An interrupt may strike between acquiring and here: ownership, not control flow, decides.
                    if not leads_already and lead._is_owned():  # type: ignore[attr-defined]
                        lead.release()
                        self._leave()
        except BaseException:
            if not leads_already and lead._is_owned():  # type: ignore[attr-defined]
                lead.release()  # the interrupt struck in the lines above
            self._leave()
            raise
        if self._followers:
            self._leave()  # woken to lead, but done or out of time: somebody else must
        return waiter.done

    def _wait_inside(self, waiter: Waiter, deadline: float | None) -> bool:
        """Wait in a thread that holds the lock: a finalizer of the user's, which a collection called in the midst of the runtime's work.

        The leader needs the lock to go on, so it must give up the lead, and this thread reads.

        Raises:
            RuntimeError: an event loop leads for good.
        """
        if self._claimed and not waiter.done:
            raise RuntimeError(
                "shoal cannot wait here: a finalizer (__del__) was called by another thread of an asyncio actor in the midst "
                "of a call of shoal. Do not call shoal.get or shoal.wait in finalizers"
            )
        self._inside += 1
        try:
            self.poke()
            if self._lead.acquire(True, -1.0 if deadline is None else max(0.0, deadline - perf_counter())):
                try:
                    waiter.reader = self
                    while not (waiter.done or self.stopping) and (deadline is None or perf_counter() < deadline):
                        self._lead_until(waiter, deadline)
                finally:
                    self._lead.release()
        finally:
            self._inside -= 1
        self._leave()
        return waiter.done

    def _leave(self) -> None:
        """Leadership was given up: see that somebody reads on."""
        if self._followers:
            if self._lead_is_free():
                self._promote()
        elif self._parked:
            self.attend()
        elif self._async_waits and not self._claimed:
            self._end_tick_sleep()

    def _follow(self, waiter: Waiter, deadline: float | None) -> None:
        """Sleep until done or promoted."""
        for callback in self.before_sleep:
            callback()
        self.flush_dirty()
        sleep = threading.Lock()
        sleep.acquire()
        waiter.sleep = sleep
        self._followers.append(waiter)
        if self._background_blocked:
            self.poke()
        try:
            if not (waiter.done or self.stopping) and not self._lead_is_free():
                sleep.acquire(True, -1.0 if deadline is None else max(0.0, deadline - perf_counter()))
        finally:
            waiter.sleep = None
            try:
                self._followers.remove(waiter)
            except ValueError:
                pass

    def claim_lead(self) -> None:
        """Make this thread the leader for good: an event loop runs on it and reads with `poll_once`."""
        self._claimed = True
        self.attend()
        self._lead.acquire()

    def release_lead(self) -> None:
        """The counterpart of `claim_lead`."""
        self._claimed = False
        self._lead.release()
        self._leave()

    def _lead_is_free(self) -> bool:
        lead = self._lead
        if self._claimed or lead._is_owned():  # type: ignore[attr-defined]
            return False
        try:
            return lead.acquire(False)
        finally:
            if lead._is_owned():  # type: ignore[attr-defined]
                lead.release()

    def _promote(self) -> None:
        """Wake one follower so that it leads."""
        try:
            waiter = self._followers.popleft()
        except IndexError:
            return
        wake(waiter)

    def _lead_until(self, waiter: Waiter, deadline: float | None) -> None:
        """Lead: spin, then block, until the waiter is done or the deadline is reached. Hot: 1 us when data is there."""
        if self.dirty:
            self.flush_dirty()
        poll = self.epoll.poll
        spinning = self._spinning
        began = perf_counter()
        spins = spinning.spins
        spin_until = began + SPIN_S if spins else began
        slept = False
        while True:
            events = poll(0)
            now = perf_counter()
            if not events:
                if deadline is not None and now >= deadline:
                    return
                if now < spin_until:
                    continue
                slept = True
                for callback in self.before_sleep:
                    callback()
                if waiter.done:
                    return
                if self.dirty:
                    self.flush_dirty()
                if self.stopping:
                    return  # the poke of `stop` may have been read by the leader before
                events = poll(-1 if deadline is None else max(0.0, deadline - now))
                now = perf_counter()
            waited_s = now - began
            if spins == spinning.spins:
                spinning.waited(waited_s, slept and spins)
            if events:
                self._dispatch(events)
            if waiter.done or self._inside or self.stopping:
                return
            began = perf_counter()
            spins = spinning.spins and not (slept and waited_s > SPIN_S)  # events that take long are slept for
            spin_until = began + SPIN_S if spins else began
            slept = False

    def poll_once(self) -> None:
        """Read what has arrived, if no other thread leads; never blocks. For threads that submit or execute for long."""
        lead = self._lead
        leads_already: bool = lead._is_owned()  # type: ignore[attr-defined]
        self._leads += 1
        try:
            if (leads_already or lead.acquire(False)) and not self.stopping:
                if self.dirty:
                    self.flush_dirty()
                events = self.epoll.poll(0)
                if events:
                    self._dispatch(events)
        finally:
            if not leads_already and lead._is_owned():  # type: ignore[attr-defined]
                lead.release()
                self._leave()

    # ------------------------------------------------------------ reading

    def _dispatch(self, events: list[tuple[int, int]]) -> None:
        connections = self.connections
        lock = self.lock
        while not lock.acquire(True, LOCK_LOOK_S):
            if self._inside:
                return  # its holder waits for what is to be read: `epoll` says it again to the next leader
        try:
            for fd, mask in events:
                connection = connections.get(fd)
                if connection is not None:
                    if mask & select.EPOLLOUT:
                        connection.flush()
                    if mask & ~select.EPOLLOUT:
                        self.read(connection)
                elif fd == self._poke_fd:
                    try:
                        os.eventfd_read(fd)
                    except BlockingIOError:
                        pass
                else:
                    listener = self._listeners.get(fd)
                    if listener is not None:
                        listener()
            if self.dirty:
                self.flush_dirty()
        finally:
            lock.release()
        if self.later:
            self.run_later()

    def run_later(self) -> None:
        """Make the calls into user code that were put off while the lock was held."""
        while self.later:
            try:
                call = self.later.popleft()
            except IndexError:
                return
            try:
                call()
            except Exception:  # not the fault of the thread that happens to read: it must not lose its wait, or the background its life
                sys.excepthook(*sys.exc_info())

    def read(self, connection: Connection) -> None:
        """Receive once and handle what is complete. Caller leads (or is single-threaded yet) and holds the lock."""
        handlers = self.handlers
        decoder = connection.decoder
        if decoder is None:
            spare = self._decoders
            decoder = connection.decoder = spare.pop() if spare else FrameDecoder(ToRuntime)
        try:
            count = connection.sock.recv_into(decoder.writable())
        except BlockingIOError:
            self._take_back(connection, decoder)
            return
        except OSError:
            count = 0
        if count == 0:
            self._ended(connection)
            return
        try:
            for message in decoder.received(count):
                handlers[type(message)](connection, message)
        except ProtocolError:
            self._ended(connection)
            return
        except Exception:
            self._on_fault(connection)
            return
        self._take_back(connection, decoder)

    def _on_fault(self, connection: Connection) -> None:
        """A message was handled by half, which only a mistake in Shoal can bring about. Whoever waits for the rest of it must not wait for ever:
        a worker ends, so that its tasks run elsewhere; any other process gives up who sent it, as if it had died."""
        sys.stderr.write(
            f"shoal: process {os.getpid()} could not handle a message; this is a mistake in shoal, please report it\n"
        )
        sys.excepthook(*sys.exc_info())
        self.exit_on_fault()
        self._ended(connection)

    def _take_back(self, connection: Connection, decoder: FrameDecoder[Any]) -> None:
        if decoder.is_empty() and connection.decoder is decoder:
            connection.decoder = None
            self._decoders.append(decoder)

    def drain(self, connection: Connection) -> None:
        """Receive and handle until nothing is left to read."""
        before = -1
        while not connection.closed and before != 0:
            before = _bytes_waiting(connection.sock)
            if before:
                self.read(connection)

    def _ended(self, connection: Connection) -> None:
        if not connection.closed:
            self.close(connection)
            connection.on_closed(connection)

    def flush_dirty(self) -> None:
        """Write all out-buffers; those to the daemon first."""
        with self.lock:
            dirty, self.dirty = self.dirty, []
            if self.causal is not None and (self.causal.out or self.has_notes):
                self.causal.flush()
            for connection in dirty:
                connection.dirty = False
                if connection.out and not connection.stalled:
                    connection.flush()

    def wait_written(self, timeout_s: float) -> None:
        """Wait until the kernel has taken everything that was sent, at most so long: what still stands in a buffer when a process exits is lost."""
        deadline = perf_counter() + timeout_s
        while not self.stopping:
            self.flush_dirty()
            with self.lock:
                unwritten = any(connection.out for connection in self.connections.values())
            now = perf_counter()
            if not unwritten or now >= deadline:
                return
            self.wait(Waiter(), min(deadline, now + WRITTEN_LOOK_S))

    # ------------------------------------------------------------ background

    def start_background(self) -> None:
        """Start the thread that reads when nobody waits."""
        self._background = threading.Thread(target=self._run_background, name="shoal-background", daemon=True)
        self._background.start()

    def poke(self) -> None:
        """Make a leader blocked in epoll look around; cheap, safe in finalizers."""
        try:
            os.eventfd_write(self._poke_fd, 1)
        except (BlockingIOError, OSError):
            pass

    def attend(self) -> None:
        """Something was begun that nobody waits for: the background must wake from its idle sleep soon."""
        if self._attended:
            return  # it was woken, and has not ticked since
        self._attended = True
        if self._parked:
            self._end_tick_sleep()
        elif self._background_idle:
            self.poke()

    def _end_tick_sleep(self) -> None:
        try:
            self._tick_sleep.release()
        except RuntimeError:
            pass  # it is awake

    @property
    def awaits(self) -> int:
        """How many coroutines and futures wait."""
        return self._async_waits

    def async_wait_began(self) -> bool:
        """Somebody awaits on an event loop: the background leads at once and stays. Returns whether nobody did before."""
        with self.lock:
            self._async_waits += 1
            first = self._async_waits == 1
        if first:
            self._end_tick_sleep()
            self.attend()
        return first

    def async_wait_ended(self) -> None:
        """The counterpart of `async_wait_began`."""
        with self.lock:
            self._async_waits -= 1

    def _run_background(self) -> None:
        while not self.stopping:
            try:
                self._tend()
                return
            except Exception:
                if self.stopping:
                    return
                # Our own bug. Ticks, pushes and futures depend on this thread, so it says so and goes on.
                print("internal error in Shoal's background thread; please report it:", file=sys.stderr)
                traceback.print_exc()

    def _tend(self) -> None:
        """Tick and read until the reactor stops."""
        leads_before = -1
        idle_ticks = 0
        while not self.stopping:
            awaited = self._async_waits > 0 and not self._claimed  # a loop that reads by itself needs no background
            if not awaited:
                self._tick_sleep.acquire(True, BACKGROUND_TICK_S)
            if self.stopping:
                return
            self._tick()
            if awaited:
                idle_ticks = 0
            elif not self.is_active():
                idle_ticks += 1
            elif self._leads == leads_before and self.is_quiet():
                idle_ticks = min(idle_ticks + 1, PARK_AFTER_TICKS)
                if idle_ticks == PARK_AFTER_TICKS and not self._lead_is_free():
                    self._park(QUIET_TICK_S)
                    leads_before = self._leads
                    continue
            else:
                idle_ticks = 0
            if self._leads != leads_before and not awaited and idle_ticks < PARK_AFTER_TICKS:
                leads_before = self._leads  # a user thread reads: stay out of its way
            elif not self._claimed and not self._inside and self._lead.acquire(False):
                try:
                    self._lead_in_background()
                finally:
                    self._lead.release()
                if self._followers:
                    self._promote()
                    if awaited:
                        self._tick_sleep.acquire(
                            True, BACKGROUND_TICK_S
                        )  # else it leads again before that thread has woken
                leads_before = self._leads
            elif idle_ticks >= PARK_AFTER_TICKS:
                self._park(QUIET_TICK_S if self.has_notes or self.is_active() else -1)
                leads_before = self._leads
                idle_ticks = 0
            elif awaited:
                self._tick_sleep.acquire(True, BACKGROUND_TICK_S)  # a user thread leads; `_leave` says when it stops

    def _park(self, timeout_s: float = -1) -> None:
        """Somebody else leads and nothing goes on: sleep until `attend`."""
        self._parked = True
        if not self._attended and not self._lead_is_free():
            self._tick_sleep.acquire(True, timeout_s)
        self._parked = False

    def _tick(self) -> None:
        now = perf_counter()
        self._attended = False  # first: what is begun from now on asks for another tick
        with self.lock:
            for callback in self.on_tick:
                callback(now)
            if self.dirty or self.has_notes:
                self.flush_dirty()
        if self.later:
            self.run_later()

    def _lead_in_background(self) -> None:
        """Lead until a user thread wants to, ticking while something is going on."""
        last_tick = perf_counter()
        leads = self._leads
        while not self._followers and not self.stopping and not self._claimed and not self._inside:
            self._background_blocked = True
            try:
                if self._followers or self._claimed:
                    return
                self._background_idle = True  # before looking, so that whoever begins something now pokes
                if self._attended or self.has_notes or self.is_active():
                    self._background_idle = False  # what was read last may be all that was to come, and have left notes
                events = self.epoll.poll(-1 if self._background_idle else BACKGROUND_TICK_S)
            finally:
                self._background_blocked = self._background_idle = False
            if events:
                self._dispatch(events)
            if self._leads != leads:
                return  # a user thread looks at the sockets by itself
            now = perf_counter()
            if now - last_tick >= BACKGROUND_TICK_S:
                last_tick = now
                self._tick()

    def stop(self) -> None:
        """End the background thread and close everything. Idempotent."""
        self.stopping = True
        self.poke()
        self._end_tick_sleep()
        thread = self._background
        if thread is not None and thread is not threading.current_thread() and self.pid == os.getpid():
            thread.join(1.0)
        for connection in list(self.connections.values()):
            self.close(connection)
        while self._followers:
            self._promote()
        # A thread that sleeps in epoll is woken by the poke, but would sleep on for ever if the eventfd were closed before it has looked.
        if self._lead.acquire(True, STOP_PATIENCE_S):
            try:
                self.epoll.close()
                os.close(self._poke_fd)
            finally:
                self._lead.release()


def _bytes_waiting(sock: socket.socket) -> int:
    import fcntl
    import termios

    return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.FIONREAD, b"\0\0\0\0"), "little")
