"""Bad annotation files: every fault has its code, costs one entry at most, and never a traceback.

Each fault is built under a box rule and under `pixel-ratio`, with `--on-error raise` and `skip`, and checked by
`tokenlabels check`; one table says what must come of it.
"""

from __future__ import annotations

import copy
import io
import json
import os
import re
import struct
import subprocess
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pytest
from helpers import one_error_line
from PIL import Image
from typer.testing import Result

import tokenlabels
from tokenlabels.check import FindingLog

pytestmark = pytest.mark.filterwarnings("error")

Document: TypeAlias = dict[str, Any]
Change: TypeAlias = Callable[[Document], None]
Severity: TypeAlias = Literal["error", "warning"]
Invoke: TypeAlias = Callable[..., Result]

BOX_RULE, MASK_RULE = "overlap", "pixel-ratio"
HUGE_INTEGER = "9" * 400
RING = [2, 3, 22, 3, 22, 13, 2, 13]


def literal(text: str) -> str:
    """Stands for `text` unquoted in the JSON file."""
    return f"<<{text}>>"


def as_json(document: Any) -> str:
    return re.sub(r'"<<(.*?)>>"', r"\1", json.dumps(document))


# --- changes ----------------------------------------------------------------------------------------------------------


def put(value: Any, *path: str | int) -> Change:
    """Set the entry at `path`."""

    def change(document: Document) -> None:
        place: Any = document
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


def drop(*path: str | int) -> Change:
    """Remove the entry at `path`."""

    def change(document: Document) -> None:
        place: Any = document
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]

    return change


def image(key: str, value: Any) -> Change:
    """Change image 1."""
    return put(value, "images", 0, key)


def annotation(key: str, value: Any) -> Change:
    """Change annotation 11, the only one of image 1."""
    return put(value, "annotations", 0, key)


def segmentation(value: Any) -> Change:
    return annotation("segmentation", value)


def rle(counts: Any, size: Any = (30, 40)) -> Change:
    return segmentation({"size": list(size), "counts": counts})


def again(kind: str, **changed: Any) -> Change:
    """Append a copy of the first entry of a list."""

    def change(document: Document) -> None:
        document[kind].append(copy.deepcopy(document[kind][0]) | changed)

    return change


