"""`croissant.json` beside a build: valid, and the build's values are read through it with mlcroissant."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlcroissant
import numpy as np
import pytest
from helpers import fine, one_error_line
from PIL import Image
from typer.testing import Result

import tokenlabels
from tokenlabels.known import known_datasets
from tokenlabels.reader import Build
from tokenlabels.sample import VOC_FOLDER
from tokenlabels.sample_semantic import write_semantic_sample

ODD = ['quote " and \\', "<b>&amp;</b>", "línea ✓ 猫", "two\nlines\u2028and more", "@id", "cr:Split", "{split}", " "]


@pytest.fixture(scope="module")
def builds(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Build]:
    """Builds of every kind of column."""
    folder = tmp_path_factory.mktemp("builds")
    write_semantic_sample(folder / "sample", images=5)
    voc: dict[str, Any] = {"root": sample_root / VOC_FOLDER, "split": ["train", "val"], "image_size": 64}
    return {
        "two grids, with images": tokenlabels.build(
            "coco",
            root=sample_root,
            out=folder / "grids",
            patch=[16, 32],
            image_size=64,
            shard_rows=5,
            crowd="ignore",
            embed_images=True,
        ),
        "ragged": tokenlabels.build(
            "coco", root=sample_root, out=folder / "ragged", image_size="native", patch=64, scores=False
        ),
        "semantic": tokenlabels.build(
            "semantic", root=folder / "sample", out=folder / "semantic", embed_masks=True, image_size=64
        ),
        "voc": tokenlabels.build("voc", out=folder / "voc", rule="pixel-ratio", embed_masks=True, **voc),
        "boxes of voc": tokenlabels.build("voc", out=folder / "boxes", **voc),
    }


def described(build: Build) -> mlcroissant.Dataset:
    """What mlcroissant makes of a build."""
    return mlcroissant.Dataset(jsonld=str(build.path / "croissant.json"))


def plain(value: Any) -> Any:
    """A value of mlcroissant, which gives texts as bytes, numbers as numpy's, pictures as Pillow's."""
    if isinstance(value, dict):
        return {name.rpartition("/")[2]: plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, Image.Image):
        return (value.mode, value.tobytes())
    return value.item() if isinstance(value, np.generic) else value


def opened(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a build whose pictures are decoded."""
    for name in {"image", "mask"} & set(row):
        if row[name] is not None:
            with Image.open(io.BytesIO(row[name]["bytes"])) as picture:
                row[name] = (picture.mode, picture.tobytes())
    return row


@pytest.mark.parametrize("name", ["two grids, with images", "ragged", "semantic", "voc", "boxes of voc"])
def test_the_values_of_a_build_are_read_through_it(name: str, builds: dict[str, Build]) -> None:
    build = builds[name]
    dataset = described(build)
    assert not dataset.metadata.issues.errors
    for grid in build.grids:
        expected = [
            {"split": split} | opened(row) for split in build.splits for row in build.table(grid, split).to_pylist()
        ]
        found = [plain(record) for record in dataset.records(grid)]
        assert found == expected
        assert found


def test_one_split_can_be_chosen(builds: dict[str, Build]) -> None:
    build = builds["two grids, with images"]
    records = described(build).records("64x64-p16", filters={"64x64-p16/split": "val"})
    found = [plain(record["64x64-p16/image_id"]) for record in records]
    assert found == build.table("64x64-p16", "val")["image_id"].to_pylist()


@pytest.mark.parametrize("name", ["ragged", "semantic", "voc"])
def test_splits_and_categories_are_record_sets(name: str, builds: dict[str, Build]) -> None:
    build = builds[name]
    dataset = described(build)
    assert [plain(record) for record in dataset.records("splits")] == [{"name": split} for split in build.splits]
    assert [plain(record) for record in dataset.records("categories")] == [
        {"index": index, "id": category.id, "name": category.name} for index, category in enumerate(build.categories)
    ]


def test_types_and_shapes(builds: dict[str, Build]) -> None:
    document = json.loads((builds["two grids, with images"].path / "croissant.json").read_bytes())
    record_sets = {record_set["@id"]: record_set for record_set in document["recordSet"]}
    fields = {field["name"]: field for field in record_sets["64x64-p16"]["field"]}
    assert (fields["labels"]["dataType"], fields["labels"]["arrayShape"]) == ("cr:UInt8", "-1")
    assert (fields["ignored"]["dataType"], fields["ignored"]["isArray"]) == ("sc:Boolean", True)
    assert "isArray" not in fields["width"]
    objects = {field["name"]: field for field in fields["objects"]["subField"]}
    assert (objects["bbox"]["dataType"], objects["bbox"]["arrayShape"]) == ("cr:Float32", "-1,4")
    assert fields["image"]["dataType"] == "sc:ImageObject"


