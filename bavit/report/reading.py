"""Untrusted JSON -> plain values: of bounded size, without numbers that are none."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from tokenlabels.errors import TokenLabelsError

MAX_FILE = 64 << 20
"""Bytes of a file of results at most; the largest that a command writes has some hundred kilobytes."""

_MAX_DIGITS = 18


def read_json(path: Path) -> Any:
    """The content of a JSON file. What is not finite, or too large for a double, is None.

    Raises:
        TokenLabelsError: it cannot be read, is too large, or no JSON.
    """
    return _parsed(path, _content(path))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file that has one in each line; a last line that is cut short, as by a kill, is left out.

    Raises:
        TokenLabelsError: it cannot be read, is too large, or a line is no JSON object.
    """
    lines = _content(path).split(b"\n")
    found = []
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        if number + 1 == len(lines) and not line.rstrip().endswith(b"}"):
            continue
        record = _parsed(path, line)
        if not isinstance(record, dict):
            raise TokenLabelsError(f"{path}: line {number + 1} is no JSON object: make the run again.")
        found.append(record)
    return found


def _content(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_FILE:
            raise TokenLabelsError(f"{path}: has more than {MAX_FILE >> 20} MiB: no file of results is so large.")
        return path.read_bytes()
    except OSError as fault:
        reason = fault.strerror or "unreadable"
        raise TokenLabelsError(f"{path}: cannot be read ({reason}): name another file or folder.") from None


def _parsed(path: Path, content: bytes) -> Any:
    try:
        return json.loads(content, parse_float=_float, parse_int=_int, parse_constant=_nothing)
    except (ValueError, RecursionError):  # UnicodeDecodeError is one
        raise TokenLabelsError(f"{path}: is no JSON that can be read: make it again.") from None


def _float(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def _int(text: str) -> int | float | None:
    return int(text) if len(text) <= _MAX_DIGITS else _float(text)


def _nothing(_: str) -> None:
    """NaN, Infinity and -Infinity, which are no JSON but are written."""
