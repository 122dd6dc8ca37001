"""What is wrong is refused with its cause and the way out; what is garbage closes one connection and disturbs nobody."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile

import pytest
from tests.engine.driver_process import run

SOCKETS = """
import socket, struct, msgspec
from shoal.protocol.messages import Call, Hello, Register
context = session()
actor = Actor.remote()
shoal.get([one.remote(), actor.pid.remote()], timeout=60)
def frame(message):
    body = msgspec.msgpack.encode(message)
    return struct.pack("<I", len(body)) + body
GARBAGE = {
    "text": b"GET / HTTP/1.1\\r\\n\\r\\n",
    "zeros": bytes(1000),
    "noise": bytes(range(256)) * 40,
    "empty frame": struct.pack("<I", 0),
    "not msgpack": struct.pack("<I", 4) + b"\\xc1\\xc1\\xc1\\xc1",
    "unknown tag": frame([12345, 1, 2]),
    "wrong fields": frame([5, "x"]),
    "wrong place": frame(Hello(1, bytes(16), bytes(4), 1)) + frame([28, 1, False]),
    "oversize": struct.pack("<I", 0xFFFFFFFF) + b"x" * 1000,
    "just oversize": struct.pack("<I", (256 << 20) + 1),
    "truncated": frame(Hello(1, bytes(16), bytes(4), 1))[:-3],
    "old version": frame(Hello(0, bytes(16), bytes(4), 1)),
    "future version": frame(Hello(99, bytes(16), bytes(4), 1)),
    "stranger": frame(Hello(1, bytes(16), bytes(4), 1)) + frame(Register("worker", bytes(16), 1, "/nowhere", 4711)),
    "unknown role": frame(Hello(1, bytes(16), bytes(4), 1)) + frame(Register("king", bytes(16), 1, "/nowhere", 4711)),
    "bad call": frame(Call(1, "node.nonsense", {})),
    "bad call of the gcs": frame(Call(1, "gcs.nonsense", {"x": 1})),
}
def throw(path, data, waits=True):
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(5)
    sock.connect(path)
    try:
        sock.sendall(data)
        if waits:
            sock.shutdown(socket.SHUT_WR)
            answer = b""
            while piece := sock.recv(65536):
                answer += piece
            return answer
    except (BrokenPipeError, ConnectionResetError):
        pass
    finally:
        sock.close()
"""


def test_garbage_on_the_node_socket() -> None:
    run(
        SOCKETS
        + """
for name, data in GARBAGE.items():
    for waits in (True, False):
        answer = throw(context["node_socket"], data, waits)
        if waits and "version" in name:
            assert b"version" in answer, (name, answer)
        assert shoal.get(one.remote(), timeout=60) == 1, name
assert shoal.get(actor.pid.remote(), timeout=60)
"""
    )


def test_garbage_on_the_gcs_socket() -> None:
    run(
        SOCKETS
        + """
for name, data in GARBAGE.items():
    throw(context["gcs_address"], data, "call" not in name)
    assert len(shoal.nodes()) == 1, name
assert shoal.get(Actor.remote().pid.remote(), timeout=60)
"""
    )


def test_garbage_on_the_sockets_of_workers() -> None:
    run(
        SOCKETS
        + """
pids = shoal.get([pid.remote(), actor.pid.remote()], timeout=60)
for name, data in GARBAGE.items():
    if "call" in name:
        continue
    thrown = 0
    for path in os.listdir(context["session_dir"] + "/w"):
        try:
            throw(context["session_dir"] + "/w/" + path, data, False)
        except (ConnectionRefusedError, FileNotFoundError):
            continue  # a worker that is just coming, or going
        thrown += 1
    assert thrown >= 2, name
    assert shoal.get([one.remote() for _ in range(20)], timeout=60) == [1] * 20, name
    assert shoal.get(actor.pid.remote(), timeout=60) == pids[1], name
