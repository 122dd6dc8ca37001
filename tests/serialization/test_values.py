"""Values come back as they went, arrays without a copy, references noted."""

import array
import collections
import datetime
import decimal
import enum
import io
import pickle
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.protocol.errors import ShoalError
from shoal.serialization import Serialized, allow_out_of_band, collect, dumps, loads
from shoal.serialization.format import container_parts, raw_parts, split_container


def blob_of(value):
    blob, _ = dumps(value)
    return blob.to_bytes() if isinstance(blob, Serialized) else blob


def again(value):
    return loads(blob_of(value))


class Ref:
    """Stands for an ObjectRef."""

    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return f"Ref({self.name})"

    def __reduce__(self):
        collect(self)
        return Ref, (self.name,)


leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(max_size=100)
    | st.binary(min_size=4090, max_size=4100)
    | st.decimals(allow_nan=False)
    | st.datetimes()
)
plain_values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=5), inner, max_size=4)
        | st.sets(st.integers(), max_size=4)
    ),
    max_leaves=10,
)


@settings(max_examples=100, deadline=None)
@given(plain_values)
def test_round_trip(value):
    result = again(value)
    assert result == value and type(result) is type(value)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["f8", "i4", "u1", "c16", "?", "S5", "U3", "M8[ns]", "V7"]),
    st.lists(st.integers(0, 4), max_size=4),
    st.sampled_from(["C", "F", "step", "transposed"]),
)
def test_arrays(dtype, shape, layout):
    size = int(np.prod(shape, dtype=int)) * np.dtype(dtype).itemsize
    value = np.frombuffer(bytes(i % 2 for i in range(size)), dtype=dtype).reshape(shape)
    if layout == "F":
        value = np.asfortranarray(value)
    elif layout == "step" and value.ndim:
        value = value[::2]
    elif layout == "transposed":
        value = value.T
    result = again(value)
    assert result.shape == value.shape and result.dtype == value.dtype and result.tobytes() == value.tobytes()
    assert not result.flags.writeable


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=50), st.lists(st.binary(max_size=300), min_size=1, max_size=5))
def test_container(head, buffers):
    parts = container_parts(head, [memoryview(buffer) for buffer in buffers])
    blob = parts.to_bytes()
    assert len(blob) == len(parts) == parts.total_bytes and blob[0] != 0x80
    target = bytearray(parts.total_bytes + 3)
    parts.write_into(memoryview(target))
    assert target[: len(blob)] == blob
    seen_head, seen = split_container(memoryview(blob))
    assert bytes(seen_head) == head and [bytes(buffer) for buffer in seen] == buffers
    assert all(offset % 64 == 0 for offset in parts.offsets)
    for cut in range(len(blob)):
        if any(buffers[-1:]):
            with pytest.raises(ValueError):
                split_container(memoryview(blob)[:cut])


def test_arrays_are_views_of_the_blob():
    value = np.arange(1000.0)
    blob, nested = dumps({"a": value, "b": [value, value[::2]]})
    assert nested is None and isinstance(blob, Serialized)
    memory = bytearray(blob.total_bytes)
    blob.write_into(memoryview(memory))
    result = loads(memoryview(memory))
    assert not result["a"].flags.writeable and result["b"][0] is result["a"]
    whole = np.frombuffer(memory, dtype="u1")
    assert np.shares_memory(result["a"], whole) and np.shares_memory(result["b"][1], whole)
    assert result["a"].ctypes.data % 8 == 0
    assert (result["b"][1] == value[::2]).all()


@pytest.mark.parametrize(
    "value",
    [
        np.array(5.0),
        np.zeros(0),
        np.zeros((3, 0, 2)),
        np.zeros(3, dtype=[("a", "i4"), ("b", "f8", (2,))]),
        np.array([{"a": 1}, None, "x"], dtype=object),
        np.float64(2.5),
        np.ma.masked_array([1, 2], mask=[True, False]),
        np.rec.array([(1, 2.0)], dtype=[("a", int), ("b", float)]),
    ],
    ids=str,
)
def test_odd_arrays(value):
    result = again(value)
    assert type(result) is type(value) and result.dtype == value.dtype and repr(result) == repr(value)


