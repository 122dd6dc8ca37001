"""How the command line takes resources and labels: a JSON object, or NAME=VALUE,NAME=VALUE."""

from __future__ import annotations

import json
from typing import Any

import click


def resources_of(context: click.Context, parameter: click.Parameter, text: str | None) -> dict[str, Any]:
    """Amounts by name."""
    pairs = labels_of(context, parameter, text)
    for name, content in pairs.items():
        if isinstance(content, str):
            try:
                pairs[name] = float(content)
            except ValueError:
                raise click.BadParameter(f"{name}={content}: {content!r} is no number") from None
    return pairs


def labels_of(context: click.Context, parameter: click.Parameter, text: str | None) -> dict[str, Any]:
    """Texts by name."""
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