# --- the table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """One fault of one entry, and what must come of it.

    Attributes:
        name: what is wrong, in a few words.
        change: makes the fault in the faultless document.
        code: the finding's code.
        box: severity in a build under a box rule; None: no finding.
        mask: severity in a build under `pixel-ratio`.
        check_box: severity in `check` under a box rule, which reads masks too.
        named: what the message of an error must say besides the file: the id.
        image_lost: an error costs image 1 and annotation 11 with it.
        kept: annotations left even after an error.
        also: further codes that the same fault has.
        count: how often the code is counted.
    """

    name: str
    change: Change
    code: str
    box: Severity | None
    mask: Severity | None
    check_box: Severity | None
    named: str = "annotation 11"
    image_lost: bool = False
    kept: tuple[int, ...] = (12, 13)
    also: tuple[str, ...] = ()
    count: int = 1

    def severity(self, rule: str) -> Severity | None:
        return self.box if rule == BOX_RULE else self.mask


def fatal(name: str, change: Change, code: str, **more: Any) -> Fault:
    """An error under every rule."""
    return Fault(name, change, code, "error", "error", "error", **more)


def harmless(name: str, change: Change, code: str, **more: Any) -> Fault:
    """A warning under every rule."""
    return Fault(name, change, code, "warning", "warning", "warning", **more)


def box_fault(name: str, bbox: Any, code: str, **more: Any) -> Fault:
    """An error for rules that score boxes."""
    return Fault(name, annotation("bbox", bbox), code, "error", "warning", "error", **more)


def mask_fault(name: str, change: Change, code: str, **more: Any) -> Fault:
    """An error for the rule that scores masks; box rules do not look in a build, and `check` warns."""
    return Fault(name, change, code, None, "error", "warning", **more)


def mask_absent(name: str, change: Change) -> Fault:
    """An error for the rule that scores masks, and nothing at all for the others."""
    return Fault(name, change, "COCO030", None, "error", None)


def lost_image(name: str, change: Change, code: str) -> Fault:
    return fatal(name, change, code, named="image 1", image_lost=True)


NUMBERS = {
    "NaN": literal("NaN"),
    "Infinity": literal("Infinity"),
    "minus Infinity": literal("-Infinity"),
    "1e999": literal("1e999"),
    "a 400-digit integer": literal(HUGE_INTEGER),
    "a 5000-digit integer": literal("9" * 5000),
}

FAULTS = [
    # images
    *(lost_image(f"image width {name}", image("width", value), "COCO001") for name, value in NUMBERS.items()),
    lost_image("image width of zero", image("width", 0), "COCO003"),
    lost_image("image height below zero", image("height", -30), "COCO003"),
    lost_image("image width of a billion", image("width", 10**9), "COCO003"),
    lost_image("image of more pixels than an RLE counts", image("height", 10**7), "COCO003"),
    lost_image("image width with a fraction", image("width", 40.5), "COCO001"),
    lost_image("image width as text", image("width", "40"), "COCO001"),
    lost_image("image width null", image("width", None), "COCO001"),
    lost_image("image width true", image("width", True), "COCO001"),
    lost_image("image width missing", drop("images", 0, "width"), "COCO001"),
    lost_image("image height missing", drop("images", 0, "height"), "COCO001"),
    fatal(
        "image without id", drop("images", 0, "id"), "COCO001", named="images[0]", image_lost=True, also=("COCO012",)
    ),
    fatal("image id null", image("id", None), "COCO001", named="images[0]", image_lost=True, also=("COCO012",)),
    fatal(
        "image id with a fraction", image("id", 1.5), "COCO001", named="images[0]", image_lost=True, also=("COCO012",)
    ),
    *(
        fatal(f"image id {name}", image("id", value), "COCO001", named="images[0]", image_lost=True, also=("COCO012",))
        for name, value in NUMBERS.items()
    ),
    fatal(
        "image that is a list",
        put([1, 2], "images", 0),
        "COCO001",
        named="images[0]",
        image_lost=True,
        also=("COCO012",),
    ),
    fatal("image id twice", again("images"), "COCO002", named="image id 1", kept=(11, 12, 13)),
    fatal("image id twice, once as text", again("images", id="1"), "COCO002", named="image id 1", kept=(11, 12, 13)),
    harmless("image without file_name", drop("images", 0, "file_name"), "COCO004"),
    harmless("file_name null", image("file_name", None), "COCO004"),
    harmless("file_name that is a number", image("file_name", 7), "COCO004"),
    harmless("file_name empty", image("file_name", ""), "COCO004"),
    harmless("file_name absolute", image("file_name", "/etc/passwd"), "COCO005"),
    harmless("file_name climbs out", image("file_name", "../../etc/passwd"), "COCO005"),
    harmless("file_name climbs out in the middle", image("file_name", "a/../../b.png"), "COCO005"),
    harmless("file_name climbs out, Windows", image("file_name", "..\\secret.png"), "COCO005"),
    harmless("file_name on a drive", image("file_name", "C:\\secret.png"), "COCO005"),
    harmless("file_name on another host", image("file_name", "\\\\host\\share\\a.png"), "COCO005"),
    harmless("file_name with NUL", image("file_name", "a\0b.png"), "COCO005"),
    # references and ids
    fatal("annotation of an unknown image", annotation("image_id", 99), "COCO012", named="annotation 11 of image 99"),
    fatal("annotation of an unknown image, text", annotation("image_id", "x"), "COCO012", named="annotation 11"),
    fatal("annotation of an unknown category", annotation("category_id", 2), "COCO013"),
    fatal("image_id missing", drop("annotations", 0, "image_id"), "COCO010"),
    fatal("image_id null", annotation("image_id", None), "COCO010"),
    fatal("image_id with a fraction", annotation("image_id", 1.5), "COCO010"),
    fatal("category_id missing", drop("annotations", 0, "category_id"), "COCO010"),
    fatal("category_id as text", annotation("category_id", "1"), "COCO010"),
    fatal("iscrowd as text", annotation("iscrowd", "no"), "COCO010"),
    fatal("iscrowd a half", annotation("iscrowd", 0.5), "COCO010"),
    fatal("annotation that is a number", put(5, "annotations", 0), "COCO010", named="annotations[0]"),
    fatal("annotation that is null", put(None, "annotations", 0), "COCO010", named="annotations[0]"),
    *(
        fatal(f"{key} {name}", annotation(key, value), "COCO010")
        for key in ("image_id", "category_id")
        for name, value in NUMBERS.items()
    ),
    harmless("annotation id twice", put(12, "annotations", 0, "id"), "COCO011"),
    harmless("annotation id missing", drop("annotations", 0, "id"), "COCO014"),
    harmless("annotation id as text", annotation("id", "eleven"), "COCO014"),
    *(harmless(f"annotation id {name}", annotation("id", value), "COCO014") for name, value in NUMBERS.items()),
    harmless("two categories of one name", put("cat", "categories", 1, "name"), "COCO006"),
    # areas
    harmless("area missing", drop("annotations", 0, "area"), "COCO015"),
    harmless("area as text", annotation("area", "200"), "COCO015"),
    harmless("area below zero", annotation("area", -1), "COCO015"),
    harmless("area beyond float32", annotation("area", 1e300), "COCO015"),
    *(harmless(f"area {name}", annotation("area", value), "COCO015") for name, value in NUMBERS.items()),
    # boxes
    box_fault("bbox null", None, "COCO020"),
    box_fault("bbox empty", [], "COCO020"),
    box_fault("bbox of three numbers", [2, 3, 20], "COCO020"),
    box_fault("bbox of five numbers", [2, 3, 20, 10, 1], "COCO020"),
    box_fault("bbox of texts", ["2", "3", "20", "10"], "COCO020"),
    box_fault("bbox as an object", {"x": 2}, "COCO020"),
    box_fault("bbox with a list", [2, 3, 20, [10]], "COCO020"),
    box_fault("bbox with a truth value", [2, 3, 20, True], "COCO020"),
    Fault("bbox missing", drop("annotations", 0, "bbox"), "COCO020", "error", "warning", "error"),
    box_fault("bbox with null", [2, 3, None, 10], "COCO021"),
    box_fault("bbox with 1e300", [2, 3, 1e300, 10], "COCO021"),
    box_fault("bbox with -1e300", [-1e300, 3, 20, 10], "COCO021"),
    *(box_fault(f"bbox with {name}", [2, value, 20, 10], "COCO021") for name, value in NUMBERS.items()),
    box_fault("bbox of negative width", [22, 3, -20, 10], "COCO022"),
    box_fault("bbox of negative height", [2, 13, 20, -10], "COCO022"),
    harmless("bbox of zero height", annotation("bbox", [2, 3, 20, 0]), "COCO023"),
    harmless("bbox of zero size", annotation("bbox", [0, 0, 0, 0]), "COCO023"),
    harmless("bbox right of the image", annotation("bbox", [40, 3, 20, 10]), "COCO024"),
    harmless("bbox above the image", annotation("bbox", [2, -10, 20, 10]), "COCO024"),
    harmless("bbox partly outside", annotation("bbox", [2, 3, 50, 10]), "COCO025"),
    harmless("bbox a million pixels wide", annotation("bbox", [-500_000, 3, 1_000_000, 10]), "COCO025"),
    # masks
    mask_absent("segmentation missing", drop("annotations", 0, "segmentation")),
    mask_absent("segmentation null", segmentation(None)),
    mask_absent("segmentation []", segmentation([])),
    mask_absent("segmentation {}", segmentation({})),
    mask_absent("segmentation [[]]", segmentation([[]])),
    mask_absent("segmentation [[], []]", segmentation([[], []])),
    mask_fault("segmentation as text", segmentation("polygon"), "COCO031"),
    mask_fault("segmentation as a number", segmentation(5), "COCO031"),
    mask_fault("segmentation true", segmentation(True), "COCO031"),
    mask_fault("segmentation a flat list", segmentation(RING), "COCO031"),
    mask_fault("polygon of points as pairs", segmentation([[[2, 3], [22, 3], [22, 13]]]), "COCO031"),
    mask_fault("polygon of texts", segmentation([["2", "3", "22", "3", "22", "13"]]), "COCO031"),
    mask_fault("polygon with an object", segmentation([[2, 3, {}, 3, 22, 13]]), "COCO031"),
    mask_fault("polygon with a truth value", segmentation([[2, 3, True, 3, 22, 13]]), "COCO031"),
    mask_fault("polygons in a nested object", segmentation({"polygons": {"outer": [RING]}}), "COCO036"),
    mask_fault("polygon of four numbers", segmentation([[2, 3, 22, 13]]), "COCO032"),
    mask_fault("a polygon and an empty one", segmentation([RING, []]), "COCO032"),
    mask_fault("polygon of two numbers", segmentation([[2, 3]]), "COCO032"),
    mask_fault("polygon of seven numbers", segmentation([[2, 3, 22, 3, 22, 13, 2]]), "COCO033"),
    mask_fault("polygon of one number", segmentation([[2]]), "COCO033"),
    mask_fault("polygon with null", segmentation([[2, 3, None, 3, 22, 13]]), "COCO034"),
    mask_fault("polygon with 1e10", segmentation([[2, 3, 1e10, 3, 22, 13]]), "COCO034"),
    mask_fault("polygon with -1e10", segmentation([[2, 3, 22, -1e10, 22, 13]]), "COCO034"),
    mask_fault("polygon with ten digits", segmentation([[2, 3, 9_999_999_999, 3, 22, 13]]), "COCO034"),
    mask_fault("polygon with 1e300", segmentation([[2, 3, 1e300, 3, 22, 13]]), "COCO034"),
    *(
        mask_fault(f"polygon with {name}", segmentation([[2, 3, value, 3, 22, 13]]), "COCO034")
        for name, value in NUMBERS.items()
    ),
    mask_fault("RLE of another size", rle([0, 1200], (40, 30)), "COCO035"),
    mask_fault("RLE of huge size", rle([0, 1200], (10**9, 10**9)), "COCO035"),
    mask_fault("RLE of negative size", rle([0, 1200], (-30, -40)), "COCO035"),
    mask_fault("RLE of size in text", rle([0, 1200], ("30", "40")), "COCO035"),
    mask_fault("RLE of size NaN", rle([0, 1200], (literal("NaN"), 40)), "COCO035"),
    mask_fault("RLE without size", segmentation({"counts": [0, 1200]}), "COCO036"),
    mask_fault("RLE of three sizes", rle([0, 1200], (30, 40, 1)), "COCO036"),
    mask_fault("RLE without counts", segmentation({"size": [30, 40]}), "COCO036"),
    mask_fault("RLE counts empty", rle([]), "COCO036"),
    mask_fault("RLE counts empty text", rle(""), "COCO036"),
    mask_fault("RLE counts too few", rle([100, 100]), "COCO036"),
    mask_fault("RLE counts too many", rle([1200, 1200]), "COCO036"),
    mask_fault("RLE counts negative", rle([-1, 1201]), "COCO036"),
    mask_fault("RLE counts that overflow to the right sum", rle([2**63, 2**63, 1200]), "COCO036"),
    mask_fault("RLE counts huge", rle([10**18, 10**18]), "COCO036"),
    mask_fault("RLE counts with fractions", rle([600.5, 599.5]), "COCO036"),
    mask_fault("RLE counts with texts", rle(["600", "600"]), "COCO036"),
    mask_fault("RLE counts as an object", rle({"a": 1}), "COCO036"),
    *(mask_fault(f"RLE counts with {name}", rle([0, value]), "COCO036") for name, value in NUMBERS.items()),
    mask_fault("RLE counts garbage text", rle("hello, world"), "COCO036"),
    mask_fault("RLE counts text of other letters", rle("äöü€"), "COCO036"),
    mask_fault("RLE counts text cut in a number", rle("ooooo"), "COCO036"),
    mask_fault("RLE counts text without end", rle("o" * 10_000), "COCO036"),
    mask_fault("RLE counts text of a huge number", rle("oooooo0oooooo0"), "COCO036"),
    Fault("RLE without a pixel", rle([1200]), "COCO037", None, "warning", "warning"),
    Fault("polygon beside the image", segmentation([[50, 3, 60, 3, 60, 13]]), "COCO037", None, "warning", "warning"),
]


@pytest.fixture
def bad_file(tmp_path: Path, document: Document) -> Callable[[Change], Path]:
    """Writes the document with one fault."""

    def write(change: Change) -> Path:
        change(document)
        path = tmp_path / "annotations" / "instances_mine.json"
        path.parent.mkdir()
        path.write_text(as_json(document))
        return path

    return write


def held(out: Path) -> tuple[list[str], list[int]]:
    """Image ids, and annotation ids in order, of a build."""
    table = tokenlabels.open(out).table()
    ids = [annotation_id for row in table.column("objects").to_pylist() for annotation_id in row["id"]]
    return table.column("image_id").to_pylist(), ids


def by_name(faults: list[Fault]) -> dict[str, Any]:
    return {"argvalues": faults, "ids": [fault.name for fault in faults]}


@pytest.mark.parametrize("rule", [BOX_RULE, MASK_RULE])
@pytest.mark.parametrize("fault", **by_name(FAULTS))
def test_build(fault: Fault, rule: str, bad_file: Callable[[Change], Path], invoke: Invoke, tmp_path: Path) -> None:
    """An error stops the build before it writes, in one line that names the entry; with `skip` it costs that entry.

    A warning is counted and changes nothing else.
    """
    out = tmp_path / "out"
    words: tuple[object, ...] = ("build", "coco", "--annotations", bad_file(fault.change), "--rule", rule, "--out", out)
    severity = fault.severity(rule)
    if severity == "error":
        stopped = invoke(*words)
        assert stopped.exit_code == 1
        assert stopped.stdout == ""
        one_error_line(stopped.stderr, fault.code, "instances_mine.json", fault.named)
        assert not out.exists()
        words += ("--on-error", "skip")
    result = invoke(*words)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    findings = tokenlabels.open(out).manifest["findings"]
    assert findings.pop(fault.code, 0) == (fault.count if severity else 0)
    assert set(findings) == set(fault.also)
    images, annotations = held(out)
    if severity == "error":
        assert images == (["2"] if fault.image_lost else ["1", "2"])
        assert annotations == list(fault.kept)
    else:
        assert images == ["1", "2"]
        assert len(annotations) == 3


@pytest.mark.parametrize("rule", [BOX_RULE, MASK_RULE])
@pytest.mark.parametrize("fault", **by_name(FAULTS))
def test_check_finds_the_same_and_exits_1_for_errors_only(
    fault: Fault, rule: str, bad_file: Callable[[Change], Path], invoke: Invoke
) -> None:
    result = invoke("check", "coco", "--annotations", bad_file(fault.change), "--rule", rule, "--json")
    severity = fault.mask if rule == MASK_RULE else fault.check_box
    report = json.loads(result.stdout)
    assert result.stderr == ""
    assert {row["code"]: row["count"] for row in report["findings"] if row["code"] == fault.code} == (
        {fault.code: fault.count} if severity else {}
    )
    assert {row["code"] for row in report["findings"]} - {fault.code} == set(fault.also)
    assert {row["severity"] for row in report["findings"] if row["code"] == fault.code} == ({severity} - {None})
    assert result.exit_code == (1 if severity == "error" else 0)
    assert (report["errors"] > 0) == (severity == "error")


# --- several faults, and faults that only some places see -------------------------------------------------------------


def test_findings_are_counted_beyond_the_examples_kept(
    document: Document, bad_file: Callable[[Change], Path], invoke: Invoke, tmp_path: Path
) -> None:
    """50 bad boxes are one line under `raise`, and 50 in the manifest with 20 examples under `skip`."""

    def change(document: Document) -> None:
        template = document["annotations"][0]
        document["annotations"] += [template | {"id": 100 + k, "bbox": [0, 0, -1, 5]} for k in range(50)]

    path = bad_file(change)
    stopped = invoke("build", "coco", "--annotations", path, "--out", tmp_path / "out")
    one_error_line(stopped.stderr, "COCO022", "annotation 100 of image 1", "49 more")
    assert (
        invoke("build", "coco", "--annotations", path, "--out", tmp_path / "out", "--on-error", "skip").exit_code == 0
    )
    manifest = tokenlabels.open(tmp_path / "out").manifest
    assert manifest["findings"] == {"COCO022": 50}
    assert [example["annotation_id"] for example in manifest["finding_examples"]] == list(range(100, 120))
    assert held(tmp_path / "out")[1] == [11, 12, 13]


def test_annotations_of_an_image_that_is_left_out_are_no_findings_of_their_own(
    bad_file: Callable[[Change], Path], invoke: Invoke, tmp_path: Path
) -> None:
    result = invoke(
        "build", "coco", "--annotations", bad_file(image("width", -1)), "--out", tmp_path / "out", "--on-error", "skip"
    )
    assert result.exit_code == 0
    assert tokenlabels.open(tmp_path / "out").manifest["findings"] == {"COCO003": 1}


@pytest.mark.parametrize(
    ("shape", "code"),
    [
        pytest.param([[2, 3, 22, 13, 22, 3, 2, 9]], "COCO038", id="a polygon that crosses itself"),
        pytest.param([[2, 3, 22, 13, 22, 3, 2, 13]], "COCO038", id="a bow tie, whose halves cancel out"),
        pytest.param([[2, 3, 12, 3, 22, 3]], "COCO039", id="a polygon on one line"),
        pytest.param([[2, 3, 22, 13, 2, 3]], "COCO039", id="three points, the last the first again"),
        pytest.param([[5, 5, 5, 5, 5, 5]], "COCO039", id="the same point three times"),
    ],
)
@pytest.mark.parametrize("rule", [BOX_RULE, MASK_RULE])
def test_odd_shapes_are_warnings_that_only_the_full_check_looks_for(
    shape: list[list[float]], code: str, rule: str, bad_file: Callable[[Change], Path], invoke: Invoke, tmp_path: Path
) -> None:
    place = ("--annotations", bad_file(segmentation(shape)), "--rule", rule)
    report = invoke("check", "coco", *place, "--json")
    assert report.exit_code == 0, report.stderr
    assert code in {row["code"] for row in json.loads(report.stdout)["findings"]}
    assert invoke("build", "coco", *place, "--out", tmp_path / "fast").exit_code == 0
    assert code not in tokenlabels.open(tmp_path / "fast").manifest["findings"]
    assert invoke("build", "coco", *place, "--check", "full", "--out", tmp_path / "full").exit_code == 0
    assert code in tokenlabels.open(tmp_path / "full").manifest["findings"]


WILD: list[list[float]] = [
    [2, 3, 1e10, 3, 22, 13],
    [2, 3, 1e300, -1e300, 22, 13],
    [-1e7, -1e7, 1e7, -1e7, 1e7, 1e7, -1e7, 1e7],
    [-1e7, 0, 1e7, 0.001, 1e7, 0.002],
    [1e7 * (-1) ** (k // 2) for k in range(20_000)],
]


@pytest.mark.slow
@pytest.mark.parametrize("rasterizer", ["kernel", "pycocotools"])
def test_wild_coordinates_neither_crash_nor_allocate(
    rasterizer: str,
    bad_file: Callable[[Change], Path],
    execute: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    """In a process of its own with 4 GiB of address space, of which numba and Arrow take half."""

    def change(document: Document) -> None:
        template = document["annotations"][0]
        document["annotations"] += [template | {"id": 100 + k, "segmentation": [ring]} for k, ring in enumerate(WILD)]

    words = ("--annotations", bad_file(change), "--rule", MASK_RULE, "--on-error", "skip", "--out", tmp_path / "out")
    result = execute("build", "coco", *words, "--rasterizer", rasterizer, memory=4 << 30)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    findings = tokenlabels.open(tmp_path / "out").manifest["findings"]
    assert 2 <= findings.pop("COCO034") <= len(WILD)
    assert set(findings) <= {"COCO037"}
    assert {11, 12, 13} <= set(held(tmp_path / "out")[1])
    assert not {100, 101} & set(held(tmp_path / "out")[1])


# --- whole files ------------------------------------------------------------------------------------------------------


DEEP = "[" * 100_000 + "]" * 100_000
GOOD = '{"images": [{"id": 1, "width": 4, "height": 4}], "annotations": [], "categories": [{"id": 1, "name": "a"}]}'
ONE_BAD_IMAGE = GOOD.replace('"width": 4', '"width": "4"')
LATIN = GOOD.replace('"id": 1, "width"', '"file_name": "caf\xe9.jpg", "id": 1, "width"').encode("latin-1")


def extended(text: str, entry: str) -> str:
    """`text` with one more entry at the end of the object."""
    return f"{text[:-1]}, {entry}}}"


BROKEN_FILES: list[Any] = [
    pytest.param(content, says, id=name)
    for name, (content, says) in {
        "empty": ("", "is empty"),
        "white space only": (" \n\t\r\n ", "is empty"),
        "NUL bytes only": ("\0" * 4096, "is empty"),
        "a word": ("hello", "not valid JSON"),
        "HTML": ("<!DOCTYPE html><html></html>", "not valid JSON"),
        "a zip file": (b"PK\x03\x04" + bytes(range(256)), "not valid JSON"),
        "random bytes": (bytes(range(128, 256)) * 8, "not valid JSON"),
        "Latin-1": (LATIN, "not valid JSON"),
        "two objects": (GOOD + GOOD, "not valid JSON"),
        "one object a line": (GOOD + "\n" + GOOD, "not valid JSON"),
        "a trailing comma": (GOOD[:-2] + ",]}", "not valid JSON"),
        "single quotes": (GOOD.replace('"', "'"), "not valid JSON"),
        "a comment": ("// COCO\n" + GOOD, "not valid JSON"),
        "half a surrogate pair": (extended(GOOD, '"note": "\\ud800"'), "not valid JSON"),
        "a bad image, and then cut": (ONE_BAD_IMAGE[:-20], "cut short"),
        "a bad image, and then nonsense": (extended(ONE_BAD_IMAGE, '"note": nonsense'), "not valid JSON"),
        "another shape, and then cut": ('{"images": 5, "annotations": [', "cut short"),
        "another shape, and then nonsense": ('{"images": 5, "annotations": nonsense}', "not valid JSON"),
        "another shape, and then NaN": ('{"images": 5, "annotations": NaN}', "'images' that is no list"),
        "a list": ("[]", "JSON list"),
        "a list of results": ('[{"image_id": 1, "bbox": [1, 2, 3, 4]}]', "results file"),
        "a number": ("5", "not a COCO file"),
        "a huge number": ("1e999", "not a COCO file"),
        "NaN": ("NaN", "not a COCO file"),
        "a text": ('"COCO"', "not a COCO file"),
        "null": ("null", "not a COCO file"),
        "an empty object": ("{}", "'images'"),
        "no images": ('{"annotations": [], "categories": []}', "'images'"),
        "no annotations": ('{"images": [], "categories": []}', "'annotations'"),
        "no categories": ('{"images": [], "annotations": []}', "'categories'"),
        "images null": ('{"images": null, "annotations": [], "categories": []}', "'images' that is no list"),
        "images 1e999": ('{"images": 1e999, "annotations": [], "categories": []}', "'images' that is no list"),
        "images an object": ('{"images": {}, "annotations": [], "categories": []}', "'images' that is no list"),
        "annotations a text": ('{"images": [], "annotations": "x", "categories": []}', "'annotations' that is no list"),
        "categories a number": ('{"images": [], "annotations": [], "categories": 3}', "'categories' that is no list"),
        "no image in it": ('{"images": [], "annotations": [], "categories": []}', "no images"),
        "category without id": (GOOD.replace('"id": 1, "name"', '"name"'), "categories[0]"),
        "category without name": (GOOD.replace(', "name": "a"', ""), "categories[0]"),
        "category id as text": (GOOD.replace('"id": 1, "name"', '"id": "1", "name"'), "categories[0]"),
        "category id NaN": (GOOD.replace('"id": 1, "name"', '"id": NaN, "name"'), "categories[0]"),
        "category id 1e999": (GOOD.replace('"id": 1, "name"', '"id": 1e999, "name"'), "categories[0]"),
        "category id of 400 digits": (
            GOOD.replace('"id": 1, "name"', f'"id": {HUGE_INTEGER}, "name"'),
            "categories[0]",
        ),
        "category name null": (GOOD.replace('"name": "a"', '"name": null'), "categories[0]"),
        "category that is a number": (GOOD.replace('{"id": 1, "name": "a"}', "7"), "categories[0]"),
        "category id twice": (GOOD.replace('"a"}', '"a"}, {"id": 1, "name": "b"}'), "category id 1 occurs twice"),
        "deep nesting in place of everything": (DEEP, "nested too deeply"),
        "deep nesting in a field nobody reads": (extended(GOOD, f'"info": {DEEP}'), "nested too deeply"),
        "deep nesting of objects": (
            extended(GOOD, '"x":' + '{"x":' * 50_000 + "1" + "}" * 50_000),
            "nested too deeply",
        ),
        "deep nesting after a bad image": (extended(ONE_BAD_IMAGE, f'"info": {DEEP}'), "nested too deeply"),
        "deep nesting after NaN": (extended(GOOD, f'"n": NaN, "info": {DEEP}'), "nested too deeply"),
        "deep nesting in images": (GOOD.replace('"height": 4', f'"height": {DEEP}'), "nested too deeply"),
        "deep nesting in place of images": (GOOD.replace('[{"id": 1, "width": 4, "height": 4}]', DEEP), "nested"),
        "deep nesting in a segmentation": (
            GOOD.replace(
                '"annotations": []',
                f'"annotations": [{{"id": 1, "image_id": 1, "category_id": 1, "segmentation": {DEEP}}}]',
            ),
            "nested too deeply",
        ),
    }.items()
]


@pytest.mark.parametrize("words", [("build", "--on-error", "raise"), ("build", "--on-error", "skip"), ("check",)])
@pytest.mark.parametrize(("content", "says"), BROKEN_FILES)
def test_a_broken_file_is_one_sentence(
    content: str | bytes, says: str, words: tuple[str, ...], invoke: Invoke, tmp_path: Path
) -> None:
    path = tmp_path / "instances_mine.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    out = () if words[0] == "check" else ("--out", tmp_path / "out")
    if words[0] == "check" and says == "no images":
        return
    result = invoke(words[0], "coco", *words[1:], "--annotations", path, *out)
    assert result.exit_code == 1
    assert result.stdout == ""
    one_error_line(result.stderr, "instances_mine.json", says)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["instances_mine.json"]


def test_a_missing_file_and_a_folder_are_one_sentence(invoke: Invoke, tmp_path: Path) -> None:
    for path, says in ((tmp_path / "absent.json", "no such file"), (tmp_path, "holds no JSON files")):
        result = invoke("build", "coco", "--annotations", path, "--out", tmp_path / "out")
        assert result.exit_code == 1
        one_error_line(result.stderr, str(path), says)
        assert not (tmp_path / "out").exists()


def test_a_pipe_is_refused_rather_than_waited_for(
    execute: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """And so is a file whose name no manifest could hold."""
    os.mkfifo(tmp_path / "pipe.json")
    result = execute("build", "coco", "--annotations", tmp_path / "pipe.json", "--out", tmp_path / "out")
    assert result.returncode == 1
    one_error_line(result.stderr, "pipe.json", "no regular file")
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.json"))
    odd.write_text(GOOD)
    result = execute("build", "coco", "--annotations", odd, "--out", tmp_path / "out")
    assert result.returncode == 1
    one_error_line(result.stderr, "no UTF-8")


def test_a_file_cut_anywhere_is_one_sentence(document: Document, invoke: Invoke, tmp_path: Path) -> None:
    text = json.dumps(document).encode()
    path = tmp_path / "instances_mine.json"
    for length in [*range(1, len(text) - 1, 17), len(text) - 2, len(text) - 1]:
        path.write_bytes(text[:length])
        result = invoke("build", "coco", "--annotations", path, "--out", tmp_path / "out", "--rule", MASK_RULE)
        assert result.exit_code == 1, length
        one_error_line(result.stderr, "instances_mine.json", "cut short")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("start", "encoding"),
    [
        pytest.param(b"\xef\xbb\xbf", "utf-8", id="UTF-8 with a byte-order mark"),
        pytest.param(b"\xff\xfe", "utf-16-le", id="UTF-16, little endian"),
        pytest.param(b"", "utf-16-be", id="UTF-16 without a mark"),
        pytest.param(b"\xff\xfe\0\0", "utf-32-le", id="UTF-32"),
    ],
)
def test_other_encodings_are_read(
    start: bytes, encoding: str, document: Document, invoke: Invoke, tmp_path: Path
) -> None:
    path = tmp_path / "instances_mine.json"
    document["categories"][0]["name"] = "Kätzchen"
    path.write_bytes(start + json.dumps(document, ensure_ascii=False).encode(encoding))
    result = invoke("build", "coco", "--annotations", path, "--rule", MASK_RULE, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert held(tmp_path / "out")[1] == [11, 12, 13]
    assert tokenlabels.open(tmp_path / "out").categories[0].name == "Kätzchen"


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param('"info": NaN', id="NaN"),
        pytest.param('"info": [1e999, -Infinity]', id="Infinity"),
        pytest.param(f'"info": {HUGE_INTEGER}', id="400 digits"),
        pytest.param(f'"info": [NaN, {HUGE_INTEGER}]', id="NaN and 400 digits"),
        pytest.param(f'"info": [NaN, {"9" * 5000}]', id="NaN and 5000 digits"),
        pytest.param('"info": ' + "[" * 500 + "]" * 500, id="500 lists in each other"),
    ],
)
def test_what_nobody_reads_may_hold_anything(entry: str, document: Document, invoke: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "annotations" / "instances_mine.json"
    path.parent.mkdir()
    path.write_text(extended(json.dumps(document), entry))
    result = invoke("build", "coco", "--annotations", path, "--rule", MASK_RULE, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert tokenlabels.open(tmp_path / "out").manifest["findings"] == {}
    assert held(tmp_path / "out")[1] == [11, 12, 13]


@pytest.mark.slow
def test_a_segmentation_nested_to_the_edge_costs_at_most_the_file(
    document: Document, invoke: Invoke, tmp_path: Path
) -> None:
    """Somewhere between 500 and 1,100 levels the interpreter's limit is met, first in one place, then in another."""
    path = tmp_path / "annotations" / "instances_mine.json"
    path.parent.mkdir()
    for depth in range(800, 1040, 8):
        document["annotations"][0]["segmentation"] = literal("[" * depth + "]" * depth)
        path.write_text(as_json(document))
        result = invoke("build", "coco", "--annotations", path, "--rule", MASK_RULE, "--out", tmp_path / "out")
        assert result.exit_code == 1
        one_error_line(result.stderr, "instances_mine.json")


