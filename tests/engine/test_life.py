"""The life of a session: whatever ends it, nothing is left, and nobody waits for ever."""

from __future__ import annotations

import os
import signal
import time

import pytest
from tests.engine.driver_process import Driver, run

#: a session that is in the middle of everything: running tasks, queued ones, actors, their children, stored objects
BUSY = """
session()
actors = [Actor.remote() for _ in range(3)]
children = shoal.get([actor.child.remote() for actor in actors] + [child.remote()], timeout=60)
stored = shoal.put(bytes(1 << 20))
running = [slow.remote(100) for _ in range(6)] + [actors[0].slow.remote(100)]
print("READY", *children, flush=True)
time.sleep(0.2)
"""

ENDS = {
    "normal": ("", None),
    "shutdown": ("shoal.shutdown()", None),
    "exception": ("raise ValueError('mine')", None),
    "sys.exit": ("sys.exit(3)", None),
    "os._exit": ("os._exit(4)", None),
    "exception in get": ("shoal.get(slow.options(num_cpus=0).remote('x'))", None),
    "Ctrl-C in get": ("shoal.get(running)", signal.SIGINT),
    "Ctrl-C": ("time.sleep(100)", signal.SIGINT),
    "SIGTERM": ("shoal.get(running)", signal.SIGTERM),
    "SIGKILL": ("shoal.get(running)", signal.SIGKILL),
    "SIGSEGV": ("shoal.get(running)", signal.SIGSEGV),
}


@pytest.mark.parametrize("end", ENDS)
def test_nothing_is_left_whatever_ends_the_driver(end: str) -> None:
    script, number = ENDS[end]
    with Driver(BUSY + script) as driver:
        driver.wait_line("READY")
        if number is not None:
            time.sleep(0.3)
            os.kill(driver.process.pid, number)
        driver.finish()
        assert driver.left_behind() == []


def test_the_session_survives_the_zygote() -> None:
    run("""
session()
shoal.get(one.remote())
os.kill(role_pid("zygote"), signal.SIGKILL)
actors = [Actor.remote() for _ in range(3)]
assert len(set(shoal.get([actor.pid.remote() for actor in actors], timeout=60))) == 3
assert shoal.get([one.remote() for _ in range(100)], timeout=60) == [1] * 100
assert role_pid("zygote")
""")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_the_daemon_dies(number: int) -> None:
    out, _ = run(
        BUSY
        + f"""
threading.Timer(0.2, os.kill, (daemon_pid(), {int(number)})).start()
begun = time.perf_counter()
for ref in (running[0], running[-1], stored):
    try:
        shoal.get(ref, timeout=60)
    except shoal.exceptions.NodeDaemonDiedError as error:
        message = str(error)
        assert "shoal.init()" in message and "killed by SIG" in message, message
assert message
attempts = [one.remote, lambda: Actor.remote().pid.remote(), actors[0].pid.remote]
attempts += [lambda: shoal.put(bytes(1 << 20)), lambda: shoal.get_actor("x"), shoal.nodes]
for attempt in attempts:
    try:
        shoal.get(attempt(), timeout=60)
    except shoal.exceptions.NodeDaemonDiedError:
        pass
    else:
        raise AssertionError(attempt)
assert time.perf_counter() - begun < 60
# Nothing of the old session stays even while the driver lives.
while any(os.path.exists(f"/proc/{{pid}}") for pid in children):
    assert time.perf_counter() - begun < 80, [pid for pid in children if os.path.exists(f"/proc/{{pid}}")]
    time.sleep(0.02)
shoal.shutdown()
session()
assert shoal.get(one.remote(), timeout=60) == 1
print("AGAIN")
"""
    )
    assert "AGAIN" in out


def test_the_gcs_server_dies() -> None:
    """The session goes on with another one, or ends with an error that says why; nobody waits for ever."""
    run(
        BUSY
        + """
threading.Timer(0.2, os.kill, (role_pid("gcs"), signal.SIGKILL)).start()
begun = time.perf_counter()
try:
    shoal.get(running[0], timeout=2)
except shoal.exceptions.GetTimeoutError:
    assert shoal.get(actors[1].pid.remote(), timeout=60) > 0
    assert shoal.get(Actor.remote().pid.remote(), timeout=60) > 0
except shoal.exceptions.NodeDaemonDiedError as error:
    assert "GCS" in str(error), error
shoal.shutdown()
session()
assert shoal.get(one.remote(), timeout=60) == 1
"""
    )


