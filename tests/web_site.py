"""A web server of a test's own, which can be told to misbehave, and says what it served."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_PIECE = 1 << 16


@dataclass
class Served:
    """One request: its path and query, its headers, the status and how many bytes of body were sent."""

    path: str
    headers: dict[str, str]
    status: int
    sent: int = 0
    query: str = ""


@dataclass
class Site:
    """Files by path, and what is done instead of serving them properly.

    Attributes:
        files: path -> content.
        tags: path -> ETag; `"v1"` where not said, none where empty.
        redirects: path -> address.
        statuses: path -> statuses of the next requests, before it is served.
        cuts: path -> after how many bytes of body the connection of each of the next requests is closed.
        ranges: whether `Range` is understood.
        conditions: whether `If-Range` is.
        sized: whether `Content-Length` is sent.
        dates: whether `Last-Modified` is sent.
        encoding: a `Content-Encoding` to claim.
        headers: path -> headers that are sent instead of the right ones.
        gate: waited for by every answer after its first piece.
    """

    port: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    statuses: dict[str, deque[int]] = field(default_factory=dict)
    cuts: dict[str, deque[int]] = field(default_factory=dict)
    ranges: bool = True
    conditions: bool = True
    sized: bool = True
    dates: bool = False
    encoding: str = ""
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    gate: Callable[[], Any] = lambda: None
    served: list[Served] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def sent(self, path: str) -> list[tuple[int, int]]:
        """Status and bytes of every answer to a path."""
        return [(one.status, one.sent) for one in self.served if one.path == path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def do_GET(self) -> None:
        site, (path, _, query) = self.site, self.path.partition("?")
        seen = Served(path, dict(self.headers), 200, query=query)
        site.served.append(seen)
        if site.statuses.get(path):
            return self._answer(seen, site.statuses[path].popleft(), {})
        if path in site.redirects:
            return self._answer(seen, 302, {"Location": site.redirects[path]})
        if path not in site.files:
            return self._answer(seen, 404, {})
        content, tag = site.files[path], site.tags.get(path, '"v1"')
        headers = {"ETag": tag} if tag else {}
        headers |= {"Last-Modified": "Tue, 01 Sep 2015 12:00:00 GMT"} if site.dates else {}
        headers |= {"Content-Encoding": site.encoding} if site.encoding else {}
        asked, start = self.headers.get("Range"), 0
        validators = {tag, headers.get("Last-Modified")} - {""}
        same = not site.conditions or self.headers.get("If-Range") in {None} | validators
        if asked and site.ranges and same:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                return self._answer(seen, 416, {"Content-Range": f"bytes */{len(content)}"})
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            seen.status = 206
        self._send(seen, content[start:], headers)
        return None

    def _answer(self, seen: Served, status: int, headers: dict[str, str]) -> None:
        seen.status = status
        self.send_response(status)
        for name, value in ({"Content-Length": "0"} | headers | self.site.headers.get(seen.path, {})).items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, seen: Served, body: bytes, headers: dict[str, str]) -> None:
        cuts = self.site.cuts.get(seen.path)
        end = cuts.popleft() if cuts else len(body)
        self.send_response(seen.status)
        headers |= {"Content-Length": str(len(body))} if self.site.sized else {"Connection": "close"}
        for name, value in (headers | self.site.headers.get(seen.path, {})).items():
            self.send_header(name, value)
        self.end_headers()
        try:
            for start in range(0, min(end, len(body)), _PIECE):
                piece = body[start : min(start + _PIECE, end)]
                self.wfile.write(piece)
                self.wfile.flush()
                seen.sent += len(piece)
                self.site.gate()
        except OSError:
            self.close_connection = True  # whoever read it is gone
        if end < len(body) or not self.site.sized:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that is gone."""


@contextmanager
def serving() -> Iterator[Site]:
    """A site, until the block ends."""
    site = Site()
    handler = type("Handler", (_Handler,), {"site": site})
    with _Server(("127.0.0.1", 0), handler) as server:
        site.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield site
        finally:
            server.shutdown()
            thread.join()
