"""What the first users of a release stumbled over: texts, noise, and ways in."""

from __future__ import annotations

import functools
import importlib
import shutil
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.engine.driver_process import Driver, run

import shoal
from shoal.util.queue import Queue

pytestmark = pytest.mark.usefixtures("shoal_session")


@shoal.remote
def echo(value: Any) -> Any:
    return value


@shoal.remote(num_cpus=0)
class Box:
    def get(self) -> int:
        return 1


def test_only_functions_and_classes_are_remote() -> None:
    class Call:
        def __call__(self) -> None: ...

    for thing, name in ((functools.partial(print, 1), "partial"), (Call(), "Call")):
        with pytest.raises(TypeError, match=f"only functions and classes can be remote, not {name}"):
            shoal.remote(thing)
        with pytest.raises(TypeError, match=f"only functions and classes can be remote, not {name}"):
            shoal.remote(num_cpus=1)(thing)


def test_two_results_promised_and_an_int_returned() -> None:
    with pytest.raises(TypeError, match=r"echo returned int, which is no sequence; num_returns=2"):
        shoal.get(echo.options(num_returns=2).remote(1), timeout=60)


def test_get_of_none_says_where_it_comes_from() -> None:
    with pytest.raises(ValueError, match="num_returns=0"):
        shoal.get(echo.options(num_returns=0).remote(1))


def test_a_method_through_the_class() -> None:
    with pytest.raises(AttributeError, match=r"make one first, actor = Box.remote\(\), then call actor.get.remote\(\)"):
        Box.get.remote()
    assert not hasattr(Box, "nothing")


def test_methods_have_a_repr() -> None:
    actor = Box.remote()
    assert repr(actor.get).startswith("ActorMethod(Box.get, actor ")


def test_a_queue_that_was_shut_down_says_so() -> None:
    queue: Queue = Queue()
    queue.put(1)
    queue.shutdown(force=True)
    with pytest.raises(RuntimeError, match="this queue was shut down"):
        queue.put(2)


def test_the_address_of_the_node_is_the_same_everywhere() -> None:
    address = shoal.util.get_node_ip_address()
    assert shoal.nodes()[0]["NodeManagerAddress"] == address
    assert shoal.get(echo.options(resources={f"node:{address}": 0.01}).remote(3), timeout=60) == 3


@pytest.mark.parametrize("name", ["data", "serve", "dag"])
def test_names_that_are_not_there(name: str) -> None:
    with pytest.raises(AttributeError, match="not part of this release"):
        getattr(shoal, name)
    with pytest.raises(ImportError):
        exec(f"from shoal import {name}")


@pytest.mark.parametrize("name", ["tune", "train", "rl", "util", "exceptions"])
def test_libraries_come_at_their_first_use(name: str) -> None:
    assert shoal.__getattr__(name) is importlib.import_module(f"shoal.{name}")


@pytest.mark.parametrize("name", ["state", "metrics"])
def test_names_of_util_that_are_not_there(name: str) -> None:
    with pytest.raises(AttributeError, match="not part of this release"):
        getattr(shoal.util, name)


def test_joblib_under_the_name_of_ray() -> None:
    joblib: ModuleType = pytest.importorskip("joblib")
    from shoal.util.joblib import register_ray

    register_ray()
    with joblib.parallel_config("ray"):
        assert joblib.Parallel(n_jobs=2)(joblib.delayed(abs)(-x) for x in range(4)) == [0, 1, 2, 3]


def test_refs_after_the_end_begin_no_session() -> None:
    run(
        """
session()
done, failed, late = one.remote(), slow.remote("text"), slow.remote(100)
assert shoal.get(done) == 1
shoal.wait([failed])
large = shoal.put(bytes(10_000_000))
shoal.shutdown()
assert shoal.get(done) == 1 and shoal.get([done]) == [1]
try:
    shoal.get(failed)
except TypeError:
    pass
for call in (lambda: shoal.get(late), lambda: shoal.get([large]), lambda: shoal.wait([done]), late.future):
    try:
        call()
        raise SystemExit("no error")
    except RuntimeError as error:
        assert "there is no Shoal session" in str(error) or "shutdown() was called" in str(error), error
assert not shoal.is_initialized()
"""
    )


