"""Frames: a 4-byte little-endian length, then that many bytes of msgpack.

Purpose: turn messages into bytes and bytes into messages, and nothing else; the caller owns the socket.

Design: `FrameDecoder` is a byte machine. The hot path receives straight into its kept buffer (`writable()` and `received(n)`), so a message
costs no allocation but its own; a frame larger than the buffer grows it once and is given back later. Decoding is by a typed msgspec
decoder, so a frame that is not a known message with the right types is a `ProtocolError`, and the connection that sent it ends.

What it does not do: time-outs, authentication, or deciding what to do after an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import msgspec

from shoal.protocol.limits import FRAME_BYTES_MAX, FRAME_HEADER_BYTES, RECEIVE_BUFFER_BYTES

M = TypeVar("M")

_encoder = msgspec.msgpack.Encoder()
_encode_into = _encoder.encode_into


class ProtocolError(Exception):
    """The bytes received are not a frame of this protocol."""


def encode_frame(message: Any) -> bytearray:
    """One message as one frame."""
    frame = bytearray(FRAME_HEADER_BYTES)
    _encode_into(message, frame, FRAME_HEADER_BYTES)
    frame[0:4] = (len(frame) - FRAME_HEADER_BYTES).to_bytes(4, "little")
    return frame


def append_frame(out: bytearray, message: Any) -> None:
    """Append one message as a frame to `out`."""
    start = len(out)
    _encode_into(message, out, start + FRAME_HEADER_BYTES)
    out[start : start + 4] = (len(out) - start - FRAME_HEADER_BYTES).to_bytes(4, "little")


class FrameDecoder(Generic[M]):
    """Bytes in, messages out. One per connection.

    `expected` is the union of message types that this side accepts.
    """

    #: `_buffer[_start:_end]` holds received bytes of frames not yet decoded.
    __slots__ = ("_buffer", "_decode", "_end", "_start", "_view", "bytes_max")

    def __init__(self, expected: Any, bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._decode = decoder_of(expected).decode
        self._buffer = bytearray(RECEIVE_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0
        self.bytes_max = bytes_max

    def is_empty(self) -> bool:
        """Whether no part of a frame waits here: then another connection may use the buffer."""
        return self._start == self._end

    def writable(self) -> memoryview:
        """Where to receive the next bytes; never empty."""
        if self._start == self._end:
            self._start = self._end = 0
            if len(self._buffer) > RECEIVE_BUFFER_BYTES:
                self._make_room()  # a large frame came and went
        elif self._end == len(self._buffer) or self._start > len(self._buffer) // 2:
            self._make_room()
        return self._view[self._end :]

    def _make_room(self) -> None:
        pending = self._end - self._start
        need = pending + 1
        if pending >= FRAME_HEADER_BYTES:
            need = FRAME_HEADER_BYTES + int.from_bytes(self._buffer[self._start : self._start + 4], "little")
        size = max(RECEIVE_BUFFER_BYTES, 2 * pending, need)
        fresh = bytearray(size)
        fresh[:pending] = self._view[self._start : self._end]
        self._view = memoryview(fresh)
        self._buffer = fresh
        self._start, self._end = 0, pending

    def received(self, count: int) -> Iterator[M]:
        """`count` bytes were written to `writable()`: the messages that they complete.

        Raises:
            ProtocolError: a frame is too long or does not decode.
        """
        self._end += count
        view = self._view
        start, end = self._start, self._end
        decode = self._decode
        while end - start >= FRAME_HEADER_BYTES:
            body = start + FRAME_HEADER_BYTES
            size = int.from_bytes(view[start:body], "little")
            if size > self.bytes_max:
                raise ProtocolError(f"a frame of {size} bytes exceeds the limit of {self.bytes_max}")
            if end - body < size:
                break
            start = body + size
            self._start = start
            try:
                message = decode(view[body:start])
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise ProtocolError(f"a frame of {size} bytes is no known message: {error}") from None
            yield message
            # Whoever handles it may read on (a finalizer that waits): what is left is where it says.
            view, start, end = self._view, self._start, self._end

    def receive_data(self, data: bytes | bytearray | memoryview) -> Iterator[M]:
        """The messages completed by `data`, for callers that have bytes in hand."""
        view = memoryview(data)
        while len(view):
            room = self.writable()
            count = min(len(room), len(view))
            room[:count] = view[:count]
            view = view[count:]
            yield from self.received(count)


_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {}


def decoder_of(expected: Any) -> msgspec.msgpack.Decoder[Any]:
    """The shared decoder for a union of message types (building one takes a millisecond)."""
    decoder = _decoders.get(expected)
    if decoder is None:
        decoder = _decoders[expected] = msgspec.msgpack.Decoder(expected)
    return decoder