def test_raw_bytes():
    for size in (0, 10, 4095, 4096, 100_000):
        for kind in (bytes, bytearray):
            value = kind(b"x" * size)
            result = again(value)
            assert result == value and type(result) is kind
    blob, _ = dumps(b"x" * 5000)
    assert blob.total_bytes == 5064 and raw_parts(1, b"ab").to_bytes()[64:] == b"ab"

    class Name(bytes):
        pass

    assert isinstance(dumps(b"x" * 10)[0], bytes)


def test_memory_like_values():
    assert bytes(again(memoryview(b"abc"))) == b"abc"
    assert bytes(again(pickle.PickleBuffer(b"abc"))) == b"abc"
    assert bytes(again([pickle.PickleBuffer(bytearray(b"abc"))])[0]) == b"abc"
    assert again(array.array("d", [1, 2])) == array.array("d", [1, 2])


def test_plain_values_are_their_own_pickle():
    for value in ((), (1, 2), {"a": [1.5]}, None):
        blob, nested = dumps(value)
        assert type(blob) is bytes and blob[0] == 0x80 and nested is None
    with pytest.raises(ValueError):
        loads(b"\x77nonsense")


def test_odd_values():
    loop = [1]
    loop.append(loop)
    result = again(loop)
    assert result[1] is result
    assert again(1 << 100_000) == 1 << 100_000
    for value in (
        collections.OrderedDict(a=1),
        collections.deque([1], 3),
        datetime.timedelta(1),
        decimal.Decimal("1.5"),
        enum.Enum,
        range(3),
        slice(1, 2),
        Ellipsis,
        len,
        ValueError,
        "\ud800",
    ):
        assert again(value) == value
    assert again(float("nan")) != again(float("nan"))


def test_deep_nesting_is_explained():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(TypeError, match="nested too deeply"):
        dumps(deep)


def test_nested_references_are_collected():
    a, b = Ref("a"), Ref("b")
    blob, nested = dumps({"x": [a, b, a], "y": np.zeros(10)})
    assert nested == [a, b] and isinstance(blob, Serialized)
    assert loads(blob.to_bytes())["x"][0].name == "a"
    blob, nested = dumps((1, [lambda: a]))
    assert nested == [a] and loads(blob)[1][0]().name == "a"


def test_references_outside_are_refused():
    with pytest.raises(TypeError, match="outside"):
        pickle.dumps(Ref("a"))
    with allow_out_of_band():
        assert pickle.loads(pickle.dumps(Ref("a"))).name == "a"
    with pytest.raises(TypeError):
        pickle.dumps([Ref("a")])
    dumps(Ref("a"))
    with pytest.raises(ShoalError):
        pickle.dumps(Ref("a"))


def test_collectors_nest_and_are_of_one_thread():
    class Inner:
        def __reduce__(self):
            assert dumps(Ref("inner"))[1] is not None
            return Inner, ()

    a = Ref("a")
    globals()["Inner"] = Inner
    Inner.__qualname__ = "Inner"
    assert dumps([Inner(), a])[1] == [a]
    failures = []

    class Slow:
        def __reduce__(self):
            def other():
                try:
                    pickle.dumps(Ref("x"))
                except TypeError as error:
                    failures.append(error)

            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
            return str, ()

    assert dumps([Slow(), a])[1] == [a]
    assert len(failures) == 1


def test_failed_dumps_leaves_no_collector():
    with pytest.raises(TypeError):
        dumps([Ref("a"), threading.Lock()])
    with pytest.raises(TypeError):
        pickle.dumps(Ref("a"))


def test_pandas():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(
        {"a": np.arange(1000), "b": np.arange(1000.0), "c": ["x"] * 1000, "d": pd.Categorical(["u", "v"] * 500)}
    )
    blob = blob_of(frame)
    result = loads(blob)
    pd.testing.assert_frame_equal(result, frame)
    assert np.shares_memory(result["b"].to_numpy(), np.frombuffer(blob, "u1"))
    assert again(pd.Series([1, 2], name="s")).name == "s"


def test_pyarrow():
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"a": list(range(10_000)), "b": ["x"] * 10_000})
    blob = blob_of(table)
    result = loads(blob)
    assert result.equals(table)
    start = np.frombuffer(blob, "u1").ctypes.data
    assert start <= result["a"].chunk(0).buffers()[1].address < start + len(blob)


def test_file_like_values():
    assert again(io.BytesIO(b"abc")).read() == b"abc"
    assert sys.getsizeof(blob_of(())) < 100
