"""Counts of right and wrong answers, and the shares that follow from them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Confusion:
    """Tokens by answer and label, ignored ones left out; they add up. A share of nothing is 0.

    Attributes:
        tp: foreground, taken for foreground.
        fp: background, taken for foreground.
        fn: foreground, taken for background.
        tn: background, taken for background.
    """

    tp: int
    fp: int
    fn: int
    tn: int

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn)

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return share(self.tp + self.tn, self.tp + self.fp + self.fn + self.tn)

    @property
    def balanced_accuracy(self) -> float:
        """Mean of the recalls of foreground and background; where one of them does not occur, the other's recall."""
        foreground, background = self.tp + self.fn, self.fp + self.tn
        if not foreground or not background:
            return self.accuracy
        return (self.tp / foreground + self.tn / background) / 2

    @property
    def fg_precision(self) -> float:
        """Of the tokens taken for foreground, the share that is."""
        return share(self.tp, self.tp + self.fp)

    @property
    def fg_recall(self) -> float:
        """Of the foreground, the share taken for it."""
        return share(self.tp, self.tp + self.fn)

    @property
    def fg_iou(self) -> float:
        """Intersection over union of foreground and what is taken for it."""
        return share(self.tp, self.tp + self.fp + self.fn)


def share(part: float, whole: float) -> float:
    """part / whole, 0 where there is nothing."""
    return part / whole if whole else 0.0
