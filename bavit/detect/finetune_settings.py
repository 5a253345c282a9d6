"""What a detector is finetuned with, or trained from scratch: the recipes, and the choices a person has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, TypeAlias, get_args

from bavit.augment import Augmentation
from bavit.detect.config import MAX_SIDE, SIZES
from bavit.detect.pruning import Pruning
from bavit.detect.samples import Masks
from bavit.training.settings import Optimization, RunSettings, check_ranges, check_word, given_only, taken
from tokenlabels.errors import ParameterError

DetectorRecipe: TypeAlias = Literal["finetune", "scratch"]

RECIPES: dict[DetectorRecipe, Optimization] = {
    "finetune": Optimization("adamw", 2.5e-5, 1e-4, "cosine", 0.05, 0.1, 0.99),
    "scratch": Optimization("muon", 1e-3, 0.05, "cosine", 0.05, 1.0, 0.995),
}
"""The rate of `finetune` and its weight decay are those of the YOLOS authors."""

_ALL = 1_000
_AUXILIARY: dict[DetectorRecipe, int] = {"finetune": 0, "scratch": 1}
_AUGMENTATION: dict[DetectorRecipe, Augmentation] = {
    "finetune": Augmentation(True, 1.0, 0.0),
    "scratch": Augmentation(True, 0.3, 0.2),
}


_PRUNING = Pruning()


@dataclass(frozen=True, slots=True)
class NewDetector:
    """The shape of a detector trained from scratch; None: as the published size has it.

    Attributes:
        size_name: of `SIZES`.
        dim: width of a token.
        depth: blocks.
        heads: of attention, by default one for every 64 of `dim` where that is given.
        detection_tokens: boxes that are predicted.
        patch: side of a patch in pixels.
    """

    size_name: str = "tiny"
    dim: int | None = None
    depth: int | None = None
    heads: int | None = None
    detection_tokens: int | None = None
    patch: int | None = None


_NEW = NewDetector()


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneSettings(RunSettings):
    """A training run of a detector.

    Attributes:
        detector: folder, hub id or file; `none`: from scratch.
        new: shape of a detector from scratch.
        recipe: name of the recipe.
        auxiliary: blocks before the last whose detection tokens learn the same.
        guides: patches, and detection tokens at their anchors, learn objects, too, see `guides.py`.
        head_lr: factor of the learning rate of the class head; None: 10 where it is made anew, else 1.
        masks: where the masks of kept patches come from: a `bavit`, the `labels`, at `random`, or `none`.
        bavit: folder or hub id of the BAViT.
        pruning: how masks of the BAViT are made; its sparsity is that of `random`, too.
        augmentation: of training pictures.
        size: (H, W) that training pictures are stretched to, or None.
        edges: short sides of training pictures, one at random; empty: that of the detector.
        shortest_edge: of the detector's input from now on, None: as it has it.
        longest_edge: likewise; None: in the same proportion to the other.
        val_every: epochs from one validation to the next; the last is always validated.
        teacher: a detector that sees all patches and is learned from, see `distil.py`; None: there is none.
        distil: weight of what is learned from it beside the set loss; None: 1.
        distil_temperature: of its classes.
    """

    epochs: int = 10
    batch_size: int = 8
    optimization: Optimization = RECIPES["finetune"]
    detector: str = "none"
    new: NewDetector = _NEW
    recipe: DetectorRecipe = "finetune"
    auxiliary: int = 0
    guides: bool = False
    head_lr: float | None = None
    masks: Masks = "none"
    bavit: str | None = None
    pruning: Pruning = _PRUNING
    augmentation: Augmentation = _AUGMENTATION["finetune"]
    size: tuple[int, int] | None = None
    edges: tuple[int, ...] = ()
    shortest_edge: int | None = None
    longest_edge: int | None = None
    val_every: int = 1
    teacher: str | None = None
    distil: float | None = None
    distil_temperature: float = 1.0

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(each for each in (self.detector, self.bavit, self.teacher) if each is not None)

    @property
    def teacher_name(self) -> str | None:
        """The detector that is learned from."""
        return self.teacher

    @property
    def distil_weight(self) -> float:
        """Weight of what is learned from the teacher."""
        return 1.0 if self.distil is None else self.distil

    @classmethod
    def make(
        cls,
        *,
        detector: str = "none",
        recipe: str | None = None,
        masks: str | None = None,
        bavit: str | None = None,
        size: Sequence[int] | None = None,
        edges: Sequence[int] = (),
        **chosen: Any,
    ) -> Self:
        """Check and complete what a person chooses; None: as the recipe has it.

        Args:
            detector: see the class.
            recipe: by default `scratch` without a detector, else `finetune`.
            masks: by default `bavit` where one is given, else `none`.
            bavit: see the class.
            size: see the class.
            edges: see the class.
            chosen: other attributes of the class, and those of its parts: `lr`, `weight_decay`, `clip`, `ema`; `flip`,
                `crop`, `colour`; `threshold`, `sparsity`, `refine_steps`, `prune_after`; those of `NewDetector`.

        Raises:
            ParameterError: a value out of range, or choices that contradict each other.
        """
        name = check_word("recipe", recipe or ("scratch" if detector == "none" else "finetune"), RECIPES)
        parts: dict[str, Any] = {
            "optimization": replace(RECIPES[name], **taken(chosen, "lr", "weight_decay", "clip", "ema")),
            "augmentation": replace(_AUGMENTATION[name], **taken(chosen, "flip", "crop", "colour")),
            "pruning": Pruning(**taken(chosen, "threshold", "sparsity", "refine_steps", "prune_after")),
            "new": NewDetector(**taken(chosen, *NewDetector.__slots__)),
        }
        settings = cls(
            detector=detector,
            recipe=name,
            masks=check_word("--masks", masks or ("bavit" if bavit else "none"), get_args(Masks)),
            bavit=bavit,
            size=None if size is None else _pair(size),
            edges=tuple(edges),
            **parts,
            **({"auxiliary": _AUXILIARY[name], "guides": name == "scratch"} | given_only(**chosen)),
        )
        settings.check()
        return settings

    def check(self) -> None:
        """Refuse what no detector can be trained with.

        Raises:
            ParameterError: a value out of range, or choices that contradict each other.
        """
        RunSettings.check(self)
        sides = (*self.edges, *(side for side in (self.shortest_edge, self.longest_edge) if side is not None))
        check_ranges(
            ("--auxiliary", self.auxiliary, 0, _ALL),
            ("--head-lr", 1 if self.head_lr is None else self.head_lr, 0, 1000),
            ("--val-every", self.val_every, 1, 1_000_000),
            ("--distil", self.distil_weight, 0, 1000),
            ("--distil-temperature", self.distil_temperature, 0.01, 1000),
            *(("the edge", side, 1, MAX_SIDE) for side in sides),
            *(("--size", side, 1, MAX_SIDE) for side in self.size or ()),
        )
        check_word("--size-name", self.new.size_name, SIZES)
        if self.distil and self.teacher_name is None:
            raise ParameterError("--distil learns from a detector that sees all patches: name one with --teacher.")
        if self.detector != "none" and self.new != _NEW:
            raise ParameterError("--size-name, --dim and the like are of a new detector: use --detector none for one.")
        if self.masks == "bavit" and not self.bavit:
            raise ParameterError("--masks bavit needs a BAViT: name one with --bavit.")
        if self.bavit and self.masks != "bavit":
            raise ParameterError(f"--bavit makes the masks, --masks {self.masks} contradicts it: leave one out.")
        if self.masks == "random" and self.pruning.sparsity is None:
            raise ParameterError("--masks random needs to know how many patches are removed: use --sparsity.")
        if self.masks in ("labels", "none") and self.pruning.sparsity is not None:
            raise ParameterError(f"--sparsity has no meaning with --masks {self.masks}: use bavit or random.")
        if self.masks != "bavit" and self.pruning.threshold is not None:
            raise ParameterError(f"--threshold has no meaning with --masks {self.masks}: name a --bavit.")
        if self.size and self.edges:
            raise ParameterError("--size and --edges cannot both say how large training pictures are: give one.")


def _pair(size: Sequence[int]) -> tuple[int, int]:
    if len(size) != 2:
        raise ParameterError(f"--size {'x'.join(map(str, size))} is no size: give HxW.")
    return size[0], size[1]
