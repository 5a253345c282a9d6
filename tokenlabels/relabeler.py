"""New labels from stored scores: another threshold without the source."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tokenlabels.derived import PlannedShard, check_elsewhere, check_shard, derive
from tokenlabels.errors import ParameterError
from tokenlabels.grid import GridAxes
from tokenlabels.output import JournalEntry
from tokenlabels.progress import Progress, Silent
from tokenlabels.reader import Build, read_header
from tokenlabels.rules import check_tau
from tokenlabels.scoring import CellLabels, label_scores
from tokenlabels.shards import OBJECT_FIELDS, Columns, ShardEntry, ShardHeader, ShardWriter, lists, numbers, schema_of
from tokenlabels.storage import located, parquet_file
from tokenlabels.store_faults import explained
from tokenlabels.totals import LabelSums

if TYPE_CHECKING:
    from tokenlabels.storage import Location


@explained()
def relabel(
    build: Build, tau: float, out: str | Location, *, overwrite: bool = False, progress: Progress | None = None
) -> Build:
    """Apply another threshold to the scores of a build; the result is the build that `tau` would have made.

    Args:
        build: a build that has scores.
        tau: threshold in 0..1.
        out: folder of the new build, another than the old one.
        overwrite: replace a build there that was made with other parameters.
        progress: told about every row.

    Raises:
        ParameterError: `tau` outside 0..1, no scores, or `out` is the build itself.
        NotABuildError: a shard is damaged.
        OutputError: `out` cannot be written.
    """
    folder = located(out)
    parameters = build.manifest["parameters"]
    if not parameters["scores"]:
        raise ParameterError(f"{build.path} was built without scores (--no-scores): build it again with them.")
    check_elsewhere(folder, [build])
    changed = parameters | {"tau": check_tau(tau)}
    return derive(
        folder,
        build.manifest | {"parameters": changed},
        [PlannedShard(shard.file, shard.rows, _writer(build, shard, changed["tau"])) for shard in build.shards],
        stage="relabelling",
        overwrite=overwrite,
        progress=progress or Silent(),
    )


def _writer(build: Build, shard: ShardEntry, tau: float) -> Callable[[Location], JournalEntry]:
    def write(target: Location) -> JournalEntry:
        check_shard(build, shard)
        return _relabel_shard(build.path / shard.file, target, tau)

    return write


def _relabel_shard(source: Location, target: Location, tau: float) -> JournalEntry:
    header = read_header(source)
    header = msgspec.structs.replace(header, tau=tau)
    with parquet_file(source) as file:
        names = file.schema_arrow.names
        schema = schema_of(header, Columns.of(names))
        sums = LabelSums()
        with ShardWriter(target, schema) as writer:
            for table in _row_groups(file):
                labelled = _labelled(table, header)
                sums += LabelSums.of(labelled)
                writer.write(_replaced(table, labelled, schema))
    assert writer.entry is not None
    return JournalEntry(writer.entry, sums)


def _row_groups(file: pq.ParquetFile) -> Iterator[pa.Table]:
    for index in range(file.num_row_groups):
        yield file.read_row_group(index).combine_chunks()


def _labelled(table: pa.Table, header: ShardHeader) -> CellLabels:
    """New labels of one row group, from its scores."""
    widths, heights = (table.column(name).to_numpy() for name in ("width", "height"))
    axes = header.patch_grid().axes(widths, heights)
    scores = _values(table, "scores").astype(np.float32, copy=False)
    ignored = _values(table, "ignored").copy() if "ignored" in table.column_names else np.zeros(len(scores), np.bool_)
    boxes = table.column("objects").chunk(0).field("bbox")
    return label_scores(
        widths,
        heights,
        axes,
        _cells(axes),
        scores,
        ignored,
        boxes.offsets.to_numpy().astype(np.int64),
        boxes.values.flatten().to_numpy(zero_copy_only=False).reshape(-1, 4),
        header.spec,
    )


def _cells(axes: GridAxes) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(axes.cells)])


def _replaced(table: pa.Table, labelled: CellLabels, schema: pa.Schema) -> pa.Table:
    """One row group with new labels and counts; every other column as it was."""
    objects = table.column("objects").chunk(0)
    boxes = objects.field("patches").offsets.to_numpy().astype(np.int64)
    members = [objects.field(name) for name, _ in OBJECT_FIELDS]
    members[-1] = lists(boxes, numbers(labelled.patches))
    new = {
        "labels": lists(labelled.cells, numbers(labelled.labels)),
        "fg_count": numbers(labelled.fg_count),
        "ignore_count": numbers(labelled.ignore_count),
        "objects": pa.StructArray.from_arrays(members, fields=list(schema.field("objects").type)),
    }
    return pa.table([new.get(name, table.column(name)) for name in schema.names], schema=schema)


def _values(table: pa.Table, column: str) -> NDArray[Any]:
    values: NDArray[Any] = table.column(column).chunk(0).values.to_numpy(zero_copy_only=False)
    return values
