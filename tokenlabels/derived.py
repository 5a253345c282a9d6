"""Builds made from builds: every shard of the result is written from shards that are there.

What `relabel`, `merge` and `split` share: who owns the folder, what of it is finished, and the manifest at the end. A
process that is killed leaves the shards that it finished; the same call goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from tokenlabels.errors import NotABuildError, ParameterError
from tokenlabels.finishing import finish_build
from tokenlabels.output import (
    JournalEntry,
    build_lock,
    check_ownership,
    clear_state,
    is_complete,
    resume,
    shard_fault,
    write_journal,
)
from tokenlabels.progress import Progress
from tokenlabels.reader import Build, open_build
from tokenlabels.shards import ShardEntry
from tokenlabels.storage import same_place

if TYPE_CHECKING:
    from tokenlabels.storage import Location


@dataclass(frozen=True, slots=True)
class PlannedShard:
    """One shard of the result.

    Attributes:
        file: `GRID/NAME.parquet`, its path in the result.
        rows: that it will have.
        write: writes it at the given place and commits it.
    """

    file: str
    rows: int
    write: Callable[[Location], JournalEntry]


def derive(
    folder: Location,
    manifest: dict[str, Any],
    planned: Sequence[PlannedShard],
    *,
    stage: str,
    overwrite: bool,
    progress: Progress,
) -> Build:
    """Write the shards of a build that are not there yet, and finish it.

    Args:
        folder: of the result.
        manifest: all but its `shards` and `totals`; its parameters and sources decide whether a build that is there
            is this one.
        planned: every shard, in the order of the manifest.
        stage: what is being done, for people.
        overwrite: replace a build there that was made with other parameters.
        progress: told about every row.

    Raises:
        OutputError: the folder holds something else, another build is writing there, or it cannot be written.
        BuildMismatchError: it holds a build with other parameters.
    """
    wanted = manifest["parameters"] | {"sources": manifest["sources"]}
    check_ownership(folder)
    if is_complete(folder, wanted):
        progress.note(f"{folder} holds this build already, every shard as it should be.")
        clear_state(folder)
        return open_build(folder)
    with build_lock(folder):
        finished = resume(folder, wanted, overwrite=overwrite)
        progress.stage(stage, sum(shard.rows for shard in planned))
        entries: list[JournalEntry] = []
        for shard in planned:
            if shard.file in finished:
                entries.append(finished[shard.file])
            else:
                entries.append(shard.write(folder / shard.file))
                write_journal(folder, entries[-1])
            progress.advance(shard.rows)
        progress.stage("finishing")
        finish_build(folder, manifest, entries)
    return open_build(folder)


def check_shard(build: Build, shard: ShardEntry) -> None:
    """Compare a shard that is about to be read with its hash.

    Raises:
        NotABuildError: it is missing or damaged, or cannot be read.
    """
    fault = shard_fault(build.path, shard)
    if fault:
        unread = fault.startswith("cannot be read")
        remedy = "run again when it can" if unread else "run its build command again to mend it"
        raise NotABuildError(f"{build.path / shard.file}: {fault}: {remedy}.")


def check_elsewhere(folder: Location, builds: Iterable[Build]) -> None:
    """Refuse to write into what is read.

    Raises:
        ParameterError: `folder` is that of one of the builds.
    """
    for build in builds:
        if same_place(folder, build.path):
            raise ParameterError(f"{folder} is the build itself: name another --out.")


def content_digest(builds: Iterable[Build]) -> str:
    """Hex sha256 over the hashes of every shard of some builds, in order: what a result is made from."""
    digest = sha256()
    for build in builds:
        digest.update("".join(f"{shard.sha256} {shard.file}\n" for shard in build.shards).encode() + b"\n")
    return digest.hexdigest()
