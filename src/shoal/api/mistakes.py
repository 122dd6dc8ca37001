"""Help with mistakes in what users write."""

from __future__ import annotations

from collections.abc import Iterable


def did_you_mean(key: str, valid: Iterable[str]) -> str:
    """The end of an error's sentence: the valid name that is nearest to `key`, if any is near."""
    import difflib  # 3 ms that only mistakes pay for

    near = difflib.get_close_matches(key, list(valid), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""