def test_the_interpreters_end_is_quiet() -> None:
    _, err = run(
        """
session(log_to_driver=False)
def make():
    @shoal.remote
    def inner():
        return 1
    return inner
kept = [make() for _ in range(3)]
refs = [f.remote() for f in kept] + [shoal.put(bytes(2_000_000))]
shoal.get(refs)
class Cycle: pass
cycle = Cycle(); cycle.me = cycle; cycle.refs = refs; cycle.kept = kept
sys.kept_to_the_end = (cycle, shoal.runtime.exports.ExportedCode(b"1" * 16, b"", []))
"""
    )
    assert err == ""


def test_a_pool_that_is_ended_is_quiet() -> None:
    _, err = run(
        """
from shoal.util.multiprocessing import Pool
session(log_to_driver=False)
with Pool(2) as pool:
    pool.map_async(time.sleep, [30] * 8)
    time.sleep(0.5)
time.sleep(0.5)
"""
    )
    assert "Unhandled error" not in err


def test_address_auto(request: pytest.FixtureRequest) -> None:
    folder = tempfile.mkdtemp(prefix="shoal-auto-")  # pytest's own would make names of sockets too long
    request.addfinalizer(lambda: shutil.rmtree(folder, ignore_errors=True))
    nobody = f"""
try:
    shoal.init(address="auto", _temp_dir={folder!r})
except ConnectionError as error:
    print("ERROR", str(error).replace(chr(10), " "), flush=True)
"""
    out, _ = run(nobody)
    assert "no session of yours runs" in out
    starter = f"""
session(_temp_dir={folder!r}, namespace="shared")
assert shoal.get_runtime_context().get_temp_dir().startswith({folder!r})
keeper = Actor.options(name="keeper", lifetime="detached").remote()
print("PID", shoal.get(keeper.pid.remote()), flush=True)
time.sleep(100)
"""
    second = """
shoal.init(namespace="shared")
print("TASKS", shoal.get([one.remote() for _ in range(5)]), flush=True)
print("PID", shoal.get(shoal.get_actor("keeper").pid.remote(), timeout=60), flush=True)
"""
    with Driver(starter) as driver:
        pid = driver.wait_line("PID")
        out, _ = run(second, RAY_ADDRESS="auto", SHOAL_TMPDIR=folder)
        assert "TASKS [1, 1, 1, 1, 1]" in out and f"PID {pid}" in out
        with Driver(starter) as other:
            other.wait_line("PID")
            out, _ = run(nobody)
            assert "2 sessions of yours" in out and out.count("node.sock") == 2


def test_microbenchmark_reads_an_array() -> None:
    pytest.importorskip("numpy")
    from shoal.cli.microbenchmark import _array

    array, how = _array(bytearray(10))
    assert array.nbytes == 10 and how == ""


def test_status_leaves_out_who_starts_and_wraps_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    status = importlib.import_module("shoal.cli.status")  # the package has a command of this name
    mine = str(shoal.get_runtime_context().gcs_address).rpartition("/")[0]
    monkeypatch.setattr("shoal.launch.local_nodes.live_sessions", lambda parent: [str(tmp_path), mine])
    assert status.show_status(as_json=False) == 0
    out = capsys.readouterr().out
    assert "does not answer" not in out and str(tmp_path) not in out
    assert any(line.strip().startswith("in use") and line.rstrip().endswith("memory") for line in out.splitlines()), out


def test_temp_dir_must_be_a_folder(tmp_path: Path) -> None:
    from shoal.api.init_options import check_folder

    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be used as a folder"):
        check_folder(str(tmp_path / "file" / "below"))
    with pytest.raises(TypeError, match="must be a path"):
        check_folder(3)
