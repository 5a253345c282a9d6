"""What the command `tokenlabels` prints of builds and findings: tables for people, the same numbers as JSON."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from cli.console import print_json, print_line, print_table, printable

if TYPE_CHECKING:
    from tokenlabels.check import FindingLog
    from tokenlabels.options import BuildOptions
    from tokenlabels.planning import Plan
    from tokenlabels.reader import Build
    from tokenlabels.sources.base import Source
    from tokenlabels.storage import Location

_LISTED_PER_CODE = 100


def image_folders(source: Source) -> dict[str, Location]:
    """Image folder of each split, where it exists."""
    from tokenlabels.storage import is_folder

    return {name: images for name, images in source.image_folders().items() if is_folder(images)}


def report_plan(plan: Plan, options: BuildOptions, log: FindingLog, size: int, out: Location, *, as_json: bool) -> None:
    grids = [grid.name for grid in options.grids]
    splits = {
        part.name: {
            "images": len(part.records),
            "annotations": part.records.annotation_count,
            "shards": -(-len(part.records) // options.shard_rows),
        }
        for part in plan.dataset.splits
    }
    if as_json:
        print_json(
            {
                "dry_run": True,
                "out": str(out),
                "grids": grids,
                "splits": splits,
                "images": plan.images,
                "annotations": plan.annotations,
                "estimated_bytes": size,
                "findings": log.by_code(),
                "parameters": plan.parameters,
            }
        )
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(printable(f"would build into {out}")), title_justify="left")
    for name in ("split", "images", "annotations", "shards per grid"):
        table.add_column(name, justify="left" if name == "split" else "right")
    for name, counts in splits.items():
        table.add_row(name, *(f"{count:,}" for count in counts.values()))
    print_table(table)
    print_line(f"grids: {', '.join(grids)}")
    print_line(f"estimated size: {human_size(size)} ({size:,} bytes)")
    if log.counts:
        print_findings(log)


def report_build(
    built: Build, seconds: float, stages: dict[str, float], images: dict[str, Location], *, as_json: bool
) -> None:
    manifest = built.manifest
    image_count = sum(counts["images"] for counts in manifest["splits"].values())
    annotation_count = sum(counts["annotations"] for counts in manifest["splits"].values())
    size = sum(shard.bytes for shard in built.shards)
    if as_json:
        print_json(
            {
                "out": str(built.path),
                "images": image_count,
                "annotations": annotation_count,
                "annotations_left_out_by_selection": manifest["annotations_left_out_by_selection"],
                "splits": manifest["splits"],
                "totals": manifest["totals"],
                "findings": manifest["findings"],
                "shards": len(built.shards),
                "bytes": size,
                "seconds": round(seconds, 3),
                "stage_seconds": stages,
                "images_per_second": round(image_count / seconds, 1),
                "parameters": manifest["parameters"],
            }
        )
        return
    from rich.table import Table

    parameters = manifest["parameters"]
    table = Table(title=f"{parameters['rule']}, tau {parameters['tau']:g}", title_justify="left")
    any_ignored = any(sums["ignored"] for splits in manifest["totals"].values() for sums in splits.values())
    for name in (
        "grid",
        "split",
        "images",
        "annotations",
        "patches",
        "foreground",
        *(["ignored"] if any_ignored else []),
    ):
        table.add_column(name, justify="left" if name in ("grid", "split") else "right", no_wrap=True)
    for grid, splits in manifest["totals"].items():
        for split, sums in splits.items():
            counts = manifest["splits"][split]
            table.add_row(
                grid,
                split,
                f"{counts['images']:,}",
                f"{counts['annotations']:,}",
                f"{sums['patches']:,}",
                f"{sums['fg_share']:.2%}",
                *([f"{sums['ignored']:,}"] if any_ignored else []),
            )
    print_table(table)
    if manifest["findings"]:
        _print_manifest_findings(manifest)
    speed = f" in {seconds:.1f} s ({image_count / seconds:,.0f} images/s)" if "finishing" in stages else ""
    print_line(f"{image_count:,} images{speed}; {len(built.shards)} shards, {human_size(size)}, in {built.path}")
    _suggest(built, images)


def _suggest(built: Build, images: dict[str, Location]) -> None:
    """The next command to try."""
    from tokenlabels.sources.paths import is_inside
    from tokenlabels.storage import is_file

    for split, folder in images.items():
        found = built.first_foreground(split)
        if found and found[1] and is_inside(found[1]) and is_file(folder / found[1]):
            words = ["tokenlabels", "show", str(built.path), found[0], "--images", str(folder), "-o", "overlay.png"]
            print_line(f"next: {shlex.join(words)}")
            return
    print_line(f"next: {shlex.join(['tokenlabels', 'verify', str(built.path)])}")


def findings_json(log: FindingLog) -> list[dict[str, Any]]:
    import msgspec

    from tokenlabels.check import KINDS

    kinds = {code: KINDS[code[-3:]] for code in log.counts}
    return [
        {
            "code": code,
            "severity": log.severity(kinds[code]),
            "title": kinds[code].title,
            "count": count,
            "consequence": kinds[code].consequence,
            "examples": msgspec.to_builtins(log.examples.get(code, [])),
        }
        for code, count in log.by_code().items()
    ]


def print_findings(log: FindingLog) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="findings", title_justify="left")
    for name in ("code", "severity", "count", "what", "done", "first"):
        table.add_column(name, justify="right" if name == "count" else "left", overflow="fold")
    for row in findings_json(log):
        first = row["examples"][0]["message"] if row["examples"] else ""
        table.add_row(
            row["code"],
            row["severity"],
            f"{row['count']:,}",
            row["title"],
            row["consequence"],
            escape(printable(first)),
        )
    print_table(table)


def print_every_finding(log: FindingLog) -> None:
    """A line for each finding, up to a screenful or two of one kind; --json has them all."""
    for code, findings in sorted(log.examples.items()):
        for finding in findings[:_LISTED_PER_CODE]:
            print_line(f"{finding.severity} {finding}")
        if len(findings) > _LISTED_PER_CODE:
            print_line(f"... {len(findings) - _LISTED_PER_CODE:,} more of {code}: --json lists them all")


def _print_manifest_findings(manifest: dict[str, Any]) -> None:
    from rich.table import Table

    from tokenlabels.check import kind_of

    table = Table(title="findings", title_justify="left")
    for name in ("code", "count", "what", "done"):
        table.add_column(name, justify="right" if name == "count" else "left")
    for code, count in manifest["findings"].items():
        kind = kind_of(code)
        table.add_row(code, f"{count:,}", kind.title if kind else "", kind.consequence if kind else "")
    print_table(table)


def human_size(size: float) -> str:
    """A number of bytes, as people write it."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