"""
    )


@pytest.mark.parametrize(
    "options",
    [
        {"num_cpus": -1},
        {"num_cpus": "two"},
        {"num_cpus": float("nan")},
        {"num_cpus": float("inf")},
        {"num_gpus": -0.5},
        {"memory": -1},
        {"resources": {"x": -1}},
        {"resources": {"CPU": 2}},
        {"resources": [1]},
        {"object_store_memory": 10},
        {"object_store_memory": -5},
        {"object_store_memory": "1GB"},
        {"object_store_memory": 1 << 60},
        {"labels": 3},
        {"namespace": 3},
        {"address": 17},
        {"log_to_driver": "what"},
    ],
    ids=repr,
)
def test_init_refuses_nonsense_before_it_starts_anything(options: dict[str, object]) -> None:
    import shoal

    shoal.shutdown()
    try:
        with pytest.raises((ValueError, TypeError)) as caught:
            shoal.init(**options)  # type: ignore[arg-type]
        (name,) = options
        assert name in str(caught.value) or "CPU" in str(caught.value), caught.value
        assert not shoal.is_initialized()
    finally:
        shoal.shutdown()


def test_init_and_addresses() -> None:
    run("""
def refused(kind, *words, **options):
    begun = time.perf_counter()
    try:
        shoal.init(**options)
    except kind as error:
        assert all(word in str(error) for word in words), error
    else:
        raise AssertionError(options)
    assert time.perf_counter() - begun < 30
    assert words == ("twice",) or not shoal.is_initialized()
refused(ConnectionError, "/nowhere/node.sock", address="/nowhere/node.sock")
refused(ConnectionError, "no-such-host", address="no-such-host:1234")
import socket
deaf = socket.socket(socket.AF_UNIX)
deaf.bind("/tmp/shoal-test-deaf-%d" % os.getpid())
refused(ConnectionError, "shoal-test-deaf", address="/tmp/shoal-test-deaf-%d" % os.getpid())
os.unlink("/tmp/shoal-test-deaf-%d" % os.getpid())
context = session()
refused(RuntimeError, "twice")
again = shoal.init(ignore_reinit_error=True)
assert again["session_dir"] == context["session_dir"]
script = '''
import shoal, sys
with shoal.init(address=sys.argv[1]):
    f = shoal.remote(lambda: 7)
    assert shoal.get(f.remote(), timeout=60) == 7
'''
assert subprocess.run([sys.executable, "-c", script, context["address"]], timeout=60).returncode == 0
assert shoal.get(one.remote(), timeout=60) == 1
with context:
    pass
assert not shoal.is_initialized()
shoal.shutdown()
""")


def test_refs_and_handles_of_a_session_that_is_over() -> None:
    run("""
session()
small, big, task = shoal.put(1), shoal.put(bytes(1 << 20)), one.remote()
shoal.get(task)
pending = slow.remote(100)
actor = Actor.remote()
shoal.get(actor.pid.remote())
shoal.shutdown()
for again in (False, True):
    if again:
        session()
    for what in (big, pending):
        begun = time.perf_counter()
        try:
            shoal.get(what, timeout=60)
        except Exception as error:
            assert "session" in str(error) or "shutdown" in str(error), repr(error)
            assert not isinstance(error, shoal.exceptions.GetTimeoutError), error
        else:
            raise AssertionError(what)
        assert time.perf_counter() - begun < 30
    shoal.shutdown()
session()
@shoal.remote
def use(values):
    return shoal.get(values[0])
for attempt in (lambda: shoal.get(actor.pid.remote(), timeout=60), lambda: shoal.get(use.remote([big]), timeout=60),
                lambda: shoal.get(use.remote([pending]), timeout=60), lambda: shoal.get(one.options(num_cpus=1).remote(big), timeout=60),
                lambda: shoal.wait([pending], timeout=2)):
    begun = time.perf_counter()
    try:
        attempt()
    except shoal.exceptions.GetTimeoutError as error:
        raise AssertionError("it hung") from error
    except Exception as error:
        print("OK", type(error).__name__, error)
    assert time.perf_counter() - begun < 30
assert shoal.get(one.remote(), timeout=60) == 1
""")


def test_too_few_files() -> None:
    run("""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
try:
    shoal.init(num_cpus=2)
except Exception as error:
    assert "64" in str(error) and "ulimit -n" in str(error), error
