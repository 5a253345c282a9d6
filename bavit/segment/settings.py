"""What a segmenter is trained or finetuned with: the recipes, and the choices a person has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

from bavit.segment.config import MAX_SIDE, BackboneShape, HeadName, Reduction, check_positions
from bavit.segment.early_exit import ExitRule, Method
from bavit.training.settings import (
    Optimization,
    RunSettings,
    Schedule,
    check_ranges,
    check_word,
    given_only,
    taken,
)
from tokenlabels.errors import ParameterError

SegmentRecipe: TypeAlias = Literal["paper", "finetune", "scratch"]
Trained: TypeAlias = Literal["all", "heads"]


@dataclass(frozen=True, slots=True)
class Recipe(Optimization):
    """How the weights of a segmenter are found.

    Attributes:
        head_lr: factor of the learning rate of the heads.
        drop_path: share of images that skip the last block, of earlier ones in proportion.
        scale: least and greatest size of training pictures, as shares of the crop.
        flip: mirror left and right, every second time.
        colour: strength of changes of colour; 0: none.
    """

    head_lr: float
    drop_path: float
    scale: tuple[float, float]
    flip: bool
    colour: float


_SCALE = (0.5, 2.0)

RECIPES: dict[SegmentRecipe, Recipe] = {
    "paper": Recipe("adamw", 2e-5, 0.01, "poly", 1500 / 160_000, 35.0, 0.0, 10.0, 0.1, _SCALE, True, 0.3),
    "finetune": Recipe("adamw", 2e-5, 0.01, "poly", 1500 / 40_000, 35.0, 0.0, 10.0, 0.1, _SCALE, True, 0.3),
    "scratch": Recipe("muon", 1e-3, 0.05, "cosine", 0.05, 1.0, 0.99, 1.0, 0.1, _SCALE, True, 0.3),
}
"""`paper` and `finetune` are DToP's (Tang et al., ICCV 2023): warm-up of 1,500 of 160,000 and of 40,000 steps."""


@dataclass(frozen=True, slots=True)
class NewSegmenter:
    """The shape of a segmenter that is not there yet.

    Attributes:
        backbone: the ViT.
        head: `fcn` or `atm`.
        exit_after: blocks after which auxiliary heads sit; None: see `start.default_exits`.
        crop: (H, W) of its input; None: 512 x 512 with weights to start from, 256 x 256 without.
        downsample: see `SegmenterConfig`.
    """

    backbone: BackboneShape = BackboneShape()  # noqa: RUF009  it is frozen
    head: HeadName = "fcn"
    exit_after: tuple[int, ...] | None = None
    crop: tuple[int, int] | None = None
    downsample: Reduction = "none"


@dataclass(frozen=True, slots=True)
class RuleChoice:
    """What a person says of early exit; None: as the segmenter has it. See `ExitRule`."""

    p0: float | None = None
    keep_per_class: int | None = None
    method: Method | None = None
    proportion: float | None = None

    def applied(self, rule: ExitRule) -> ExitRule:
        """A rule with these changes."""
        changes = {name: getattr(self, name) for name in RuleChoice.__slots__}
        return replace(rule, **given_only(**changes))