@pytest.mark.parametrize("kind", ["task", "actor"])
@pytest.mark.parametrize("how", ["os._exit", "kill"])
def test_children_of_a_worker_go_with_it(kind: str, how: str) -> None:
    run(f"""
session()
@shoal.remote(max_retries=0)
def parent(how):
    print("CHILD", subprocess.Popen(["sleep", "100"]).pid, flush=True)
    os._exit(1) if how == "os._exit" else os.kill(os.getpid(), signal.SIGKILL)
@shoal.remote
class Parent:
    parent = staticmethod(parent._function if hasattr(parent, "_function") else None)
    def go(self, how):
        print("CHILD", subprocess.Popen(["sleep", "100"]).pid, flush=True)
        os._exit(1) if how == "os._exit" else os.kill(os.getpid(), signal.SIGKILL)
def sleeping():
    mark = os.environ["SHOAL_TEST_MARK"].encode()
    found = []
    for name in os.listdir("/proc"):
        try:
            if open(f"/proc/{{name}}/cmdline", "rb").read().startswith(b"sleep") and mark in open(f"/proc/{{name}}/environ", "rb").read():
                found.append(name)
        except OSError:
            pass
    return found
try:
    shoal.get(parent.remote("{how}") if "{kind}" == "task" else Parent.remote().go.remote("{how}"), timeout=60)
except (shoal.exceptions.WorkerCrashedError, shoal.exceptions.ActorDiedError):
    pass
else:
    raise AssertionError
begun = time.perf_counter()
while sleeping():
    assert time.perf_counter() - begun < 30
    time.sleep(0.01)
""")


def test_shutdown_is_quick_with_many_actors() -> None:
    out, _ = run("""
session()
actors = [Actor.remote() for _ in range(50)]
shoal.get([actor.pid.remote() for actor in actors], timeout=60)
begun = time.perf_counter()
shoal.shutdown()
print("TOOK", time.perf_counter() - begun)
""")
    assert float(out.split("TOOK")[1]) < 5  # 0.2 on an idle machine


def test_many_sessions_leak_nothing_in_the_driver() -> None:
    run(
        """
def census():
    return len(os.listdir("/proc/self/fd")), threading.active_count(), len(os.listdir("/proc/self/task"))
for turn in range(8):
    session(num_cpus=1)
    assert shoal.get(one.remote(), timeout=60) == 1
    shoal.shutdown()
    if turn == 1:
        before = census()
assert census() == before, (before, census(), os.listdir("/proc/self/fd"))
""",
        timeout_s=90,
    )


def test_two_sessions_at_once() -> None:
    with Driver("session(); print('PID', shoal.get(pid.remote()), flush=True); time.sleep(100)") as other:
        other.wait_line("PID")
        run("session(); assert shoal.get([one.remote() for _ in range(100)], timeout=60) == [1] * 100")
        assert other.folder is not None and os.path.exists(other.folder)
        other.process.kill()
        other.finish()
        assert other.left_behind() == []


def test_a_forked_driver_is_told_and_disturbs_nothing() -> None:
    run("""
import multiprocessing
session()
ref = shoal.put(bytes(1 << 20))
actor = Actor.remote()
def in_fork(pipe):
    try:
        shoal.get(ref)
    except BaseException as error:
        pipe.send((type(error).__name__, str(error)))
    try:
        one.remote()
    except BaseException as error:
        pipe.send((type(error).__name__, str(error)))
here, there = multiprocessing.Pipe()
process = multiprocessing.get_context("fork").Process(target=in_fork, args=(there,))
process.start()
for _ in range(2):
    assert here.poll(60), "the fork hangs"
    kind, text = here.recv()
    assert kind == "RuntimeError" and "fork" in text, (kind, text)
process.join(60)
assert process.exitcode == 0
# The plain fork, which runs atexit and finalizers of the copy.
child = os.fork()
if child == 0:
    del ref, actor
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
assert len(shoal.get(ref, timeout=60)) == 1 << 20
assert shoal.get(actor.pid.remote(), timeout=60) > 0
assert shoal.get([one.remote() for _ in range(10)], timeout=60) == [1] * 10
""")


def test_a_fork_may_begin_a_session_of_its_own() -> None:
    run("""
session()
shoal.get(one.remote())
child = os.fork()
if child == 0:
    shoal.init(num_cpus=1)
    assert shoal.get(one.remote(), timeout=60) == 1
    shoal.shutdown()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert shoal.get(one.remote(), timeout=60) == 1
""")


