"""The command `bavit calibrate`: of a BAViT alone, or of a whole pruned detector."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.calibration_tables import budget_table, calibration_table
from cli.console import StderrProgress, errors_reported, print_json, print_line, print_table
from cli.evaluation import EvalSplitOption, SkipOption, place_for, rows_for
from cli.options import JsonOption, Location, OnErrorName, place
from cli.running import (
    DATA,
    MACHINE,
    NOTHING_KEPT,
    STORE,
    BatchOption,
    DeviceName,
    DeviceOption,
    LoadersOption,
    PicturesOption,
    PlainPrecision,
    PrecisionName,
)

if TYPE_CHECKING:
    from rich.table import Table


TARGET, PIPELINE, TIMING = "Target (one of them)", "With --detector", "Timing, for --latency-ms"


def calibrate(
    context: typer.Context,
    run: Annotated[
        str,
        typer.Argument(metavar="RUN", help="Folder of a run; without --detector its config.json is changed."),
    ],
    source: Annotated[
        Location,
        typer.Argument(
            parser=place,
            metavar="SOURCE",
            help="Folder of a build; with --detector also a COCO folder or annotation file.",
        ),
    ],
    macs: Annotated[
        str | None,
        typer.Option(
            help="Mean MACs of BAViT and detector for an image at most, such as 8e9 or 8G.", rich_help_panel=TARGET
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            help="Mean number of the detector's patches that stay of an image, at most (--detector).",
            rich_help_panel=TARGET,
        ),
    ] = None,
    latency_ms: Annotated[
        float | None,
        typer.Option(
            help="Mean milliseconds of an image at most, models alone, at batch 1, on this machine (--detector).",
            rich_help_panel=TARGET,
        ),
    ] = None,
    sparsity: Annotated[
        float | None, typer.Option(help="Remove at least this share of tokens.", rich_help_panel=TARGET)
    ] = None,
    fg_recall: Annotated[
        float | None, typer.Option(help="Keep at least this share of foreground tokens.", rich_help_panel=TARGET)
    ] = None,
    detector: Annotated[
        str | None,
        typer.Option(
            metavar="DETECTOR",
            help="Calibrate BAViT and this YOLOS as one, and save both: a folder, hub id, .pth or random:tiny.",
            rich_help_panel=PIPELINE,
        ),
    ] = None,
    headroom: Annotated[
        float | None,
        typer.Option(
            help="No image costs more than so many budgets; 1: every image meets it [default: 1.5].",
            rich_help_panel=PIPELINE,
        ),
    ] = None,
    fixed: Annotated[
        bool,
        typer.Option("--fixed", help="Keep as many patches of every image, for export.", rich_help_panel=PIPELINE),
    ] = False,
    prune_after: Annotated[
        int, typer.Option(min=0, help="Blocks of the detector that see all patches.", rich_help_panel=PIPELINE)
    ] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the pruned detector (--detector).", rich_help_panel=STORE)
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the pruned detector in --out.", rich_help_panel=STORE)
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Store nothing.", rich_help_panel=STORE)] = False,
    time_images: Annotated[
        int, typer.Option(min=1, help="Time this many images, held in memory.", rich_help_panel=TIMING)
    ] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Times through them.", rich_help_panel=TIMING)] = 5,
    detector_size: Annotated[
        str | None,
        typer.Option(help="Input of YOLOS-tiny, HxW, for --macs without --detector [default: 512x512]."),
    ] = None,
    images: PicturesOption = None,
    split: EvalSplitOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N.", rich_help_panel=DATA)] = None,
    refine: Annotated[
        int | None,
        typer.Option(
            "--refine",
            min=0,
            max=1000,
            help="Steps of refinement [default: the model's; with --detector the calibrated model's, else 3].",
        ),
    ] = None,
    confidence: Annotated[float, typer.Option(help="Of the bootstrap's intervals.")] = 0.95,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    on_error: SkipOption = OnErrorName.raise_,
    device: DeviceOption = DeviceName.auto,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of the CPU [default: torch's].", rich_help_panel=MACHINE)
    ] = None,
    precision: PlainPrecision = PrecisionName.full,
    batch_size: BatchOption = 32,
    workers: LoadersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find what meets a target on labelled images: a threshold, stored in the model's config; with --detector the
    threshold and the cap of a whole pruned detector, which is saved."""
    with errors_reported(debug=context.obj["debug"], interrupted=NOTHING_KEPT), StderrProgress() as progress:
        from bavit.environment import require_extra

        require_extra()
        from bavit import machine
        from tokenlabels.errors import ParameterError

        wanted = {"macs": macs, "tokens": tokens, "latency-ms": latency_ms, "sparsity": sparsity,
                  "fg-recall": fg_recall}  # fmt: skip
        given = _Given(run, source, split, images, limit, refine, confidence, seed, on_error, device, precision,
                       batch_size, workers)  # fmt: skip
        pipeline = {"tokens": tokens, "latency-ms": latency_ms, "headroom": headroom, "fixed": fixed or None,
                    "prune-after": prune_after or None, "out": out, "overwrite": overwrite or None}  # fmt: skip
        with machine.threads(threads):
            if detector is None:
                _refuse(pipeline, "goes with --detector")
                table, found, stored = _alone(given, wanted, detector_size or "512x512", progress, store=not dry_run)
            else:
                _refuse({"detector-size": detector_size}, "is for --macs without --detector")
                place = _Place(detector, None if dry_run else out, overwrite=overwrite)
                options = {"fixed": fixed, "prune_after": prune_after, "time_images": time_images, "rounds": rounds,
                           "headroom": headroom}  # fmt: skip
                if out is None and not dry_run:
                    raise ParameterError("name the folder for the pruned detector with --out.")
                table, found, stored = _pipeline(given, wanted, options, place, progress)
        progress.stop()
        if as_json:
            print_json(found)
            return
        print_table(table)
        if stored is not None:
            print_line(f"stored: {stored}")