@pytest.mark.parametrize("change", [image("id", "one\ntwo\x1b[2J"), image("file_name", "one\ntwo\x1b[2J/../x")])
def test_names_with_control_characters_stay_on_one_line(
    change: Change, bad_file: Callable[[Change], Path], invoke: Invoke, tmp_path: Path
) -> None:
    def both(document: Document) -> None:
        change(document)
        document["images"].append(copy.deepcopy(document["images"][0]))
        document["annotations"].clear()

    result = invoke("build", "coco", "--annotations", bad_file(both), "--out", tmp_path / "out")
    assert result.exit_code == 1
    one_error_line(result.stderr, "COCO002")
    assert "\x1b" not in result.stderr


# --- image files ------------------------------------------------------------------------------------------------------


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (90, 120, 30)).save(buffer, "PNG")
    return buffer.getvalue()


def turned_jpeg(width: int, height: int) -> bytes:
    """Stored as width x height with an EXIF entry that says to turn it by 90 degrees."""
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of 40 x 30 whose header claims another size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    plain = png(40, 30)
    return plain[:12] + header + struct.pack(">I", zlib.crc32(header)) + plain[33:]


IMAGE_FAULTS = [
    pytest.param(png(40, 30), None, id="fine"),
    pytest.param(None, "COCO041", id="missing"),
    pytest.param(b"", "COCO042", id="empty"),
    pytest.param(b"no image", "COCO042", id="text"),
    pytest.param(png(40, 30)[:20], "COCO042", id="cut in its header"),
    pytest.param(png(41, 30), "COCO040", id="one column more"),
    pytest.param(png(30, 40), "COCO040", id="upright instead of lying"),
    pytest.param(turned_jpeg(30, 40), "COCO040", id="annotated as its EXIF orientation shows it"),
    pytest.param(turned_jpeg(40, 30), None, id="annotated as stored, whatever its EXIF orientation"),
    pytest.param(png_claiming(30_000, 30_000), "COCO042", id="decompression bomb"),
    pytest.param(png_claiming(10_000, 10_000), "COCO040", id="nearly a decompression bomb"),
    pytest.param(png_claiming(0, 0), "COCO042", id="no pixels"),
]


