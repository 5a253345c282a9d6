"""The commands `bavit detect` and `bavit sweep`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import StderrProgress, errors_reported, print_json, print_line, print_table
from cli.detection_tables import detections_table, stages_table, sweep_table
from cli.options import PLACE, JsonOption, Location, OnErrorName, place
from cli.running import (
    NOTHING_KEPT,
    BatchOption,
    DeviceName,
    DeviceOption,
    PlainPrecision,
    PrecisionName,
    RunArgument,
)

if TYPE_CHECKING:
    from bavit.detect.detect import Pictures
    from bavit.detect.ground_truth import DetectionSet
    from tokenlabels.grid import PatchGrid


class RuntimeName(StrEnum):
    """What runs models."""

    torch = "torch"
    onnx = "onnx"


DATA, PRUNING, STORE, MACHINE, TIMING = "Data", "What is kept", "What is written", "Machine", "Timing"
_PIECES_KEPT = "finished parts are kept, run the same command again to go on"

DetectorArgument = Annotated[
    str,
    typer.Argument(
        metavar="DETECTOR",
        help="Folder or hub id of a YOLOS (transformers format), a .pth of its authors, or random:tiny, random:small, "
        "random:base, random:small_dWr: random weights, for timing.",
    ),
]
WithinDetector = Annotated[
    str | None,
    typer.Argument(
        metavar="DETECTOR",
        help="Behind a run: folder or hub id of a YOLOS (transformers format), a .pth of its authors, or random:tiny, "
        "random:small, random:base, random:small_dWr: random weights, for timing.",
    ),
]
FolderOption = Annotated[
    Location | None,
    typer.Option(
        "--images",
        **PLACE,
        help="Folder of the images [default: those in the shards, or beside the COCO annotations].",
        rich_help_panel=DATA,
    ),
]
SplitsOption = Annotated[
    list[str] | None,
    typer.Option("--split", help="Split, repeatable [default: those named val*, else all].", rich_help_panel=DATA),
]
FirstOption = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N.", rich_help_panel=DATA)]
FaultsOption = Annotated[
    OnErrorName, typer.Option(help="COCO files with bad annotations: stop, or leave them out.", rich_help_panel=DATA)
]
StepsOption = Annotated[
    int | None,
    typer.Option(
        "--refine", min=0, max=1000, help="Steps of refinement [default: the calibrated model's, else 3 as the paper].",
        rich_help_panel=PRUNING,
    ),
]  # fmt: skip
AfterOption = Annotated[
    int, typer.Option(min=0, help="Blocks of the detector that see all patches.", rich_help_panel=PRUNING)
]
ScoreOption = Annotated[
    float, typer.Option(min=0, max=1, help="Boxes of a smaller score are not drawn.", rich_help_panel=STORE)
]
DecodersOption = Annotated[
    int | None,
    typer.Option("--workers", min=0, help="Threads that decode images [default: by cores].", rich_help_panel=MACHINE),
]


def detect(
    context: typer.Context,
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="Folder of a run or its hub id; or, instead of RUN and DETECTOR, the folder of a pruned detector, or "
            "a file of bavit export: .onnx, .pt2.",
        ),
    ],
    detector: WithinDetector = None,
    images: Annotated[list[Path] | None, typer.Argument(metavar="IMAGES", help="Images, or folders of images.")] = None,
    coco: Annotated[
        Location | None,
        typer.Option(**PLACE, help="Instead: a COCO folder, a COCO annotation file, or a build.", rich_help_panel=DATA),
    ] = None,
    split: SplitsOption = None,
    folder: FolderOption = None,
    limit: FirstOption = None,
    on_error: FaultsOption = OnErrorName.raise_,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Remove patches of a greater background probability [default: the model's].", rich_help_panel=PRUNING
        ),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=0, help="Keep so many patches of every image.", rich_help_panel=PRUNING)
    ] = None,
    sparsity: Annotated[
        float | None,
        typer.Option(help="Remove this share of the patches of every image.", rich_help_panel=PRUNING),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=0, help="Keep at most so many patches, whatever the threshold.", rich_help_panel=PRUNING),
    ] = None,
    refine: StepsOption = None,
    prune_after: Annotated[
        int | None,
        typer.Option(min=0, help="Blocks of the detector that see all patches [default: 0].", rich_help_panel=PRUNING),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.", rich_help_panel=STORE)] = Path(
        "bavit-detections"
    ),
    draw: Annotated[
        bool, typer.Option("--draw/--no-draw", help="Draw the boxes of each image.", rich_help_panel=STORE)
    ] = True,
    min_score: ScoreOption = 0.3,
    runtime: Annotated[
        RuntimeName | None,
        typer.Option(help="What runs the models [default: torch, or what a file is for].", rich_help_panel=MACHINE),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the CPU [default: torch's].", rich_help_panel=MACHINE)
    ] = None,
    device: DeviceOption = DeviceName.auto,
    precision: PlainPrecision = PrecisionName.full,
    batch_size: BatchOption = 8,
    workers: DecodersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Detect objects in the foreground of images: a BAViT in front of a YOLOS, or a file that was exported.

    Pictures for onnxruntime and for exported files are stretched to the one size that these take.
    """
    with errors_reported(debug=context.obj["debug"], interrupted=NOTHING_KEPT), StderrProgress() as progress:
        from bavit.environment import require_extra

        require_extra()
        import torch

        from bavit.detect import detect as package
        from bavit.detect.opening import Place, Stays, is_whole, opening

        stays = Stays(threshold, top_k, sparsity, max_tokens, refine, prune_after)  # before anything is read
        if detector is not None and is_whole(run):
            images = [Path(detector), *(images or [])]
            detector = None
        if threads is not None:
            torch.set_num_threads(threads)
        place = Place(device.value, precision.value, None if runtime is None else runtime.value, threads)
        progress.stage("loading")
        found = opening(run, detector, stays, place, progress)
        pictures = _pictures(found.grid, images, coco, split, folder, limit, on_error, progress)
        wish = package.Wish(batch_size, _threads(workers), draw, min_score)
        ready = found.open(_classes(pictures.truth))
        told = package.detect(ready, pictures, wish, found.machine, out, progress)
        progress.stop()
        if as_json:
            print_json(told | ({} if found.budget is None else {"budget": found.budget}) | {"out": str(out)})
            return
        print_table(detections_table(told, min_score, found.budget))
        print_table(stages_table(told["milliseconds"]))
        print_line(f"written: {told['results']}" + (f", drawings in {out}" if draw else ""))


