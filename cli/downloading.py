"""The command `tokenlabels download`: official data sets, in the layout that `build` finds."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import BytesProgress, errors_reported, print_json, print_line
from cli.options import JsonOption

if TYPE_CHECKING:
    from tokenlabels.downloading import Download


def download(
    context: typer.Context,
    dataset: Annotated[str, typer.Argument(help="coco, coco-panoptic, voc or ade20k.")],
    split: Annotated[
        list[str] | None, typer.Option(help="Split to fetch, repeatable; without it, those there are are named.")
    ] = None,
    root: Annotated[str, typer.Option(help="Folder to write.")] = ".",
    annotations_only: Annotated[
        bool, typer.Option("--annotations-only", help="Leave the pictures out: box rules need none.")
    ] = False,
    keep_archives: Annotated[
        bool, typer.Option("--keep-archives/--no-keep-archives", help="Keep the archives beside what is unpacked.")
    ] = True,
    mirror: Annotated[
        str | None, typer.Option(metavar="URL", help="Address of a folder that has the same archives.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be fetched; write nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Fetch splits of an official data set and unpack them where build finds them; an interrupted one goes on."""
    interrupted = "what has arrived is kept, run the same command again to go on"
    with errors_reported(debug=context.obj["debug"], interrupted=interrupted), BytesProgress() as progress:
        from tokenlabels.downloading import download as fetch

        found = fetch(
            dataset,
            splits=split or [],
            root=root,
            annotations_only=annotations_only,
            keep_archives=keep_archives,
            mirror=mirror,
            dry_run=dry_run,
            progress=progress,
        )
        progress.stop()
        if as_json:
            _print_as_json(found, dry_run=dry_run)
        elif dry_run:
            _print_plan(found)
        else:
            _print_done(found)


def _print_as_json(found: Download, *, dry_run: bool) -> None:
    import msgspec

    commands = [shlex.join(command) for command in found.commands]
    print_json(msgspec.to_builtins(found) | {"commands": commands, "dry_run": dry_run})


def _print_plan(found: Download) -> None:
    for archive in found.archives:
        size = "unknown size" if archive.bytes is None else _size(archive.bytes)
        state = "is there" if archive.there else f"{size} from {archive.url}"
        print_line(f"{archive.file}: {state}; {archive.hash or 'no checksum is known'}.")
    missing = [archive for archive in found.archives if not archive.there]
    unsaid = [archive for archive in missing if archive.bytes is None]
    known = _size(sum(archive.bytes or 0 for archive in missing))
    print_line(f"to fetch: {known}{f' and {len(unsaid)} of unknown size' if unsaid else ''}; nothing was written.")


def _print_done(found: Download) -> None:
    for archive in found.archives:
        if not archive.files:
            print_line(f"{archive.file}: unpacked already.")
            continue
        size = _size(archive.bytes or 0)
        files = "1 file" if archive.files == 1 else f"{archive.files:,} files"
        origin = f"{size}, was there" if archive.there else f"{size} from {archive.url}"
        checked = "as its data card says" if archive.checked else "not compared: its data card has none"
        print_line(f"{archive.file}: {origin}; {archive.hash} ({checked}); unpacked, {files}.")
    for command in found.commands:
        print_line(f"next: {shlex.join(command)}")


def _size(number: int) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e8 else f"{number / 1e6:.2f} MB"