@pytest.fixture
def with_images(tmp_path: Path, document: Document) -> Callable[[bytes | None, str], Path]:
    """Writes the document with its image files, `a.png` holding the bytes given; returns the root."""

    def write(content: bytes | None, name: str) -> Path:
        (tmp_path / "annotations").mkdir()
        (tmp_path / "mine").mkdir()
        document["images"][0]["file_name"] = name
        (tmp_path / "annotations" / "instances_mine.json").write_text(json.dumps(document))
        (tmp_path / "mine" / "b.png").write_bytes(png(64, 48))
        if content is not None:
            (tmp_path / "mine" / name).write_bytes(content)
        return tmp_path

    return write


@pytest.mark.parametrize(("content", "code"), IMAGE_FAULTS)
def test_bad_image_file(
    content: bytes | None, code: str | None, with_images: Callable[[bytes | None, str], Path], invoke: Invoke
) -> None:
    """Not opened by a build, which only looks whether it is there; an error where it is embedded.

    `check` opens it, and another size than annotated is an error there: nobody can say which of the two is right. A
    file that cannot be read is a warning: labels are made from the annotations.
    """
    root = with_images(content, "a.png")
    plain = invoke("build", "coco", "--root", root, "--out", root / "plain")
    assert plain.exit_code == 0, plain.stderr
    missing = {"COCO041": 1} if content is None else {}
    assert tokenlabels.open(root / "plain").manifest["findings"] == missing

    checked = invoke("check", "coco", "--root", root, "--json")
    assert {row["code"]: row["count"] for row in json.loads(checked.stdout)["findings"]} == ({code: 1} if code else {})
    assert checked.exit_code == (1 if code == "COCO040" else 0)

    words = ("build", "coco", "--root", root, "--embed-images")
    strict = invoke(*words, "--out", root / "strict")
    if code is None:
        assert strict.exit_code == 0, strict.stderr
        assert tokenlabels.open(root / "strict").table().column("image")[0].as_py()["bytes"] == content
        return
    assert strict.exit_code == 1
    one_error_line(strict.stderr, code, "instances_mine.json", "image 1", "a.png")
    assert not (root / "strict").exists()
    assert invoke(*words, "--out", root / "lax", "--on-error", "skip").exit_code == 0
    assert held(root / "lax") == (["2"], [12, 13])
    assert tokenlabels.open(root / "lax").manifest["findings"] == {code: 1}


