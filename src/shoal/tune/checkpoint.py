"""Checkpoints: folders of files that a trial can go on from.

Design: a checkpoint in an experiment's folder has a manifest, the sizes of its files, written last. Opening one that lacks a file or a byte raises
`CheckpointError` with the file's name; the trial then goes back to the checkpoint before.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from shoal.tune.storage import Storage

MANIFEST = ".shoal_checkpoint.json"


class CheckpointError(RuntimeError):
    """A checkpoint is missing or damaged."""


class Checkpoint:
    """A folder of files, on this machine or anywhere fsspec reaches. `path`: local path or URL."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = str(path)

    @classmethod
    def from_directory(cls, path: str | os.PathLike[str]) -> Checkpoint:
        """The checkpoint whose files are in `path`. `report` copies them."""
        return cls(os.path.abspath(path))

    def to_directory(self, path: str | os.PathLike[str] | None = None) -> str:
        """Copy the files into `path` (a new temporary folder by default); the folder is returned.

        Raises:
            CheckpointError: files are missing or shorter than they were.
        """
        target = str(path) if path is not None else tempfile.mkdtemp(prefix="shoal-checkpoint-")
        try:
            Storage(self.path).download("", target)
            _verify(target, self.path)
            (Path(target) / MANIFEST).unlink(missing_ok=True)  # a copy is the user's: its files may change
        except BaseException as error:
            if path is None:
                shutil.rmtree(target, ignore_errors=True)
            if isinstance(error, FileNotFoundError):
                raise CheckpointError(f"checkpoint {self.path}: there is no such folder") from error
            raise
        return target

    @contextlib.contextmanager
    def as_directory(self) -> Iterator[str]:
        """The files in a local folder for the length of a `with`: the folder itself if it is local, a copy otherwise."""
        storage = Storage(self.path)
        if storage.is_local:
            if not os.path.isdir(storage.location):
                raise CheckpointError(f"checkpoint {self.path}: there is no such folder")
            _verify(storage.location, self.path)
            yield storage.location
            return
        folder = self.to_directory()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def __repr__(self) -> str:
        return f"Checkpoint({self.path!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Checkpoint) and other.path == self.path

    def __hash__(self) -> int:
        return hash(self.path)


@contextlib.contextmanager
def reported_files(checkpoint: Checkpoint) -> Iterator[str]:
    """The files of a checkpoint that a user reports, in a local folder, as they are: a manifest that was copied along says nothing of them.

    Raises:
        FileNotFoundError: there are none. Never CheckpointError, which means one that was stored and is lost.
    """
    storage = Storage(checkpoint.path)
    if storage.is_local:
        if not os.path.isdir(storage.location):
            raise FileNotFoundError(f"report: the checkpoint's folder {checkpoint.path} does not exist")
        yield storage.location
        return
    folder = tempfile.mkdtemp(prefix="shoal-checkpoint-")
    try:
        storage.download("", folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def store_checkpoint(folder: str, storage: Storage, path: str) -> None:
    """Copy the files of `folder` to `path`, the manifest last."""
    storage.remove(path)  # what a killed attempt left
    storage.upload(folder, path)
    sizes = Storage(folder).sizes("")
    sizes.pop(MANIFEST, None)
    storage.write(f"{path}/{MANIFEST}", json.dumps(sizes).encode())


def check_complete(storage: Storage, path: str) -> None:
    """Raise CheckpointError unless a stored checkpoint is whole."""
    manifest = storage.read(f"{path}/{MANIFEST}")
    if manifest is None:
        raise CheckpointError(f"checkpoint {storage.full(path)}: it was not written to its end, or has been removed")
    _compare(manifest, storage.sizes(path), storage.full(path))


def _verify(folder: str, name: str) -> None:
    """Raise CheckpointError unless the files are as the manifest says; a folder without one is taken as it is."""
    manifest = Path(folder) / MANIFEST
    if manifest.exists():
        _compare(manifest.read_bytes(), Storage(folder).sizes(""), name)


def _compare(manifest: bytes, there: dict[str, int], name: str) -> None:
    for file, size in json.loads(manifest).items():
        if file not in there:
            raise CheckpointError(f"checkpoint {name}: the file {file} is missing")
        if there[file] != size:
            raise CheckpointError(f"checkpoint {name}: the file {file} has {there[file]} of {size} bytes")
