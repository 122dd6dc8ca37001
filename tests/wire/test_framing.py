"""Every message crosses the wire, however its bytes arrive; what is no message ends in ProtocolError."""

from __future__ import annotations

import types
import typing
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.protocol import gcs_messages, messages
from shoal.protocol.limits import FRAME_HEADER_BYTES, RECEIVE_BUFFER_BYTES
from shoal.wire.framing import FrameDecoder, ProtocolError, append_frame, encode_frame

HELLO = messages.Hello(1, b"w" * 16, b"job1", 42)


def message_types() -> list[type]:
    """Every struct that crosses a process boundary."""
    found = [*vars(messages).values(), *vars(gcs_messages).values()]
    structs = [each for each in found if isinstance(each, type) and issubclass(each, msgspec.Struct)]
    return sorted({each for each in structs if each.__struct_config__.tag is not None}, key=lambda each: each.__name__)


def strategy_of(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    plain: dict[Any, st.SearchStrategy[Any]] = {
        int: st.integers(-(2**63), 2**64 - 1),
        float: st.floats(allow_nan=False),
        str: st.text(max_size=8),
        bytes: st.binary(max_size=20),
        bool: st.booleans(),
        type(None): st.none(),
        Any: st.one_of(st.none(), st.integers(0, 9), st.text(max_size=4), st.lists(st.integers(0, 9), max_size=2)),
    }
    if hint in plain:
        return plain[hint]
    if origin in (typing.Union, types.UnionType):
        return st.one_of([strategy_of(each) for each in arguments])
    if origin is list:
        return st.lists(strategy_of(arguments[0]), max_size=3)
    if origin is dict:
        return st.dictionaries(strategy_of(arguments[0]), strategy_of(arguments[1]), max_size=2)
    if origin is tuple:
        return st.tuples(*[strategy_of(each) for each in arguments])
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return struct_of(hint)
    raise AssertionError(f"no values are known for {hint}")


def struct_of(kind: type) -> st.SearchStrategy[Any]:
    """Messages of one type."""
    hints = typing.get_type_hints(kind)
    return st.builds(kind, **{name: strategy_of(hints[name]) for name in kind.__struct_fields__})  # type: ignore[attr-defined]


def chunks(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@pytest.mark.parametrize("kind", message_types(), ids=lambda kind: kind.__name__)
@settings(max_examples=3, deadline=None)
@given(draw=st.data())
def test_each_message_whole_byte_by_byte_and_with_trailing_bytes(kind: type, draw: st.DataObject) -> None:
    message = draw.draw(struct_of(kind))
    frame = bytes(encode_frame(message))
    assert int.from_bytes(frame[:4], "little") == len(frame) - FRAME_HEADER_BYTES
    assert list(FrameDecoder(kind).receive_data(frame)) == [message]
    decoder: FrameDecoder[Any] = FrameDecoder(kind)
    arrived = [list(decoder.receive_data(piece)) for piece in chunks(frame, 1)]
    assert not any(arrived[:-1]) and arrived[-1] == [message]
    trailing = frame + frame[: len(frame) // 2]
    assert list(decoder.receive_data(trailing)) == [message]
    assert list(decoder.receive_data(frame[len(frame) // 2 :])) == [message]


def test_every_message_stands_in_a_union() -> None:
    """A message that nobody expects would end the connection that it comes by."""
    parts = {
        messages.Stored,
        messages.Failed,
        messages.Containing,
        messages.Many,
        messages.ActorSpec,
        messages.TaskLineage,
    }
    expected = {*typing.get_args(messages.ToRuntime), *typing.get_args(messages.ToDaemon), *parts}
    own = [each for each in message_types() if each.__module__ == messages.__name__]
    assert [each.__name__ for each in own if each not in expected] == []


def test_tags_are_unique() -> None:
    own = [each for each in message_types() if each.__module__ == messages.__name__]
    tags = [each.__struct_config__.tag for each in own]  # type: ignore[attr-defined]
    assert len(set(tags)) == len(tags)


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 3000), max_size=30),
    large=st.lists(st.integers(0, 2 * RECEIVE_BUFFER_BYTES), max_size=2),
    cuts=st.lists(st.integers(1, RECEIVE_BUFFER_BYTES), min_size=1, max_size=12),
    direct=st.booleans(),
)
def test_any_cutting_gives_the_same_messages(sizes: list[int], large: list[int], cuts: list[int], direct: bool) -> None:
    """The dumb twin: the list that was sent. `direct` receives into the decoder's buffer, as sockets do."""
    sent = [messages.DefineFunction(b"f", bytes(size)) for size in sizes + large]
    out = bytearray()
    for message in sent:
        append_frame(out, message)
    decoder: FrameDecoder[Any] = FrameDecoder(messages.ToRuntime)
    received: list[Any] = []
    position = turn = 0
    while position < len(out):
        piece = out[position : position + cuts[turn % len(cuts)]]
        turn += 1
        if direct:
            room = decoder.writable()
            assert len(room) > 0
            piece = piece[: len(room)]
            room[: len(piece)] = piece
            received += decoder.received(len(piece))
        else:
            received += decoder.receive_data(piece)
        position += len(piece)
    assert received == sent


def test_a_large_frame_does_not_keep_its_buffer() -> None:
    decoder: FrameDecoder[Any] = FrameDecoder(messages.ToRuntime)
    large = messages.DefineFunction(b"f", bytes(8 * RECEIVE_BUFFER_BYTES))
    assert list(decoder.receive_data(encode_frame(large))) == [large]
    assert list(decoder.receive_data(encode_frame(HELLO))) == [HELLO]
    assert len(decoder.writable()) <= RECEIVE_BUFFER_BYTES


def test_a_decoded_message_does_not_change_with_the_buffer() -> None:
    decoder: FrameDecoder[Any] = FrameDecoder(messages.ToRuntime)
    (first,) = decoder.receive_data(encode_frame(messages.DefineFunction(b"one", b"a" * 100)))
    list(decoder.receive_data(encode_frame(messages.DefineFunction(b"two", b"b" * 100))))
    assert first == messages.DefineFunction(b"one", b"a" * 100)


def test_too_long_a_frame_is_refused_at_its_header() -> None:
    decoder: FrameDecoder[Any] = FrameDecoder(messages.ToRuntime, bytes_max=1000)
    before = len(decoder.writable())
    with pytest.raises(ProtocolError, match="1001"):
        list(decoder.receive_data((1001).to_bytes(4, "little")))
    assert len(decoder.writable()) <= before, "room was made for what is refused"
    with pytest.raises(ProtocolError):
        list(FrameDecoder(messages.ToRuntime).receive_data(b"\xff\xff\xff\xff"))
    exact = messages.DefineFunction(b"f", bytes(900))
    limit = len(encode_frame(exact)) - FRAME_HEADER_BYTES
    assert list(FrameDecoder(messages.ToRuntime, bytes_max=limit).receive_data(encode_frame(exact))) == [exact]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x90",
        b"\x91\xff",
        b"\x92\x05\x01",
        b"\x95\x05\xa1x\xc4\x00\xc4\x00\x01",
        b"\x93\x06\xc4\x01f\xc4\x01",
        b"\x80",
        b"\x2a",
        b"\x92\x23\xa2\xff\xff",
        b"\x94\x27\x01" + b"\x91" * 100_000 + b"\xc0\x90",
    ],
    ids=["empty", "code", "no-tag", "tag", "short", "types", "cut", "map", "int", "utf-8", "deep"],
)
def test_what_is_no_message_is_a_protocol_error(body: bytes) -> None:
    frame = len(body).to_bytes(4, "little") + body
    with pytest.raises(ProtocolError):
        list(FrameDecoder(messages.ToRuntime).receive_data(frame))


def test_messages_before_garbage_are_given_first() -> None:
    decoder: FrameDecoder[Any] = FrameDecoder(messages.ToRuntime)
    given_out: list[Any] = []
    with pytest.raises(ProtocolError):
        given_out.extend(decoder.receive_data(bytes(encode_frame(HELLO)) + b"\1\0\0\0\xc1"))
    assert given_out == [HELLO]


def test_a_message_of_the_other_direction_is_refused() -> None:
    with pytest.raises(ProtocolError):
        list(FrameDecoder(messages.ToRuntime).receive_data(encode_frame(messages.ReturnLease(1))))


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=200), cut=st.integers(1, 50))
def test_noise_gives_messages_or_protocol_errors(data: bytes, cut: int) -> None:
    """Nothing else is raised, and no more memory is taken than the limit allows."""
    decoder: FrameDecoder[Any] = FrameDecoder(messages.ToRuntime, bytes_max=1 << 20)
    try:
        for piece in chunks(data, cut):
            list(decoder.receive_data(piece))
    except ProtocolError:
        return
    assert len(decoder.writable()) <= 2 * (1 << 20)


@settings(max_examples=60, deadline=None)
@given(position=st.integers(0, 10_000), value=st.integers(0, 255), draw=st.data())
def test_one_wrong_byte_gives_messages_or_a_protocol_error(position: int, value: int, draw: st.DataObject) -> None:
    kinds = [kind for kind in message_types() if kind in typing.get_args(messages.ToRuntime)]
    frame = encode_frame(draw.draw(struct_of(draw.draw(st.sampled_from(kinds)))))
    frame[position % len(frame)] = value
    try:
        list(FrameDecoder(messages.ToRuntime).receive_data(frame))
    except ProtocolError:
        pass