@pytest.mark.parametrize(
    "name",
    ["../a.png", "sub/../../a.png", "..\\a.png", "C:\\a.png", "C:a.png", "\\a.png", "a\0.png", "/etc/hostname", ""],
)
def test_file_names_that_leave_the_folder_are_never_opened(
    name: str, with_images: Callable[[bytes | None, str], Path], invoke: Invoke
) -> None:
    root = with_images(None, name)
    (root / "a.png").write_bytes(png(40, 30))
    (root / "mine" / "..\\a.png").write_bytes(png(40, 30))
    code = "COCO005" if name else "COCO004"
    strict = invoke("build", "coco", "--root", root, "--embed-images", "--out", root / "strict")
    assert strict.exit_code == 1
    one_error_line(strict.stderr, code, "image 1")
    lax = invoke("build", "coco", "--root", root, "--embed-images", "--out", root / "lax", "--on-error", "skip")
    assert lax.exit_code == 0, lax.stderr
    assert held(root / "lax")[0] == ["2"]
    plain = invoke("build", "coco", "--root", root, "--out", root / "plain")
    assert plain.exit_code == 0, plain.stderr
    assert tokenlabels.open(root / "plain").manifest["findings"][code] == 1


def test_an_image_in_a_folder_below_is_embedded(
    with_images: Callable[[bytes | None, str], Path], invoke: Invoke
) -> None:
    root = with_images(None, "sub/a.png")
    (root / "mine" / "sub").mkdir()
    (root / "mine" / "sub" / "a.png").write_bytes(png(40, 30))
    result = invoke("build", "coco", "--root", root, "--embed-images", "--out", root / "out")
    assert result.exit_code == 0, result.stderr
    assert tokenlabels.open(root / "out").table().column("image")[0].as_py()["path"] == "sub/a.png"