def test_what_a_chain_of_tasks_waits_for_is_explained() -> None:
    run(
        """
session(num_cpus=2, resources={"special": 1})
@shoal.remote(num_cpus=0, resources={"special": 1})
def holder(seconds):
    time.sleep(seconds)
@shoal.remote
def after(value):
    pass
running = holder.remote(100)
while shoal.available_resources().get("special"):
    time.sleep(0.01)
from tests.engine.explanations import comes_to_say
text = str(comes_to_say(after.remote(after.remote(holder.remote(0))), "holder waits for a worker.*special"))
assert text.count("after waits for 1 of its arguments") == 2, text
"""
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_an_end_at_any_moment_of_the_start(number: int) -> None:
    """Also a half-started node goes when its starter does."""
    delays_s = {
        signal.SIGINT: (0.0, 0.08, 0.2, 0.3),
        signal.SIGKILL: (0.02, 0.05, 0.12, 0.16, 0.25),
        signal.SIGTERM: (0.0, 0.05, 0.16, 0.25),
    }
    for delay_s in delays_s[signal.Signals(number)]:
        with Driver('print("BEGIN", flush=True)\nsession()\nshoal.get(slow.remote(100))\n') as driver:
            driver.wait_line("BEGIN")
            time.sleep(delay_s)
            os.kill(driver.process.pid, number)
            driver.finish()
            assert driver.left_behind() == [], delay_s


def test_ctrl_c_at_the_end_of_the_program_does_not_leave_it_half_done() -> None:
    script = """
session()
from shoal.runtime import core
goodbye = core.Runtime.say_goodbye
def storm():
    while core.current_or_none() is not None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.001)
def say_goodbye(runtime):
    threading.Thread(target=storm).start()
    goodbye(runtime)
core.Runtime.say_goodbye = say_goodbye
running = slow.remote(100)
os.kill(os.getpid(), signal.SIGINT)
shoal.get(running)
"""
    with Driver(script) as driver:
        code, _, err = driver.finish()
        assert code == -signal.SIGINT and err.count("Traceback") == 1 and "ignored" not in err, err
        assert driver.left_behind() == []


def test_threads_that_wait_or_submit_at_shutdown_are_told() -> None:
    run(
        """
session()
told = []
def waits():
    try:
        shoal.get(slow.remote(100))
    except BaseException as error:
        told.append(error)
def waits_for_some():
    try:
        shoal.wait([slow.remote(100)])
        told.append(None)
    except BaseException as error:
        told.append(error)
def submits():
    try:
        while True:
            shoal.get([one.remote() for _ in range(10)])
    except BaseException as error:
        told.append(error)
def calls():
    try:
        actor = Actor.remote()
        while True:
            shoal.get(actor.pid.remote())
    except BaseException as error:
        told.append(error)
def iterates():
    @shoal.remote
    def stream():
        yield 1
        time.sleep(100)
    try:
        for ref in stream.options(num_returns="streaming").remote():
            shoal.get(ref)
    except BaseException as error:
        told.append(error)
threads = [threading.Thread(target=target) for target in (waits, waits_for_some, submits, calls, iterates)]
for thread in threads:
    thread.start()
time.sleep(0.7)
begun = time.perf_counter()
# A thread that finds no session would begin one.
from shoal.runtime import core
core.initialize = None
shoal.shutdown()
for thread in threads:
    thread.join(30)
alive = [thread for thread in threads if thread.is_alive()]
assert not alive, (alive, told)
for error in told:
    assert error is None or "shutdown" in str(error) or "not initialized" in str(error), repr(error)
"""
    )


def test_a_daemon_thread_that_waits_does_not_hold_the_exit() -> None:
    run(
        """
session()
threading.Thread(target=lambda: shoal.get(slow.remote(1000)), daemon=True).start()
time.sleep(0.3)
"""
    )


def test_interrupts_leave_a_session_that_works() -> None:
    """Ctrl-C again and again, wherever it strikes: in get, put, submit, wait."""
    run(
        """
import random
session()
actor = Actor.remote()
shoal.get(actor.pid.remote())
stop = threading.Event()
def strike():
    dice = random.Random(1)
    while not stop.wait(dice.uniform(0.001, 0.02)):
        os.kill(os.getpid(), signal.SIGINT)
struck = 0
thread = threading.Thread(target=strike)
thread.start()
until = time.perf_counter() + 2
over = False
def work():
    global over
    while time.perf_counter() < until:
        refs = [one.remote() for _ in range(20)]
        shoal.put(bytes(200_000))
        shoal.wait(refs, num_returns=5)
        shoal.get(actor.pid.remote())
        shoal.get(refs)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    over = True
def guarded(inner):  # an interrupt may also strike between one try and the next
    def outer():
        global struck
        while not over:
            try:
                inner()
            except KeyboardInterrupt:
                struck += 1
    return outer
guarded(guarded(guarded(work)))()
stop.set()
settled = time.perf_counter() + 0.3  # one that was put off comes a few milliseconds later
while thread.is_alive() or time.perf_counter() < settled:
    try:
        time.sleep(0.01)
    except KeyboardInterrupt:
        struck += 1
assert struck > 20, struck
assert shoal.get([one.remote() for _ in range(100)], timeout=60) == [1] * 100
assert shoal.get(actor.pid.remote(), timeout=60) > 0
""",
        timeout_s=90,
    )
