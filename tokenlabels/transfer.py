"""One file over HTTP: goes on where an interrupted transfer ended, follows redirects, tries again after a while.

TARGET.part        what has arrived
TARGET.part.json   from where, and of which version: ETag or Last-Modified

The rest is asked for with `Range` and `If-Range` (RFC 9110, sections 13.1.5 and 14.2), so that a server whose file has
changed sends it from the beginning.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import urljoin, urlsplit

import msgspec

from tokenlabels.addresses import printable, shown
from tokenlabels.atomic import unwritable, write_atomically
from tokenlabels.errors import DownloadError
from tokenlabels.progress import Progress, Silent

if TYPE_CHECKING:
    import requests

    Headers: TypeAlias = dict[str, str]

_CHUNK = 1 << 16
"""Bytes read at once; what has arrived of them is lost with the connection."""

_TIMEOUT = (20.0, 60.0)
"""Seconds to connect, and between two pieces."""

_TRIES = 5
"""In a row without a byte more."""

_TRIES_TO_FIND = 2
"""Of a host whose name nobody knows, and that has sent nothing yet."""

_LONGEST_PAUSE = 30.0
_MAX_REDIRECTS = 10
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_DIGITS = 18
"""Of a length that is believed."""

_NUMBER = f"([0-9]{{1,{_DIGITS}}})"
_RANGE = re.compile(rf"bytes {_NUMBER}-{_NUMBER}/(?:{_NUMBER}|\*)")
_UNMET = re.compile(rf"bytes \*/{_NUMBER}")
_VALIDATOR = re.compile(r"[\x21-\x7e\x80-\xff]([\x20-\x7e\x80-\xff]{0,998}[\x21-\x7e\x80-\xff])?")
"""What can be sent back in a header."""


class _Version(msgspec.Struct, frozen=True):
    """What the beginning of a file, kept in `.part`, is the beginning of."""

    url: str
    validator: str | None
    total: int | None


class _Again(Exception):  # noqa: N818  nobody sees it
    """Worth another try: the reason, what the server says of when, in seconds, and whether it has a name at all."""

    def __init__(self, reason: str, pause: float | None = None, *, found: bool = True) -> None:
        super().__init__(reason)
        self.pause = pause
        self.found = found


class ResumingDownloader:
    """A downloader as pooch wants it, `downloader(url, output_file, pooch)`.

    Args:
        part: where what arrives is kept.
        size: of the file, in bytes; None: whatever the server says.
        checked: whether the file's hash is checked afterwards: then a beginning may be of any version.
        progress: told the bytes.
        pause: waits some seconds.
    """

    def __init__(
        self,
        part: Path,
        *,
        size: int | None,
        checked: bool,
        progress: Progress | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._part = part
        self._name = part.name.removesuffix(".part")
        self._notes = _notes_of(part)
        self._size = size
        self._checked = checked
        self._progress = progress or Silent()
        self._pause = pause

    def __call__(self, url: str, output_file: str, pooch: object, check_only: bool = False) -> None:  # noqa: ARG002
        """Fetch `url` into `output_file`; what has arrived is kept, too, until `forget` is called.

        Raises:
            DownloadError: it cannot be had.
            OutputError: it cannot be written.
        """
        failures, first = 0, self.held()
        with _session() as session:
            while True:
                before = self.held()
                try:
                    self._transfer(session, url)
                    break
                except _Again as fault:
                    failures = 1 if self.held() > before else failures + 1
                    if failures >= (_TRIES if fault.found or self.held() > first else _TRIES_TO_FIND):
                        kept = ": run again to go on" if self.held() else ": try later, or another --mirror"
                        raise DownloadError(f"{shown(url)}: {fault}, {failures} times{kept}.") from None
                    seconds = min(fault.pause or 2.0 ** (failures - 1), _LONGEST_PAUSE)
                    self._progress.note(f"{shown(url)}: {fault}; tried again in {seconds:g} s.")
                    self._pause(seconds)
        if self._checked:
            self._progress.stage(f"checking {self._name}")
        try:
            Path(output_file).unlink(missing_ok=True)
            try:
                Path(output_file).hardlink_to(self._part)  # until it is checked, it is not to be lost by Ctrl-C
            except OSError:  # a disk without such links
                shutil.copyfile(self._part, output_file)
        except OSError as fault:
            raise unwritable(self._part, fault) from None

    def held(self) -> int:
        """Bytes that have arrived."""
        return self._part.stat().st_size if self._part.exists() else 0

    def _transfer(self, session: requests.Session, url: str) -> None:
        version = self._version(url)
        held = self.held() if version else 0
        if version and held == (self._size if version.total is None else version.total):
            return
        with _request(session, url, _range_headers(held, version)) as response:
            if response.status_code == 416 and held:
                unmet = _UNMET.fullmatch(response.headers.get("Content-Range", ""))
                if self._checked and unmet is not None and int(unmet[1]) == held:
                    return
                forget(self._part)
                raise _Again("the file has changed there")
            start, total = _extent(response, url)
            now = _Version(shown(url), _validator(response.headers), total)
            if start and (version is None or start != held or now.validator != version.validator):
                forget(self._part)
                raise _Again("the file has changed there")
            if self._size is not None and total not in (None, self._size):
                forget(self._part)
                raise DownloadError(
                    f"{shown(url)}: has {total:,} bytes, should have {self._size:,}: it is another file; try another "
                    "--mirror."
                )
            if held and not start:
                self._progress.note(f"{shown(url)}: the server sends it from the beginning again.")
            write_atomically(self._notes, msgspec.json.encode(now))
            self._check_room((total or 0) - start)
            self._progress.stage(f"downloading {self._name}", total or self._size)
            self._progress.advance(start)
            held = self._write(response, start)
        expected = self._size if total is None else total
        if expected is not None and held != expected:
            raise _Again("the connection ended early")

    def _check_room(self, wanted: int) -> None:
        free = shutil.disk_usage(self._part.parent).free
        if wanted > free:
            raise DownloadError(
                f"{self._part.parent.parent}: has {free / 1e9:.1f} GB free, {wanted / 1e9:.1f} GB of {self._name} "
                "are to come: free space, or name another --root."
            )

    def _version(self, url: str) -> _Version | None:
        """Of which file `.part` is the beginning; None where it is of no use."""
        try:
            version = msgspec.json.decode(self._notes.read_bytes(), type=_Version)
        except (OSError, msgspec.MsgspecError):
            return None
        usable = version.url == shown(url) and (version.validator is not None or self._checked)
        usable = usable and (version.validator is None or _VALIDATOR.fullmatch(version.validator) is not None)
        return version if usable and self.held() <= (version.total or self.held()) else None

    def _write(self, response: requests.Response, start: int) -> int:
        """Append the body; returns the bytes held. What has arrived is kept, whatever happens."""
        held = start
        try:
            with self._part.open("r+b" if start else "wb") as file:
                file.seek(start)
                file.truncate()
                for piece in _pieces(response):
                    file.write(piece)
                    held += len(piece)
                    self._progress.advance(len(piece))
                    if self._size is not None and held > self._size:
                        raise DownloadError(
                            f"{shown(response.url)}: goes on after the {self._size:,} bytes that it should have: it is "
                            "another file; try another --mirror."
                        )
                file.flush()
                os.fsync(file.fileno())
        except OSError as fault:
            raise unwritable(self._part, fault) from None
        return held


def forget(part: Path) -> None:
    """Throw away what has arrived of a file."""
    part.unlink(missing_ok=True)
    _notes_of(part).unlink(missing_ok=True)


def _notes_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _range_headers(held: int, version: _Version | None) -> Headers:
    if not held or version is None:
        return {}
    return {"Range": f"bytes={held}-"} | ({"If-Range": version.validator} if version.validator else {})


def _validator(headers: Mapping[str, str]) -> str | None:
    """What tells one version of a file from another, byte for byte: a strong ETag, else the date."""
    tag = headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")


def _extent(response: requests.Response, url: str) -> tuple[int, int | None]:
    """Where the body begins in the file, and how long the file is."""
    status, headers = response.status_code, response.headers
    if headers.get("Content-Encoding", "identity") != "identity":
        raise DownloadError(f"{shown(url)}: is sent compressed, which nobody asked for: try another --mirror.")
    if status == 206:
        found = _RANGE.fullmatch(headers.get("Content-Range", ""))
        if found is None:
            raise DownloadError(f"{shown(url)}: sends a part and does not say which: try another --mirror.")
        return int(found[1]), None if found[3] is None else int(found[3])
    if status == 200:
        length = headers.get("Content-Length", "")
        if length.isdecimal() and len(length) > _DIGITS:
            raise DownloadError(f"{shown(url)}: says a length that no file has: try another --mirror.")
        return 0, int(length) if length.isdecimal() else None
    reason = f"answers {status} {printable(response.reason or '')[:60]}".rstrip()
    if status in _BUSY:
        wait = headers.get("Retry-After", "")
        raise _Again(reason, float(wait) if wait.isdecimal() else None)
    raise DownloadError(f"{shown(url)}: {reason}: try later, or another --mirror.")


def _session() -> requests.Session:
    """A session that leaves redirects to `_request`; it would else read their bodies, whatever their size."""
    import requests

    class Session(requests.Session):
        def get_redirect_target(self, resp: requests.Response) -> None:
            """None, ever."""

    session = Session()
    session.headers.update({"User-Agent": "tokenlabels", "Accept-Encoding": "identity"})
    return session


def _request(session: requests.Session, url: str, headers: Headers) -> requests.Response:
    """The answer after all redirects."""
    import requests

    current, seen = url, {url}
    while True:
        try:
            response = session.get(current, headers=headers, stream=True, allow_redirects=False, timeout=_TIMEOUT)
        except ValueError:  # of requests, urllib3, idna
            problem = "is no address that can be fetched" if current == url else "redirects to what is no address"
            raise DownloadError(f"{shown(url)}: {problem}: try another --mirror.") from None
        except requests.exceptions.SSLError:
            raise DownloadError(f"{shown(current)}: its certificate is not trusted: try another --mirror.") from None
        except requests.RequestException as fault:
            raise _again(fault) from None
        if not response.is_redirect:
            return response
        response.close()
        try:
            target = urljoin(current, response.headers["Location"])
            scheme = urlsplit(target).scheme
        except ValueError:
            target = scheme = ""
        if scheme not in ("http", "https") or (scheme == "http" and urlsplit(current).scheme == "https"):
            raise DownloadError(
                f"{shown(url)}: redirects to {shown(target)}, which is not followed (https to http, or no web "
                "address): try another --mirror."
            )
        if target in seen or len(seen) > _MAX_REDIRECTS:
            raise DownloadError(f"{shown(url)}: redirects without end: try another --mirror.")
        seen.add(target)
        current = target


def _pieces(response: requests.Response) -> Iterator[bytes]:
    import requests

    try:
        yield from response.iter_content(_CHUNK)
    except (requests.RequestException, ValueError) as fault:
        raise _again(fault) from None


def _again(fault: BaseException) -> _Again:
    """Why a connection failed, in the words of the system; addresses in the libraries' own may hold passwords."""
    import socket

    import requests

    if isinstance(fault, requests.Timeout):
        return _Again("no answer in time")
    cause: BaseException | None = fault
    while cause is not None:
        if isinstance(cause, socket.gaierror):
            return _Again("the host is not found (is there a network?)", found=False)
        if isinstance(cause, OSError) and not isinstance(cause, requests.RequestException) and cause.strerror:
            return _Again(cause.strerror.lower())
        inner = next((value for value in cause.args if isinstance(value, BaseException)), None)
        cause = getattr(cause, "reason", None) or inner or cause.__cause__ or cause.__context__
        cause = cause if isinstance(cause, BaseException) else None
    return _Again("the connection ended early")
