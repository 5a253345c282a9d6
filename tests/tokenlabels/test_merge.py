"""Merging builds: equal to building the whole, categories by name, what cannot be merged, interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import fine, one_error_line, shards
from typer.testing import Result

import tokenlabels
from tokenlabels.annotations import NO_CATEGORY, Category
from tokenlabels.category_union import check_values, renumbered, unite
from tokenlabels.errors import BuildMismatchError, NotABuildError, OutputError, ParameterError
from tokenlabels.reader import Build, read_header
from tokenlabels.sample_semantic import write_semantic_sample

Invoke: TypeAlias = Callable[..., Result]

IMAGES = 11
CATEGORIES = [{"id": 1, "name": "cat", "supercategory": "animal"}, {"id": 3, "name": "dog"}, {"id": 7, "name": "cup"}]


def scene(first: int, last: int, categories: list[dict[str, Any]] = CATEGORIES) -> dict[str, Any]:
    """An instances document of the images first..last-1; every third has no annotations."""
    numbers = range(first, last)
    images = [{"id": k, "file_name": f"{k}.png", "width": 200 + 17 * k, "height": 150 + 9 * k} for k in numbers]
    annotations = [
        {
            "id": 10 * k + part,
            "image_id": k,
            "category_id": categories[(k + part) % len(categories)]["id"],
            "bbox": [3.25 * k, 10.5 * part, 90.4 + k, 70.0],
            "area": 700.5,
            "iscrowd": int(part == 1),
        }
        for k in numbers
        for part in range(k % 3)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


def made(document: dict[str, Any], folder: Path, split: str = "all", **options: Any) -> Build:
    """The build of a document, below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"instances_{split}.json"
    path.write_text(json.dumps(document))
    return tokenlabels.build("coco", annotations=path, out=folder / "build", **options)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Build, Build]:
    """Two builds of the same split, of images 0..4 and 5..10, three images a shard."""
    folder = tmp_path_factory.mktemp("parts")
    options: dict[str, Any] = {"patch": [16, 32], "crowd": "ignore", "shard_rows": 3}
    return made(scene(0, 5), folder / "a", **options), made(scene(5, IMAGES), folder / "b", **options)


