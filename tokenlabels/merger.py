"""Several builds -> one: their rows one after the other, their categories united by name."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

import tokenlabels
from tokenlabels.annotations import NO_CATEGORY, Category
from tokenlabels.category_union import check_values, duplicated, renumbered, unite
from tokenlabels.check import EXAMPLES_PER_CODE
from tokenlabels.derived import PlannedShard, check_elsewhere, content_digest, derive
from tokenlabels.errors import ParameterError
from tokenlabels.output import JournalEntry
from tokenlabels.progress import Progress, Silent
from tokenlabels.reader import Build, read_header
from tokenlabels.recutting import Chosen, GroupReader, plan_split, shard_rows_of, write_rows
from tokenlabels.shards import SCHEMA_VERSION, Columns, schema_of
from tokenlabels.stats_shards import damaged, read_group, row_groups
from tokenlabels.storage import located
from tokenlabels.store_faults import explained

if TYPE_CHECKING:
    from tokenlabels.storage import Location

_SAME = ("rule", "tau", "crowd", "padding", "void", "difficult", "scores", "embed_images", "embed_size", "embed_masks")
"""Parameters that builds must share: they decide what a label means and which columns there are."""

_VALUES = ("ignore", "background", "reduce_zero_label", "stuff")
"""What values of semantic masks mean."""


@explained()
def merge(
    builds: Sequence[Build],
    out: str | Location,
    *,
    shard_rows: int | None = None,
    prefix_ids: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Build:
    """Make one build of several that have the same grids and rule.

    Categories are united by name, see `category_union.unite`. A split that several builds have holds the rows of each,
    in the order of the builds. The bytes of the result depend on theirs alone.

    Args:
        builds: two or more.
        out: folder of the new build.
        shard_rows: images per shard, by default as in the first.
        prefix_ids: image ids become `1-ID`, `2-ID`, by the place of their build.
        overwrite: replace a build there that was made with other parameters.
        progress: told about every row.

    Raises:
        ParameterError: fewer than two builds, builds that differ in what they must share, an image id twice in a
            split, masks whose values would have to change, or `out` is one of the builds.
        NotABuildError: a shard is damaged.
        OutputError: `out` cannot be written.
    """
    folder = located(out)
    progress = progress or Silent()
    if len(builds) < 2:
        raise ParameterError("merging takes two or more builds: name them all.")
    if shard_rows is not None and not 1 <= shard_rows <= 1_000_000:
        raise ParameterError(f"shard_rows {shard_rows} is out of range: 1 to 1000000 images a shard.")
    check_elsewhere(folder, builds)
    for other in builds[1:]:
        _check_alike(builds[0], other)
    columns = _columns(builds)
    categories, places = unite([build.categories for build in builds])
    if (columns.masks and not columns.segments) or any("ignore" in build.manifest["parameters"] for build in builds):
        check_values([build.categories for build in builds], categories, [str(build.path) for build in builds])
    if columns.majority and len(categories) > NO_CATEGORY:
        raise ParameterError(f"the builds have {len(categories)} categories together, more than {NO_CATEGORY}.")
    _tell_differences(builds, progress)
    merging = _Merging(tuple(builds), columns, categories, tuple(places), prefix_ids)
    progress.stage("comparing image ids")
    if not prefix_ids:
        _check_ids(builds)
    manifest = _manifest(merging, shard_rows or shard_rows_of(builds[0]))
    return derive(folder, manifest, _plan(merging, manifest), stage="merging", overwrite=overwrite, progress=progress)


@dataclass(frozen=True, slots=True, eq=False)
class _Merging:
    """What is merged into what.

    Attributes:
        builds: in order.
        columns: of the shards.
        categories: the united table.
        places: for each build int32 (k,), where its categories are in that table.
        prefix_ids: image ids say which build they are from.
    """

    builds: tuple[Build, ...]
    columns: Columns
    categories: tuple[Category, ...]
    places: tuple[NDArray[np.int32], ...]
    prefix_ids: bool

    @property
    def splits(self) -> list[str]:
        return list(dict.fromkeys(split for build in self.builds for split in build.splits))

    @property
    def source(self) -> str:
        return _united(build.manifest["parameters"]["source"] for build in self.builds)


def _united(formats: Any) -> str:
    return "+".join(dict.fromkeys(name for each in formats for name in each.split("+")))


def _check_alike(first: Build, other: Build) -> None:
    mine, theirs = first.manifest["parameters"], other.manifest["parameters"]
    if first.grids != other.grids:
        raise ParameterError(
            f"{first.path} has the grids {', '.join(first.grids)}, {other.path} has {', '.join(other.grids)}: only "
            "builds with the same grids can be merged."
        )
    names = [*_SAME, *(name for name in _VALUES if name in mine or name in theirs)]
    for name in names:
        if mine.get(name) != theirs.get(name):
            raise ParameterError(
                f"{first.path} has {name} {mine.get(name)}, {other.path} has {theirs.get(name)}: "
                f"{_advice(first, other, name)}."
            )
    if mine.get("embed_masks") and mine["source"] != theirs["source"]:
        raise ParameterError(
            f"{first.path} has masks of {mine['source']}, {other.path} of {theirs['source']}, which mean other things: "
            "build them without --embed-masks."
        )


def _advice(first: Build, other: Build, name: str) -> str:
    mine, theirs = first.manifest["parameters"], other.manifest["parameters"]
    alike = all(mine.get(each) == theirs.get(each) for each in _SAME if each != "tau")
    if name == "tau" and alike and theirs["scores"]:
        return f"make them alike with tokenlabels relabel {other.path} --tau {mine['tau']:g} --out FOLDER"
    return "only builds made alike can be merged"


def _columns(builds: Sequence[Build]) -> Columns:
    """The columns that the shards of all builds have."""
    found: dict[Columns, Location] = {}
    for build in builds:
        for grid in build.grids:
            for split in build.splits:
                group = row_groups(build, grid, split)[0]
                found.setdefault(Columns.of(group.columns), group.path)
    if len(found) > 1:
        (columns, path), (others, other) = list(found.items())[:2]
        name = next(name for name in columns.__struct_fields__ if getattr(columns, name) != getattr(others, name))
        has, lacks = (path, other) if getattr(columns, name) else (other, path)
        raise ParameterError(f"{has} has {name}, which {lacks} has not: only builds made alike can be merged.")
    return next(iter(found))


def _tell_differences(builds: Sequence[Build], progress: Progress) -> None:
    """A note where the builds chose their foreground in different ways."""
    for name in ("categories", "exclude_categories", "min_area"):
        if len({msgspec.json.encode(build.manifest["parameters"].get(name)) for build in builds}) > 1:
            progress.note(f"the builds differ in {name}: what is foreground in one may be background in another.")


def _check_ids(builds: Sequence[Build]) -> None:
    for split in dict.fromkeys(split for build in builds for split in build.splits):
        sharing = [build for build in builds if split in build.splits]
        if len(sharing) < 2:
            continue
        ids = [_image_ids(build, split) for build in sharing]
        twice = duplicated(part for parts in ids for part in parts)
        if twice is not None:
            holders = [
                str(build.path)
                for build, parts in zip(sharing, ids, strict=True)
                if any(part.index(twice).as_py() >= 0 for part in parts)
            ]
            raise ParameterError(
                f"image {twice} is twice in the split {split} ({', '.join(holders)}): leave one of the builds out, or "
                "tell the images apart with --prefix-ids."
            )


def _image_ids(build: Build, split: str) -> list[pa.Array]:
    return [read_group(group, ["image_id"]).column("image_id").chunk(0) for group in row_groups(build, None, split)]


def _plan(merging: _Merging, manifest: Mapping[str, Any]) -> list[PlannedShard]:
    planned: list[PlannedShard] = []
    reader = GroupReader()
    for name in merging.builds[0].grids:
        for split in merging.splits:
            chosen = [
                Chosen(build, group, np.arange(group.rows, dtype=np.int64), index)
                for index, build in enumerate(merging.builds)
                if split in build.splits
                for group in row_groups(build, name, split)
                if group.rows
            ]
            header = msgspec.structs.replace(
                read_header(chosen[0].group.path), format=merging.source, categories=merging.categories
            )
            write = functools.partial(_write, merging, schema_of(header, merging.columns), reader)
            planned += plan_split(name, split, chosen, manifest["parameters"]["shard_rows"], write)
    return planned


def _write(
    merging: _Merging, schema: pa.Schema, reader: GroupReader, target: Location, chosen: Sequence[Chosen]
) -> JournalEntry:
    def change(table: pa.Table, each: Chosen) -> pa.Table:
        places = merging.places[each.mark]
        if not np.array_equal(places, np.arange(len(places))):
            try:
                table = renumbered(table, places)
            except ValueError as fault:
                raise damaged(each.group.path, str(fault)) from None
        return _prefixed(table, each.mark + 1) if merging.prefix_ids else table

    return write_rows(target, schema, list(merging.builds[0].grids.values()), chosen, reader, change)


def _prefixed(table: pa.Table, number: int) -> pa.Table:
    import pyarrow.compute as pc

    ids = pc.binary_join_element_wise(str(number), table.column("image_id").chunk(0), "-")
    return table.set_column(table.column_names.index("image_id"), table.schema.field("image_id"), ids)


def _manifest(merging: _Merging, shard_rows: int) -> dict[str, Any]:
    manifests = [build.manifest for build in merging.builds]
    given = [manifest["parameters"] for manifest in manifests]
    names = list(dict.fromkeys(name for each in given for name in each))
    parameters = {
        name: given[0].get(name) if all(each.get(name) == given[0].get(name) for each in given) else None
        for name in names
        if name not in ("made_from", "cut")
    }
    parameters |= {
        "source": merging.source,
        "category_table_sha256": hashlib.sha256(msgspec.json.encode(merging.categories)).hexdigest(),
        "grids": given[0]["grids"],
        "shard_rows": shard_rows,
        "made_from": {"shards_sha256": content_digest(merging.builds), "prefix_ids": merging.prefix_ids},
    }
    findings = sum((Counter(manifest["findings"]) for manifest in manifests), Counter[str]())
    left_out = sum(manifest["annotations_left_out_by_selection"] for manifest in manifests)
    return {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "tokenlabels", "version": tokenlabels.__version__},
        "sources": {split: _source(_of_split(manifests, "sources", split)) for split in merging.splits},
        "parameters": parameters,
        "splits": {split: _counts(_of_split(manifests, "splits", split)) for split in merging.splits},
        "annotations_left_out_by_selection": left_out,
        "categories": msgspec.to_builtins(merging.categories),
        "findings": dict(sorted(findings.items())),
        "finding_examples": _examples(manifests),
        "merged_from": [
            {name: manifest[name] for name in ("sources", "splits", "merged_from") if name in manifest}
            for manifest in manifests
        ],
    }


def _of_split(manifests: Sequence[dict[str, Any]], key: str, split: str) -> list[dict[str, Any]]:
    return [manifest[key][split] for manifest in manifests if split in manifest["splits"]]


def _source(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a split was made from: of several files their names, their whole size, and a hash of their hashes."""
    if len(parts) == 1:
        return parts[0]
    return {
        "file": " + ".join(dict.fromkeys(part["file"] for part in parts)),
        "size": sum(part["size"] for part in parts),
        "sha256": hashlib.sha256("".join(f"{part['sha256']}\n" for part in parts).encode()).hexdigest(),
    }


def _counts(parts: Sequence[dict[str, int]]) -> dict[str, int]:
    return {name: sum(part[name] for part in parts) for name in ("images", "annotations")}


def _examples(manifests: Sequence[dict[str, Any]]) -> list[Any]:
    """The first findings of every code."""
    seen: Counter[str] = Counter()
    kept = []
    for example in sorted(
        (example for manifest in manifests for example in manifest.get("finding_examples") or []),
        key=lambda example: str(example.get("code")),
    ):
        seen[str(example.get("code"))] += 1
        if seen[str(example.get("code"))] <= EXAMPLES_PER_CODE:
            kept.append(example)
    return kept
