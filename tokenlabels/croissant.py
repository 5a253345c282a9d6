"""`croissant.json`, which says in Croissant 1.1 what a build holds: https://docs.mlcommons.org/croissant/

distribution   every shard with its sha256, and for each grid the set of its shards
splits         record set of the names of the splits
categories     record set of the category table
GRID           record set of the images on one grid: every column of the shards, and `split`, from the shard's name

The bytes depend on the manifest and the columns of the shards alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from tokenlabels.card import known_origin
from tokenlabels.storage import parquet_file

if TYPE_CHECKING:
    import pyarrow as pa

    from tokenlabels.known import KnownDataset
    from tokenlabels.storage import Location

Json: TypeAlias = dict[str, Any]

_CONTEXT: Json = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "name": {"@container": "@language"},
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
"""The context of the standard, whole, as readers expect it."""

_LICENSES = {
    "apache-2.0": "https://spdx.org/licenses/Apache-2.0",
    "bsd-3-clause": "https://spdx.org/licenses/BSD-3-Clause",
    "cc-by-4.0": "https://spdx.org/licenses/CC-BY-4.0",
    "cc0-1.0": "https://spdx.org/licenses/CC0-1.0",
    "mit": "https://spdx.org/licenses/MIT",
}
_TYPES = {
    "bool": "sc:Boolean",
    "float": "cr:Float32",
    "int16": "cr:Int16",
    "int32": "cr:Int32",
    "int64": "cr:Int64",
    "string": "sc:Text",
    "uint16": "cr:UInt16",
    "uint8": "cr:UInt8",
}
_PARQUET = "application/x-parquet"
_MEANINGS = {
    "image_id": "id of the image in its data set",
    "file_name": "file of the image, relative to the image folder",
    "width": "of the image, in pixels",
    "height": "of the image, in pixels",
    "grid_rows": "rows of patches",
    "grid_cols": "columns of patches",
    "labels": "of every patch, row by row: 1 foreground, 0 background, 255 ignore",
    "scores": "of every patch, from 0 to 1; the labels are these, compared with tau",
    "ignored": "of every patch: more than half is covered by a region that is ignored",
    "categories": "of every patch: the category with the largest share, an index into the record set categories",
    "category_share": "of every patch: the share of that category",
    "fg_count": "patches that are foreground",
    "ignore_count": "patches that are ignored",
    "objects": "annotated objects; one value of every list for each, category being an index into the record set "
    "categories, bbox x, y, width, height in pixels, patches how many foreground patches the box covers by half",
    "segments": "what the colours of the mask mean; category is an index into the record set categories",
    "image": "the image",
    "mask": "the mask",
}


def croissant_json(manifest: Json, out: Location) -> bytes:
    """The Croissant metadata of a build.

    Args:
        manifest: the manifest, as JSON values.
        out: folder of the build, whose first shards tell the columns.

    Raises:
        OSError: a shard cannot be read.
    """
    known = known_origin(manifest)
    grids = [grid["name"] for grid in manifest["parameters"]["grids"]]
    files = [_file_object(shard) for shard in manifest["shards"]]
    document = _description(manifest, known) | {
        "distribution": files + [_file_set(grid) for grid in grids],
        "recordSet": [_splits(manifest), *_categories(manifest), *(_records(manifest, out, grid) for grid in grids)],
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def _description(manifest: Json, known: KnownDataset | None) -> Json:
    parameters = manifest["parameters"]
    subject = known.pretty_name if known else f"a {parameters['source']} data set"
    images = sum(split["images"] for split in manifest["splits"].values())
    license_name = known.license if known else "unknown"
    found: Json = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "name": f"Patch labels of {subject}",
        "description": f"One foreground/background label per vision-transformer patch of {images:,} images, made by "
        f"tokenlabels with the rule {parameters['rule']} and tau {parameters['tau']:g}.",
        "license": _LICENSES.get(license_name, license_name),
        "version": manifest["tool"]["version"],
        "inLanguage": known.languages if known else ["en"],
        "keywords": [
            "vision-transformer",
            "token-pruning",
            "patch-labels",
            *(known.task_categories if known else ["image-segmentation"]),
        ],
    }
    if known and known.homepage:
        found["url"] = known.homepage
    if known and known.citation:
        found["citeAs"] = known.citation.strip()
    return found


def _file_object(shard: Json) -> Json:
    return {
        "@type": "cr:FileObject",
        "@id": shard["file"],
        "name": shard["file"],
        "contentUrl": shard["file"],
        "contentSize": f"{shard['bytes']} B",
        "encodingFormat": _PARQUET,
        "sha256": shard["sha256"],
    }


def _file_set(grid: str) -> Json:
    return {
        "@type": "cr:FileSet",
        "@id": f"{grid}/shards",
        "name": f"{grid}/shards",
        "description": f"Shards of the grid {grid}.",
        "encodingFormat": _PARQUET,
        "includes": f"{grid}/*.parquet",
    }


def _splits(manifest: Json) -> Json:
    return {
        "@type": "cr:RecordSet",
        "@id": "splits",
        "name": "splits",
        "description": "Names of the splits.",
        "dataType": "cr:Split",
        "key": {"@id": "splits/name"},
        "field": [{"@type": "cr:Field", "@id": "splits/name", "name": "name", "dataType": "sc:Text"}],
        "data": [{"splits/name": split} for split in manifest["splits"]],
    }


def _categories(manifest: Json) -> list[Json]:
    """The category table; a record set without records is not allowed."""
    table = manifest["categories"]
    kinds = {"index": "cr:Int32", "id": "cr:Int64", "name": "sc:Text"}
    record_set = {
        "@type": "cr:RecordSet",
        "@id": "categories",
        "name": "categories",
        "description": "The category table: the index that shards hold, the id in the annotations, the name.",
        "dataType": "sc:Enumeration",
        "key": {"@id": "categories/index"},
        "field": [
            {"@type": "cr:Field", "@id": f"categories/{name}", "name": name, "dataType": kind}
            for name, kind in kinds.items()
        ],
        "data": [
            {"categories/index": index, "categories/id": category["id"], "categories/name": category["name"]}
            for index, category in enumerate(table)
        ],
    }
    return [record_set] if table else []


def _records(manifest: Json, out: Location, grid: str) -> Json:
    first = next(shard["file"] for shard in manifest["shards"] if shard["file"].startswith(f"{grid}/"))
    with parquet_file(out / first) as file:
        schema = file.schema_arrow
    split = {
        "@type": "cr:Field",
        "@id": f"{grid}/split",
        "name": "split",
        "description": "Split of the image.",
        "dataType": ["sc:Text", "cr:Split"],
        "source": {
            "fileSet": {"@id": f"{grid}/shards"},
            "extract": {"fileProperty": "fullpath"},
            "transform": {"regex": rf"^{grid}/(.+)-.+-of-.+\.parquet$"},  # simple enough for mlcroissant's filters
        },
    }
    return {
        "@type": "cr:RecordSet",
        "@id": grid,
        "name": grid,
        "description": f"Images on the grid {grid}, one record each.",
        "key": [{"@id": f"{grid}/split"}, {"@id": f"{grid}/image_id"}],
        "field": [split, *(_field(column, grid) for column in schema)],
    }


def _field(column: pa.Field, grid: str) -> Json:
    """The field of a column: a value, an array, a picture, or a struct of arrays."""
    import pyarrow as pa

    field = {
        "@type": "cr:Field",
        "@id": f"{grid}/{column.name}",
        "name": column.name,
        "description": f"{_MEANINGS.get(column.name, column.name).capitalize()}.",
    }
    source = {"fileSet": {"@id": f"{grid}/shards"}, "extract": {"column": column.name}}
    if column.name in ("image", "mask"):
        return field | {"dataType": "sc:ImageObject", "source": source | {"transform": {"jsonPath": "bytes"}}}
    if not pa.types.is_struct(column.type):
        return field | _kind(column.type) | {"source": source}
    members = [
        {"@type": "cr:Field", "@id": f"{grid}/{column.name}/{member.name}", "name": member.name}
        | _kind(member.type)
        | {"source": source | {"transform": {"jsonPath": member.name}}}
        for member in column.type
    ]
    return field | {"subField": members}


def _kind(kind: pa.DataType) -> Json:
    """Type and shape of a column; lists in lists are arrays of several dimensions."""
    import pyarrow as pa

    shape = []
    while pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        shape.append(str(kind.list_size if pa.types.is_fixed_size_list(kind) else -1))
        kind = kind.value_type
    array = {"isArray": True, "arrayShape": ",".join(shape)} if shape else {}
    return {"dataType": _TYPES[str(kind)]} | array
