"""The data set cards in `data_cards/`, and the card of a build as the Hugging Face Hub reads it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import DatasetCard, DatasetCardData

import tokenlabels
from tokenlabels.card import card_text
from tokenlabels.known import KnownDataset, known_datasets
from tokenlabels.reader import Build

CARDS = Path(__file__).resolve().parents[2] / "data_cards"
KNOWN = {dataset.name: dataset for dataset in known_datasets()}
COUNTS = {
    "ade20k": 150,
    "coco": 80,
    "coco-panoptic": 133,
    "coco-stuff": 171,
    "pascal-context": 59,
    "sample": 10,
    "voc": 20,
}
MASKED = ("ade20k", "coco-stuff", "pascal-context", "voc")
HUB_LICENSES = {"apache-2.0", "bsd-3-clause", "cc-by-4.0", "cc0-1.0", "mit", "other", "unknown"}
"""Of the identifiers on https://huggingface.co/docs/hub/repositories-licenses; no library has the list."""

MENTIONS = {
    "ade20k": ["other objects", "--reduce-zero-label", "`offset: 1`", "--exclude-categories", "non-commercial"],
    "coco": ["--crowd", "Category ids have gaps", "CC BY 4.0"],
    "coco-panoptic": ["R + 256 G + 65536 B", "isthing", "--stuff", "--crowd", "unlabelled", "CC BY 4.0"],
    "coco-stuff": ["id minus 1", "255 is unlabelled", "--stuff", "stuffthingmaps", "10K", "`.mat`", "CC BY 4.0"],
    "pascal-context": ["459", "33", "SegmentationClassContext", "59_labels.txt", "background", "VOC 2010"],
    "sample": ["CC0 1.0", "Accuracies measured on it say nothing about photographs"],
    "voc": [
        "2,501",
        "11,540",
        "24,640",
        "27,450",
        "5 pixels",
        "--void",
        "--difficult",
        "SegmentationObject",
        "1-based and inclusive",
        "ImageSets/Segmentation",
        "no licence",
    ],
}


@pytest.fixture(params=sorted(KNOWN))
def known(request: pytest.FixtureRequest) -> KnownDataset:
    return KNOWN[request.param]


def names(dataset: KnownDataset) -> list[str]:
    return [category["name"] for category in dataset.categories]


# --- the cards of known data sets -------------------------------------------------------------------------------------


def test_there_is_one_file_per_card_named_after_it() -> None:
    assert {path.stem for path in CARDS.glob("*.md")} == set(KNOWN) == set(COUNTS)


def test_a_card_is_complete(known: KnownDataset) -> None:
    assert len(known.categories) == COUNTS[known.name]
    ids = [category["id"] for category in known.categories]
    assert ids == sorted(set(ids))
    assert all(type(identity) is int for identity in ids)
    assert all(type(name) is str and name == name.strip() != "" for name in names(known))
    assert len(set(names(known))) == len(ids)
    assert {key for category in known.categories for key in category} <= {"id", "name", "supercategory", "isthing"}
    assert len({frozenset(category) for category in known.categories}) == 1, "all categories have the same keys"
    assert known.splits
    for counts in known.splits.values():
        assert {"images"} <= set(counts) <= {"images", "annotations"}
        assert counts["images"] > 0
        assert counts.get("annotations", 0) >= 0
    assert known.license in HUB_LICENSES
    assert known.pretty_name
    assert known.languages == ["en"]
    assert set(known.task_categories) <= {"object-detection", "image-segmentation"}
    if known.name != "sample":  # which has neither an author to cite nor a site
        assert known.homepage.startswith("http")
        assert known.citation.startswith("@")
        assert known.citation.count("{") == known.citation.count("}") > 0


def test_front_matter_has_no_key_that_nobody_reads(known: KnownDataset) -> None:
    _, front, _ = (CARDS / f"{known.name}.md").read_text("utf-8").split("---\n", 2)
    assert set(yaml.safe_load(front)) <= set(KnownDataset.__struct_fields__)