@pytest.fixture(scope="module")
def reference(parts: tuple[Build, Build], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The shards of their merged build, by relative path."""
    return shards(tokenlabels.merge(parts, tmp_path_factory.mktemp("reference") / "out").folder)


# --- equal to the whole -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"patch": [16, 32], "crowd": "ignore"}, id="two grids"),
        pytest.param({"image_size": "native", "patch": 8}, id="ragged"),
        pytest.param({"resize": "letterbox", "padding": "ignore", "scores": False}, id="no scores"),
    ],
)
@pytest.mark.parametrize("group_cells", [1 << 24, 1500])
def test_merged_parts_have_the_bytes_of_the_whole(
    options: dict[str, Any], group_cells: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the parts were cut into shards, and with one row group or several in each."""
    monkeypatch.setattr("tokenlabels.shards.ROW_GROUP_CELLS", group_cells)
    whole = made(scene(0, IMAGES), tmp_path / "whole", shard_rows=4, **options)
    first = made(scene(0, 5), tmp_path / "a", shard_rows=2, **options)
    second = made(scene(5, 6), tmp_path / "b", shard_rows=9, **options)
    third = made(scene(6, IMAGES), tmp_path / "c", shard_rows=9, **options)
    merged = tokenlabels.merge([first, second, third], tmp_path / "out", shard_rows=4)
    assert shards(merged.folder) == shards(whole.folder)
    assert merged.manifest["totals"] == whole.manifest["totals"]
    assert merged.manifest["splits"] == whole.manifest["splits"]
    assert merged.manifest["categories"] == whole.manifest["categories"]
    groups = pq.ParquetFile(merged.folder / merged.shards[0].file).num_row_groups
    assert (groups > 1) == (group_cells == 1500)


def test_merged_pictures_have_the_bytes_of_the_whole(
    sample_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document: dict[str, Any] = json.loads((sample_root / "annotations" / "instances_train.json").read_text())
    images = document["images"]
    sizes = [(sample_root / "train" / image["file_name"]).stat().st_size for image in images]
    monkeypatch.setattr("tokenlabels.shards.ROW_GROUP_IMAGE_BYTES", sum(sizes) // 3)
    options: dict[str, Any] = {"images": sample_root / "train", "embed_images": True}

    def chosen(kept: list[dict[str, Any]]) -> dict[str, Any]:
        ids = {image["id"] for image in kept}
        held = [each for each in document["annotations"] if each["image_id"] in ids]
        return document | {"images": kept, "annotations": held}

    whole = made(document, tmp_path / "whole", **options)
    builds = [made(chosen(half), tmp_path / str(len(half)), **options) for half in (images[:5], images[5:])]
    merged = tokenlabels.merge(builds, tmp_path / "out")
    assert shards(merged.folder) == shards(whole.folder)
    assert pq.ParquetFile(merged.folder / merged.shards[0].file).num_row_groups > 2


def test_the_order_of_builds_is_the_order_of_rows_and_of_splits(tmp_path: Path) -> None:
    first = made(scene(0, 3), tmp_path / "a", "x")
    second = made(scene(3, 5), tmp_path / "b", "y")
    third = made(scene(5, 8), tmp_path / "c", "x")
    merged = tokenlabels.merge([first, second, third], tmp_path / "out")
    assert merged.splits == ("x", "y")
    ids = {split: merged.table(split=split).column("image_id").to_pylist() for split in merged.splits}
    assert ids == {"x": ["0", "1", "2", "5", "6", "7"], "y": ["3", "4"]}
    sources = merged.manifest["sources"]
    assert sources["y"] == second.manifest["sources"]["y"]
    assert sources["x"]["size"] == sum(build.manifest["sources"]["x"]["size"] for build in (first, third))
    assert [part["sources"] for part in merged.manifest["merged_from"]] == [
        build.manifest["sources"] for build in (first, second, third)
    ]


def test_a_merged_build_does_all_that_a_build_does(parts: tuple[Build, Build], tmp_path: Path, invoke: Invoke) -> None:
    """And merging what was relabelled is relabelling what was merged."""
    out = tmp_path / "out"
    answer = json.loads(fine(invoke("merge", *(part.folder for part in parts), "--out", out, "--json")).stdout)
    assert (answer["images"], answer["shards"]) == (IMAGES, 8)
    assert answer["annotations"] == sum(k % 3 for k in range(IMAGES))
    fine(invoke("verify", out))
    fine(invoke("stats", out))
    merged = tokenlabels.open(out)
    assert read_header(merged.files()[0]).categories == merged.categories
    relabelled = tokenlabels.relabel(merged, 0.9, tmp_path / "relabelled")
    before = [tokenlabels.relabel(part, 0.9, tmp_path / str(index)) for index, part in enumerate(parts)]
    assert shards(relabelled.folder) == shards(tokenlabels.merge(before, tmp_path / "again").folder)
    assert "instances_all.json" in (out / "README.md").read_text()


def test_findings_are_added_up(tmp_path: Path) -> None:
    document = scene(0, 3)
    document["annotations"][0]["bbox"] = [190, 140, 500, 500]
    builds = [made(document, tmp_path / "a", "x"), made(document, tmp_path / "b", "y")]
    merged = tokenlabels.merge(builds, tmp_path / "out")
    assert merged.manifest["findings"] == {code: 2 * count for code, count in builds[0].manifest["findings"].items()}
    assert merged.manifest["findings"]["COCO025"] == 2
    examples = [build.manifest["finding_examples"] for build in (*builds, merged)]
    assert sorted(map(str, examples[0] + examples[1])) == sorted(map(str, examples[2]))


# --- categories -------------------------------------------------------------------------------------------------------


def table(*entries: tuple[int, str]) -> list[Category]:
    return [Category(number, name) for number, name in entries]


@pytest.mark.parametrize(
    ("tables", "united", "places"),
    [
        pytest.param(
            [table((1, "cat"), (3, "dog")), table((1, "cat"), (3, "dog"))],
            [(1, "cat"), (3, "dog")],
            [[0, 1], [0, 1]],
            id="the same",
        ),
        pytest.param(
            [table((1, "cat"), (3, "dog")), table((1, "dog"), (2, "cat"))],
            [(1, "cat"), (3, "dog")],
            [[0, 1], [1, 0]],
            id="other ids and order",
        ),
        pytest.param(
            [table((1, "cat"), (3, "dog")), table((1, "cup"), (3, "cat"), (4, "fox"))],
            [(1, "cat"), (3, "dog"), (2, "cup"), (4, "fox")],
            [[0, 1], [2, 0, 3]],
            id="an id that is taken gets the first that nobody uses",
        ),
        pytest.param(
            [table((1, "cat"), (2, "cat")), table((2, "cat")), table((5, "cat"), (6, "cat"), (7, "cat"))],
            [(1, "cat"), (2, "cat"), (7, "cat")],
            [[0, 1], [1], [0, 1, 2]],
            id="a name twice: by id, then in order",
        ),
    ],
)
def test_categories_are_united_by_name(
    tables: list[list[Category]], united: list[tuple[int, str]], places: list[list[int]]
) -> None:
    found, where = unite(tables)
    assert [(category.id, category.name) for category in found] == united
    assert [each.tolist() for each in where] == places


def named(build: Build) -> dict[str, list[str]]:
    """Names of the categories of each image's objects."""
    return {
        row["image_id"]: [build.categories[index].name for index in row["objects"]["category"]]
        for row in build.table().to_pylist()
    }


def test_objects_keep_the_names_of_their_categories(tmp_path: Path) -> None:
    others = [{"id": 1, "name": "dog"}, {"id": 2, "name": "fox"}, {"id": 3, "name": "cat", "supercategory": "pet"}]
    builds = [made(scene(0, 5), tmp_path / "a"), made(scene(5, IMAGES, others), tmp_path / "b")]
    merged = tokenlabels.merge(builds, tmp_path / "out")
    assert [(each.id, each.name) for each in merged.categories] == [(1, "cat"), (3, "dog"), (7, "cup"), (2, "fox")]
    assert merged.categories[0].supercategory == "animal"
    assert named(merged) == named(builds[0]) | named(builds[1])
    for path in merged.files():
        assert read_header(path).categories == merged.categories
        features = json.loads(pq.read_schema(path).metadata[b"huggingface"])["info"]["features"]
        assert features["objects"]["category"]["feature"]["names"] == ["cat", "dog", "cup", "fox"]
    assert tokenlabels.verify(merged).fine


def test_majorities_and_segments_are_renumbered_and_none_stays_none() -> None:
    rows = pa.table(
        {
            "categories": pa.array([[0, 2, NO_CATEGORY], [1]], pa.list_(pa.uint16())),
            "segments": pa.array(
                [{"id": [7], "category": [2]}, {"id": [], "category": []}],
                pa.struct([("id", pa.list_(pa.int64())), ("category", pa.list_(pa.int32()))]),
            ),
        }
    )
    found = renumbered(rows.slice(0, 2), np.array([4, 0, 9], np.int32))
    assert found.schema == rows.schema
    assert found.to_pylist() == [
        {"categories": [4, 9, NO_CATEGORY], "segments": {"id": [7], "category": [9]}},
        {"categories": [0], "segments": {"id": [], "category": []}},
    ]
    with pytest.raises(ValueError, match="not in its table"):
        renumbered(rows, np.array([4, 0], np.int32))


def test_values_of_masks_cannot_be_renumbered() -> None:
    tables = [table((1, "cat"), (2, "dog")), table((1, "cat"), (3, "fox"))]
    check_values(tables, unite(tables)[0], ["a", "b"])
    tables = [table((1, "cat"), (2, "dog")), table((1, "dog"))]
    with pytest.raises(ParameterError, match=r"^b: the value 1 of its masks is 'dog', which would be 2 .*--categories"):
        check_values(tables, unite(tables)[0], ["a", "b"])


def test_masks_and_majorities_are_merged_where_their_values_agree(tmp_path: Path) -> None:
    """A longer list of names is merged with a shorter one, but not with one that gives a value another name."""
    root = tmp_path / "data"
    write_semantic_sample(root, images=6)
    names = [line.partition(":")[0] for line in (root / "labelmap.txt").read_text().splitlines() if line[0] != "#"]
    (root / "labelmap.txt").unlink()
    swapped = [*names[:2], names[3], names[2], *names[4:]]
    for kind, listed in (("all", names), ("swapped", swapped), ("more", [*names, "unicorn"])):
        (tmp_path / f"{kind}.txt").write_text("".join(f"{name}\n" for name in listed))

    def semantic(kind: str, *splits: str) -> Build:
        return tokenlabels.build(
            "semantic",
            root=root,
            split=splits,
            categories=tmp_path / f"{kind}.txt",
            image_size=64,
            embed_masks=True,
            out=tmp_path / "-".join((kind, *splits)),
        )

    whole, train = semantic("all", "train", "val"), semantic("all", "train")
    assert len(whole.categories) == len(names)
    merged = tokenlabels.merge([train, semantic("all", "val")], tmp_path / "merged")
    assert shards(merged.folder) == shards(whole.folder)
    longer = tokenlabels.merge([train, semantic("more", "val")], tmp_path / "longer")
    assert [category.name for category in longer.categories] == [*names, "unicorn"]
    columns = ["categories", "mask", "labels"]
    assert longer.table(columns=columns) == whole.table(columns=columns)
    with pytest.raises(ParameterError, match="masks cannot be renumbered"):
        tokenlabels.merge([train, semantic("swapped", "val")], tmp_path / "none")


# --- what cannot be merged --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param({"patch": 32}, ["has the grids 384x384-p16, ", "has 384x384-p32"], id="grid"),
        pytest.param({"rule": "jaccard", "tau": 0.5}, ["rule overlap", "jaccard"], id="rule"),
        pytest.param({"tau": 0.25}, ["tau 0.5", "0.25", "tokenlabels relabel", "--tau 0.5"], id="tau"),
        pytest.param({"tau": 0.25, "crowd": "ignore"}, ["tau 0.5", "made alike"], id="more than tau"),
        pytest.param({"crowd": "background"}, ["crowd foreground", "background"], id="crowd"),
        pytest.param({"scores": False}, ["scores True", "False"], id="scores"),
    ],
)
def test_builds_that_differ_are_refused_by_what_differs(
    options: dict[str, Any], says: list[str], tmp_path: Path, invoke: Invoke
) -> None:
    first, second = made(scene(0, 2), tmp_path / "a"), made(scene(2, 4), tmp_path / "b", **options)
    result = invoke("merge", first.folder, second.folder, "--out", tmp_path / "out")
    assert result.exit_code == 2
    one_error_line(result.stderr, str(first.folder), str(second.folder), *says)
    assert not (tmp_path / "out").exists()


def test_an_image_id_twice_is_refused_or_prefixed(parts: tuple[Build, Build], tmp_path: Path, invoke: Invoke) -> None:
    other = made(scene(4, 7), tmp_path / "other", patch=[16, 32], crowd="ignore")
    words = ("merge", parts[0].folder, other.folder, "--out", tmp_path / "out")
    result = invoke(*words)
    assert result.exit_code == 2
    one_error_line(result.stderr, "image 4 is twice in the split all", str(parts[0].folder), str(other.folder))
    result = invoke("merge", other.folder, other.folder, "--out", tmp_path / "out")
    one_error_line(result.stderr, "is twice in the split all")
    fine(invoke(*words, "--prefix-ids"))
    ids = tokenlabels.open(tmp_path / "out").table().column("image_id").to_pylist()
    assert ids == [*(f"1-{k}" for k in range(5)), *(f"2-{k}" for k in range(4, 7))]


def test_other_choices_of_foreground_are_told(tmp_path: Path, invoke: Invoke) -> None:
    first, second = made(scene(0, 4), tmp_path / "a"), made(scene(4, 8), tmp_path / "b", categories=["dog"])
    result = fine(invoke("merge", first.folder, second.folder, "--out", tmp_path / "out"))
    assert result.stderr.splitlines() == [
        "note: the builds differ in categories: what is foreground in one may be background in another."
    ]
    assert tokenlabels.open(tmp_path / "out").manifest["parameters"]["categories"] is None


def test_one_build_and_the_folder_of_a_build_are_refused(parts: tuple[Build, Build], invoke: Invoke) -> None:
    one_error_line(invoke("merge", parts[0].folder, "--out", "x").stderr, "two or more")
    result = invoke("merge", *(part.folder for part in parts), "--out", parts[1].folder)
    assert result.exit_code == 2
    one_error_line(result.stderr, str(parts[1].folder), "is the build itself")


def test_a_build_that_is_not_finished_is_refused(parts: tuple[Build, Build], tmp_path: Path, invoke: Invoke) -> None:
    (tmp_path / "begun" / ".build").mkdir(parents=True)
    result = invoke("merge", parts[0].folder, tmp_path / "begun", "--out", tmp_path / "out")
    assert result.exit_code == 1
    one_error_line(result.stderr, str(tmp_path / "begun"), "not finished")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        pytest.param(Path.unlink, "is ", id="missing"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-9]), "is damaged", id="cut short"),
        pytest.param(
            lambda path: path.write_bytes(path.read_bytes()[:99] + b"?" + path.read_bytes()[100:]),
            "has other content than when it was built",
            id="other content",
        ),
    ],
)
def test_a_damaged_shard_is_named_and_nothing_is_finished(
    damage: Callable[[Path], Any], says: str, parts: tuple[Build, Build], tmp_path: Path
) -> None:
    other = made(scene(5, IMAGES), tmp_path / "b", patch=[16, 32], crowd="ignore", shard_rows=3)
    hit = other.folder / other.shards[-1].file
    damage(hit)
    with pytest.raises(NotABuildError, match=str(hit)) as caught:
        tokenlabels.merge([parts[0], other], tmp_path / "out")
    assert says in str(caught.value)
    assert not (tmp_path / "out" / "manifest.json").exists()


