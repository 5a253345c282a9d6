"""VOC lists, roots and XML files, whole and damaged."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import shares
from voc_data import (
    BOX_RULE,
    CAT,
    CLOSE,
    DOG,
    MASK_RULE,
    PHOTOS,
    Change,
    Invoke,
    Photo,
    Thing,
    build,
    files_below,
    findings_of,
    rows_of,
    save_mask,
    write_voc,
)

import tokenlabels
from tokenlabels.errors import FindingsError, ParameterError, TokenLabelsError
from tokenlabels.grid import PatchGrid
from tokenlabels.sources.voc_xml import XmlFileError, parse_voc_xml

pytestmark = [
    pytest.mark.filterwarnings("error"),
    pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning"),  # pycocotools, which draws the sample
]


# --- lists ------------------------------------------------------------------------------------------------------------

ALL = "a c\nb\nd\n"

CHOICES = [
    pytest.param({"Main/trainval": ALL, "Main/train": "b\n"}, BOX_RULE, ["trainval"], False, id="trainval first"),
    pytest.param({"Main/train": "b\n", "Main/val": "d\n"}, BOX_RULE, ["train", "val"], False, id="else every list"),
    pytest.param({"Segmentation/trainval": ALL}, BOX_RULE, ["trainval"], True, id="boxes from the lists of masks"),
    pytest.param({"Main/trainval": ALL}, MASK_RULE, ["trainval"], True, id="masks from the lists of boxes"),
    pytest.param(
        {"Main/trainval": "b\n", "Segmentation/trainval": "d\n"}, MASK_RULE, ["trainval"], False, id="each its own"
    ),
    pytest.param(
        {"Main/train": "b\n", "Main/person_train": "b  1\nd -1\n"}, BOX_RULE, ["train"], False, id="no lists of a class"
    ),
    pytest.param(
        {"Segmentation/train": "b\n", "Main/train": "d\n", "Main/person_train": "b  1\nd -1\n"},
        MASK_RULE,
        ["train"],
        False,
        id="no lists of a class from the other folder either",
    ),
    pytest.param({"Main/train": "frame 1\nframe 2\n"}, BOX_RULE, None, False, id="ids that end like flags"),
    pytest.param({}, BOX_RULE, ["all"], True, id="no lists at all"),
]


@pytest.mark.parametrize(("lists", "rule", "splits", "noted"), CHOICES)
def test_which_lists_are_read(
    lists: dict[str, str], rule: str, splits: list[str] | None, noted: bool, tmp_path: Path, invoke: Invoke
) -> None:
    photos = PHOTOS if splits else (Photo("frame 1", 20, 20), Photo("frame 2", 20, 20))
    root = write_voc(tmp_path / "voc", photos, lists)
    result = invoke("build", "voc", "--root", root, "--rule", rule, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.stderr
    assert list(tokenlabels.open(tmp_path / "out").splits) == (splits or ["train"])
    assert result.stderr.startswith("note: ") == noted
    folder = "Segmentation" if rule == MASK_RULE else "Main"
    expected = [f"ImageSets/{folder}/{split}.txt" for split in splits or ["train"]]
    if noted:
        other = "Main" if rule == MASK_RULE else "Segmentation"
        expected = [f"ImageSets/{other}/trainval.txt"] if lists else ["Annotations"]
    sources = tokenlabels.open(tmp_path / "out").manifest["sources"]
    assert [source["file"] for source in sources.values()] == expected


CONTENTS = [
    pytest.param("b\nd\n", ["b", "d"], {}, id="plain"),
    pytest.param("d\nb", ["b", "d"], {}, id="not sorted, no last newline"),
    pytest.param("\ufeffb\r\nd\r\n", ["b", "d"], {}, id="BOM and CRLF"),
    pytest.param("  b  \n\n\t d\n \n", ["b", "d"], {}, id="blanks"),
    pytest.param("a c\nb\n", ["a c", "b"], {}, id="an id with a space"),
    pytest.param("b\nd\nb\n", ["b", "d"], {"VOC052": 1}, id="twice"),
    pytest.param("b   1\na c -1\nd   0\n", ["b", "d"], {}, id="flags"),
    pytest.param("a c  1\nb 1\n", ["a c", "b"], {}, id="flags after an id with a space"),
]


@pytest.mark.parametrize(("text", "ids", "findings"), CONTENTS)
def test_what_a_list_may_hold(text: str, ids: list[str], findings: dict[str, int], tmp_path: Path) -> None:
    root = write_voc(tmp_path / "voc", lists={"Main/some": text})
    built = build(root, split="some")
    assert list(rows_of(built)) == ids
    assert findings_of(built) == findings
    assert built.splits == ("some",)


STRANGE_IDS = [
    ("../b", "VOC053"),
    ("/etc/passwd", "VOC053"),
    ("sub/b", "VOC053"),
    ("..", "VOC053"),
    ("C:b", "VOC053"),
    ("..\\b", "VOC053"),
    ("b\0", "VOC053"),
    ("nobody", "VOC051"),
    ("b.xml", "VOC051"),
    ("x" * 300, "VOC050"),
]


@pytest.mark.parametrize("rule", [BOX_RULE, MASK_RULE])
@pytest.mark.parametrize(("strange", "code"), STRANGE_IDS, ids=[repr(name[:20]) for name, _ in STRANGE_IDS])
def test_ids_that_name_no_xml(strange: str, code: str, rule: str, tmp_path: Path, invoke: Invoke) -> None:
    """Also one whose file is there, outside Annotations."""
    text = f"a c\n{strange}\nd\n"
    root = write_voc(tmp_path / "voc", lists={"Main/train": text, "Segmentation/train": text})
    (root / "b.xml").write_text(PHOTOS[0].xml())
    before = files_below(tmp_path)
    words = ("voc", "--root", root, "--rule", rule)
    result = invoke("build", *words, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {code} ")
    assert len(result.stderr.splitlines()) == 1
    assert files_below(tmp_path) == before
    built = build(root, rule=rule, on_error="skip")
    assert list(rows_of(built)) == ["a c", "d"]
    assert findings_of(built) == {code: 1}
    checked = invoke("check", *words, "--json")
    assert checked.exit_code == 1
    assert [finding["code"] for finding in json.loads(checked.stdout)["findings"]] == [code]


BAD_LISTS: list[Any] = [
    pytest.param(lambda path: path.write_bytes(b""), "lists no images", id="empty"),
    pytest.param(lambda path: path.write_text("b -1\nd -1\n"), "lists no images", id="nothing of the class"),
    pytest.param(lambda path: path.write_bytes("é\n".encode("latin-1")), "no UTF-8", id="latin-1"),
    pytest.param(lambda path: path.write_bytes("b\n".encode("utf-16")), "no UTF-8", id="UTF-16"),
    pytest.param(lambda path: (path.unlink(), path.mkdir()), "Is a directory", id="a folder"),
    pytest.param(lambda path: path.unlink(), "no ImageSets/Main/mine.txt; the lists there are trainval", id="absent"),
]


@pytest.mark.parametrize(("change", "says"), BAD_LISTS)
def test_lists_that_cannot_be_read(change: Change, says: str, tmp_path: Path) -> None:
    root = write_voc(tmp_path / "voc", lists={"Main/mine": ALL, "Main/trainval": ALL})
    change(root / "ImageSets" / "Main" / "mine.txt")
    with pytest.raises(TokenLabelsError, match=says):
        build(root, split="mine")
    assert not list(tmp_path.glob("out*"))


def test_lists_that_are_all_of_a_class_or_the_same_split(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "voc", lists={"Main/cat_train": "b 1\nd -1\n"})
    with pytest.raises(TokenLabelsError, match=r"every list .*--split"):
        build(root)
    assert list(rows_of(build(root, split="cat_train"))) == ["b"]
    root = write_voc(tmp_path / "other", lists={"Main/part-1": "b\n", "Main/part_1": "d\n"})
    with pytest.raises(TokenLabelsError, match=r"part_1.*--split"):
        build(root)


def test_file_names_that_are_no_text_are_found(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "voc", lists={})
    (root / "Annotations" / os.fsdecode(b"\xff.xml")).write_text(PHOTOS[0].xml())
    with pytest.raises(FindingsError, match=r"VOC053.*no UTF-8"):
        build(root)
    assert list(rows_of(build(root, on_error="skip"))) == ["a c", "b", "d"]


# --- where it is ------------------------------------------------------------------------------------------------------


def test_the_root_is_found(voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, invoke: Invoke) -> None:
    """`.`, then $VOC_ROOT, then ./VOCdevkit/VOC2012."""
    monkeypatch.delenv("VOC_ROOT", raising=False)
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    result = invoke("build", "voc", "--out", "out")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: no VOC data set found")
    assert all(word in result.stderr for word in ("--root", "--sample", "VOCdevkit/VOC2012"))
    monkeypatch.setenv("VOC_ROOT", str(voc))
    assert invoke("build", "voc", "--out", "a").exit_code == 0
    write_voc(place / "VOCdevkit" / "VOC2012", PHOTOS[:1])
    monkeypatch.delenv("VOC_ROOT")
    assert invoke("build", "voc").exit_code == 0
    assert len(rows_of(tokenlabels.open("tokenlabels-voc"))) == 1
    monkeypatch.chdir(voc)
    assert invoke("build", "voc", "--out", place / "c").exit_code == 0
    assert len(rows_of(tokenlabels.open(place / "c"))) == 3


@pytest.mark.parametrize(
    ("below", "hint"),
    [
        ("VOCdevkit", "did you mean {}/VOCdevkit/VOC2012?"),
        (".", "did you mean {}/VOCdevkit/VOC2012?"),
        ("VOCdevkit/VOC2012/JPEGImages", "did you mean {}/VOCdevkit/VOC2012/JPEGImages/..?"),
        ("elsewhere", "name the folder that holds Annotations"),
        ("nowhere", "no such folder"),
    ],
)
def test_a_wrong_root_gives_a_hint(below: str, hint: str, tmp_path: Path) -> None:
    for year in ("VOC2007", "VOC2012"):
        write_voc(tmp_path / "VOCdevkit" / year, PHOTOS[:1])
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(TokenLabelsError) as caught:
        tokenlabels.build("voc", root=tmp_path / below, out=tmp_path / "out")
    assert hint.format(tmp_path) in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["annotations", "images", "masks", "ignore", "reduce_zero_label"])
def test_options_of_other_formats_are_refused(option: str, voc: Path) -> None:
    with pytest.raises(ParameterError, match="does not go with voc"):
        build(voc, **{option: True if option == "reduce_zero_label" else 0 if option == "ignore" else voc})


# --- XML --------------------------------------------------------------------------------------------------------------

LAUGHS = '<!DOCTYPE lolz [<!ENTITY a "ha">' + "".join(
    f'<!ENTITY {name} "{f"&{before};" * 20}">' for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
EXTERNAL = '<!DOCTYPE annotation [<!ENTITY x SYSTEM "{}">]><annotation><filename>&x;</filename></annotation>'

UNSAFE = {
    "internal entities": b'<!DOCTYPE annotation [<!ENTITY x "y">]><annotation><filename>&x;</filename></annotation>',
    "a billion laughs": f"{LAUGHS}]><annotation><filename>&i;</filename></annotation>".encode(),
    "a file": EXTERNAL.format("file:///etc/passwd").encode(),
    "the network": EXTERNAL.format("http://192.0.2.1/x").encode(),
    "an external subset": b'<!DOCTYPE annotation SYSTEM "http://192.0.2.1/voc.dtd"><annotation/>',
    "a parameter entity": b'<!DOCTYPE a [<!ENTITY % x SYSTEM "http://192.0.2.1/x"> %x;]><annotation/>',
    "a bare document type": b"<!DOCTYPE annotation><annotation/>",
    "UTF-16": EXTERNAL.format("file:///etc/passwd").encode("utf-16"),
    "UTF-16 big-endian": ("\ufeff" + EXTERNAL.format("file:///etc/passwd")).encode("utf-16-be"),
    "UTF-8 with BOM": EXTERNAL.format("file:///etc/passwd").encode("utf-8-sig"),
}
UNREADABLE = {
    "declared EBCDIC": b'<?xml version="1.0" encoding="cp037"?><annotation/>',
    "EBCDIC": f'<?xml version="1.0" encoding="cp037"?>{EXTERNAL.format("x")}'.encode("cp037"),
    "declared UTF-7": b'<?xml version="1.0" encoding="utf-7"?><annotation/>',
    "an encoding that is no text": b'<?xml version="1.0" encoding="rot13"?><annotation/>',
    "an encoding nobody knows": b'<?xml version="1.0" encoding="klingon"?><annotation/>',
    "an unknown entity": b"<annotation><filename>&nbsp;</filename></annotation>",
    "nothing": b"",
    "zeros": bytes(100),
    "half a file": PHOTOS[0].xml().encode()[:150],
    "two roots": b"<annotation/><annotation/>",
    "JSON": b'{"annotation": 1}',
    "half a million open elements": b"<annotation>" * 500_000,
    "another root": b"<html><annotation/></html>",
    "a namespace": b'<annotation xmlns="urn:x"/>',
    "more than 16 MiB": b"<annotation>" + b" " * (16 << 20) + b"</annotation>",
}


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(content, id=name, marks=[pytest.mark.slow] if len(content) > 1_000_000 else [])
        for name, content in (UNSAFE | UNREADABLE).items()
    ],
)
def test_unsafe_and_unreadable_xml_is_refused_in_a_sentence(
    content: bytes, voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    (voc / "Annotations" / "b.xml").write_bytes(content)
    with pytest.raises(FindingsError) as caught:
        build(voc)
    message = str(caught.value)
    assert message.startswith("VOC050 Annotations/b.xml: image b: ")
    assert "\n" not in message
    assert len(message) < 500
    assert "root:" not in message
    assert ("DOCTYPE" in message) == (content in UNSAFE.values())
    assert not list(tmp_path.glob("out*"))
    built = build(voc, on_error="skip")
    assert list(rows_of(built)) == ["a c", "d"]
    assert findings_of(built) == {"VOC050": 1}


def test_an_xml_that_is_a_folder(voc: Path) -> None:
    (voc / "Annotations" / "b.xml").unlink()
    (voc / "Annotations" / "b.xml").mkdir()
    with pytest.raises(FindingsError, match=r"VOC050.*Is a directory"):
        build(voc)


def test_other_encodings_that_are_text_are_read(voc: Path) -> None:
    text = PHOTOS[0].xml().replace("<filename>", "<folder>é</folder><filename>")
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "iso-8859-1", "cp1252"):
        head = "" if encoding.startswith("utf") else f'<?xml version="1.0" encoding="{encoding}"?>'
        assert len(parse_voc_xml((head + text).encode(encoding), "b").objects) == 2


def test_random_damage_of_xml_is_a_sentence_or_an_image() -> None:
    chooser = np.random.default_rng(0)
    whole = PHOTOS[0].xml().encode()
    for _ in range(2000):
        damaged = bytearray(whole[: chooser.integers(1, len(whole) + 1)])
        damaged[chooser.integers(len(damaged))] = chooser.integers(256)
        with contextlib.suppress(XmlFileError):
            parse_voc_xml(bytes(damaged), "b")


BAD_OBJECTS = [
    pytest.param(Thing("", (1, 1, 9, 9)), "VOC010", "error", "error", id="no name"),
    pytest.param(Thing("cat", ("x", 1, 9, 9)), "VOC020", "error", "warning", id="a corner that is no number"),
    pytest.param(Thing("cat", ("", 1, 9, 9)), "VOC020", "error", "warning", id="an empty corner"),
    pytest.param(Thing("cat", ("nan", 1, 9, 9)), "VOC021", "error", "warning", id="a corner that is NaN"),
    pytest.param(Thing("cat", (1, 1, "1e300", 9)), "VOC021", "error", "warning", id="an absurd corner"),
    pytest.param(Thing("cat", (9, 1, 2, 9)), "VOC022", "error", "warning", id="corners the wrong way round"),
    pytest.param(Thing("cat", (9, 1, 8, 9)), "VOC023", "warning", "warning", id="no width"),
    pytest.param(Thing("cat", (100, 100, 120, 120)), "VOC024", "warning", "warning", id="outside"),
    pytest.param(Thing("cat", (40, 1, 62, 9)), "VOC025", "warning", "warning", id="one pixel beyond"),
    pytest.param(Thing("cat", (0, 0, 20, 20)), "VOC025", "warning", "warning", id="0-based"),
]


@pytest.mark.parametrize(("thing", "code", "box", "mask"), BAD_OBJECTS)
def test_faults_of_objects(thing: Thing, code: str, box: str, mask: str, voc: Path, invoke: Invoke) -> None:
    """Named by image and place in the file; an error only where the rule needs what is missing."""
    photo = Photo("b", 61, 40, (CAT, DOG, thing))
    (voc / "Annotations" / "b.xml").write_text(photo.xml())
    values = PHOTOS[0].object_mask()
    values[35:, :5] = 3
    save_mask(voc / "SegmentationObject" / "b.png", values)
    for rule, severity in ((BOX_RULE, box), (MASK_RULE, mask)):
        checked = invoke("check", "voc", "--root", voc, "--rule", rule, "--json")
        found = {finding["code"]: finding for finding in json.loads(checked.stdout)["findings"]}
        assert found[code]["severity"] == severity
        assert found[code]["examples"][0]["message"].startswith("annotation 3 of image b ")
        assert checked.exit_code == (severity == "error")
        if severity == "warning":
            assert rows_of(build(voc, rule=rule))["b"]["objects"]["id"] == [1, 2, 3]
            continue
        with pytest.raises(FindingsError, match=f"{code} .*annotation 3 of image b"):
            build(voc, rule=rule)
        skipped = build(voc, rule=rule, on_error="skip")
        assert rows_of(skipped)["b"]["objects"]["id"] == [1, 2]
        assert findings_of(skipped)[code] == 1


def test_a_name_that_the_list_does_not_have(voc: Path) -> None:
    (voc / "labelmap.txt").write_text("background\ncat\nperson\n")
    with pytest.raises(FindingsError, match=r"VOC013 .*annotation 2 of image b is a 'dog'"):
        build(voc)
    rows = rows_of(build(voc, on_error="skip"))
    assert rows["b"]["objects"]["id"] == [1]


@pytest.mark.parametrize("change", [("cat", "lynx"), ("<name>cat</name>", "")])
def test_pixels_of_an_object_that_is_left_out_are_not_foreground(change: tuple[str, str], voc: Path) -> None:
    """Like its box; and the mask is not said to hold a value that the XML does not have."""
    file = voc / "Annotations" / "b.xml"
    file.write_text(file.read_text().replace(*change))
    (voc / "labelmap.txt").write_text("background\ncat\ndog\nperson\n")
    built = build(voc, rule=MASK_RULE, on_error="skip")
    assert rows_of(built)["b"]["objects"]["id"] == [2]
    expected = shares(PHOTOS[0].object_mask() == 2, PatchGrid.parse(8, 48))
    np.testing.assert_allclose(rows_of(built)["b"]["scores"], expected, atol=CLOSE)
    assert "VOC060" not in findings_of(built)
    selected = build(voc, rule=MASK_RULE, on_error="skip", categories=["cat"])
    assert not any(rows_of(selected)["b"]["labels"])


def test_values_that_nothing_explains_cannot_be_told_apart(voc: Path, tmp_path: Path) -> None:
    """The order of the names in the XML says nothing of class masks; all of them together are foreground."""
    for file in (voc / "Annotations").iterdir():
        file.write_text(file.read_text().replace("<name>dog", "<name>zebra"))
    assert any(rows_of(build(voc, rule=MASK_RULE, categories=["zebra"]))["b"]["labels"]), "object masks say it"
    shutil.rmtree(voc / "SegmentationObject")
    for photo in PHOTOS:
        values = np.minimum(photo.object_mask(), 3)
        save_mask(voc / "SegmentationClass" / f"{photo.image_id}.png", values)
    assert any(rows_of(build(voc, rule=MASK_RULE))["b"]["labels"])
    with pytest.raises(ParameterError, match=r"SegmentationClass/.*\.png: which of its values is which category"):
        build(voc, rule=MASK_RULE, categories=["zebra"])
    names = tmp_path / "names.txt"
    names.write_text("background\ncat\nzebra\nperson\n")
    assert any(rows_of(build(voc, rule=MASK_RULE, categories=[names, "zebra"]))["b"]["labels"])