def test_the_body_says_what_matters_for_patch_labels(known: KnownDataset) -> None:
    body = " ".join((CARDS / f"{known.name}.md").read_text("utf-8").split("---\n", 2)[2].split())
    assert body.startswith("# ")
    assert "Worth knowing when making patch labels" in body
    for words in MENTIONS[known.name]:
        assert words in body


def test_mask_values_do_not_contradict_the_categories(known: KnownDataset) -> None:
    assert (known.masks is not None) == (known.name in MASKED)
    if known.masks is None:
        return
    values = {category["id"] - known.masks.offset for category in known.categories}
    special = [*known.masks.ignore, *known.masks.background]
    assert len(set(special)) == len(special)
    assert not values & set(special)
    assert {0, 255} >= set(special)
    assert 0 <= min(values) <= max(values) <= 255


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("ade20k", {1: "wall", 13: "person", 21: "car", 150: "flag"}),
        ("coco-stuff", {0: "person", 89: "toothbrush", 91: "banner", 156: "sky-other", 181: "wood"}),
        ("pascal-context", {1: "aeroplane", 2: "bag", 37: "person", 55: "tvmonitor", 59: "wood"}),
        ("voc", {1: "aeroplane", 5: "bottle", 15: "person", 20: "tvmonitor"}),
    ],
)
def test_values_in_masks_stand_for(name: str, values: dict[int, str]) -> None:
    masks = KNOWN[name].masks
    assert masks is not None
    table = {category["id"]: category["name"] for category in KNOWN[name].categories}
    assert {value: table[value + masks.offset] for value in values} == values


def test_things_and_stuff_of_the_coco_family() -> None:
    """The three sets share the ids of things, and those of stuff that was not merged."""
    things = [(c["id"], c["name"], c["supercategory"]) for c in KNOWN["coco"].categories]
    tables = {}
    for name, stuff in (("coco-stuff", 91), ("coco-panoptic", 53)):
        categories = KNOWN[name].categories
        assert [(c["id"], c["name"], c["supercategory"]) for c in categories if c["isthing"]] == things
        assert [c["isthing"] for c in categories] == [True] * 80 + [False] * stuff
        tables[name] = {c["id"]: (c["name"], c["supercategory"]) for c in categories}
    merged = {identity for identity, (name, _) in tables["coco-panoptic"].items() if name.endswith("-merged")}
    assert merged == set(range(184, 201))
    assert list(tables["coco-stuff"]) == [c["id"] for c in KNOWN["coco"].categories] + list(range(92, 183))
    for identity, entry in tables["coco-panoptic"].items():
        assert identity in merged or tables["coco-stuff"][identity] == entry


def test_splits_add_up() -> None:
    voc = KNOWN["voc"].splits
    assert voc["train"]["images"] + voc["val"]["images"] == voc["trainval"]["images"]
    coco = KNOWN["coco"].splits
    for name in ("coco-stuff", "coco-panoptic"):
        for split, counts in KNOWN[name].splits.items():
            assert counts["images"] == coco[split]["images"]
    assert sum(counts["images"] for counts in KNOWN["pascal-context"].splits.values()) == 10_103


def test_categories_in_alphabetical_order() -> None:
    """Values of VOC's and PASCAL-Context's masks follow the names."""
    for name in ("voc", "pascal-context"):
        assert names(KNOWN[name]) == sorted(names(KNOWN[name]))
        assert [category["id"] for category in KNOWN[name].categories] == list(range(1, COUNTS[name] + 1))


# --- the card of a build ----------------------------------------------------------------------------------------------


def build(document: dict[str, Any], folder: Path, split: str, dataset: KnownDataset | None = None) -> Build:
    """A build of two small images with the categories of a known data set, or those of the document."""
    if dataset is not None:
        document["categories"] = dataset.categories
        for annotation in document["annotations"]:
            annotation["category_id"] = dataset.categories[0]["id"]
    path = folder / f"instances_{split}.json"
    path.write_text(json.dumps(document))
    return tokenlabels.build("coco", annotations=path, out=folder / "out")


def hub_card(built: Build) -> DatasetCardData:
    """The front matter as the Hub's client reads it."""
    data = DatasetCard.load(built.folder / "README.md").data
    assert isinstance(data, DatasetCardData)
    return data


