"""Opening builds by this package; `test_opening.py` has everything else that reads Parquet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import tokenlabels
from tokenlabels.errors import NotABuildError, ParameterError
from tokenlabels.reader import Build, read_header

TRAIN, VAL = 13, 3
OBJECTS = pa.struct(
    [
        ("id", pa.list_(pa.int64())),
        ("bbox", pa.list_(pa.list_(pa.float32(), 4))),
        ("category", pa.list_(pa.int32())),
        ("area", pa.list_(pa.float32())),
        ("iscrowd", pa.list_(pa.bool_())),
        ("difficult", pa.list_(pa.bool_())),
        ("patches", pa.list_(pa.int32())),
    ]
)
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
COLUMNS: list[tuple[str, pa.DataType]] = [
    ("image_id", pa.string()),
    ("file_name", pa.string()),
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("grid_rows", pa.int16()),
    ("grid_cols", pa.int16()),
    ("labels", pa.list_(pa.uint8())),
    ("scores", pa.list_(pa.float32())),
    ("ignored", pa.list_(pa.bool_())),
    ("fg_count", pa.int32()),
    ("ignore_count", pa.int32()),
    ("objects", OBJECTS),
    ("image", IMAGE),
]
"""The columns of the output contract, in order; `scores`, `ignored` and `image` come and go."""


@pytest.fixture(scope="module")
def several(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Two grids, two splits, several shards."""
    out = tmp_path_factory.mktemp("several") / "out"
    return tokenlabels.build("coco", root=sample_root, out=out, patch=[16, 32], image_size="384x192", shard_rows=5)