def test_no_image_folder_is_one_sentence_where_images_are_embedded(
    bad_file: Callable[[Change], Path], invoke: Invoke, tmp_path: Path
) -> None:
    path = bad_file(put([], "licenses"))
    result = invoke("build", "coco", "--annotations", path, "--embed-images", "--out", tmp_path / "out")
    assert result.exit_code == 1
    one_error_line(result.stderr, str(tmp_path / "mine"), "--images")
    assert not (tmp_path / "out").exists()


def test_images_on_disk_that_nobody_annotated_are_reported_and_not_built(
    with_images: Callable[[bytes | None, str], Path], invoke: Invoke
) -> None:
    """Also one whose name is no UTF-8, which no JSON file can hold."""
    root = with_images(png(40, 30), "a.png")
    (root / "mine" / "extra.JPG").write_bytes(b"")
    (root / "mine" / "notes.txt").write_bytes(b"")
    Path(os.fsdecode(os.fsencode(root / "mine") + b"/caf\xe9.jpg")).write_bytes(b"")
    result = invoke("build", "coco", "--root", root, "--out", root / "out")
    assert result.exit_code == 0, result.stderr
    assert tokenlabels.open(root / "out").manifest["findings"] == {"COCO043": 2}
    assert held(root / "out")[0] == ["1", "2"]
    assert invoke("check", "coco", "--root", root).exit_code == 0
    assert json.loads(invoke("check", "coco", "--root", root, "--json").stdout)["warnings"] == 2