def test_a_build_belongs_to_the_card_whose_categories_and_splits_it_has(
    known: KnownDataset, document: dict[str, Any], tmp_path: Path
) -> None:
    data = hub_card(build(document, tmp_path, list(known.splits)[-1], known))
    assert data.pretty_name == f"Patch labels of {known.pretty_name}"
    assert data.license == known.license
    assert data.language == known.languages
    assert data.task_categories == known.task_categories
    body = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert known.citation.strip() in body
    assert known.homepage in body


@pytest.mark.parametrize("change", ["a split of another name", "one category less", "another id"])
def test_a_build_that_only_resembles_a_known_data_set_has_no_licence(
    change: str, document: dict[str, Any], tmp_path: Path
) -> None:
    voc = KNOWN["voc"]
    split = "mine" if change == "a split of another name" else "trainval"
    categories = voc.categories[:-1] if change == "one category less" else list(voc.categories)
    if change == "another id":
        categories[-1] = categories[-1] | {"id": 21}
    data = hub_card(build(document, tmp_path, split, KnownDataset("", "", "", categories)))
    assert data.license == "unknown"
    assert data.pretty_name == "Patch labels of a coco data set"


def test_the_hub_reads_the_card_of_a_build(sample_root: Path, tmp_path: Path) -> None:
    built = tokenlabels.build("coco", root=sample_root, out=tmp_path / "out", patch=[16, 32], image_size=64)
    card = DatasetCard.load(built.folder / "README.md")
    data = hub_card(built)
    assert data.size_categories == ["n<1K"]
    assert data.license == "cc0-1.0"
    assert data.license in HUB_LICENSES
    assert data.language == ["en"]
    values = yaml.safe_load(data.to_yaml())
    assert "patch-labels" in values["tags"]
    assert [config["config_name"] for config in values["configs"]] == list(built.grids)
    assert [info["config_name"] for info in values["dataset_info"]] == list(built.grids)
    assert [entry["split"] for entry in values["configs"][0]["data_files"]] == ["train", "val"]
    assert card.text.lstrip().startswith("# Patch labels of Generated sample")
    _, front, _ = (built.path / "README.md").read_text("utf-8").split("---\n", 2)
    assert values == yaml.safe_load(front), "nothing is lost when the Hub writes it anew"


@pytest.mark.parametrize(
    ("images", "name"),
    [
        (1, "n<1K"),
        (999, "n<1K"),
        (1_000, "1K<n<10K"),
        (118_287, "100K<n<1M"),
        (10_000_000, "n>10M"),
    ],
)
def test_size_categories_are_those_of_the_hub(images: int, name: str, document: dict[str, Any], tmp_path: Path) -> None:
    built = build(document, tmp_path, "mine")
    manifest = json.loads((built.path / "manifest.json").read_text())
    manifest["splits"]["mine"]["images"] = images
    text = card_text(manifest, built.path)
    assert yaml.safe_load(DatasetCard(text).data.to_yaml())["size_categories"] == [name]


FEATURES = """
import json, sys
from datasets import Features, load_dataset
from huggingface_hub import DatasetCard
out = sys.argv[1]
infos = DatasetCard.load(f"{out}/README.md").data.to_dict()["dataset_info"]
for info in infos:
    promised = Features._from_yaml_list(info["features"])
    for split, rows in load_dataset(out, info["config_name"]).items():
        assert rows.features == promised, (info["config_name"], split, rows.features, promised)
        assert rows.info.features == promised
print(json.dumps([info["config_name"] for info in infos]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"patch": [16, 32], "image_size": 64}, id="two grids"),
        pytest.param({"image_size": 64, "crowd": "ignore", "embed_images": True}, id="every column"),
        pytest.param({"image_size": 64, "scores": False}, id="no scores"),
    ],
)
def test_the_card_promises_the_features_that_are_loaded(
    options: dict[str, Any], sample_root: Path, tmp_path: Path
) -> None:
    built = tokenlabels.build("coco", root=sample_root, out=tmp_path / "out", **options)
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    answer = subprocess.run(
        [sys.executable, "-c", FEATURES, str(built.path)],
        capture_output=True,
        text=True,
        env=env,
        cwd=tmp_path,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout) == list(built.grids)
