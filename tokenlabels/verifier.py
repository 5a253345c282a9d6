"""Re-hash every shard of a build against its manifest."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import msgspec

from tokenlabels.output import shard_fault
from tokenlabels.progress import Progress, Silent
from tokenlabels.reader import Build
from tokenlabels.storage import globbed
from tokenlabels.store_faults import explained

_THREADS = 4


class Verification(msgspec.Struct, frozen=True):
    """What `verify` found.

    Attributes:
        shards: shards that the manifest lists.
        bytes: their size.
        faults: shard file -> what is wrong with it.
        unlisted: Parquet files in the build's folders that the manifest does not list.
    """

    shards: int
    bytes: int
    faults: dict[str, str]
    unlisted: tuple[str, ...]

    @property
    def fine(self) -> bool:
        return not self.faults and not self.unlisted


@explained()
def verify(build: Build, progress: Progress | None = None) -> Verification:
    """Check every listed shard's size and sha256, and look for Parquet files that are not listed."""
    progress = progress or Silent()
    progress.stage("hashing shards", len(build.shards))
    faults: dict[str, str] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        for shard, fault in zip(
            build.shards, pool.map(lambda shard: shard_fault(build.path, shard), build.shards), strict=True
        ):
            if fault:
                faults[shard.file] = fault
            progress.advance(1)
    listed = {shard.file for shard in build.shards}
    present = {
        f"{path.parent.name}/{path.name}" for grid in build.grids for path in globbed(build.path / grid, "*.parquet")
    }
    return Verification(
        len(build.shards), sum(shard.bytes for shard in build.shards), faults, tuple(sorted(present - listed))
    )
