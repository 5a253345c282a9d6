"""Addresses of archives: mirrors, redirects, hosts that are not there, and what may be told of them."""

from __future__ import annotations

import socket
from collections import deque
from pathlib import Path
from urllib.parse import quote

import pytest
from downloads import (
    CONTENT,
    CUT,
    FILE,
    PATH,
    STATE,
    Stopping,
    Told,
    data_set,
    failing,
    fetch,
    whole,
)
from hypothesis import given
from hypothesis import strategies as st
from web_site import Site, serving

import tokenlabels
from tokenlabels.addresses import below, check_address, shown
from tokenlabels.errors import DownloadError, ParameterError


@pytest.mark.parametrize(
    "mirror",
    [
        *("", "here", "/data", "file:///data", "http://", "http://[", "http://h:x/", "http://h:99999/"),
        *("http://\xfc..h/", f"http://{'h' * 64}/", "http://h o/", "http://h\\x/", "http://h/\n", "http://h/#part"),
    ],
)
def test_mirrors_must_be_web_addresses(mirror: str, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="is no address of a folder on the web"):
        tokenlabels.download(data_set(), splits="val", root=tmp_path, mirror=mirror)


SECRET = "Zq7Xw"


def refusal(mirror: str) -> str:
    """Why it is not asked; empty: it is."""
    try:
        check_address(mirror)
    except ParameterError as fault:
        return str(fault)
    return ""


@given(st.text("/?#@:1a\\[% ", max_size=4), st.text("/?#@:1a\\[% ", max_size=4))
def test_no_part_of_a_password_is_shown(before: str, after: str) -> None:
    """Wherever it ends: an address is refused, or it is sent as it is meant and shown without it."""
    for mirror in (f"http://me:{before}{SECRET}{after}@host/x", f"http://me:1{before}{SECRET}@host:80/x"):
        assert SECRET not in shown(mirror)
        told = refusal(mirror)
        assert SECRET not in told
        assert told or shown(mirror).removesuffix(":80/x").removesuffix("/x") == "http://host"
    quoted = f"http://me:{quote(before + SECRET + after, safe='')}@host/x"
    check_address(quoted)
    assert shown(below(quoted, "a.zip")) == "http://host/x/a.zip"


@pytest.mark.parametrize(
    ("mirror", "address"),
    [
        ("http://host", "http://host/a.zip"),
        ("http://host/x//", "http://host/x/a.zip"),
        ("http://host?sig=S/", "http://host/a.zip?sig=S/"),
        ("https://me:pw@host:8/x/?sig=S&t=1", "https://me:pw@host:8/x/a.zip?sig=S&t=1"),
        ("http://host/me@there", "http://host/me@there/a.zip"),
    ],
)
def test_a_file_of_a_mirror(mirror: str, address: str) -> None:
    check_address(mirror)
    assert below(mirror, "a.zip") == address


def test_what_would_steer_a_terminal_is_not_shown() -> None:
    assert shown("http://host/\x1b[2J/x?s#f") == "http://host/[2J/x"


def test_a_signed_mirror(site: Site, tmp_path: Path) -> None:
    found = fetch(site, tmp_path, mirror=f"{site.address}/?sig=secret")
    whole(tmp_path)
    assert [(one.path, one.query) for one in site.served] == [(PATH, "sig=secret")]
    assert "secret" not in str(found)


def test_redirects_are_followed(site: Site, tmp_path: Path) -> None:
    with serving() as other:
        other.files["/there/it-is"] = CONTENT
        site.redirects = {PATH: "/moved", "/moved": f"{other.address}/there/it-is"}
        fetch(site, tmp_path)
        whole(tmp_path)
        assert other.sent("/there/it-is") == [(200, len(CONTENT))]
        assert [one.status for one in site.served] == [302, 302]


def test_a_transfer_behind_a_redirect_goes_on(site: Site, tmp_path: Path) -> None:
    site.files = {"/real": CONTENT}
    site.redirects = {PATH: "/real"}
    site.cuts["/real"] = deque([CUT])
    fetch(site, tmp_path)
    whole(tmp_path)
    assert site.sent("/real") == [(200, CUT), (206, len(CONTENT) - CUT)]


def test_the_next_address_is_tried_where_one_fails(site: Site, tmp_path: Path) -> None:
    told = Told()
    known = data_set((f"{site.address}/gone/{FILE}", f"{site.address}{PATH}"))
    fetch(site, tmp_path, dataset=known, mirror=None, progress=told)
    whole(tmp_path)
    assert any("answers 404" in note and "is tried" in note for note in told.notes)
    assert site.sent(PATH) == [(200, len(CONTENT))]


def test_a_password_is_sent_and_told_nobody(site: Site, tmp_path: Path) -> None:
    mirror = site.address.replace("http://", "http://me:secret@")
    told = Stopping(1 << 20)
    with pytest.raises(KeyboardInterrupt):
        fetch(site, tmp_path, mirror=mirror, progress=told)
    assert "secret" not in (tmp_path / STATE / f"{FILE}.part.json").read_text()
    found = fetch(site, tmp_path, mirror=mirror)
    whole(tmp_path)
    assert "secret" not in f"{found} {told.notes}"
    assert all(one.headers["Authorization"].startswith("Basic ") for one in site.served)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("file:///etc/passwd", ["file:///etc/passwd", "is not followed"]),
        ("ftp://127.0.0.1/set.zip", ["is not followed"]),
        ("http://[", ["is not followed"]),
        ("http://\xfc..h/", ["redirects to what is no address"]),
        ("http://127.0.0.1:99999/", ["redirects to what is no address"]),
        (PATH, ["redirects without end"]),
        ("/loop", ["redirects without end"]),
    ],
)
def test_redirects_that_are_not_followed(target: str, words: list[str], site: Site, tmp_path: Path) -> None:
    site.redirects = {PATH: target, "/loop": PATH}
    failing(site, tmp_path, *words)


def test_a_long_chain_of_redirects_has_an_end(site: Site, tmp_path: Path) -> None:
    site.redirects = {PATH: "/0"} | {f"/{step}": f"/{step + 1}" for step in range(50)}
    failing(site, tmp_path, "redirects without end")
    assert len(site.served) < 15


def test_a_host_that_does_not_answer(site: Site, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://user:secret@127.0.0.1:{taken.getsockname()[1]}"
        text = failing(site, tmp_path, "connection refused", mirror=address)
    assert "secret" not in text


def test_a_host_that_is_not_found_is_asked_for_twice(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def unknown(host: str, *_parts: object, **_options: object) -> None:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    pauses: list[float] = []
    monkeypatch.setattr("socket.getaddrinfo", unknown)
    failing(site, tmp_path, "the host is not found", "2 times", mirror="http://nowhere.invalid/", pause=pauses.append)
    assert asked == ["nowhere.invalid"] * 2
    assert pauses == [1.0]


def test_a_host_that_has_sent_something_is_waited_for(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.cuts[PATH] = deque([CUT])
    found, lost = socket.getaddrinfo, iter(range(4))

    def flickering(*parts: object, **options: object) -> object:
        if site.served and next(lost, None) is not None:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return found(*parts, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("socket.getaddrinfo", flickering)
    pauses: list[float] = []
    with pytest.raises(DownloadError, match=r"not found .*, 5 times: run again to go on"):
        fetch(site, tmp_path, pause=pauses.append)
    assert pauses == [1.0, 2.0, 4.0, 8.0]
    fetch(site, tmp_path)
    whole(tmp_path)
