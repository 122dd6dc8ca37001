"""The folder of an experiment, on this machine or wherever fsspec reaches.

Design: a path without a scheme is a local folder, written by the operating system's own atomic rename and append; anything else goes through
fsspec. What a line of `append` said survives the death of the process on a local folder at once, elsewhere with the next `flush`. Object stores
cannot append: there a stream is a row of numbered parts, the last of which is replaced by a longer one until it is large enough. A process never
touches the parts of another.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import posixpath
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TORN_SUFFIX = ".partial"
OWNER = ".driver"  #: who writes here, and the lock that says so
PART_BYTES = 64 * 1024  #: of a stream in an object store


class Storage:
    """A folder. `location`: path or fsspec URL."""

    def __init__(self, location: str) -> None:
        if location.startswith("file://"):
            location = location.removeprefix("file://")
        self.is_local = "://" not in location
        self.location = os.path.abspath(os.path.expanduser(location)) if self.is_local else location.rstrip("/")
        self._fs: Any = None
        self._root = self.location
        self._pending: dict[str, list[bytes]] = {}
        self._tails: dict[str, tuple[int, bytes]] = {}  #: stream -> (number, content) of the part that still grows
        if not self.is_local:
            try:
                import fsspec
            except ImportError as error:
                raise ImportError(f"{location} needs fsspec: pip install 'shoal[tune]'") from error
            self._fs, self._root = fsspec.core.url_to_fs(self.location)

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """No other process that does the same writes here meanwhile; elsewhere than in a local folder nobody can tell.

        Raises:
            RuntimeError: one does.
        """
        if not self.is_local:
            yield
            return
        os.makedirs(self._root, exist_ok=True)
        with open(self._inner(OWNER), "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it ends with this process, however that ends
            except OSError as error:
                file.seek(0)
                raise RuntimeError(
                    f"{self.location} is being written by {file.read().strip() or 'another process'}: two drivers would spoil the search; "
                    "end that one first"
                ) from error
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            yield

    def full(self, path: str) -> str:
        """The path or URL of something inside."""
        return f"{self.location}/{path}" if path else self.location

    def _inner(self, path: str) -> str:
        return posixpath.join(self._root, path)

    def write(self, path: str, content: bytes, durable: bool = True) -> None:
        """The whole file, atomically: readers see the old content or the new one. `durable`: also after a power cut."""
        if not self.is_local:
            self._fs.makedirs(posixpath.dirname(self._inner(path)), exist_ok=True)
            self._fs.pipe_file(self._inner(path), content)
            return
        target = self._inner(path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        torn = f"{target}{TORN_SUFFIX}"
        with open(torn, "wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(torn, target)

    def read(self, path: str) -> bytes | None:
        """The file's content; None if there is none."""
        try:
            if self.is_local:
                return Path(self._inner(path)).read_bytes()
            content: bytes = self._fs.cat_file(self._inner(path))
            return content
        except (FileNotFoundError, NotADirectoryError):
            return None

    def append(self, path: str, line: bytes) -> None:
        """Add a line (with its newline) to a stream."""
        if not self.is_local:
            self._pending.setdefault(path, []).append(line)
            return
        target = self._inner(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        try:
            file = os.open(target, flags, 0o644)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            file = os.open(target, flags, 0o644)
        try:
            os.write(file, line)
        finally:
            os.close(file)

    def flush(self, path: str | None = None) -> None:
        """What `append` holds back of a stream (by default of all) is written."""
        for name in list(self._pending) if path is None else [path]:
            lines = self._pending.get(name)
            if not lines:
                continue
            part, content = self._tails.get(name) or (len(self._part_names(name)), b"")
            content += b"".join(lines)
            self.write(f"{name}.{part:06d}", content)
            del self._pending[name]
            self._tails[name] = (part, content) if len(content) < PART_BYTES else (part + 1, b"")

    def cut(self, path: str, count: int) -> None:
        """Take the last `count` lines of a stream away. Killed in the middle of it: on an object store some may still be there."""
        self.flush(path)
        lines = self.read_lines(path)
        content = b"".join(line + b"\n" for line in lines[: max(0, len(lines) - count)])
        if self.is_local:
            self.write(path, content)
            return
        self._tails.pop(path, None)
        for part in reversed(self._part_names(path)[1:]):
            self._fs.rm_file(part)
        self.write(f"{path}.{0:06d}", content)

    def _part_names(self, path: str) -> list[str]:
        """The parts of a stream, in order."""
        folder, name = posixpath.split(self._inner(path))
        if not self._fs.exists(folder):
            return []
        return sorted(
            one for one in self._fs.ls(folder, detail=False) if posixpath.basename(one).startswith(f"{name}.")
        )

    def read_lines(self, path: str) -> list[bytes]:
        """The whole lines of a stream. A last line that a killed writer left torn is cut off, also on disk."""
        if not self.is_local:
            parts = [self._fs.cat_file(part) for part in self._part_names(path)]
            # Where writes are not atomic a killed one leaves half a line at the end of its part.
            return [line for part in parts for line in part[: part.rfind(b"\n") + 1].splitlines()]
        content = self.read(path) or b""
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(self._inner(path), len(whole))
        return whole.splitlines()

    def names(self) -> list[str]:
        """What lies directly in the folder, files and folders, in order; nothing if there is no such folder."""
        if self.is_local:
            try:
                return sorted(os.listdir(self._root))
            except FileNotFoundError:
                return []
        if not self._fs.exists(self._root):
            return []
        return sorted(posixpath.basename(one.rstrip("/")) for one in self._fs.ls(self._root, detail=False))

    def upload(self, folder: str, path: str, leave_out: str = "") -> None:
        """Copy a local folder to `path`, but for the file `leave_out` in it."""
        if self.is_local:
            shutil.copytree(
                folder,
                self._inner(path),
                dirs_exist_ok=True,
                ignore=lambda inner, names: {leave_out}.intersection(names) if inner == folder else (),
            )
            return
        for name in sorted(os.listdir(folder)):
            if name == leave_out:
                continue
            source, target = os.path.join(folder, name), posixpath.join(path, name)
            if os.path.isdir(source):
                self.upload(source, target)
            else:
                self.write(target, Path(source).read_bytes())

    def download(self, path: str, folder: str) -> None:
        """Copy what is at `path` into a local folder."""
        if self.is_local:
            shutil.copytree(self._inner(path), folder, dirs_exist_ok=True)
            return
        root = self._inner(path)
        for found in self._fs.find(root):
            target = os.path.join(folder, posixpath.relpath(found, root))
            os.makedirs(os.path.dirname(target), exist_ok=True)
            Path(target).write_bytes(self._fs.cat_file(found))

    def sizes(self, path: str) -> dict[str, int]:
        """The size of each file in a folder, by its path there."""
        root = self._inner(path)
        if self.is_local:
            files = [one for one in sorted(Path(root).rglob("*")) if one.is_file()]
            return {str(one.relative_to(root)): one.stat().st_size for one in files}
        return {posixpath.relpath(name, root): each["size"] for name, each in self._fs.find(root, detail=True).items()}

    def remove(self, path: str) -> None:
        """Remove a folder or a file, if it is there."""
        if self.is_local:
            if os.path.isfile(self._inner(path)):
                os.unlink(self._inner(path))
            shutil.rmtree(self._inner(path), ignore_errors=True)
        elif self._fs.exists(self._inner(path)):
            self._fs.rm(self._inner(path), recursive=True)