# --- interruption, resuming, replacing --------------------------------------------------------------------------------


class Interrupting:
    """A progress during which Ctrl-C is pressed, after some shards."""

    def __init__(self, after: int) -> None:
        self.left = after

    def stage(self, name: str, total: int | None = None) -> None:
        """See `Progress`."""

    def advance(self, steps: int) -> None:
        """Count a shard."""
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt

    def note(self, text: str) -> None:
        """See `Progress`."""


def resumed(make: Callable[[], Build], out: Path, finished: int) -> Build:
    """The result of going on, after a look at what the interruption left."""
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet") if path.name[0] != "."}
    assert len(before) == finished
    with pytest.raises(NotABuildError, match="not finished"):
        tokenlabels.open(out)
    build = make()
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not list(out.rglob("*.tmp"))
    assert not (out / ".build").exists()
    return build


@pytest.mark.parametrize("after", [1, 4])
def test_interrupted_and_resumed(
    after: int, parts: tuple[Build, Build], reference: dict[str, bytes], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        tokenlabels.merge(parts, tmp_path / "out", progress=Interrupting(after))
    build = resumed(lambda: tokenlabels.merge(parts, tmp_path / "out"), tmp_path / "out", after)
    assert shards(build.folder) == reference


KILLED = """
import os, signal, sys
import tokenlabels
from tokenlabels.shards import ShardWriter

commit, done = ShardWriter._commit, []

def killing(writer):
    if len(done) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(writer)
    return commit(writer)

ShardWriter._commit = killing
tokenlabels.merge([tokenlabels.open(path) for path in sys.argv[2:]], sys.argv[1])
"""


def test_killed_and_resumed(
    parts: tuple[Build, Build], reference: dict[str, bytes], tmp_path: Path, environment: dict[str, str]
) -> None:
    """SIGKILL in the middle of the third shard: its temporary file goes, the first two stay."""
    out = tmp_path / "out"
    words = [sys.executable, "-c", KILLED, str(out), *(str(part.folder) for part in parts)]
    process = subprocess.run(words, env=environment, capture_output=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert len(list(out.rglob("*.tmp"))) == 1
    build = resumed(lambda: tokenlabels.merge(parts, out), out, 2)
    assert shards(build.folder) == reference


def test_builds_in_a_store_are_merged_into_one_there(
    parts: tuple[Build, Build], reference: dict[str, bytes], tmp_path: Path
) -> None:
    """And what was interrupted there goes on."""
    store = f"memory://merge/{tmp_path.name}"
    first = tokenlabels.relabel(parts[0], 0.5, f"{store}/first")
    with pytest.raises(ParameterError, match="is the build itself"):
        tokenlabels.merge([first, parts[1]], f"{store}//first/")
    with pytest.raises(KeyboardInterrupt):
        tokenlabels.merge([first, parts[1]], f"{store}/out", progress=Interrupting(3))
    with pytest.raises(NotABuildError, match="not finished"):
        tokenlabels.open(f"{store}/out")
    merged = tokenlabels.merge([first, parts[1]], f"{store}/out")
    assert tokenlabels.verify(merged).fine
    assert {shard.file: (merged.path / shard.file).read_bytes() for shard in merged.shards} == reference


def test_other_parameters_are_refused_without_overwrite(parts: tuple[Build, Build], tmp_path: Path) -> None:
    out = tmp_path / "out"
    tokenlabels.merge(parts, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    tokenlabels.merge(parts, out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    with pytest.raises(BuildMismatchError, match=r"made_from.prefix_ids was False, now True"):
        tokenlabels.merge(parts, out, prefix_ids=True)
    with pytest.raises(BuildMismatchError, match=r"made_from.shards_sha256 was"):
        tokenlabels.merge(parts[::-1], out)
    tokenlabels.merge(parts[::-1], out, shard_rows=20, overwrite=True)
    assert sorted(shards(out)) == ["384x384-p16/all-00000-of-00001.parquet", "384x384-p32/all-00000-of-00001.parquet"]


def test_a_folder_of_somebody_else_is_left_alone(parts: tuple[Build, Build], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"holds no build \(mine.txt\)"):
        tokenlabels.merge(parts, tmp_path, overwrite=True)
    assert os.listdir(tmp_path) == ["mine.txt"]  # noqa: PTH208