@pytest.fixture(scope="module")
def full(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Every column: crowds ignored, images embedded."""
    out = tmp_path_factory.mktemp("full") / "out"
    return tokenlabels.build("coco", root=sample_root, out=out, crowd="ignore", embed_images=True)


# --- this package -----------------------------------------------------------------------------------------------------


def test_open_knows_what_was_built(several: Build, sample_root: Path) -> None:
    opened = tokenlabels.open(str(several.path))
    assert opened.path == several.path
    assert list(opened.grids) == ["384x192-p16", "384x192-p32"]
    assert opened.grids["384x192-p32"].constant_shape == (12, 6)
    assert opened.grids["384x192-p16"] == tokenlabels.PatchGrid.parse(16, "384x192")
    assert opened.splits == ("train", "val")
    document = json.loads((sample_root / "annotations" / "instances_train.json").read_text())
    assert [(c.id, c.name, c.supercategory) for c in opened.categories] == [
        (c["id"], c["name"], c["supercategory"]) for c in document["categories"]
    ]
    assert opened.manifest == json.loads((several.path / "manifest.json").read_text())
    assert repr(opened) == f"Build({str(several.path)!r}, grids={list(opened.grids)}, splits=['train', 'val'])"


def test_the_only_grid_has_a_name_of_its_own(several: Build, full: Build) -> None:
    assert full.grid is full.grids["384x384-p16"]
    with pytest.raises(ParameterError, match="384x192-p16, 384x192-p32"):
        _ = several.grid


@pytest.mark.parametrize(
    ("grid", "split", "rows", "cells"),
    [
        pytest.param(None, None, TRAIN + VAL, 24 * 12, id="everything of the first grid"),
        pytest.param("384x192-p16", "val", VAL, 24 * 12, id="a split of the first grid"),
        pytest.param("384x192-p32", None, TRAIN + VAL, 12 * 6, id="the second grid"),
        pytest.param("384x192-p32", "train", TRAIN, 12 * 6, id="a split of the second grid"),
    ],
)
def test_table_frame_and_labels_hold_the_same_rows_in_order(
    grid: str | None, split: str | None, rows: int, cells: int, several: Build, sample_root: Path
) -> None:
    table = several.table(grid, split)
    labels = several.labels(grid, split)
    frame = several.frame(grid, split).collect()
    assert table.num_rows == len(labels) == frame.height == rows
    assert labels.dtype == np.uint8
    assert labels.reshape(rows, -1).shape == (rows, cells)
    assert labels.reshape(rows, -1).tolist() == table.column("labels").to_pylist() == frame["labels"].to_list()
    wanted = [split] if split else ["train", "val"]
    ids = [
        str(image["id"])
        for name in wanted
        for image in json.loads((sample_root / "annotations" / f"instances_{name}.json").read_text())["images"]
    ]
    assert table.column("image_id").to_pylist() == frame["image_id"].to_list() == ids


def test_columns_can_be_chosen(several: Build) -> None:
    assert several.table(columns=["fg_count", "image_id"]).column_names == ["fg_count", "image_id"]
    with pytest.raises(ParameterError, match=r"no column 'label'.*labels"):
        several.table(columns=["label"])


def test_labels_of_one_shard_are_a_view(full: Build, several: Build) -> None:
    view = full.labels(split="val")
    assert view.shape == (VAL, 24, 24)
    assert not view.flags.owndata
    assert not view.flags.writeable
    assert several.labels(split="train").flags.writeable  # three shards, copied once


@pytest.mark.parametrize(
    "options", [{"image_size": "native"}, {"resize": "shortest-edge", "image_size": 160}, {"resize": "native"}]
)
def test_grids_that_differ_have_no_label_array(options: dict[str, Any], sample_root: Path, tmp_path: Path) -> None:
    built = tokenlabels.build("coco", root=sample_root, out=tmp_path / "out", **options)
    with pytest.raises(ParameterError, match=r"table\(columns=\['labels'\]\)"):
        built.labels()
    table = built.table()
    sizes = [r * c for r, c in zip(*(table.column(n).to_pylist() for n in ("grid_rows", "grid_cols")), strict=True)]
    assert [len(row) for row in table.column("labels").to_pylist()] == sizes
    assert len(set(sizes)) > 1


@pytest.mark.parametrize(
    ("grid", "split", "says"),
    [("384x384-p16", None, "no grid '384x384-p16'"), (None, "test", "no split 'test'"), (None, "va", "no split 'va'")],
)
def test_unknown_grids_and_splits_are_named(grid: str | None, split: str | None, says: str, several: Build) -> None:
    for read in (several.table, several.frame, several.labels, several.files):
        with pytest.raises(ParameterError, match=says):
            read(grid, split)


def test_a_missing_or_damaged_shard_is_one_sentence(sample_root: Path, tmp_path: Path) -> None:
    built = tokenlabels.build("coco", root=sample_root, out=tmp_path / "out")
    shard = built.files(split="val")[0]
    whole = shard.read_bytes()
    footer = int.from_bytes(whole[-8:-4], "little") + 8
    zeroed = whole[:4] + bytes(len(whole) - footer - 4) + whole[-footer:]
    for content in (whole[:-10], b"", b"PAR1" + bytes(100) + b"PAR1", zeroed):
        shard.write_bytes(content)
        for read in (lambda: built.table(), lambda: built.labels(split="val")):
            with pytest.raises(NotABuildError, match=f"{shard}: is damaged"):
                read()
    shard.unlink()
    with pytest.raises(NotABuildError, match="is missing"):
        built.table()
    with pytest.raises(NotABuildError, match="is missing"):
        read_header(shard)
    shard.write_bytes(b"")
    with pytest.raises(NotABuildError, match="is damaged or no shard"):
        read_header(shard)


@pytest.mark.parametrize(("part", "name"), [("tool", "version"), ("parameters", "void"), ("parameters", "difficult")])
def test_a_manifest_without_what_relabelling_needs_is_refused(
    part: str, name: str, sample_root: Path, tmp_path: Path
) -> None:
    built = tokenlabels.build("coco", root=sample_root, out=tmp_path / "out")
    del built.manifest[part][name]
    (built.path / "manifest.json").write_text(json.dumps(built.manifest))
    with pytest.raises(NotABuildError, match=f"is no manifest that this version reads .*{name}"):
        tokenlabels.open(built.path)


def test_paths_with_odd_characters_can_be_opened(sample_root: Path, tmp_path: Path) -> None:
    """Brackets, stars and equals signs mean something to glob patterns and to partitioned data sets."""
    out = tmp_path / "x=1" / "a [b] *? {c} é"
    built = tokenlabels.build("coco", root=sample_root, out=out)
    expected = built.table().column_names
    assert built.frame().collect().columns == expected
    assert built.frame().collect().height == built.table().num_rows == len(built.labels()) == TRAIN + VAL
    assert tokenlabels.verify(built).fine


# --- the schema -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "without"),
    [
        pytest.param({}, {"ignored", "image"}, id="plain"),
        pytest.param({"scores": False}, {"scores", "ignored", "image"}, id="no scores"),
        pytest.param({"crowd": "ignore"}, {"image"}, id="crowds ignored"),
        pytest.param({"padding": "ignore", "resize": "letterbox"}, {"image"}, id="padding ignored"),
        pytest.param({"crowd": "background"}, {"ignored", "image"}, id="crowds left out"),
        pytest.param({"embed_images": True}, {"ignored"}, id="images embedded"),
        pytest.param({"embed_images": True, "crowd": "ignore"}, set(), id="everything"),
        pytest.param({"rule": "pixel-ratio"}, {"ignored", "image"}, id="masks"),
    ],
)
def test_schema(options: dict[str, Any], without: set[str], sample_root: Path, tmp_path: Path) -> None:
    built = tokenlabels.build("coco", root=sample_root, out=tmp_path / "out", **options)
    expected = [(name, kind) for name, kind in COLUMNS if name not in without]
    for path in built.files():
        schema = pq.read_schema(path)
        assert [field.name for field in schema] == [name for name, _ in expected]
        for field, (_, kind) in zip(schema, expected, strict=True):
            assert field.type.equals(kind), field
        assert set(schema.metadata) == {b"huggingface", b"tokenlabels"}
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        assert list(features) == [name for name, _ in expected]
        parquet = pq.ParquetFile(path).metadata
        assert {parquet.row_group(0).column(k).compression for k in range(parquet.num_columns)} == {"ZSTD"}


def test_a_stray_shard_explains_itself(several: Build) -> None:
    header = read_header(several.files("384x192-p32", "val")[0])
    assert (header.schema_version, header.format, header.split, header.grid) == (1, "coco", "val", "384x192-p32")
    assert (header.rule, header.tau, header.crowd, header.padding) == ("overlap", 0.5, "foreground", "background")
    assert (header.patch, header.image_size, header.resize) == ((32, 32), (384, 192), "squash")
    assert header.patch_grid() == several.grids["384x192-p32"]
    assert header.categories == several.categories


def test_shards_are_cut_at_the_rows_asked_for_and_named_by_number(several: Build) -> None:
    assert [(shard.file, shard.rows) for shard in several.shards] == [
        (f"{grid}/{name}.parquet", rows)
        for grid in ("384x192-p16", "384x192-p32")
        for name, rows in [
            ("train-00000-of-00003", 5),
            ("train-00001-of-00003", 5),
            ("train-00002-of-00003", 3),
            ("val-00000-of-00001", 3),
        ]
    ]


def test_rows_agree_with_themselves_and_with_the_annotations(full: Build, sample_root: Path) -> None:
    files = {
        split: json.loads((sample_root / "annotations" / f"instances_{split}.json").read_text())
        for split in full.splits
    }
    positions = {category["id"]: index for index, category in enumerate(files["train"]["categories"])}
    assert positions != {k: k for k in positions}
    for split, document in files.items():
        images = {str(image["id"]): image for image in document["images"]}
        for row in full.table(split=split).to_pylist():
            image = images[row["image_id"]]
            assert (row["file_name"], row["width"], row["height"]) == (
                image["file_name"],
                image["width"],
                image["height"],
            )
            cells = row["grid_rows"] * row["grid_cols"]
            assert len(row["labels"]) == len(row["scores"]) == len(row["ignored"]) == cells == 576
            assert row["fg_count"] == row["labels"].count(1)
            assert row["ignore_count"] == row["labels"].count(255)
            assert row["labels"] == [
                1 if score >= 0.5 else 255 if ignored else 0
                for score, ignored in zip(row["scores"], row["ignored"], strict=True)
            ]
            mine = [a for a in document["annotations"] if str(a["image_id"]) == row["image_id"]]
            objects = row["objects"]
            assert objects["id"] == [a["id"] for a in mine]
            assert objects["category"] == [positions[a["category_id"]] for a in mine]
            assert objects["iscrowd"] == [bool(a["iscrowd"]) for a in mine]
            assert objects["difficult"] == [False] * len(mine)
            assert np.array_equal(
                np.array(objects["bbox"], np.float32).reshape(-1, 4),
                np.array([a["bbox"] for a in mine], np.float32).reshape(-1, 4),
            )
            assert objects["area"] == [float(np.float32(a["area"])) for a in mine]
            assert row["image"]["bytes"] == (sample_root / split / row["file_name"]).read_bytes()
            assert row["image"]["path"] == row["file_name"]
    assert any(255 in row for row in full.table().column("labels").to_pylist())
    assert any(row["id"] == [] for row in full.table().column("objects").to_pylist())


def test_totals_in_the_manifest_are_sums_of_the_columns(several: Build) -> None:
    for grid in several.grids:
        for split in several.splits:
            labels = several.labels(grid, split)
            counts = several.table(grid, split).column("fg_count").to_numpy()
            assert several.manifest["totals"][grid][split] == {
                "patches": labels.size,
                "foreground": int((labels == 1).sum()),
                "ignored": 0,
                "fg_share": int((labels == 1).sum()) / labels.size,
                "empty_images": int((counts == 0).sum()),
            }


# --- the card ---------------------------------------------------------------------------------------------------------


def front_matter(out: Path) -> tuple[dict[str, Any], str]:
    before, front, body = (out / "README.md").read_text().split("---\n", 2)
    assert before == ""
    return yaml.safe_load(front), body


def test_the_card_says_where_the_shards_are(several: Build) -> None:
    front, body = front_matter(several.folder)
    assert [config["config_name"] for config in front["configs"]] == list(several.grids)
    assert [config.get("default", False) for config in front["configs"]] == [True, False]
    for config in front["configs"]:
        found = {entry["split"]: sorted(several.path.glob(entry["path"])) for entry in config["data_files"]}
        assert found == {split: several.files(config["config_name"], split) for split in several.splits}
    assert [info["config_name"] for info in front["dataset_info"]] == list(several.grids)
    for info in front["dataset_info"]:
        names = pq.read_schema(several.files(info["config_name"])[0]).names
        assert [feature["name"] for feature in info["features"]] == names
    for file in several.manifest["sources"].values():
        assert file["sha256"] in body


def test_a_card_of_names_that_yaml_could_misread(document: dict[str, Any], tmp_path: Path) -> None:
    """Category names such as yes, 1, null, and a colon."""
    names = ["yes", "1", "null", "a: b", "- x", "# y", "'q\"", "---", "tab\there", "new\nline", "é", "1e3", "~"]
    document["categories"] = [{"id": k, "name": name} for k, name in enumerate(names, 1)]
    path = tmp_path / "instances_mine.json"
    path.write_text(json.dumps(document))
    built = tokenlabels.build("coco", annotations=path, out=tmp_path / "out")
    front, _ = front_matter(built.folder)
    objects = next(f for f in front["dataset_info"][0]["features"] if f["name"] == "objects")
    category = next(f for f in objects["struct"] if f["name"] == "category")
    assert list(category["sequence"]["class_label"]["names"].values()) == names
