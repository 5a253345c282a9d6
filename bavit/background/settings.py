"""What a training run is made with: the recipes, and the choices a person has."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

from bavit.augment import Augmentation
from bavit.training.settings import Optimization, RunSettings, check_ranges, check_word, given_only
from tokenlabels.errors import ParameterError

RecipeName: TypeAlias = Literal["scratch", "finetune", "paper"]
Weights: TypeAlias = Literal["none", "balanced"]


@dataclass(frozen=True, slots=True)
class Recipe(Optimization):
    """How the weights of a BAViT are found.

    Attributes:
        soft_targets: learn the scores rather than the labels, see `loss.soft_targets`.
        augmentation: of training pictures.
    """

    soft_targets: bool
    augmentation: Augmentation


RECIPES: dict[RecipeName, Recipe] = {
    "scratch": Recipe("muon", 1e-3, 0.05, "cosine", 0.08, 1.0, 0.995, True, Augmentation(True, 0.3, 0.2)),
    "finetune": Recipe("adamw", 2e-4, 0.05, "cosine", 0.08, 1.0, 0.995, True, Augmentation(True, 0.3, 0.2)),
    # Adam and StepLR are the BAViT paper's; it prints neither rate nor steps, so these are ours.
    "paper": Recipe("adam", 1e-3, 0.0, "step", 0.0, 0.0, 0.0, False, Augmentation(True, 1.0, 0.0)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(RunSettings):
    """A training run of a BAViT.

    Attributes:
        depth: blocks of the model.
        width: dimension of a token.
        init: `none`, `imagenet`, or a path.
        recipe: name of the recipe.
        class_weights: `balanced`: as `tokenlabels stats` has them.
    """

    epochs: int = 40
    batch_size: int = 32
    optimization: Recipe = RECIPES["scratch"]
    depth: int = 2
    width: int = 192
    init: str = "imagenet"
    recipe: RecipeName = "scratch"
    class_weights: Weights = "none"

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.init,)

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
        name = check_word("recipe", recipe or ("scratch" if init == "none" else "finetune"), RECIPES)
        base = RECIPES[name]
        augmentation = replace(base.augmentation, **given_only(flip=flip, crop=crop, colour=colour))
        changes = given_only(lr=lr, weight_decay=weight_decay, clip=clip, ema=ema, soft_targets=soft_targets)
        settings = cls(
            recipe=name,
            init=init,
            optimization=replace(base, augmentation=augmentation, **changes),
            **chosen,
        )
        settings.check()
        return settings

    def check(self) -> None:
        """Refuse what no BAViT can be trained with.

        Raises:
            ParameterError: a value out of range.
        """
        RunSettings.check(self)
        check_ranges(("--depth", self.depth, 1, 100), ("--width", self.width, 8, 100_000))
        used = self.optimization
        if used.optimizer == "adam" and used.weight_decay:
            raise ParameterError(f"--weight-decay {used.weight_decay:g}: the recipe {self.recipe} has none.")
        check_word("--class-weights", self.class_weights, get_args(Weights))

    def without_scores(self) -> Settings:
        """The same for labels that were built without scores."""
        return replace(self, optimization=replace(self.optimization, soft_targets=False))

    def without_crops(self) -> Settings:
        """The same for labels that cannot be made again for a crop."""
        plain = replace(self.optimization.augmentation, crop=1.0)
        return replace(self, optimization=replace(self.optimization, augmentation=plain))
