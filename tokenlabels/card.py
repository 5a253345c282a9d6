"""The data set card written beside the shards: YAML front matter for the Hugging Face Hub, then tables.

What is known of an official data set (licence, citation) comes from `data_cards/NAME.md`; a build belongs to the card
whose category table and split names it shares. Format: https://huggingface.co/docs/hub/datasets-cards
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import yaml

from tokenlabels.known import KnownDataset, known_datasets
from tokenlabels.rules import RULES
from tokenlabels.shards import ShardHeader, features_of
from tokenlabels.storage import parquet_file

if TYPE_CHECKING:
    from tokenlabels.storage import Location

_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)


def card_text(manifest: dict[str, Any], out: Location) -> str:
    """The card of a build.

    Args:
        manifest: the manifest, as JSON values.
        out: folder of the build, whose first shards tell the columns.
    """
    known = known_origin(manifest)
    front = yaml.safe_dump(_front_matter(manifest, out, known), sort_keys=False, allow_unicode=True, width=1_000)
    return f"---\n{front}---\n\n{_body(manifest, known)}"


def known_origin(manifest: dict[str, Any]) -> KnownDataset | None:
    """The official data set that a build was made of: same categories, and no other splits."""
    background = manifest["parameters"].get("background", [])
    table = [
        (category["id"], category["name"]) for category in manifest["categories"] if category["id"] not in background
    ]
    cut = manifest["parameters"].get("cut")
    splits = [cut["split"]] if cut else manifest["splits"]
    for dataset in known_datasets():
        offset = dataset.masks.offset if dataset.masks else 0
        names = [category["name"] for category in dataset.categories]
        ids = [category["id"] for category in dataset.categories]
        numberings = [ids, [each - offset for each in ids], range(len(ids))]  # semantic builds number by mask value
        known = any(table == list(zip(numbering, names, strict=True)) for numbering in numberings)
        if known and all(split in dataset.splits for split in splits):
            return dataset
    return None


def _front_matter(manifest: dict[str, Any], out: Location, known: KnownDataset | None) -> dict[str, Any]:
    images = sum(split["images"] for split in manifest["splits"].values())
    grids = [grid["name"] for grid in manifest["parameters"]["grids"]]
    subject = known.pretty_name if known else f"a {manifest['parameters']['source']} data set"
    front: dict[str, Any] = {
        "pretty_name": f"Patch labels of {subject}",
        "license": known.license if known else "unknown",
        "language": known.languages if known else ["en"],
        "task_categories": known.task_categories if known else ["image-segmentation"],
        "size_categories": [next((name for limit, name in _SIZES if images < limit), "n>10M")],
        "tags": ["vision-transformer", "token-pruning", "patch-labels", "tokenlabels"],
    }
    front["configs"] = [
        {
            "config_name": grid,
            **({"default": True} if index == 0 else {}),
            "data_files": [{"split": split, "path": f"{grid}/{split}-*.parquet"} for split in manifest["splits"]],
        }
        for index, grid in enumerate(grids)
    ]
    front["dataset_info"] = [{"config_name": grid, "features": _yaml_features(manifest, out, grid)} for grid in grids]
    return front


def _yaml_features(manifest: dict[str, Any], out: Location, grid: str) -> list[dict[str, Any]]:
    first = next(shard["file"] for shard in manifest["shards"] if shard["file"].startswith(f"{grid}/"))
    with parquet_file(out / first) as file:
        schema = file.schema_arrow
    header = msgspec.json.decode(schema.metadata[b"tokenlabels"], type=ShardHeader)
    features = features_of(list(schema), header.categories)
    return [{"name": name, **_yaml_feature(feature)} for name, feature in features.items()]


def _yaml_feature(feature: dict[str, Any]) -> dict[str, Any]:
    """One feature in the form that card front matter uses."""
    kind = feature.get("_type")
    if kind == "Value":
        return {"dtype": feature["dtype"]}
    if kind == "Image":
        return {"dtype": "image"}
    if kind == "ClassLabel":
        return {"class_label": {"names": {str(index): name for index, name in enumerate(feature["names"])}}}
    if kind == "Sequence":
        inner = _yaml_feature(feature["feature"])
        length = {"length": feature["length"]} if "length" in feature else {}
        return {"sequence": inner["dtype"] if list(inner) == ["dtype"] else inner} | length
    return {"struct": [{"name": name, **_yaml_feature(inner)} for name, inner in feature.items()]}


def _body(manifest: dict[str, Any], known: KnownDataset | None) -> str:
    parameters = manifest["parameters"]
    comparison = "score > tau" if parameters["rule"] == "pixel-ratio" else "score >= tau"
    grid, split = parameters["grids"][0]["name"], next(iter(manifest["splits"]))
    lines = [
        f"# Patch labels{' of ' + known.pretty_name if known else ''}",
        "",
        f"""One foreground/background label per vision-transformer patch, made by tokenlabels \
{manifest["tool"]["version"]}. `labels` is row-major, `grid_rows x grid_cols`: 1 foreground, 0 background, 255 ignore.

Rule `{parameters["rule"]}`: the score of patch P is `{RULES[parameters["rule"]].formula}`; tau \
{parameters["tau"]:g} ({comparison} is foreground), crowd regions: \
{parameters["crowd"]}, void: {parameters["void"]}, difficult boxes: {parameters["difficult"]}, padding: \
{parameters["padding"]}.""",
        "",
        "```python",
        "from datasets import load_dataset",
        f'rows = load_dataset("PATH_OF_THIS_FOLDER", "{grid}", split="{split}")',
        "```",
        "",
        "| grid | split | images | annotations | patches | foreground | ignored | images without foreground |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for grid, splits in manifest["totals"].items():
        for split, sums in splits.items():
            counts = manifest["splits"][split]
            lines.append(
                f"| {grid} | {split} | {counts['images']:,} | {counts['annotations']:,} | {sums['patches']:,} "
                f"| {sums['fg_share']:.2%} | {sums['ignored']:,} | {sums['empty_images']:,} |"
            )
    lines += ["", "Made from:", "", "| split | file | bytes | sha256 |", "|---|---|--:|---|"]
    lines += [
        f"| {split} | {_cell(file['file'])} | {file['size']:,} | `{file['sha256']}` |"
        for split, file in manifest["sources"].items()
    ]
    if manifest["findings"]:
        lines += ["", "Findings in the annotations:", "", "| code | count |", "|---|--:|"]
        lines += [f"| {code} | {count:,} |" for code, count in manifest["findings"].items()]
    if known:
        lines += ["", f"The licence above is that of the annotations of {known.pretty_name}. {known.homepage}".rstrip()]
        if known.citation:
            lines += ["", "```bibtex", known.citation.strip(), "```"]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
