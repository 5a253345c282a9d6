"""Fetching archives from a web server that is interrupted, changes its mind, lies, or is not there."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from helpers import fine, one_error_line
from typer.testing import Result
from web_site import Site, serving

import tokenlabels
from tokenlabels.downloading import Download
from tokenlabels.errors import DownloadError, OutputError, ParameterError
from tokenlabels.known import Archive, KnownDataset, known_datasets

STATE = ".tokenlabels-download"
FILE = "set.zip"
PATH = f"/{FILE}"
MEMBER = "annotations/instances_val.json"


def packed(members: dict[str, bytes]) -> bytes:
    """A zip file, not compressed."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


PIECE = 1 << 16
CUT = 16 * PIECE
"""Bytes before a connection is closed: whole pieces, for the rest of one is lost."""

TEXT = np.random.default_rng(0).bytes(3 << 20)
CONTENT = packed({MEMBER: TEXT, "annotations/captions_val.json": b"no", "val/1.jpg": b"picture"})


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as started:
        started.files[PATH] = CONTENT
        yield started


def data_set(urls: tuple[str, ...] = (), content: bytes = CONTENT, *, known: bool = True) -> KnownDataset:
    """A data set of one archive, whose size and hash are known."""
    archive = Archive(
        FILE,
        urls,
        {"val": "val"},
        len(content) if known else None,
        f"sha256:{hashlib.sha256(content).hexdigest()}" if known else "",
        ("annotations/instances_{split}.json",),
        ("{split}/*",),
    )
    return KnownDataset("set", "A set", "mit", [], source="coco", downloads=(archive,))


class Told:
    """What a person is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.stages: list[tuple[str, int | None]] = []
        self.steps: list[int] = []

    def stage(self, name: str, total: int | None = None) -> None:
        self.stages.append((name, total))
        self.steps.append(0)

    def advance(self, steps: int) -> None:
        self.steps[-1] += steps

    def note(self, text: str) -> None:
        self.notes.append(text)


def fetch(site: Site, root: Path, **options: Any) -> Download:
    """Download the data set from a site, without waiting between tries."""
    known = options.pop("dataset", None) or data_set()
    settings: dict[str, Any] = {"mirror": site.address, "pause": lambda _seconds: None} | options
    return tokenlabels.download(known, splits="val", root=root, **settings)


def whole(root: Path) -> None:
    """What was wanted is there, and nothing is left of the work."""
    assert (root / MEMBER).read_bytes() == TEXT
    assert (root / "val/1.jpg").read_bytes() == b"picture"
    assert not (root / "annotations/captions_val.json").exists()
    assert (root / FILE).read_bytes() == CONTENT
    assert {path.name for path in (root / STATE).iterdir()} == {"lock", f"{FILE}.json"}


def nothing(root: Path) -> None:
    """Nothing is there that could be taken for a data set."""
    assert [path.name for path in root.iterdir()] == [STATE]


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


class Stopping(Told):
    """Ctrl-C after so many bytes."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def advance(self, steps: int) -> None:
        super().advance(steps)
        if sum(self.steps) >= self.after:
            raise KeyboardInterrupt


def held(root: Path) -> int:
    return (root / STATE / f"{FILE}.part").stat().st_size


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


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_server_that_is_busy_is_asked_again(status: int, site: Site, tmp_path: Path) -> None:
    site.statuses[PATH] = deque([status, status])
    pauses: list[float] = []
    fetch(site, tmp_path, pause=pauses.append)
    whole(tmp_path)
    assert pauses == [1.0, 2.0]


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


# --- transfers that fail ----------------------------------------------------------------------------------------------


def failing(site: Site, root: Path, *named: str, **options: Any) -> str:
    """The one sentence of a download that fails, which leaves nothing that looks finished."""
    with pytest.raises(DownloadError) as fault:
        fetch(site, root, **options)
    nothing(root)
    for words in named:
        assert words in str(fault.value)
    assert "\n" not in str(fault.value)
    return str(fault.value)


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


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("file:///etc/passwd", ["file:///etc/passwd", "is not followed"]),
        ("ftp://127.0.0.1/set.zip", ["is not followed"]),
        ("http://[", ["is not followed"]),
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


def test_a_file_that_is_not_there(site: Site, tmp_path: Path) -> None:
    site.files = {}
    failing(site, tmp_path, PATH, "answers 404")
    assert len(site.served) == 1


def test_a_server_that_is_never_well(site: Site, tmp_path: Path) -> None:
    site.statuses[PATH] = deque([500] * 9)
    failing(site, tmp_path, "answers 500", "5 times")
    assert len(site.served) == 5


