"""The command `bavit finetune`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.console import StderrProgress, errors_reported
from cli.detector_options import (
    MASKS,
    AuxiliaryOption,
    BavitOption,
    CropOption,
    DataArgument,
    DepthOption,
    DetectionTokensOption,
    DetectorOption,
    DimOption,
    DistilOption,
    EdgesOption,
    EpochsOption,
    GuidesOption,
    HeadRateOption,
    HeadsOption,
    LongestEdgeOption,
    PatchOption,
    PruneAfterOption,
    RecipeOption,
    RefineOption,
    ShortestEdgeOption,
    SizeNameOption,
    StepOption,
    StretchOption,
    TeacherOption,
    TemperatureOption,
    ThresholdOption,
    ValEveryOption,
    ValLimitOption,
    detection_task,
)
from cli.options import JsonOption
from cli.running import (
    RUN_KEPT,
    ClipOption,
    ColourOption,
    DecayOption,
    DeviceName,
    DeviceOption,
    EmaOption,
    FlipOption,
    LoadersOption,
    OnErrorOption,
    PrecisionOption,
    RateOption,
    ReplaceOption,
    ResumeOption,
    RunOption,
    SeedOption,
    TensorBoardOption,
    TrainPicturesOption,
    TrainSplitOption,
    ValOption,
    ValPicturesOption,
    ValSplitOption,
    carry_out,
    given_by,
    numbers,
)


class MasksName(StrEnum):
    """Where masks come from."""

    bavit = "bavit"
    labels = "labels"
    random = "random"
    none = "none"


def finetune(
    context: typer.Context,
    shards: DataArgument,
    out: RunOption = Path("bavit-detector"),
    val: ValOption = None,
    train_split: TrainSplitOption = None,
    val_split: ValSplitOption = None,
    images: TrainPicturesOption = None,
    val_images: ValPicturesOption = None,
    val_limit: ValLimitOption = None,
    on_error: OnErrorOption = None,
    detector: DetectorOption = None,
    shortest_edge: ShortestEdgeOption = None,
    longest_edge: LongestEdgeOption = None,
    size_name: SizeNameOption = None,
    dim: DimOption = None,
    depth: DepthOption = None,
    heads: HeadsOption = None,
    detection_tokens: DetectionTokensOption = None,
    patch: PatchOption = None,
    masks: Annotated[
        MasksName | None,
        typer.Option(
            help="Who says which patches are kept [default: bavit with --bavit, else none].", rich_help_panel=MASKS
        ),
    ] = None,
    bavit: BavitOption = None,
    threshold: ThresholdOption = None,
    sparsity: Annotated[
        float | None,
        typer.Option(help="bavit, random: share of patches removed of every image.", rich_help_panel=MASKS),
    ] = None,
    refine_steps: RefineOption = None,
    prune_after: PruneAfterOption = None,
    teacher: TeacherOption = None,
    distil: DistilOption = None,
    distil_temperature: TemperatureOption = None,
    epochs: EpochsOption = None,
    batch_size: StepOption = None,
    recipe: RecipeOption = None,
    lr: RateOption = None,
    head_lr: HeadRateOption = None,
    weight_decay: DecayOption = None,
    clip: ClipOption = None,
    ema: EmaOption = None,
    auxiliary: AuxiliaryOption = None,
    guides: GuidesOption = None,
    val_every: ValEveryOption = None,
    seed: SeedOption = None,
    flip: FlipOption = None,
    crop: CropOption = None,
    colour: ColourOption = None,
    size: StretchOption = None,
    edges: EdgesOption = None,
    device: DeviceOption = DeviceName.auto,
    precision: PrecisionOption = None,
    workers: LoadersOption = None,
    resume: ResumeOption = False,
    overwrite: ReplaceOption = False,
    tensorboard: TensorBoardOption = False,
    as_json: JsonOption = False,
) -> None:
    """Finetune a YOLOS on the patches that a BAViT keeps, or train one from scratch."""
    with errors_reported(debug=context.obj["debug"], interrupted=RUN_KEPT), StderrProgress() as progress:
        from bavit.environment import require_extra

        require_extra()
        from bavit.detect.finetune import finetune
        from bavit.detect.finetune_settings import FinetuneSettings
        from tokenlabels.errors import ParameterError

        choices: dict[str, Any] = {
            "detector": detector,
            "shortest_edge": shortest_edge,
            "longest_edge": longest_edge,
            "size_name": size_name,
            "dim": dim,
            "depth": depth,
            "heads": heads,
            "detection_tokens": detection_tokens,
            "patch": patch,
            "masks": masks,
            "bavit": bavit,
            "threshold": threshold,
            "sparsity": sparsity,
            "refine_steps": refine_steps,
            "prune_after": prune_after,
            "teacher": teacher,
            "distil": distil,
            "distil_temperature": distil_temperature,
            "epochs": epochs,
            "batch_size": batch_size,
            "recipe": recipe,
            "lr": lr,
            "head_lr": head_lr,
            "weight_decay": weight_decay,
            "clip": clip,
            "ema": ema,
            "auxiliary": auxiliary,
            "guides": guides,
            "val_every": val_every,
            "seed": seed,
            "flip": flip,
            "crop": crop,
            "colour": colour,
            "size": numbers("--size", size, "x"),
            "edges": numbers("--edges", edges, ","),
            "precision": precision,
            "on_error": on_error,
        }
        given = given_by(choices, out, "finetune", resume=resume)
        if "detector" not in given:
            raise ParameterError("name a detector with --detector, or train a new one with --detector none.")
        settings = FinetuneSettings.make(**given)
        task = detection_task(
            settings, shards, val, train_split, val_split, images, val_images, val_limit, workers, progress,
            out=out, device=device.value, resume=resume, overwrite=overwrite, tensorboard=tensorboard,
        )  # fmt: skip
        carry_out(lambda: finetune(task, settings, given, progress), out, progress, as_json=as_json)
