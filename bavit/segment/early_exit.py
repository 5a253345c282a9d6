"""Which tokens end early, and what of them goes on as context: the rule of DToP (Tang et al., ICCV 2023), section 3.

A token whose top class probability is at least `p0` is easy, and its prediction is final. So that the hard ones still
see every class, something of the easy ones goes on; the methods are those of the paper's Table 5.

top-k          the k most confident easy tokens of each class that is predicted in the image
remove         nothing
average        the mean of the easy tokens of each class, one token a class
average-top-k  both: the k most confident, and the mean of the others
proportion     p0 does not count: a fixed share of the tokens that are left, the most confident, ends; nothing goes on
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from tokenlabels.errors import ParameterError

Method: TypeAlias = Literal["top-k", "remove", "average", "average-top-k", "proportion"]


@dataclass(frozen=True, slots=True)
class ExitRule:
    """Which tokens end.

    Attributes:
        p0: least probability of the top class that ends a token; 1 or more: none ends, whatever the method.
        keep_per_class: k, of the methods with top-k.
        method: see the module.
        proportion: share that ends at each place, of the method of that name.

    Raises:
        ParameterError: a value out of range.
    """

    p0: float = 0.95
    keep_per_class: int = 5
    method: Method = "top-k"
    proportion: float = 0.35

    def __post_init__(self) -> None:
        if not self.p0 > 0:
            raise ParameterError(f"p0 {self.p0} is out of range: a probability above 0, and 1 for no early exit.")
        if self.keep_per_class < 0:
            raise ParameterError(f"{self.keep_per_class} tokens of each class cannot be kept: give 0 or more.")
        if self.method not in get_args(Method):
            raise ParameterError(f"unknown method {self.method!r}: use one of {', '.join(get_args(Method))}.")
        if not 0 <= self.proportion <= 1:
            raise ParameterError(f"a proportion of {self.proportion} is out of range: a share of 0 to 1.")

    @property
    def exits(self) -> bool:
        """Whether any token can end."""
        return self.p0 < 1

    @property
    def averages(self) -> bool:
        """Whether means of tokens go on."""
        return self.method in ("average", "average-top-k")


def ending(scores: Tensor, image: Tensor, rule: ExitRule) -> tuple[Tensor, Tensor]:
    """Which of some tokens end.

    Args:
        scores: float (t, K), probabilities of the classes of each token; where they are no numbers, it goes on.
        image: int64 (t,), the image of each, ascending.
        rule: the rule.

    Returns:
        bool (t,), and int64 (t,), the class of each.
    """
    confidence, found = scores.max(1) if len(scores) else (scores.new_zeros(0), image)
    if not rule.exits:
        return torch.zeros_like(image, dtype=torch.bool), found
    if rule.method == "proportion":
        counts = torch.bincount(image)
        allowed = (counts * rule.proportion + 1e-9).floor()
        return ranks(confidence.nan_to_num(-1), image) < allowed[image], found
    easy = confidence >= rule.p0
    if rule.method in ("remove", "average") or not rule.keep_per_class:
        return easy, found
    chosen = easy.nonzero().squeeze(1)
    place = ranks(confidence[chosen], image[chosen] * scores.shape[1] + found[chosen])
    ends = torch.zeros_like(easy)
    ends[chosen] = place >= rule.keep_per_class
    return ends, found


def ranks(values: Tensor, group: Tensor) -> Tensor:
    """The place of each value within its group, the greatest first; of equals the earlier one.

    Args:
        values: float (t,), numbers.
        group: int64 (t,), any.

    Returns:
        int64 (t,), from 0 on.
    """
    order = values.argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]
    _, counts = torch.unique_consecutive(group[order], return_counts=True)
    starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
    found = torch.empty_like(order)
    found[order] = torch.arange(len(order), device=order.device) - starts
    return found


def class_means(values: Tensor, image: Tensor, found: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """The mean of the tokens of each class in each image.

    Args:
        values: float (t, dim).
        image: int64 (t,), the image of each.
        found: int64 (t,), the class of each.
        classes: K.

    Returns:
        float (m, dim), by image and class, and int64 (m,), the image of each.
    """
    groups, member, counts = torch.unique(image * classes + found, return_inverse=True, return_counts=True)
    sums = values.new_zeros(len(groups), values.shape[1]).index_add(0, member, values)
    return sums / counts[:, None], groups // classes