def test_a_host_that_does_not_answer(site: Site, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://user:secret@127.0.0.1:{taken.getsockname()[1]}"
        text = failing(site, tmp_path, "connection refused", mirror=address)
    assert "secret" not in text


def test_a_file_of_another_size_is_not_begun(site: Site, tmp_path: Path) -> None:
    site.files[PATH] = CONTENT + b"more"
    failing(site, tmp_path, f"has {len(CONTENT) + 4:,} bytes, should have {len(CONTENT):,}")
    site.sized = False
    failing(site, tmp_path, f"goes on after the {len(CONTENT):,} bytes")


def test_a_compressed_answer_is_refused(site: Site, tmp_path: Path) -> None:
    site.encoding = "gzip"
    failing(site, tmp_path, "sent compressed")


# --- what is in the folder already ------------------------------------------------------------------------------------


def test_an_archive_that_is_there_is_not_fetched(site: Site, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(CONTENT)
    assert fetch(site, tmp_path).archives[0].there
    whole(tmp_path)
    assert not site.served


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT[:-1] + b"x"], ids=["too short", "another"])
def test_another_file_in_the_place_of_an_archive_is_kept(content: bytes, site: Site, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(DownloadError, match="should have"):
        fetch(site, tmp_path)
    assert (tmp_path / FILE).read_bytes() == content


def test_files_of_other_content_are_never_replaced(site: Site, tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / MEMBER).write_bytes(b"mine")
    (tmp_path / "val").mkdir()
    (tmp_path / "val/mine.jpg").write_bytes(b"mine")
    with pytest.raises(DownloadError, match=r"instances_val.json: is there already, with other content"):
        fetch(site, tmp_path)
    assert (tmp_path / MEMBER).read_bytes() == b"mine"
    assert not (tmp_path / "val/1.jpg").exists()
    (tmp_path / MEMBER).write_bytes(TEXT)
    fetch(site, tmp_path)
    whole(tmp_path)
    assert (tmp_path / "val/mine.jpg").exists()


def test_what_was_deleted_is_fetched_again(site: Site, tmp_path: Path) -> None:
    fetch(site, tmp_path, keep_archives=False)
    assert not (tmp_path / FILE).exists()
    assert fetch(site, tmp_path, keep_archives=False).archives[0].files == 0
    (tmp_path / "val/1.jpg").unlink()
    fetch(site, tmp_path)
    whole(tmp_path)
    assert len(site.served) == 2


def test_only_annotations_and_then_the_pictures(site: Site, tmp_path: Path) -> None:
    fetch(site, tmp_path, annotations_only=True)
    assert not (tmp_path / "val").exists()
    fetch(site, tmp_path)
    whole(tmp_path)
    assert len(site.served) == 1


def test_a_folder_that_cannot_be_written(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match="is a file, not a folder"):
        fetch(site, tmp_path / "file")
    with pytest.raises(OutputError, match="cannot be written"):
        fetch(site, tmp_path / "file" / "below")
    assert not site.served


def test_a_disk_that_is_too_small(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": len(CONTENT)})
    monkeypatch.setattr("tokenlabels.downloading.shutil.disk_usage", lambda _path: usage)
    failing(site, tmp_path, "GB free", "are needed")
    assert not site.served
    monkeypatch.setattr("tokenlabels.downloading._check_room", lambda *_parts, **_options: None)
    with pytest.raises(DownloadError, match="unpacks to"):
        fetch(site, tmp_path)
    assert not (tmp_path / "annotations").exists()


def test_one_download_at_a_time(site: Site, tmp_path: Path) -> None:
    reached, go_on = threading.Event(), threading.Event()
    site.gate = lambda: reached.set() or go_on.wait(10)  # type: ignore[func-returns-value]
    first = threading.Thread(target=fetch, args=(site, tmp_path))
    first.start()
    assert reached.wait(10)
    with pytest.raises(DownloadError, match="another download is writing here"):
        fetch(site, tmp_path)
    go_on.set()
    first.join()
    whole(tmp_path)


# --- the command and whole data sets ----------------------------------------------------------------------------------

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


def test_unpacking_that_is_interrupted_is_begun_again(site: Site, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fetch(site, tmp_path, progress=Stopping(len(CONTENT) + (1 << 20)))
    assert not (tmp_path / "annotations").exists()
    assert (tmp_path / FILE).exists()
    fetch(site, tmp_path)
    whole(tmp_path)
    assert len(site.served) == 1


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (["nothing"], 2, ["no data set 'nothing'", "ade20k, coco, coco-panoptic, voc"]),
        (["coco"], 2, ["--split", "train2017, val2017"]),
        (["voc", "--split", "tset"], 2, ["'tset'", "trainval2007", "test2007"]),
        (["coco", "--split", "val2017", "--mirror", "ftp://me:secret@host/"], 2, ["'ftp://host/'"]),
        (["coco", "--split", "val2017", "--root", "s3://bucket/coco"], 2, ["s3://bucket/coco", "on disk"]),
    ],
)
def test_words_that_make_no_sense(words: list[str], code: int, named: list[str], invoke: Callable[..., Result]) -> None:
    result = invoke("download", *words)
    assert result.exit_code == code
    one_error_line(result.stderr, *named)
    assert "secret" not in result.stderr


def test_a_dry_run_asks_nobody_and_writes_nothing(invoke: Callable[..., Result], tmp_path: Path) -> None:
    root = tmp_path / "new"
    words = ["download", "coco", "--split", "val2017", "--root", root, "--dry-run"]
    text = fine(invoke(*words)).stdout
    assert "annotations_trainval2017.zip: 0.25 GB from http://images.cocodataset.org/annotations/" in text
    assert "to fetch: 1.07 GB" in text
    answer = json.loads(fine(invoke(*words, "--annotations-only", "--json")).stdout)
    assert [archive["bytes"] for archive in answer["archives"]] == [252_907_541]
    assert not root.exists()


@pytest.fixture(scope="module")
def archives(sample_root: Path) -> dict[str, bytes]:
    """The sample packed as official data sets are: path -> content."""
    members = {str(path.relative_to(sample_root)): path.read_bytes() for path in sample_root.rglob("*.*")}
    notes = {name: content for name, content in members.items() if name.startswith("annotations/")}
    pictures = {name: content for name, content in members.items() if name.startswith("val/")}
    return {"/notes.zip": packed(notes), "/val.zip": packed(pictures)}


def test_the_result_is_built(
    archives: dict[str, bytes],
    site: Site,
    tmp_path: Path,
    invoke: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
    sample_root: Path,
) -> None:
    site.files = archives
    splits = {"train": "train", "val": "val"}
    notes = Archive("notes.zip", (), splits, annotations=("annotations/instances_{split}.json",))
    pictures = Archive("val.zip", (), {"val": "val"}, images=("{split}/*",))
    card = KnownDataset("coco", "COCO", "mit", [], source="coco", downloads=(notes, pictures))
    monkeypatch.setattr("tokenlabels.downloading.known_datasets", lambda: (card,))
    root = tmp_path / "coco"
    result = fine(invoke("download", "coco", "--split", "val", "--root", root, "--mirror", site.address))
    assert "not compared: its data card has none" in result.stdout
    command = result.stdout.splitlines()[-1].removeprefix("next: tokenlabels ").split()
    assert command == ["build", "coco", "--root", str(root), "--split", "val"]
    fine(invoke(*command, "--out", tmp_path / "out", "--embed-images"))
    fine(invoke("build", "coco", "--root", sample_root, "--split", "val", "--out", tmp_path / "own", "--embed-images"))
    ours, theirs = (tokenlabels.open(tmp_path / name).table().to_pylist() for name in ("out", "own"))
    assert ours == theirs
    assert not (root / "train").exists()
    assert not (root / "annotations/instances_train.json").exists()


@pytest.mark.parametrize(
    "known", [known for known in known_datasets() if known.downloads], ids=lambda known: known.name
)
def test_the_addresses_of_a_data_card(known: KnownDataset) -> None:
    assert known.source in ("coco", "voc", "semantic")
    for archive in known.downloads:
        assert archive.file.endswith((".zip", ".tar"))
        assert archive.hash.partition(":")[0] in hashlib.algorithms_available
        digest = archive.hash.partition(":")[2]
        assert len(bytes.fromhex(digest)) == hashlib.new(archive.hash.partition(":")[0]).digest_size
        assert all(url.startswith(("http://", "https://")) and url.endswith(f"/{archive.file}") for url in archive.urls)
        assert set(archive.splits.values()) <= set(known.splits)
        assert archive.annotations or archive.images
    for split in {split for archive in known.downloads for split in archive.splits}:
        held = [archive for archive in known.downloads if split in archive.splits]
        assert any(archive.annotations for archive in held)
        assert any(archive.images for archive in held)


def test_mirrors_must_be_web_addresses(tmp_path: Path) -> None:
    for mirror in ("", "here", "/data", "file:///data", "http://", "http://["):
        with pytest.raises(ParameterError, match="is no address"):
            tokenlabels.download(data_set(), splits="val", root=tmp_path, mirror=mirror)