def _refuse(given: dict[str, Any], reason: str) -> None:
    from tokenlabels.errors import ParameterError

    for name, value in given.items():
        if value is not None:
            raise ParameterError(f"--{name} {reason}.")


@dataclass(frozen=True, slots=True)
class _Given:
    """Options that both ways to calibrate take."""

    run: str
    source: Location
    split: list[str] | None
    images: Location | None
    limit: int | None
    refine: int | None
    confidence: float
    seed: int
    on_error: OnErrorName
    device: DeviceName
    precision: PrecisionName
    batch_size: int
    workers: int | None


@dataclass(frozen=True, slots=True)
class _Place:
    """A detector, and where it goes with its BAViT; None: nowhere."""

    detector: str
    out: Path | None
    overwrite: bool


def _alone(
    given: _Given, wanted: dict[str, Any], detector_size: str, progress: StderrProgress, *, store: bool
) -> tuple[Table, dict[str, Any], Path | None]:
    """Of a BAViT: a table, the same for JSON, and the file that was written."""
    import msgspec
    import numpy as np

    from bavit.background import calibrate as package
    from bavit.background.model import load_model
    from bavit.background.predict import predict_rows
    from bavit.background.targets import parse_target
    from tokenlabels.errors import TokenLabelsError

    folder = Path(given.run)
    if not folder.is_dir():
        raise TokenLabelsError(f"{folder}: no such folder: calibrate the folder of a run, where the result is stored.")
    progress.stage("loading")
    model = load_model(folder)
    target = parse_target(
        wanted["sparsity"], wanted["fg-recall"], wanted["macs"], bavit_macs=model.macs, detector_size=detector_size
    )
    rows = rows_for(model, given.source, given.split)
    if given.limit is not None:
        rows = rows.keep(np.arange(len(rows)) < given.limit)
    place = place_for(given.device, given.precision, given.batch_size, given.workers)
    predictions, _ = predict_rows(model, rows, given.images, place, progress, given.on_error.value)
    progress.stage("calibrating")
    steps = model.refine_steps if given.refine is None else given.refine
    found = package.calibrate(predictions, target, refine_steps=steps, confidence=given.confidence, seed=given.seed)
    if store:
        package.store(model, found, folder)
    return calibration_table(found), msgspec.to_builtins(found), folder / "config.json" if store else None


def _pipeline(
    given: _Given, wanted: dict[str, Any], options: dict[str, Any], place: _Place, progress: StderrProgress
) -> tuple[Table, dict[str, Any], Path | None]:
    """Of a BAViT and a detector; see `_alone`."""
    import msgspec

    from bavit.background.model import load_model
    from bavit.detect.calibrate import calibrate_detector, check_place
    from bavit.detect.calibration_plan import plan_of
    from bavit.detect.ground_truth import open_detection_set
    from bavit.detect.loading import load_detector
    from bavit.detect.pruning import steps_of
    from bavit.device import default_workers
    from bavit.machine import Machine

    threads = default_workers() if given.workers is None else given.workers
    rest = {"batch_size": given.batch_size, "workers": threads, "confidence": given.confidence, "seed": given.seed}
    plan = plan_of(wanted, **options, **rest)
    machine = Machine.pick(given.device.value, given.precision.value)
    models = {"bavit": given.run, "detector": place.detector}
    if place.out is not None:
        check_place(place.out, models, overwrite=place.overwrite)
    progress.stage("loading")
    model = load_model(given.run)
    plan = replace(plan, refine_steps=steps_of(model) if given.refine is None else given.refine)
    data = open_detection_set(
        given.source, grid=model.grid, splits=given.split, images=given.images, limit=given.limit,
        on_error=given.on_error.value, progress=progress,
    )  # fmt: skip
    yolos = load_detector(place.detector, [category.name for category in data.categories])
    named = models | {"source": f"{given.source} {', '.join(dict.fromkeys(data.rows.splits))}"}
    skip = given.on_error is OnErrorName.skip
    detector, found = calibrate_detector(model, yolos, data, plan, machine, named, progress, skip=skip)
    if place.out is not None:
        detector.save_pretrained(place.out)
    written = {} if place.out is None else {"out": str(place.out)}
    return budget_table(found), msgspec.to_builtins(found) | written, place.out