_NEW, _RULE = NewSegmenter(), RuleChoice()


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentSettings(RunSettings):
    """A training run of a segmenter.

    Attributes:
        run: folder or hub id of the segmenter that is finetuned; None: a new one is trained.
        trained: what of it changes: `all`, or only the `heads`.
        new: shape of a new one.
        init: where its backbone starts: `imagenet`, `none`, or a path.
        rule: early exit, kept in the config of the model. A new one is trained with it where `p0` is given.
        classes: data card whose classes are learned; None: those of the build.
        recipe: name of the recipe.
        val_every: epochs from one validation to the next; the last is always validated.
    """

    epochs: int = 40
    batch_size: int = 8
    optimization: Recipe = RECIPES["scratch"]
    run: str | None = None
    trained: Trained = "all"
    new: NewSegmenter = _NEW
    init: str = "imagenet"
    rule: RuleChoice = _RULE
    classes: str | None = None
    recipe: SegmentRecipe = "scratch"
    val_every: int = 1

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(each for each in (self.run, self.init) if each is not None)

    @classmethod
    def make(
        cls,
        *,
        run: str | None = None,
        init: str | None = None,
        recipe: str | None = None,
        backbone: str | None = None,
        exit_after: Sequence[int] | None = None,
        crop: Sequence[int] | None = None,
        scale: Sequence[float] | None = None,
        **chosen: Any,
    ) -> SegmentSettings:
        """Check and complete what a person chooses; None: as the recipe has it.

        Args:
            run: see the class.
            init: by default `imagenet`.
            recipe: by default `finetune` of a run, `scratch` without weights to start from, else `paper`.
            backbone: name of a ViT of timm.
            exit_after: see `NewSegmenter`.
            crop: (H, W), or one number for both.
            scale: see `Recipe`.
            chosen: other attributes of the class, and those of its parts: of `Recipe` (`lr`, `weight_decay`,
                `schedule`, `clip`, `ema`, `head_lr`, `drop_path`, `flip`, `colour`), `RuleChoice`, `NewSegmenter` and
                `BackboneShape` (`dim`, `depth`, `heads`, `patch`).

        Raises:
            ParameterError: a value out of range, or choices that contradict each other.
        """
        usual = "finetune" if run is not None else "scratch" if init == "none" else "paper"
        name = check_word("recipe", recipe or usual, RECIPES)
        shape = taken(chosen, "dim", "depth", "heads", "patch") | given_only(name=backbone)
        parts: dict[str, Any] = {
            "optimization": replace(
                RECIPES[name],
                **taken(chosen, "lr", "weight_decay", "schedule", "clip", "ema", "head_lr", "drop_path", "flip"),
                **taken(chosen, "colour"),
                **given_only(scale=scale and _pair("--scale-range", scale)),
            ),
            "new": NewSegmenter(
                BackboneShape(**shape),
                exit_after=None if exit_after is None else tuple(exit_after),
                crop=None if crop is None else _size(crop),
                **taken(chosen, "head", "downsample"),
            ),
            "rule": RuleChoice(**taken(chosen, *RuleChoice.__slots__)),
        }
        if run is not None and (parts["new"] != _NEW or init is not None):
            raise ParameterError("--backbone, --init, --crop and the like are of a new segmenter: finetune has RUN's.")
        settings = cls(run=run, init=init or "imagenet", recipe=name, **parts, **given_only(**chosen))
        settings.check()
        return settings

    def check(self) -> None:
        """Refuse what no segmenter can be trained with.

        Raises:
            ParameterError: a value out of range, or choices that contradict each other.
        """
        RunSettings.check(self)
        used, new, rule = self.optimization, self.new, self.rule
        shape = [(name, getattr(new.backbone, name)) for name in ("dim", "depth", "heads", "patch")]
        check_ranges(
            ("--head-lr", used.head_lr, 0, 1000),
            ("--drop-path", used.drop_path, 0, 0.99),
            ("--scale-range", used.scale[0], 0.01, 100),
            ("--scale-range", used.scale[1], used.scale[0], 100),
            ("--colour", used.colour, 0, 1),
            ("--val-every", self.val_every, 1, 1_000_000),
            *((f"--{name}", value, 1, MAX_SIDE) for name, value in shape if value is not None),
            *(("--crop", side, 1, MAX_SIDE) for side in new.crop or ()),
        )
        if rule.p0 is not None and not 0 < rule.p0 <= 1:
            raise ParameterError(f"--p0 {rule.p0:g} is out of range: a probability above 0, up to 1 (no early exit).")
        rule.applied(ExitRule())
        check_word("--schedule", used.schedule, get_args(Schedule))
        check_word("--head", new.head, get_args(HeadName))
        check_word("--downsample", new.downsample, get_args(Reduction))
        check_word("--train", self.trained, get_args(Trained))
        check_positions(new.exit_after or (), new.backbone.depth)
        if self.trained != "all" and self.run is None:
            raise ParameterError(f"--train {self.trained} is for finetuning: a new segmenter has nothing to keep.")
        if new.downsample != "none" and rule.p0 is not None and rule.p0 < 1:
            raise ParameterError(f"--downsample {new.downsample} is instead of early exit: leave --p0 out.")
        fixed = [name for name, value in shape if value is not None and name in ("dim", "heads")]
        if self.init == "imagenet" and fixed:
            raise ParameterError(f"--{fixed[0]} cannot be chosen for weights of ImageNet: use --init none.")


def _pair(option: str, values: Sequence[float]) -> tuple[float, float]:
    if len(values) != 2:
        raise ParameterError(f"{option} {' '.join(map(str, values))} is no range: give the least and the greatest.")
    return values[0], values[1]


def _size(crop: Sequence[int]) -> tuple[int, int]:
    if len(crop) not in (1, 2):
        raise ParameterError(f"--crop {'x'.join(map(str, crop))} is no size: give HxW, or one number.")
    return crop[0], crop[-1]
