"""The command `bavit joint`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.console import StderrProgress, errors_reported
from cli.detector_options import (
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

JOINT, BUDGET = "Joint training", "What keeping patches costs"


class WeightsName(StrEnum):
    """Class weights."""

    none = "none"
    balanced = "balanced"


def joint(
    context: typer.Context,
    shards: DataArgument,
    out: RunOption = Path("bavit-joint"),
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
    bavit: BavitOption = None,
    threshold: ThresholdOption = None,
    refine_steps: RefineOption = None,
    prune_after: PruneAfterOption = None,
    parts: Annotated[
        str | None,
        typer.Option(
            "--train",
            metavar="PART,...",
            help="What is trained: bavit, detector [default: both], threshold: one of each image, learned; the others "
            "stay as they are.",
            rich_help_panel=JOINT,
        ),
    ] = None,
    ce: Annotated[
        float | None,
        typer.Option(help="Weight of the BAViT's cross entropy [default: 1].", rich_help_panel=JOINT),
    ] = None,
    class_weights: Annotated[
        WeightsName | None,
        typer.Option(help="Weigh the labels as tokenlabels stats says [default: none].", rich_help_panel=JOINT),
    ] = None,
    bavit_lr: Annotated[
        float | None, typer.Option(help="Factor of the BAViT's learning rate [default: 1].", rich_help_panel=JOINT)
    ] = None,
    threshold_lr: Annotated[
        float | None,
        typer.Option(help="Learning rate of the threshold of each image [default: 0.01].", rich_help_panel=JOINT),
    ] = None,
    softness: Annotated[
        float | None,
        typer.Option(
            help="Logits over which a decision changes its mind, of its gradient alone [default: 1].",
            rich_help_panel=JOINT,
        ),
    ] = None,
    keep_share: Annotated[
        float | None,
        typer.Option(
            help="Share of patches that ought to be kept [default: 0.5 without --mac-penalty].", rich_help_panel=BUDGET
        ),
    ] = None,
    budget_weight: Annotated[
        float | None,
        typer.Option(help="Of the square of what is kept beside it [default: 2].", rich_help_panel=BUDGET),
    ] = None,
    mac_penalty: Annotated[
        float | None,
        typer.Option(help="Cost of the detector's MACs, as a share of all [default: 0].", rich_help_panel=BUDGET),
    ] = None,
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
    """Train a BAViT and the YOLOS behind it together: which patches to keep, and to detect from them."""
    with errors_reported(debug=context.obj["debug"], interrupted=RUN_KEPT), StderrProgress() as progress:
        from bavit.environment import require_extra

        require_extra()
        from bavit.background.model import load_model
        from bavit.detect.joint import joint
        from bavit.detect.joint_settings import JointSettings
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
            "bavit": bavit,
            "threshold": threshold,
            "refine_steps": refine_steps,
            "prune_after": prune_after,
            "train": parts,
            "ce": ce,
            "class_weights": class_weights,
            "bavit_lr": bavit_lr,
            "threshold_lr": threshold_lr,
            "softness": softness,
            "keep_share": keep_share,
            "budget_weight": budget_weight,
            "mac_penalty": mac_penalty,
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
        given = given_by(choices, out, "joint", resume=resume)
        if "detector" not in given:
            raise ParameterError("name a detector with --detector, or train a new one with --detector none.")
        settings = JointSettings.make(**given)
        assert settings.bavit is not None
        grid = load_model(settings.bavit).grid
        task = detection_task(
            settings, shards, val, train_split, val_split, images, val_images, val_limit, workers, progress,
            grid=grid, out=out, device=device.value, resume=resume, overwrite=overwrite, tensorboard=tensorboard,
        )  # fmt: skip
        carry_out(lambda: joint(task, settings, given, progress), out, progress, as_json=as_json)
