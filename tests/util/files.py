"""Files by which tests and what they have started tell each other how far they are."""

from __future__ import annotations

import time
from pathlib import Path


def wait_for(path: Path) -> bool:
    """Whether the file came."""
    for _ in range(6000):
        if path.exists():
            return True
        time.sleep(0.01)
    return False
