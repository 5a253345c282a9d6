"""Fetching an archive from a web server that is interrupted, changes its mind, lies, or is not there."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path

import msgspec
import pytest
from downloads import (
    CONTENT,
    CUT,
    FILE,
    MEMBER,
    PATH,
    PIECE,
    STATE,
    TEXT,
    Stopping,
    Told,
    data_set,
    failing,
    fetch,
    held,
    nothing,
    packed,
    whole,
)
from web_site import Site

# --- transfers that end well ------------------------------------------------------------------------------------------


def test_a_whole_transfer(site: Site, tmp_path: Path) -> None:
    told = Told()
    found = fetch(site, tmp_path, progress=told)
    whole(tmp_path)
    (archive,) = found.archives
    assert (archive.bytes, archive.checked, archive.there, archive.files) == (len(CONTENT), True, False, 2)
    assert found.commands == (("tokenlabels", "build", "coco", "--root", str(tmp_path), "--split", "val"),)
    assert told.stages == [
        (f"downloading {FILE}", len(CONTENT)),
        (f"checking {FILE}", None),
        (f"unpacking {FILE}", len(TEXT) + 7),
    ]
    assert told.steps == [len(CONTENT), 0, len(TEXT) + 7]
    assert any("plain http" in note for note in told.notes)
    again = fetch(site, tmp_path)
    assert (again.archives[0].there, again.archives[0].files) == (True, 0)
    assert len(site.served) == 1


def test_a_connection_that_is_closed_goes_on_where_it_ended(site: Site, tmp_path: Path) -> None:
    site.cuts[PATH] = deque([CUT, 8 * PIECE])
    told = Told()
    fetch(site, tmp_path, progress=told)
    whole(tmp_path)
    assert site.sent(PATH) == [(200, CUT), (206, 8 * PIECE), (206, len(CONTENT) - CUT - 8 * PIECE)]
    assert [one.headers.get("Range") for one in site.served] == [None, f"bytes={CUT}-", f"bytes={CUT + 8 * PIECE}-"]
    assert [one.headers.get("If-Range") for one in site.served] == [None, '"v1"', '"v1"']
    assert sum("ended early" in note for note in told.notes) == 2


def test_ctrl_c_keeps_what_has_arrived(site: Site, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fetch(site, tmp_path, progress=Stopping(1 << 20))
    nothing(tmp_path)
    before = held(tmp_path)
    assert 1 << 20 <= before < len(CONTENT)
    fetch(site, tmp_path)
    whole(tmp_path)
    assert site.sent(PATH)[-1] == (206, len(CONTENT) - before)


def test_ctrl_c_while_it_is_checked_loses_nothing(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("pooch.core.hash_matches", lambda *_parts, **_options: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            fetch(site, tmp_path)
    nothing(tmp_path)
    assert held(tmp_path) == len(CONTENT)
    fetch(site, tmp_path)
    whole(tmp_path)
    assert len(site.served) == 1


@pytest.mark.parametrize(
    ("ranges", "tags", "dates", "known", "resumed"),
    [
        pytest.param(True, '"v1"', False, False, True, id="a tag"),
        pytest.param(True, 'W/"v1"', True, False, True, id="a weak tag, and a date"),
        pytest.param(True, 'W/"v1"', False, False, False, id="only a weak tag"),
        pytest.param(True, "", False, False, False, id="neither tag nor date"),
        pytest.param(True, "", False, True, True, id="neither, but a checksum"),
        pytest.param(False, '"v1"', False, True, False, id="no ranges"),
    ],
)
def test_going_on_needs_a_server_that_can_and_a_sign_that_the_file_is_the_same(
    ranges: bool, tags: str, dates: bool, known: bool, resumed: bool, site: Site, tmp_path: Path
) -> None:
    site.ranges, site.tags[PATH], site.dates = ranges, tags, dates
    site.cuts[PATH] = deque([CUT])
    fetch(site, tmp_path, dataset=data_set(known=known))
    whole(tmp_path)
    rest = (206, len(CONTENT) - CUT) if resumed else (200, len(CONTENT))
    assert site.sent(PATH) == [(200, CUT), rest]


def test_a_file_that_changed_on_the_server_is_begun_again(site: Site, tmp_path: Path) -> None:
    known = data_set(known=False)
    site.files[PATH] = packed({MEMBER: b"old" * (1 << 20)})
    with pytest.raises(KeyboardInterrupt):
        fetch(site, tmp_path, dataset=known, progress=Stopping(1 << 20))
    site.files[PATH], site.tags[PATH] = CONTENT, '"v2"'
    told = Told()
    fetch(site, tmp_path, dataset=known, progress=told)
    whole(tmp_path)
    assert site.sent(PATH)[-1] == (200, len(CONTENT))
    assert any("from the beginning again" in note for note in told.notes)


def test_a_part_of_a_changed_file_is_not_put_behind_the_beginning_of_the_old(site: Site, tmp_path: Path) -> None:
    """From a server that knows `Range` and not `If-Range`."""
    known = data_set(known=False)
    site.files[PATH] = packed({MEMBER: b"old" * (1 << 20)})
    with pytest.raises(KeyboardInterrupt):
        fetch(site, tmp_path, dataset=known, progress=Stopping(1 << 20))
    site.files[PATH], site.tags[PATH], site.conditions = CONTENT, '"v2"', False
    fetch(site, tmp_path, dataset=known)
    whole(tmp_path)
    assert [status for status, _ in site.sent(PATH)] == [200, 206, 200]


def test_a_beginning_longer_than_the_file_is_thrown_away(site: Site, tmp_path: Path) -> None:
    state = tmp_path / STATE
    state.mkdir()
    (state / f"{FILE}.part").write_bytes(b"x" * (len(CONTENT) + 5))
    version = {"url": f"{site.address}{PATH}", "validator": '"v1"', "total": None}
    (state / f"{FILE}.part.json").write_text(json.dumps(version))
    fetch(site, tmp_path, dataset=data_set(known=False))
    whole(tmp_path)
    assert [status for status, _ in site.sent(PATH)] == [416, 200]


def test_all_had_arrived_when_it_was_killed(site: Site, tmp_path: Path) -> None:
    state = tmp_path / STATE
    state.mkdir()
    (state / f"{FILE}.part").write_bytes(CONTENT)
    version = {"url": f"{site.address}{PATH}", "validator": '"v1"', "total": len(CONTENT)}
    (state / f"{FILE}.part.json").write_text(json.dumps(version))
    fetch(site, tmp_path)
    whole(tmp_path)
    assert not site.served


@pytest.mark.parametrize("notes", ["", "{}", "[" * 5_000, '{"url": 1, "validator": null, "total": null}'])
def test_damaged_notes_of_a_transfer_are_not_believed(notes: str, site: Site, tmp_path: Path) -> None:
    (tmp_path / STATE).mkdir()
    (tmp_path / STATE / f"{FILE}.part").write_bytes(b"rubbish")
    (tmp_path / STATE / f"{FILE}.part.json").write_text(notes)
    fetch(site, tmp_path)
    whole(tmp_path)
    assert site.sent(PATH) == [(200, len(CONTENT))]


def test_a_server_that_does_not_say_how_long_the_file_is(site: Site, tmp_path: Path) -> None:
    site.sized = False
    fetch(site, tmp_path)
    whole(tmp_path)


@pytest.mark.parametrize("known", [True, False], ids=["a checksum", "only a size"])
def test_a_body_without_a_length_that_is_cut_goes_on(known: bool, site: Site, tmp_path: Path) -> None:
    dataset = data_set(known=known)
    archive = msgspec.structs.replace(dataset.downloads[0], bytes=len(CONTENT))
    site.sized, site.cuts[PATH] = False, deque([CUT, 8 * PIECE])
    fetch(site, tmp_path, dataset=msgspec.structs.replace(dataset, downloads=(archive,)))
    whole(tmp_path)
    assert site.sent(PATH) == [(200, CUT), (206, 8 * PIECE), (206, len(CONTENT) - CUT - 8 * PIECE)]


def test_all_had_arrived_of_a_body_without_a_length(site: Site, tmp_path: Path) -> None:
    site.sized = False
    with pytest.raises(KeyboardInterrupt):
        fetch(site, tmp_path, progress=Stopping(len(CONTENT)))
    before = len(site.served)
    assert held(tmp_path) == len(CONTENT)
    fetch(site, tmp_path)
    whole(tmp_path)
    assert len(site.served) == before


@pytest.mark.parametrize("validator", ["", " ", "a\nb", "a\r\nHost: b", "\u0436", "x" * 100_000])
def test_a_sign_of_the_version_that_cannot_be_sent_is_not_believed(validator: str, site: Site, tmp_path: Path) -> None:
    (tmp_path / STATE).mkdir()
    (tmp_path / STATE / f"{FILE}.part").write_bytes(CONTENT[:CUT])
    version = {"url": f"{site.address}{PATH}", "validator": validator, "total": None}
    (tmp_path / STATE / f"{FILE}.part.json").write_text(json.dumps(version))
    fetch(site, tmp_path)
    whole(tmp_path)
    assert site.sent(PATH) == [(200, len(CONTENT))]


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_server_that_is_busy_is_asked_again(status: int, site: Site, tmp_path: Path) -> None:
    site.statuses[PATH] = deque([status, status])
    pauses: list[float] = []
    fetch(site, tmp_path, pause=pauses.append)
    whole(tmp_path)
    assert pauses == [1.0, 2.0]


KILLED = """
import sys, msgspec, tokenlabels
from tokenlabels.known import KnownDataset
known = msgspec.json.decode(sys.argv[1], type=KnownDataset)
tokenlabels.download(known, splits="val", root=sys.argv[2], mirror=sys.argv[3])
"""


def test_a_process_that_is_killed_is_gone_on_with(site: Site, tmp_path: Path) -> None:
    go_on = threading.Event()
    site.gate = lambda: site.served[-1].sent < 2 << 20 or go_on.wait(20)
    words = [sys.executable, "-c", KILLED, msgspec.json.encode(data_set()).decode(), str(tmp_path), site.address]
    process = subprocess.Popen(words, stderr=subprocess.PIPE)
    part = tmp_path / STATE / f"{FILE}.part"
    while process.poll() is None and not (part.exists() and held(tmp_path) >= 1 << 20):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    site.gate = lambda: None
    go_on.set()
    nothing(tmp_path)
    before = held(tmp_path)
    assert before >= 1 << 20
    fetch(site, tmp_path)
    whole(tmp_path)
    assert site.sent(PATH)[-1] == (206, len(CONTENT) - before)


# --- transfers that fail ----------------------------------------------------------------------------------------------


def test_a_corrupted_transfer_is_deleted(site: Site, tmp_path: Path) -> None:
    wrong = bytearray(CONTENT)
    wrong[1_000_000] ^= 1
    site.files[PATH] = bytes(wrong)
    expected, found = (hashlib.sha256(content).hexdigest() for content in (CONTENT, wrong))
    failing(site, tmp_path, FILE, f"sha256 {found}", expected, "was deleted: run again")
    assert {path.name for path in (tmp_path / STATE).iterdir()} == {"lock"}
    site.files[PATH] = CONTENT
    fetch(site, tmp_path)
    whole(tmp_path)


def test_the_wrong_beginning_of_a_file_without_a_tag_is_noticed(site: Site, tmp_path: Path) -> None:
    site.tags[PATH] = ""
    with pytest.raises(KeyboardInterrupt):
        fetch(site, tmp_path, progress=Stopping(1 << 20))
    part = tmp_path / STATE / f"{FILE}.part"
    part.write_bytes(bytes(len(part.read_bytes())))
    failing(site, tmp_path, "arrived damaged")


def test_a_file_that_is_not_there(site: Site, tmp_path: Path) -> None:
    site.files = {}
    failing(site, tmp_path, PATH, "answers 404")
    assert len(site.served) == 1


def test_a_server_that_is_never_well(site: Site, tmp_path: Path) -> None:
    site.statuses[PATH] = deque([500] * 9)
    failing(site, tmp_path, "answers 500", "5 times")
    assert len(site.served) == 5


def test_a_file_of_another_size_is_not_begun(site: Site, tmp_path: Path) -> None:
    site.files[PATH] = CONTENT + b"more"
    failing(site, tmp_path, f"has {len(CONTENT) + 4:,} bytes, should have {len(CONTENT):,}")
    site.sized = False
    failing(site, tmp_path, f"goes on after the {len(CONTENT):,} bytes")


def test_a_compressed_answer_is_refused(site: Site, tmp_path: Path) -> None:
    site.encoding = "gzip"
    failing(site, tmp_path, "sent compressed")


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (200, {"Content-Length": "9" * 5_000}, "says a length that no file has"),
        (206, {"Content-Range": f"bytes 0-{'9' * 5_000}/*"}, "does not say which"),
        (206, {"Content-Range": f"bytes 5-10/{'9' * 5_000}"}, "does not say which"),
        (503, {"Retry-After": "9" * 5_000}, "answers 503"),
    ],
)
def test_numbers_that_no_file_has(status: int, headers: dict[str, str], words: str, site: Site, tmp_path: Path) -> None:
    site.statuses[PATH], site.headers[PATH] = deque([status] * 5), headers
    failing(site, tmp_path, words)


def test_the_rest_of_a_file_of_a_length_that_no_file_has(site: Site, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fetch(site, tmp_path, progress=Stopping(1 << 20))
    site.statuses[PATH] = deque([416])
    site.headers[PATH] = {"Content-Range": f"bytes */{'9' * 5_000}"}
    told = Told()
    fetch(site, tmp_path, progress=told, dataset=data_set())
    whole(tmp_path)
    assert any("the file has changed there" in note for note in told.notes)
