"""Addresses on the web: which can be fetched, where a mirror has a file, and what of one may be told.

A password that is not quoted may hold `/`, `?`, `#` and `@`. Of such an address nobody can say where the password ends
(RFC 3986, section 3.2), so it is neither asked nor shown.
"""

from __future__ import annotations

import re
from urllib.parse import SplitResult, urlsplit, urlunsplit

from tokenlabels.errors import ParameterError

_STRANGE = re.compile(r"[\s\\\0-\x1f\x7f]")
"""What no address has; programs do not agree what it means in one."""


def check_address(url: str) -> None:
    """Raise `ParameterError`, which does not repeat it, unless this is the address of a folder that can be asked."""
    parts = _split(url)
    good = parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname)
    if not good or "#" in url or _STRANGE.search(url):
        raise ParameterError(
            "the mirror is no address of a folder on the web: write http://HOST/FOLDER or https://HOST/FOLDER, and %2F "
            "%3F %23 %40 for / ? # @ in a user's name or password."
        )


def below(folder: str, file: str) -> str:
    """Address of a file in a folder; the query, which may be a signature, stays behind it."""
    parts = urlsplit(folder)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{file}"))


def shown(url: str) -> str:
    """An address without what may be secret: user, password and query; `...` where that cannot be told apart."""
    parts = _split(url)
    if parts is None:
        scheme = re.match(r"[a-z]+(?=:)", url)
        return f"{scheme[0]}://..." if scheme else "..."
    return printable(urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")))


def printable(text: str) -> str:
    """What a server says, without what would steer a terminal."""
    return "".join(character for character in text if character.isprintable())


def _split(url: str) -> SplitResult | None:
    """Its parts; None where it is none, or where a password may go on behind what looks like the host."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises where it is no number
        if parts.hostname:
            parts.hostname.encode("idna")
    except ValueError:
        return None
    if "@" in parts.path + parts.query + parts.fragment and ":" in url.partition(":")[2].rpartition("@")[0]:
        return None
    return parts
