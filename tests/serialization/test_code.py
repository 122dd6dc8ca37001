"""Code travels by value where workers cannot import it; failures are explained."""

import functools
import io
import subprocess
import sys
import textwrap
import threading

import cloudpickle
import numpy as np
import pytest

from shoal.protocol.errors import ShoalError, TaskError, WorkerCrashedError, make_task_error
from shoal.serialization import (
    deregister_serializer,
    dumps,
    dumps_code,
    dumps_error,
    explain_unserializable,
    loads,
    loads_code,
    loads_error,
    register_serializer,
    values,
)
from shoal.util.check_serialize import inspect_serializability


def other_process(blobs, code):
    """Run `code` in a fresh interpreter that cannot import this module; `blobs` are its global variables."""
    program = "import sys, pickle\nfrom shoal.serialization import *\nglobals().update(pickle.load(sys.stdin.buffer))\n"
    done = subprocess.run(
        [sys.executable, "-c", program + textwrap.dedent(code)],
        input=__import__("pickle").dumps(blobs),
        capture_output=True,
        timeout=60,
        cwd="/",
        env={"PYTHONPATH": ":".join(path for path in sys.path if path.endswith("src"))},
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.fixture
def script(tmp_path):
    """Run a script as __main__ in a fresh interpreter; its output."""

    def run(text):
        path = tmp_path / "script.py"
        path.write_text(textwrap.dedent(text))
        env = {"PYTHONPATH": ":".join(path for path in sys.path if path.endswith("src"))}
        done = subprocess.run([sys.executable, str(path)], capture_output=True, timeout=60, env=env, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_functions():
    factor = 3
    code, nested = dumps_code(lambda x: x * factor)
    assert nested is None and loads_code(code)(2) == 6
    assert loads(dumps([lambda: 5])[0])[0]() == 5
    assert loads_code(dumps_code(functools.partial(max, 3))[0])(5) == 5


def test_classes_of_main_are_written_once(script):
    out = script(
        """
        import enum, pickle, subprocess, sys
        from dataclasses import dataclass
        from shoal.serialization import dumps, dumps_code, loads
        from shoal.serialization import code

        class Color(enum.Enum):
            RED = 1

        @dataclass
        class Base:
            x: int

        @dataclass
        class Point(Base):
            y: int = 2
            def norm(self):
                return (self.x ** 2 + self.y ** 2) ** 0.5

        class Counting:
            seen = []
            def where(self):
                return place

        place = "first"

        def make(x):
            return Point(x, 4)

        points = [Point(3, 4), Color.RED]
        first = dumps(points)[0]
        assert dumps(points)[0] == first
        assert loads(first)[0] == points[0] and type(loads(first)[0]) is Point and loads(first)[1] is Color.RED
        assert Point in code._capsule_of and Color in code._capsule_of
        dumps(Counting())
        assert Counting not in code._capsule_of
        Point.y = 7
        assert dumps(points)[0] != first
        Point.y = 2
        assert type(loads(dumps(Counting())[0])) is Counting

        worker = '''
        import pickle, sys
        from shoal.serialization import dumps, loads
        values, make = pickle.load(sys.stdin.buffer)
        point, color = loads(values)
        assert point.norm() == 5.0 and color.name == "RED"
        made = loads(make)(3)
        assert type(made) is type(point), (type(made), type(point))
        assert made == point and isinstance(made, type(point).__mro__[1])
        sys.stdout.buffer.write(dumps([point, color, made])[0])
        '''
        import textwrap
        sent = pickle.dumps((dumps(points)[0], dumps_code(make)[0]))
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(worker)], input=sent, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        point, color, made = loads(done.stdout)
        assert type(point) is Point and type(made) is Point and color is Color.RED and point == points[0]

        worker = '''
        import pickle, sys
        from shoal.serialization import dumps, loads
        counting = loads(sys.stdin.buffer.read())
        assert counting.where() == "first"
        sys.stdout.buffer.write(dumps(counting)[0])
        '''
        sent = dumps(Counting())[0]
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(worker)], input=sent, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        place = "second"
        back = loads(done.stdout)
        assert type(back) is Counting and back.where() == "second"
        print("fine")
        """
    )
    assert out == "fine\n"


def test_capsule_survives_self_reference(script):
    out = script(
        """
        from shoal.serialization import dumps, loads, dumps_code
        class Node:
            def make(self):
                return Node()
            def sibling(self):
                return Other()
        class Other(Node):
            def parent(self):
                return super().make()
        value = loads(dumps([Node(), Other()])[0])
        assert type(value[0]) is Node and type(value[1].parent()) is Node and type(value[0].sibling()) is Other
        cls = loads(dumps_code(Other)[0])
        assert cls is Other
        print("fine")
        """
    )
    assert out == "fine\n"


def test_modules_registered_by_value(tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("class Thing:\n    x = 6\ndef f(): return 7\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import only_here

    cloudpickle.register_pickle_by_value(only_here)
    try:
        code, _ = dumps_code(only_here.f)
        blob, _ = dumps(only_here.Thing())
        assert other_process({"code": code, "blob": blob}, "print(loads(code)(), loads(blob).x)") == b"7 6\n"
    finally:
        cloudpickle.unregister_pickle_by_value(only_here)
        values.by_value_needles = ()
        del sys.modules["only_here"]


# ---------------------------------------------------------------- custom serializers


class Connection:
    def __init__(self, url):
        self.url = url
        self.lock = threading.Lock()


class Sub(Connection):
    pass


def test_custom_serializers():
    with pytest.raises(TypeError):
        dumps(Connection("u"))
    register_serializer(Connection, serializer=lambda c: c.url, deserializer=Connection)
    try:
        blob, _ = dumps({"nested": [Connection("u"), np.zeros(3)]})
        assert loads(blob.to_bytes())["nested"][0].url == "u"
        shared = Connection("s")
        result = loads(dumps([shared, shared, lambda: 1])[0])
        assert result[0] is result[1] and result[2]() == 1
        with pytest.raises(TypeError):
            dumps(Sub("u"))
    finally:
        deregister_serializer(Connection)
    with pytest.raises(TypeError):
        dumps(Connection("u"))
    deregister_serializer(Connection)


def test_custom_serializers_travel(script):
    out = script(
        """
        import pickle, subprocess, sys, textwrap, threading
        from shoal.serialization import dumps, dumps_code, loads, register_serializer
        class Connection:
            def __init__(self, url):
                self.url, self.lock = url, threading.Lock()
        def read(url):
            return Connection(url + "!")
        register_serializer(Connection, serializer=lambda c: c.url, deserializer=read)
        def task():
            return Connection("made there")
        worker = '''
        import pickle, sys
        from shoal.serialization import dumps, loads
        value, task = pickle.load(sys.stdin.buffer)
        made = loads(task)()
        sys.stdout.buffer.write(dumps([made, loads(value)])[0])
        '''
        sent = pickle.dumps((dumps(Connection("u"))[0], dumps_code(task)[0]))
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(worker)], input=sent, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        print([(c.url, type(c) is Connection) for c in loads(done.stdout)])
        """
    )
    assert out == "[('made there!', True), ('u!!', True)]\n"


def test_register_checks_its_arguments():
    with pytest.raises(TypeError):
        register_serializer("x", serializer=str, deserializer=str)
    with pytest.raises(TypeError):
        register_serializer(Sub, serializer=1, deserializer=str)


# ---------------------------------------------------------------- explanations


class Holder:
    def __init__(self):
        self.fine = 1
        self.inner = {"a": [1, threading.Lock()]}


def test_culprits_are_named():
    with pytest.raises(TypeError, match=r"value\.inner\['a'\]\[1\].*lock") as caught:
        dumps(Holder())
    assert "inside the task" in str(caught.value)
    lock = threading.Lock()

    def uses_lock():
        return lock

    with pytest.raises(TypeError, match="closure variable 'lock' of uses_lock"):
        dumps_code(uses_lock)
    with pytest.raises(TypeError, match="generator"):
        dumps(i for i in range(3))
    with pytest.raises(TypeError, match=r"args\[0\]"):
        dumps(functools.partial(max, lock))
    with pytest.raises(TypeError, match="TextIOWrapper"):
        dumps({"f": sys.__stderr__})


def test_explaining_ends_on_any_graph():
    loop = {"lock": None, "many": list(range(10_000))}
    loop["self"] = [loop, [loop]]
    loop["lock"] = threading.Lock()
    assert "lock" in str(explain_unserializable(loop, TypeError("no")))

    class Nasty:
        def __repr__(self):
            raise RuntimeError

        def __getstate__(self):
            raise RuntimeError("never")

    with pytest.raises(TypeError, match="never"):
        dumps([Nasty()])


def test_inspect_serializability():
    out = io.StringIO()
    ok, failures = inspect_serializability(Holder(), name="holder", print_file=out)
    assert not ok and "holder.inner['a'][1]" in out.getvalue() and len(failures) == 1
    assert inspect_serializability([1], print_file=out) == (True, set())


# ---------------------------------------------------------------- errors


class NeedsArguments(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")
        self.a = a


class HasLock(Exception):
    def __init__(self):
        super().__init__("with a lock")
        self.lock = threading.Lock()


class FailsToLoad(Exception):
    def __reduce__(self):
        return int, ("no number",)


def caught(error):
    try:
        raise error
    except BaseException as raised:
        return raised


def test_errors_travel():
    seen = loads_error(dumps_error(make_task_error(caught(NeedsArguments(1, 2)), "f", 5)))
    assert isinstance(seen, NeedsArguments) and seen.a == 1 and "pid=5" in str(seen)
    seen = loads_error(dumps_error(WorkerCrashedError(exit_code=-9)))
    assert type(seen) is WorkerCrashedError and seen.exit_code == -9
    assert type(loads_error(dumps_error(ValueError("plain")))) is ValueError


@pytest.mark.parametrize("error", [HasLock(), FailsToLoad("text of it")], ids=lambda error: type(error).__name__)
def test_unpicklable_errors_keep_their_text(error):
    seen = loads_error(dumps_error(make_task_error(caught(error), "f", 5, "1.2.3.4")))
    assert type(seen) is TaskError and seen.cause is None
    assert str(error.args[0]) in str(seen) and type(error).__name__ in str(seen) and "pid=5" in str(seen)
    seen = loads_error(dumps_error(error))
    assert type(seen) is ShoalError and type(error).__name__ in str(seen) and str(error.args[0]) in str(seen)


def test_errors_of_classes_unknown_here(script, tmp_path):
    (tmp_path / "far_away.py").write_text("class FarError(Exception): pass\n")
    script(
        f"""
        import sys; sys.path.insert(0, {str(tmp_path)!r})
        from far_away import FarError
        from shoal.serialization import dumps_error
        from shoal.protocol.errors import make_task_error
        open({str(tmp_path / "blob")!r}, "wb").write(dumps_error(make_task_error(FarError("it failed"), "f")))
        """
    )
    seen = loads_error((tmp_path / "blob").read_bytes())
    assert type(seen) is TaskError and "it failed" in str(seen) and "far_away" in str(seen)


def test_nonsense_is_an_error_too():
    assert isinstance(loads_error(b"nonsense"), ShoalError)
