"""What a training run is made with: the recipes, and the choices a person has."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

from bavit.augment import Augmentation
from tokenlabels.errors import ParameterError

RecipeName: TypeAlias = Literal["scratch", "finetune", "paper"]
Precision: TypeAlias = Literal["auto", "32", "bf16", "fp16"]
Weights: TypeAlias = Literal["none", "balanced"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How weights are found.

    Attributes:
        optimizer: `muon` (matrices of the blocks, AdamW for the rest), `adamw` or `adam`.
        lr: learning rate; with `muon` that of AdamW.
        weight_decay: decoupled from the gradient, but of `adam`, which has none; not on biases, norms and positions.
        schedule: `cosine` after a warm-up to 0, or `step`: a tenth after every third of the epochs.
        warmup: share of all steps.
        clip: largest norm of the gradient, 0: any.
        ema: decay of the moving average of weights that is evaluated and stored, 0: the weights themselves.
        soft_targets: learn the scores rather than the labels, see `loss.soft_targets`.
        augmentation: of training pictures.
    """

    optimizer: Literal["muon", "adamw", "adam"]
    lr: float
    weight_decay: float
    schedule: Literal["cosine", "step"]
    warmup: float
    clip: float
    ema: float
    soft_targets: bool
    augmentation: Augmentation


RECIPES: dict[RecipeName, Recipe] = {
    "scratch": Recipe("muon", 1e-3, 0.05, "cosine", 0.08, 1.0, 0.995, True, Augmentation(True, 0.3, 0.2)),
    "finetune": Recipe("adamw", 2e-4, 0.05, "cosine", 0.08, 1.0, 0.995, True, Augmentation(True, 0.3, 0.2)),
    # Adam and StepLR are the BAViT paper's; it prints neither rate nor steps, so these are ours.
    "paper": Recipe("adam", 1e-3, 0.0, "step", 0.0, 0.0, 0.0, False, Augmentation(True, 1.0, 0.0)),
}

MUON_LR_SCALE = 10.0
"""Learning rate of Muon's matrices over that of AdamW beside it."""


@dataclass(frozen=True, slots=True)
class Settings:
    """A training run.

    Attributes:
        depth: blocks of the model.
        width: dimension of a token.
        init: `none`, `imagenet`, or a path.
        epochs: how many.
        batch_size: pictures of a step, over all ranks.
        recipe: name of the recipe.
        optimization: the recipe with a person's changes.
        class_weights: `balanced`: as `tokenlabels stats` has them.
        seed: of everything random.
        precision: of the model's arithmetic; `auto`: bf16 where the hardware has it.
        compile: through `torch.compile`.
        on_error: what to do about a picture that cannot be read: `raise` or `skip`.
    """

    depth: int = 2
    width: int = 192
    init: str = "imagenet"
    epochs: int = 40
    batch_size: int = 32
    recipe: RecipeName = "scratch"
    optimization: Recipe = RECIPES["scratch"]
    class_weights: Weights = "none"
    seed: int = 0
    precision: Precision = "auto"
    compile: bool = False
    on_error: Literal["raise", "skip"] = "raise"

    @classmethod
    def make(
        cls,
        *,
        recipe: str | None = None,
        init: str = "imagenet",
        lr: float | None = None,
        weight_decay: float | None = None,
        clip: float | None = None,
        ema: float | None = None,
        soft_targets: bool | None = None,
        flip: bool | None = None,
        crop: float | None = None,
        colour: float | None = None,
        **chosen: Any,
    ) -> Settings:
        """Check and complete what a person chooses; None: as the recipe has it.

        Args:
            recipe: by default `scratch` for `--init none`, else `finetune`.
            init: see the class.
            lr: see `Recipe`, as the next four.
            weight_decay: see above.
            clip: see above.
            ema: see above.
            soft_targets: see above.
            flip: see `Augmentation`, as the next two.
            crop: see above.
            colour: see above.
            chosen: other attributes of the class.

        Raises:
            ParameterError: a value out of range, or an unknown recipe.
        """
        name = recipe or ("scratch" if init == "none" else "finetune")
        if name not in RECIPES:
            raise ParameterError(f"unknown recipe {name!r}: use one of {', '.join(RECIPES)}.")
        base = RECIPES[name]
        augmentation = replace(base.augmentation, **_given(flip=flip, crop=crop, colour=colour))
        changes = _given(lr=lr, weight_decay=weight_decay, clip=clip, ema=ema, soft_targets=soft_targets)
        settings = cls(
            recipe=name,
            init=init,
            optimization=replace(base, augmentation=augmentation, **changes),
            **chosen,
        )
        settings._check()
        return settings

    def _check(self) -> None:
        used = self.optimization
        for name, value, low, high in (
            ("--epochs", self.epochs, 1, 1_000_000),
            ("--batch-size", self.batch_size, 1, 1_000_000),
            ("--depth", self.depth, 1, 100),
            ("--width", self.width, 8, 100_000),
            ("--seed", self.seed, 0, 2**32 - 1),
            ("--lr", used.lr, 0, 10),
            ("--weight-decay", used.weight_decay, 0, 10),
            ("--clip", used.clip, 0, float("inf")),
            ("--ema", used.ema, 0, 0.999999),
        ):
            if not low <= value <= high:
                raise ParameterError(f"{name} {value:g} is out of range: it is {low:g} to {high:g}.")
        if used.optimizer == "adam" and used.weight_decay:
            raise ParameterError(f"--weight-decay {used.weight_decay:g}: the recipe {self.recipe} has none.")
        for option, word, words in (
            ("precision", self.precision, get_args(Precision)),
            ("class-weights", self.class_weights, get_args(Weights)),
            ("on-error", self.on_error, ("raise", "skip")),
        ):
            if word not in words:
                raise ParameterError(f"unknown --{option} {word!r}: use one of {', '.join(words)}.")

    def without_scores(self) -> Settings:
        """The same for labels that were built without scores."""
        return replace(self, optimization=replace(self.optimization, soft_targets=False))

    def without_crops(self) -> Settings:
        """The same for labels that cannot be made again for a crop."""
        plain = replace(self.optimization.augmentation, crop=1.0)
        return replace(self, optimization=replace(self.optimization, augmentation=plain))

    def as_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return asdict(self)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
