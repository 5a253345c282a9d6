"""The commands `bavit segment eval`, `bavit segment sweep` and `bavit segment predict`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.console import StderrProgress, errors_reported, print_json, print_line, print_table
from cli.options import JsonOption, Location, OnErrorName
from cli.running import (
    NOTHING_KEPT,
    STORE,
    DeviceName,
    DeviceOption,
    PlainPrecision,
    PrecisionName,
    RunArgument,
    ShardsArgument,
    numbers,
)
from cli.segment_options import (
    CardOption,
    DecodersOption,
    FirstOption,
    FolderOption,
    KeepOption,
    MethodOption,
    NativeOption,
    NoTimingOption,
    PlacesOption,
    ProbabilityOption,
    ProportionOption,
    RoundsOption,
    SkipOption,
    SplitsOption,
    TimedOption,
    WholeOption,
    WindowsOption,
)
from cli.segment_tables import categories, overview, predicted, rows_table
from cli.segmenting import EXIT, MethodName

if TYPE_CHECKING:
    from bavit.segment.exits import Exits
    from bavit.segment.labelled import LabelledPictures
    from bavit.segment.model import Segmenter
    from bavit.segment.windows import View

_ROWS_KEPT = "rows that were finished are kept, run the same command again to go on"


def evaluate(
    context: typer.Context,
    run: RunArgument,
    shards: ShardsArgument,
    split: SplitsOption = None,
    images: FolderOption = None,
    limit: FirstOption = None,
    classes: CardOption = None,
    on_error: SkipOption = OnErrorName.raise_,
    exit_after: PlacesOption = None,
    p0: ProbabilityOption = None,
    keep_per_class: KeepOption = None,
    method: MethodOption = None,
    proportion: ProportionOption = None,
    dense: Annotated[
        bool, typer.Option("--dense", help="Also mIoU of the unpruned network.", rich_help_panel=EXIT)
    ] = False,
    whole: WholeOption = False,
    native: NativeOption = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for evaluation.json, images.csv, plots and samples.", rich_help_panel=STORE),
    ] = None,
    samples: Annotated[int, typer.Option(min=0, help="Pictures drawn into --out.", rich_help_panel=STORE)] = 8,
    no_timing: NoTimingOption = False,
    time_windows: TimedOption = 16,
    rounds: RoundsOption = 3,
    device: DeviceOption = DeviceName.auto,
    precision: PlainPrecision = PrecisionName.full,
    batch_size: WindowsOption = 8,
    workers: DecodersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a segmenter on masks: mIoU, pixel accuracy, MACs, and time beside the unpruned network.

    MACs are means over images, all windows of an image together. tokens_alive: mean share of patch tokens that have not
    ended when each stage begins. Times are of windows held in memory; images a second are windows a second.
    """
    with errors_reported(debug=context.obj["debug"], interrupted=NOTHING_KEPT), StderrProgress() as progress:
        from bavit.environment import require_extra

        require_extra()
        import msgspec

        from bavit.machine import Machine
        from bavit.outputs import make_folder, remove_result
        from bavit.segment import evaluate as package
        from bavit.segment.files import EVALUATION_FILE, write_evaluation, write_samples

        machine = Machine.pick(device.value, precision.value)
        progress.stage("loading")
        model = _model(run)
        exits = _exits(model, exit_after, p0, keep_per_class, method, proportion)
        timed = 0 if no_timing else time_windows
        wish = package.Wish(
            _view(model, native=native, whole=whole), batch_size, _threads(workers), on_error.value, timed, rounds
        )
        data = _data(shards, model, run, split, images, classes, limit, progress)
        if out is not None:
            make_folder(out)
            remove_result(out / EVALUATION_FILE)
        found, measured = package.evaluate(model, data, exits, wish, machine, progress, dense=dense)
        if out is not None:
            write_evaluation(found, measured, out)
            write_samples(model, data, exits, wish, machine, measured, samples, out / "samples", progress)
        progress.stop()
        if as_json:
            print_json(msgspec.to_builtins(found))
            return
        print_line(f"{shards}: {', '.join(dict.fromkeys(data.rows.splits))}")
        for table in (overview(found), categories(found)):
            print_table(table)
        if out is not None:
            print_line(f"written: {out}")


