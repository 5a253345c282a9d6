"""Sums over a build, read back from the count columns of its shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

_COLUMNS = ["grid_rows", "grid_cols", "fg_count", "ignore_count"]


def totals(out: Path, manifest: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Patches by label for every grid and split.

    Returns:
        grid -> split -> {`patches`, `foreground`, `ignored`, `fg_share` (of the patches that are not ignored), and
        `empty_images` (without any foreground)}.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for grid in manifest["parameters"]["grids"]:
        for split in manifest["splits"]:
            prefix = f"{grid['name']}/{split}-"
            files = [shard["file"] for shard in manifest["shards"] if shard["file"].startswith(prefix)]
            sums = np.zeros(4, np.int64)
            for file in files:
                table = pq.read_table(out / file, columns=_COLUMNS, partitioning=None)
                rows, cols, foreground, ignored = (table.column(name).to_numpy().astype(np.int64) for name in _COLUMNS)
                sums += [(rows * cols).sum(), foreground.sum(), ignored.sum(), (foreground == 0).sum()]
            patches, foreground_sum, ignored_sum, empty = sums.tolist()
            found.setdefault(grid["name"], {})[split] = {
                "patches": patches,
                "foreground": foreground_sum,
                "ignored": ignored_sum,
                "fg_share": foreground_sum / (patches - ignored_sum) if patches > ignored_sum else 0.0,
                "empty_images": empty,
            }
    return found
