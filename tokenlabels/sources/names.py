"""Names of splits."""

from __future__ import annotations

import re

from tokenlabels.errors import ParameterError


def split_name(text: str) -> str:
    """A split's name from that of a file or folder: letters, digits and underscores.

    Raises:
        ParameterError: nothing is left of it.
    """
    name = re.sub(r"[^A-Za-z0-9_]", "_", text)
    if not name:
        raise ParameterError("the split needs a name: give --split.")
    return name
