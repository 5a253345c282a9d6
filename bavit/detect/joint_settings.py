"""What a BAViT and a detector are trained with together: the choices a person has beside those of a detector alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from bavit.background.settings import Weights
from bavit.detect.finetune_settings import FinetuneSettings
from bavit.training.settings import check_ranges, check_word
from tokenlabels.errors import ParameterError

PARTS = ("bavit", "detector", "threshold")
"""What can be trained; the first two are where nobody chooses."""

_KEEP_SHARE, _BUDGET_WEIGHT = 0.5, 2.0
"""Where nobody chooses; the weight is DynamicViT's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JointSettings(FinetuneSettings):
    """A training run of a BAViT and a detector.

    Attributes:
        train: the parts that are trained, with commas between them; the others stay as they are. `threshold`: one of
            each image, which starts as the fixed one.
        ce: weight of the BAViT's cross entropy beside the loss of the detector.
        class_weights: of that cross entropy; `balanced`: as `tokenlabels stats` has them.
        keep_share: share of patches that ought to be kept, of a batch as a whole; None: 0.5 without `mac_penalty`.
        budget_weight: of the square of what is kept too much or too little; None: 2 with a share.
        mac_penalty: cost of the detector's MACs, as a share of those for all patches.
        softness: logits of background over which a decision changes its mind; of its gradient alone.
        bavit_lr: factor of the learning rate of the BAViT.
        threshold_lr: learning rate of the threshold of each image, where that is trained, see `adaptive.py`.
    """

    train: str = ",".join(PARTS[:2])
    ce: float = 1.0
    class_weights: Weights = "none"
    keep_share: float | None = None
    budget_weight: float | None = None
    mac_penalty: float = 0.0
    softness: float = 1.0
    bavit_lr: float = 1.0
    threshold_lr: float = 0.01

    @property
    def parts(self) -> tuple[str, ...]:
        """What is trained, of `PARTS`."""
        return tuple(dict.fromkeys(part.strip() for part in self.train.split(",") if part.strip()))

    @property
    def decides(self) -> bool:
        """Whether it is learned which patches are kept."""
        return self.parts != ("detector",)

    @property
    def budget(self) -> tuple[float, float]:
        """The share of patches that ought to be kept, and the weight of that."""
        if not self.decides or (self.keep_share is None and self.mac_penalty):
            return _KEEP_SHARE, 0.0
        weight = _BUDGET_WEIGHT if self.budget_weight is None else self.budget_weight
        return (_KEEP_SHARE if self.keep_share is None else self.keep_share), weight

    @property
    def teacher_name(self) -> str | None:
        """The detector that is learned from: as it was at the start, where none is named."""
        if self.teacher is None and self.distil and self.detector != "none":
            return self.detector
        return self.teacher

    def check(self) -> None:
        """Refuse what cannot be trained.

        Raises:
            ParameterError: a value out of range, or choices that contradict each other.
        """
        FinetuneSettings.check(self)
        check_ranges(
            ("--ce", self.ce, 0, 1000),
            ("--keep-share", self.budget[0], 0, 1),
            ("--budget-weight", self.budget[1], 0, 1000),
            ("--mac-penalty", self.mac_penalty, 0, 1000),
            ("--softness", self.softness, 0.01, 100),
            ("--bavit-lr", self.bavit_lr, 0, 1000),
            ("--threshold-lr", self.threshold_lr, 0, 10),
        )
        check_word("--class-weights", self.class_weights, get_args(Weights))
        for part in self.parts:
            check_word("--train", part, PARTS)
        if not self.parts:
            raise ParameterError(f"--train names nothing to train: use one or several of {', '.join(PARTS)}.")
        if self.bavit is None:
            raise ParameterError("it is a BAViT that is trained together with the detector: name one with --bavit.")
        if self.detector == "none" and "detector" not in self.parts:
            raise ParameterError("a new detector (--detector none) must be trained: name detector in --train.")
        fixed = [name for name in ("top_k", "sparsity") if getattr(self.pruning, name) is not None]
        if self.decides and fixed:
            raise ParameterError(
                f"--{fixed[0]} fixes how many patches stay, which is learned: use --keep-share, or --train detector."
            )
        named = [
            name
            for name, value in (("--keep-share", self.keep_share), ("--mac-penalty", self.mac_penalty or None))
            if value is not None
        ]
        if named and not self.decides:
            raise ParameterError(
                f"{named[0]} is about which patches stay, but --train {self.train} does not learn that."
            )
        if self.decides and not self.budget[1] and not self.mac_penalty:
            raise ParameterError("without a budget everything may be kept: give --budget-weight or --mac-penalty.")