# --- splits -----------------------------------------------------------------------------------------------------------


def test_splits_that_disagree_on_a_category_are_refused(document: Document, invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_a.json").write_text(json.dumps(document))
    document["categories"][0]["name"] = "lynx"
    (tmp_path / "annotations" / "instances_b.json").write_text(json.dumps(document))
    result = invoke("build", "coco", "--root", tmp_path, "--out", tmp_path / "out")
    assert result.exit_code == 1
    one_error_line(result.stderr, "instances_b.json", "'lynx'", "'cat'")
    assert not (tmp_path / "out").exists()


def test_two_files_of_one_split_name_are_refused(document: Document, invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    for name in ("a-b", "a_b"):
        (tmp_path / "annotations" / f"instances_{name}.json").write_text(json.dumps(document))
    result = invoke("build", "coco", "--root", tmp_path, "--out", tmp_path / "out")
    assert result.exit_code == 1
    one_error_line(result.stderr, "a_b", "--split")
    assert not (tmp_path / "out").exists()
    chosen = invoke("build", "coco", "--root", tmp_path, "--split", "a-b", "--out", tmp_path / "out")
    assert chosen.exit_code == 0, chosen.stderr
    assert tokenlabels.open(tmp_path / "out").splits == ("a_b",)


def test_places_count_entries_that_are_left_out(tmp_path: Path) -> None:
    image = {"id": 1, "width": 40, "height": 30, "file_name": "a.jpg"}
    entry = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12}
    document = {"images": [5, image, image], "annotations": [5, entry], "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "instances_a.json").write_text(json.dumps(document))
    log = FindingLog(masks_scored=False)
    tokenlabels.build("coco", annotations=tmp_path / "instances_a.json", out=tmp_path / "o", on_error="skip", log=log)
    assert {finding.message for finding in log.listed()} >= {
        "images[0] is no JSON object.",
        "annotations[0] is no JSON object.",
        "image id 1 occurs again as images[2] (a.jpg).",
        "annotations[1] of image 1 has no usable id.",
    }
