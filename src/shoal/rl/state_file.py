"""The state of a training on disk: replaced atomically, checked when it is read, with the one before kept as a reserve.

Design: a file is a line with the SHA-256 of the rest, and the rest. A torn or damaged file is found by its digest; then the previous state is
taken, with a warning; if that is damaged too, `StateDamaged` says what to do. The content is a pickle: read only files that you trust.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

PREVIOUS_SUFFIX = ".previous"


class StateDamaged(ValueError):
    """No whole state is left in the file or its predecessor."""


def write_state(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Replace the state at `path`; the present one becomes the previous. Survives a kill at any moment, and a power cut."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    content = pickle.dumps(state, protocol=5)
    torn = target.with_name(f"{target.name}.partial")
    with torn.open("wb") as file:
        file.write(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
        file.flush()
        os.fsync(file.fileno())
    if target.exists():
        os.replace(target, f"{target}{PREVIOUS_SUFFIX}")
    os.replace(torn, target)


def read_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The newest whole state.

    Raises:
        FileNotFoundError: there is none.
        StateDamaged: what is there is damaged.
    """
    candidates = [Path(path), Path(f"{path}{PREVIOUS_SUFFIX}")]
    damaged: list[Path] = []
    for candidate in candidates:
        try:
            digest, _, content = candidate.read_bytes().partition(b"\n")
        except FileNotFoundError:
            continue
        if hashlib.sha256(content).hexdigest().encode() == digest:
            if damaged:
                warnings.warn(
                    f"{damaged[0]} is damaged; the training goes on from the state before, {candidate}", stacklevel=2
                )
            state: dict[str, Any] = pickle.loads(content)
            return state
        damaged.append(candidate)
    if not damaged:
        raise FileNotFoundError(f"there is no saved training at {path}")
    raise StateDamaged(
        f"{' and '.join(map(str, damaged))} are damaged (truncated?): begin anew, or copy back a whole file"
    )
