"""A page from its template, and the policy that lets it use nothing but its own style, script and pictures."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

STYLE = Path(__file__).with_name("style.css")
"""The style of every page: colours for light and dark, tiles, cards, tables and plots."""


def fill(template: Path, parts: Mapping[str, str], *, style: str, script: str | None = None) -> str:
    """The page, as text.

    Args:
        template: HTML with `{{name}}` where a part goes; `policy`, `style` and `script` are made here.
        parts: HTML by name.
        style: the content of its one style element.
        script: the content of its one script element that runs, if it has any.
    """
    policy = (
        f"default-src 'none'; img-src data:; style-src {_digest(style)}; script-src {_digest(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    values = dict(parts) | {"policy": policy, "style": style, "script": script or ""}
    return re.sub(r"{{([a-z-]+)}}", lambda found: values[found[1]], template.read_text("utf-8"))


def _digest(text: str | None) -> str:
    """The source of a policy that allows this very text, or nothing."""
    if text is None:
        return "'none'"
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
