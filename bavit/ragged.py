"""Batches whose images hold different numbers of tokens, stored packed, end to end, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from tokenlabels.errors import ParameterError


@dataclass(frozen=True, slots=True, eq=False)
class RaggedTokens:
    """The tokens of a batch, image after image.

    Attributes:
        values: float (total, dim).
        lengths: tokens of each image, any of them may be 0; they sum to total.
    """

    values: Tensor
    lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.values.ndim < 1 or len(self.values) != sum(self.lengths):
            raise ParameterError(
                f"{sum(self.lengths)} tokens in {len(self.lengths)} images do not fill {tuple(self.values.shape)}."
            )

    @property
    def cu_seqlens(self) -> Tensor:
        """int32 (batch + 1,), on the device of `values`: where each image begins, and the total."""
        return cumulative(self.lengths, self.values.device)

    def with_values(self, values: Tensor) -> RaggedTokens:
        """Other values of the same tokens."""
        return RaggedTokens(values, self.lengths)

    def select(self, chosen: Tensor) -> RaggedTokens:
        """Some of the tokens, in the same order.

        Args:
            chosen: bool (total,).
        """
        counts = [int(part.sum()) for part in torch.split(chosen.cpu(), list(self.lengths))]
        return RaggedTokens(self.values[chosen], tuple(counts))

    def images(self) -> tuple[Tensor, ...]:
        """Views (tokens, dim) of each image."""
        return torch.split(self.values, list(self.lengths))


def pack(sequences: Sequence[Tensor]) -> RaggedTokens:
    """Tokens of images as a batch.

    Args:
        sequences: float (tokens, dim) of each image.
    """
    return RaggedTokens(torch.cat(tuple(sequences)), tuple(len(each) for each in sequences))


def gather(tokens: Tensor, keep: Tensor) -> RaggedTokens:
    """The tokens of a full batch that are kept.

    Args:
        tokens: float (batch, n, dim).
        keep: bool (batch, n).

    Raises:
        ParameterError: the shapes differ.
    """
    if keep.dtype != torch.bool or keep.shape != tokens.shape[:2]:
        raise ParameterError(
            f"tokens {tuple(tokens.shape)} are kept by a bool mask of {tuple(tokens.shape[:2])}, not by "
            f"{keep.dtype} {tuple(keep.shape)}."
        )
    return RaggedTokens(tokens[keep], tuple(keep.sum(1).tolist()))


def scatter(tokens: RaggedTokens, keep: Tensor) -> Tensor:
    """The opposite of `gather`: tokens in their places, and zeros where they were removed.

    Args:
        tokens: as many for each image as its mask keeps.
        keep: bool (batch, n).

    Returns:
        float (batch, n, dim).

    Raises:
        ParameterError: the numbers differ.
    """
    if tuple(keep.sum(1).tolist()) != tokens.lengths:
        raise ParameterError(f"a mask that keeps {keep.sum(1).tolist()} tokens has no place for {tokens.lengths}.")
    full = tokens.values.new_zeros(keep.numel(), tokens.values.shape[-1])
    full = full.index_copy(0, keep.flatten().nonzero().squeeze(1), tokens.values)
    return full.view(*keep.shape, -1)


def cumulative(lengths: Sequence[int], device: torch.device) -> Tensor:
    """int32 (len(lengths) + 1,): 0, and the sums so far."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
