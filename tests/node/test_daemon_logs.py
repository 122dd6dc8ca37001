"""Lines of workers: splitting, naming, capping, and a real pipe through a loop."""

from __future__ import annotations

import asyncio
import os

from hypothesis import given
from hypothesis import strategies as st

from shoal.node.io.logs import NAME_MARKER, LineSplitter, LogStream


def twin(data: bytes) -> list[tuple[str, bytes]]:
    """Line by line, the slow way."""
    name, lines = "", []
    for line in data.split(b"\n") if data else []:
        if line.startswith(NAME_MARKER):
            name = line[len(NAME_MARKER) :].decode("utf-8", "replace")
        else:
            lines.append((name, line))
    if lines and data.endswith(b"\n"):
        lines.pop()
    return lines


pieces = st.lists(
    st.sampled_from([b"a", b"\n", NAME_MARKER + b"f\n", b"\n" + NAME_MARKER + b"g\n", b"\x01", b"\x01shoal:", b"\xff"])
)


@given(pieces, st.integers(1, 7))
def test_splitting_equals_the_twin_however_it_arrives(parts: list[bytes], step: int) -> None:
    data = b"".join(parts)
    splitter = LineSplitter()
    runs = [run for i in range(0, len(data), step) for run in splitter.split(data[i : i + step])]
    runs += splitter.finish()
    lines = [(name, line) for name, block in runs for line in block.split(b"\n")[:-1]]
    assert lines == twin(data)


def test_a_pipe_is_delivered_named_and_kept(tmp_path) -> None:
    delivered: list[tuple[int, str, int, list[str]]] = []

    async def scenario() -> list[str]:
        loop = asyncio.get_running_loop()
        read_end, write_end = os.pipe()
        path = str(tmp_path / "worker-7.err")
        stream = LogStream(read_end, 2, lambda: path, lambda *batch: delivered.append(batch), 7, loop)
        os.write(write_end, b"plain\n" + NAME_MARKER + b"f\none\ntwo\nunfin")
        await asyncio.sleep(0.01)
        os.write(write_end, b"ished")
        os.close(write_end)
        await asyncio.sleep(0.01)
        assert stream.fd == -1
        return stream.tail

    tail = asyncio.run(scenario())
    assert delivered == [(7, "", 2, ["plain"]), (7, "f", 2, ["one", "two"]), (7, "f", 2, ["unfinished"])]
    assert tail == ["plain", "one", "two", "unfinished"]
    assert (tmp_path / "worker-7.err").read_bytes() == b"plain\none\ntwo\nunfinished\n"