def sweep(
    context: typer.Context,
    run: RunArgument,
    shards: ShardsArgument,
    split: SplitsOption = None,
    images: FolderOption = None,
    limit: FirstOption = None,
    classes: CardOption = None,
    on_error: SkipOption = OnErrorName.raise_,
    p0: Annotated[
        list[str] | None,
        typer.Option(
            metavar="P...",
            help="Probabilities from which tokens end [default: 0.9 0.95 0.98].",
            rich_help_panel=EXIT,
        ),
    ] = None,
    positions: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N,N...",
            help="Blocks after which tokens may end, such as 6 8 6,8: each word is a choice [default: RUN's].",
            rich_help_panel=EXIT,
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="K...", help="Tokens of each class present that go on [default: RUN's].", rich_help_panel=EXIT
        ),
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            help="What goes on of tokens that end: top-k,remove,average,average-top-k,proportion [default: RUN's].",
            rich_help_panel=EXIT,
        ),
    ] = None,
    whole: WholeOption = False,
    native: NativeOption = False,
    out: Annotated[Path, typer.Option(help="Folder for sweep.json, .csv and .png.", rich_help_panel=STORE)] = Path(
        "bavit-segment-sweep"
    ),
    no_timing: NoTimingOption = False,
    time_windows: TimedOption = 16,
    rounds: RoundsOption = 3,
    device: DeviceOption = DeviceName.auto,
    precision: PlainPrecision = PrecisionName.full,
    batch_size: WindowsOption = 8,
    workers: DecodersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what early exit costs in mIoU and saves in time: every combination of p0, positions, k and methods."""
    with errors_reported(debug=context.obj["debug"], interrupted=_ROWS_KEPT), StderrProgress() as progress:
        from bavit.environment import require_extra

        require_extra()
        import msgspec

        from bavit.machine import Machine
        from bavit.outputs import make_folder, remove_result
        from bavit.segment import sweep as package
        from bavit.segment.evaluate import Wish
        from bavit.segment.files import SWEEP_FILE, write_sweep

        machine = Machine.pick(device.value, precision.value)
        progress.stage("loading")
        model = _model(run)
        rows = package.plan_rows(
            model,
            _floats("--p0", p0),
            None if positions is None else [numbers("--positions", word, ",") or [] for word in positions],
            numbers("--keep", ",".join(keep) if keep else None, ","),
            _methods(methods),
        )
        timed = 0 if no_timing else time_windows
        wish = Wish(
            _view(model, native=native, whole=whole), batch_size, _threads(workers), on_error.value, timed, rounds
        )
        data = _data(shards, model, run, split, images, classes, limit, progress)
        make_folder(out)
        remove_result(out / SWEEP_FILE)
        named = run, f"{shards} {', '.join(dict.fromkeys(data.rows.splits))}"
        found = package.sweep(model, data, rows, wish, machine, out, named, progress)
        written = write_sweep(found, out)
        progress.stop()
        if as_json:
            print_json(msgspec.to_builtins(found) | {"out": str(out)})
            return
        print_table(rows_table(found))
        print_line(f"written: {', '.join(map(str, written))}")


def predict(
    context: typer.Context,
    run: RunArgument,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="Images, or folders of images.")],
    out: Annotated[Path, typer.Option(help="Folder for the results.", rich_help_panel=STORE)] = Path(
        "bavit-segmentations"
    ),
    overlays: Annotated[
        bool, typer.Option("--overlays/--no-overlays", help="Draw a panel of each image.", rich_help_panel=STORE)
    ] = True,
    stages: Annotated[
        bool,
        typer.Option("--stages/--no-stages", help="Write the stage in which each pixel ended.", rich_help_panel=STORE),
    ] = True,
    on_error: SkipOption = OnErrorName.raise_,
    exit_after: PlacesOption = None,
    p0: ProbabilityOption = None,
    keep_per_class: KeepOption = None,
    method: MethodOption = None,
    proportion: ProportionOption = None,
    whole: WholeOption = False,
    native: NativeOption = False,
    device: DeviceOption = DeviceName.auto,
    precision: PlainPrecision = PrecisionName.full,
    batch_size: WindowsOption = 8,
    workers: DecodersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Segment any images: the class of each pixel as PNG, where tokens stopped, and what each image took."""
    with errors_reported(debug=context.obj["debug"], interrupted=NOTHING_KEPT), StderrProgress() as progress:
        from bavit.environment import require_extra

        require_extra()
        from bavit.background.predict import picture_files
        from bavit.machine import Machine
        from bavit.segment import predict as package

        machine = Machine.pick(device.value, precision.value)
        progress.stage("loading")
        model = _model(run)
        exits = _exits(model, exit_after, p0, keep_per_class, method, proportion)
        wish = package.Wish(
            _view(model, native=native, whole=whole), batch_size, _threads(workers), on_error.value, overlays, stages
        )
        found = package.predict(model, picture_files(images), exits, wish, machine, out, progress)
        progress.stop()
        if as_json:
            print_json(found | {"out": str(out)})
            return
        print_table(predicted(found))
        print_line(f"written: {out}")


def _model(run: str) -> Segmenter:
    from bavit.segment.model import Segmenter

    return Segmenter.from_pretrained(run)


def _exits(
    model: Segmenter,
    exit_after: list[str] | None,
    p0: float | None,
    keep_per_class: int | None,
    method: MethodName | None,
    proportion: float | None,
) -> Exits:
    from bavit.segment.exits import exits_of

    return exits_of(
        model,
        p0=p0,
        keep_per_class=keep_per_class,
        method=None if method is None else method.value,
        proportion=proportion,
        exit_after=numbers("--exit-after", ",".join(exit_after) if exit_after else None, ","),
    )


def _view(model: Segmenter, *, native: bool, whole: bool) -> View:
    from bavit.segment.windows import View

    return View(model.image_size, native, whole)


def _data(
    shards: Location,
    model: Segmenter,
    run: str,
    split: list[str] | None,
    images: Location | None,
    card: str | None,
    limit: int | None,
    progress: StderrProgress,
) -> LabelledPictures:
    from bavit.segment.labelled import open_labelled

    return open_labelled(
        shards, model.classes, run, splits=split, images=images, card=card, limit=limit, note=progress.note
    )


def _threads(workers: int | None) -> int:
    from bavit.device import default_workers

    return default_workers() if workers is None else workers


def _floats(option: str, words: list[str] | None) -> list[float] | None:
    from tokenlabels.errors import ParameterError

    if words is None:
        return None
    try:
        return [float(part) for word in words for part in word.split(",")]
    except ValueError:
        raise ParameterError(f"{option} {' '.join(words)}: give numbers above 0 and at most 1.") from None


def _methods(words: list[str] | None) -> Any:
    return None if words is None else [part.strip() for word in words for part in word.split(",")]