else:
    raise AssertionError
assert not shoal.is_initialized()
""")


def test_files_run_out_later() -> None:
    run(
        """
session(num_cpus=1)
shoal.get(one.remote())
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))
files = [open("/dev/null") for _ in range(300 - len(os.listdir("/proc/self/fd")) - 6)]
actors = [Actor.remote() for _ in range(20)]
pending = [actor.pid.remote() for actor in actors]
time.sleep(1)
failed = 0
for ref in pending:
    try:
        shoal.get(ref, timeout=60)
    except OSError as error:
        assert "open files" in str(error) and "ulimit" in str(error), repr(error)
        failed += 1
assert 10 <= failed < 20, failed
for file in files:
    file.close()
# Now that there is room, the same actors can be called.
assert len(set(shoal.get([actor.pid.remote() for actor in actors], timeout=60))) == 20
""",
        timeout_s=90,
    )


@pytest.mark.parametrize("place", ["/proc/nowhere", "/dev/null", "/nowhere", "/" + "long/" * 20])
def test_no_place_for_the_session(place: str) -> None:
    run(
        """
try:
    shoal.init(num_cpus=1)
except (OSError, ValueError) as error:
    assert os.environ["SHOAL_TMPDIR"] in str(error) and "set SHOAL_TMPDIR" in str(error), error
else:
    raise AssertionError
assert not shoal.is_initialized()
""",
        SHOAL_TMPDIR=place,
    )


def test_another_place_for_the_session() -> None:
    place = tempfile.mkdtemp(dir="/var/tmp")
    try:
        run(
            """
context = session()
assert context["session_dir"].startswith(os.environ["SHOAL_TMPDIR"])
assert shoal.get(one.remote(), timeout=60) == 1
""",
            SHOAL_TMPDIR=place,
        )
    finally:
        shutil.rmtree(place)


def test_the_disk_is_full() -> None:
    """A session's folder on a file system with no room left: an error at the start, or a session that does without."""
    place = tempfile.mkdtemp(dir="/var/tmp")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", place], capture_output=True).returncode:
        os.rmdir(place)
        pytest.skip("mounting is not allowed here")
    try:
        script = """
session(object_store_memory=4 << 20, log_to_driver=False)
@shoal.remote
def talk():
    print("line\\n" * 50_000)
    return 1
assert shoal.get(talk.remote(), timeout=60) == 1
held = []
try:
    for number in range(20):
        held.append(shoal.put(bytes(1 << 20)))
    for ref in held:
        shoal.get(ref, timeout=60)
except shoal.exceptions.GetTimeoutError as error:
    raise AssertionError("it hung") from error
except Exception as error:
    print("TOLD", type(error).__name__, error, flush=True)
else:
    raise AssertionError
del held
assert shoal.get(talk.remote(), timeout=60) == 1
"""
        out, _ = run(script, SHOAL_TMPDIR=place, timeout_s=60)
        assert "TOLD OutOfDiskError" in out and place in out, out
        with open(os.path.join(place, "filler"), "wb", buffering=0) as filler:
            with contextlib.suppress(OSError):
                while True:
                    filler.write(bytes(1024))
        run(
            """
try:
    session()
    shoal.get(one.remote(), timeout=60)
except (OSError, RuntimeError) as error:
    assert "No space left" in str(error), error
""",
            SHOAL_TMPDIR=place,
        )
    finally:
        subprocess.run(["umount", place], check=True)
        os.rmdir(place)


def test_the_store_is_full() -> None:
    run("""
session(object_store_memory=20 << 20)
try:
    shoal.put(bytes(30 << 20))
except shoal.exceptions.ObjectStoreFullError as error:
    assert "object_store_memory" in str(error), error
else:
    raise AssertionError
@shoal.remote
def big():
    return bytes(30 << 20)
try:
    shoal.get(big.remote(), timeout=60)
except shoal.exceptions.GetTimeoutError as error:
    raise AssertionError("it hung") from error
except Exception as error:
    assert "object_store_memory" in str(error), error
else:
    raise AssertionError
assert shoal.get(one.remote(), timeout=60) == 1
""")
