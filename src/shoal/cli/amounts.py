"""How the command line takes resources and labels (a JSON object, or NAME=VALUE,NAME=VALUE), and sizes (2e9, 2GB, 512MiB)."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import click

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def bytes_of(context: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    """A size in bytes, as people write it: 1000000000, 1e9, 1GB, 1.5g, 512 MiB. As in `shoal status`, a GB is 10^9 bytes and a GiB 2^30.

    Raises:
        click.BadParameter: it is no size.
    """
    if text is None:
        return None
    match = re.fullmatch(r"([\d._]*\d\.?(?:e\+?\d+)?)\s*([kmgt]i?)?b?", text.strip().lower())
    try:
        size = float(match[1]) * _UNITS[match[2] or ""] if match else math.nan
    except ValueError:
        size = math.nan
    if not 1 <= size < 2**63:
        raise click.BadParameter(f"{text!r} is no size: write bytes (1000000000, 1e9) or a unit (1GB, 1.5g, 512MiB)")
    return int(size)


def resources_of(context: click.Context, parameter: click.Parameter, text: str | None) -> dict[str, Any]:
    """Amounts by name.

    Raises:
        click.BadParameter: it is neither a JSON object nor NAME=NUMBER,NAME=NUMBER.
    """
    pairs = labels_of(context, parameter, text)
    for name, content in pairs.items():
        if isinstance(content, str):
            try:
                pairs[name] = float(content)
            except ValueError:
                raise click.BadParameter(f"{name}={content}: {content!r} is no number") from None
    return pairs


def labels_of(context: click.Context, parameter: click.Parameter, text: str | None) -> dict[str, Any]:
    """Texts by name.

    Raises:
        click.BadParameter: it is neither a JSON object nor NAME=TEXT,NAME=TEXT.
    """
    text = (text or "").strip()
    if text.startswith("{"):
        try:
            return dict(json.loads(text))
        except ValueError as error:
            raise click.BadParameter(f"{text!r} is no JSON: {error}") from None
    pairs: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, equals, content = part.partition("=")
        if not equals:
            raise click.BadParameter(f"{part!r} is not of the form NAME=VALUE")
        pairs[name.strip()] = content.strip()
    return pairs