def test_every_shard_is_listed_with_its_hash(builds: dict[str, Build]) -> None:
    for build in builds.values():
        files = {file.id: file for file in described(build).metadata.file_objects}
        assert list(files) == [shard.file for shard in build.shards]
        for shard in build.shards:
            assert files[shard.file].sha256 == shard.sha256
            assert files[shard.file].content_url == shard.file
            assert files[shard.file].content_size == f"{shard.bytes} B"


def test_what_a_reader_misses(builds: dict[str, Build]) -> None:
    """Nothing but the date, which would make every build another, and a citation where there is none."""
    for name, build in builds.items():
        warnings = described(build).metadata.issues.warnings
        missing = {part for part in ("citeAs", "datePublished", "license", "version") if part in str(warnings)}
        assert missing == {"citeAs", "datePublished"}, name
        assert len(warnings) == 2


@pytest.mark.parametrize("known", [known for known in known_datasets() if known.citation], ids=lambda known: known.name)
def test_a_known_data_set_has_its_citation_and_licence(known: Any, document: dict[str, Any], tmp_path: Path) -> None:
    document["categories"] = known.categories
    for annotation in document["annotations"]:
        annotation["category_id"] = known.categories[0]["id"]
    path = tmp_path / f"instances_{list(known.splits)[-1]}.json"
    path.write_text(json.dumps(document))
    metadata = described(tokenlabels.build("coco", annotations=path, out=tmp_path / "out")).metadata
    assert metadata.cite_as == known.citation.strip()
    assert metadata.url == known.homepage
    assert metadata.license is not None
    assert metadata.license[0] in (
        known.license,
        "https://spdx.org/licenses/CC-BY-4.0",
        "https://spdx.org/licenses/BSD-3-Clause",
    )
    assert len(metadata.issues.warnings) == 1


def test_names_of_odd_characters(document: dict[str, Any], tmp_path: Path) -> None:
    document["categories"] = [{"id": index, "name": name} for index, name in enumerate(ODD, 1)]
    for annotation in document["annotations"]:
        annotation["category_id"] = 2
    document["images"][0]["file_name"] = 'ünï "quoted".png'
    path = tmp_path / "instances_odd.json"
    path.write_text(json.dumps(document))
    build = tokenlabels.build("coco", annotations=path, out=tmp_path / "out")
    dataset = described(build)
    assert [plain(record)["name"] for record in dataset.records("categories")] == ODD
    (grid,) = build.grids
    assert plain(next(iter(dataset.records(grid))))["file_name"] == 'ünï "quoted".png'


def test_no_categories_at_all(document: dict[str, Any], tmp_path: Path) -> None:
    document |= {"categories": [], "annotations": []}
    path = tmp_path / "instances_none.json"
    path.write_text(json.dumps(document))
    build = tokenlabels.build("coco", annotations=path, out=tmp_path / "out")
    dataset = described(build)
    assert [record_set.id for record_set in dataset.metadata.record_sets] == ["splits", *build.grids]
    assert len(list(dataset.records(next(iter(build.grids))))) == 2


def test_the_bytes_depend_on_the_build_alone(sample_root: Path, tmp_path: Path) -> None:
    texts = []
    for place in ("a", "elsewhere/b"):
        root, out = tmp_path / place / "sample", tmp_path / place / "out"
        shutil.copytree(sample_root, root)
        tokenlabels.build("coco", root=root, out=out, image_size=64)
        texts.append((out / "croissant.json").read_bytes())
    assert texts[0] == texts[1]
    assert str(tmp_path).encode() not in texts[0]


def test_it_goes_with_the_build(sample_root: Path, tmp_path: Path, invoke: Callable[..., Result]) -> None:
    out, file = tmp_path / "out", tmp_path / "out/croissant.json"
    words = ["build", "coco", "--root", sample_root, "--out", out, "--image-size", 64]
    fine(invoke(*words))
    first = file.read_bytes()
    fine(invoke("verify", out))
    fine(invoke("relabel", out, "--tau", "0.9", "--out", tmp_path / "again"))
    assert b"tau 0.9" in (tmp_path / "again/croissant.json").read_bytes()
    result = invoke(*words, "--patch", 32)
    assert result.exit_code == 1
    one_error_line(result.stderr, "other parameters")
    assert file.read_bytes() == first
    fine(invoke(*words, "--patch", 32, "--overwrite"))
    assert b"64x64-p32" in file.read_bytes()
    assert b"64x64-p16" not in file.read_bytes()


def test_a_build_from_before_there_was_such_a_file(
    sample_root: Path, tmp_path: Path, invoke: Callable[..., Result]
) -> None:
    out = tmp_path / "out"
    words = ["build", "coco", "--root", sample_root, "--out", out, "--image-size", 64]
    fine(invoke(*words))
    (out / "croissant.json").unlink()
    assert len(tokenlabels.open(out).table()) == 16
    fine(invoke("verify", out))
    fine(invoke(*words))
    fine(invoke(*words, "--patch", 32, "--overwrite"))