def sweep(
    context: typer.Context,
    run: RunArgument,
    detector: DetectorArgument,
    source: Annotated[
        Location,
        typer.Argument(parser=place, metavar="SOURCE", help="A build, a COCO folder, or a COCO annotation file."),
    ],
    split: SplitsOption = None,
    folder: FolderOption = None,
    limit: FirstOption = None,
    on_error: FaultsOption = OnErrorName.raise_,
    thresholds: Annotated[
        str | None,
        typer.Option(
            help="Background probabilities above which patches are removed [default: 0.1,0.25,0.5,0.75,0.9,0.97 and "
            "the model's].",
            rich_help_panel=PRUNING,
        ),
    ] = None,
    masks: Annotated[
        str, typer.Option(help="Where masks are from: bavit, labels, random.", rich_help_panel=PRUNING)
    ] = "bavit,labels,random",
    refine: StepsOption = None,
    prune_after: AfterOption = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of random masks.", rich_help_panel=PRUNING)] = 0,
    time_images: Annotated[
        int, typer.Option(min=1, help="Time this many images, held in memory.", rich_help_panel=TIMING)
    ] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Times through them.", rich_help_panel=TIMING)] = 3,
    out: Annotated[
        Path, typer.Option(help="Folder for sweep.json, .csv, .png and .html.", rich_help_panel=STORE)
    ] = Path("bavit-sweep"),
    before: Annotated[
        Path | None,
        typer.Option(help="A sweep.json, to be drawn into sweep.png, too: before fine-tuning.", rich_help_panel=STORE),
    ] = None,
    samples: Annotated[int, typer.Option(min=0, max=15, help="Images that the page shows.", rich_help_panel=STORE)] = 6,
    min_score: ScoreOption = 0.3,
    device: DeviceOption = DeviceName.auto,
    precision: PlainPrecision = PrecisionName.full,
    batch_size: BatchOption = 8,
    workers: DecodersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what pruning costs in AP and saves in time, for many thresholds and three sources of masks."""
    with errors_reported(debug=context.obj["debug"], interrupted=_PIECES_KEPT), StderrProgress() as progress:
        from bavit.environment import require_extra

        require_extra()
        import msgspec

        from bavit.background.model import load_model
        from bavit.detect.ground_truth import open_detection_set
        from bavit.detect.loading import load_detector
        from bavit.detect.pruning import steps_of
        from bavit.detect.sweep import plan_sweep, sweep
        from bavit.detect.sweep_figures import read_sweep
        from bavit.detect.sweep_files import write_sweep
        from bavit.machine import Machine

        machine = Machine.pick(device.value, precision.value)
        earlier = None if before is None else read_sweep(before)
        progress.stage("loading")
        model = load_model(run)
        steps = steps_of(model) if refine is None else refine
        plan = plan_sweep(
            model, thresholds, masks, refine_steps=steps, prune_after=prune_after, batch_size=batch_size,
            time_images=time_images, rounds=rounds, workers=_threads(workers), seed=seed,
        )  # fmt: skip
        data = open_detection_set(
            source, grid=model.grid, splits=split, images=folder, limit=limit, scores=True, on_error=on_error.value,
            progress=progress,
        )  # fmt: skip
        yolos = load_detector(detector, _classes(data))
        named = {"bavit": run, "detector": detector, "data": f"{source} {', '.join(dict.fromkeys(data.rows.splits))}"}
        swept = sweep(model, yolos, data, plan, machine, out, named, progress)
        written = write_sweep(swept, model, yolos, plan, out, samples, min_score, earlier, progress)
        progress.stop()
        if as_json:
            print_json(msgspec.to_builtins(swept.sweep) | {"out": str(out)})
            return
        for note in swept.sweep.setting.notes:
            progress.note(note)
        print_table(sweep_table(swept.sweep))
        print_line(f"written: {', '.join(map(str, written))}")


def _pictures(
    grid: PatchGrid,
    images: list[Path] | None,
    coco: Location | None,
    split: list[str] | None,
    folder: Location | None,
    limit: int | None,
    on_error: OnErrorName,
    progress: StderrProgress,
) -> Pictures:
    from bavit.background.predict import picture_files
    from bavit.detect.detect import Pictures
    from bavit.detect.ground_truth import open_detection_set
    from tokenlabels.errors import ParameterError

    if bool(images) == (coco is not None):
        raise ParameterError("name either images (IMAGES...) or a data set (--coco), and not both.")
    if images:
        if split or folder:
            raise ParameterError("--split and --images are for a data set (--coco), and images were named.")
        return Pictures.of_files(picture_files(images)[:limit])
    assert coco is not None
    return Pictures.of_set(
        open_detection_set(
            coco, grid=grid, splits=split, images=folder, limit=limit, on_error=on_error.value, progress=progress
        )
    )


def _classes(data: DetectionSet | None) -> list[str] | None:
    return None if data is None else [category.name for category in data.categories]


def _threads(workers: int | None) -> int:
    from bavit.device import default_workers

    return default_workers() if workers is None else workers
