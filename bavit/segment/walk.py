"""Tokens on their way through a network that some of them leave: where each belongs, and what has been predicted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bavit.ragged import RaggedTokens
from bavit.segment.early_exit import ExitRule, class_means, ending


@dataclass(frozen=True, slots=True, eq=False)
class Travellers:
    """The tokens that go on.

    Attributes:
        tokens: of each image in order: prefix (CLS, registers), patches, and context, means of tokens that ended.
        image: int64 (total,), the image of each.
        cell: int64 (total,), the cell of each in the grids of all images, image * rows * cols + cell; -1: no patch.
    """

    tokens: RaggedTokens
    image: Tensor
    cell: Tensor

    @classmethod
    def start(cls, tokens: Tensor, prefix: int) -> Travellers:
        """All tokens (B, prefix + n, dim) of a batch."""
        batch, count = tokens.shape[:2]
        images = torch.arange(batch, device=tokens.device)
        cells = torch.arange(count, device=tokens.device) - prefix
        cell = torch.where(cells >= 0, images[:, None] * (count - prefix) + cells, -1)
        packed = RaggedTokens(tokens.flatten(0, 1), (count,) * batch)
        return cls(packed, images.repeat_interleave(count), cell.flatten())

    def with_tokens(self, tokens: RaggedTokens) -> Travellers:
        """The same ones, with other values."""
        return Travellers(tokens, self.image, self.cell)

    def patches(self) -> tuple[RaggedTokens, Tensor]:
        """The patch tokens, and int64 (t,), their cells."""
        chosen = self.cell >= 0
        if bool(chosen.all()):
            return self.tokens, self.cell
        return self.tokens.select(chosen), self.cell[chosen]

    def after(self, scores: Tensor, rule: ExitRule) -> tuple[Travellers, Tensor]:
        """Those that go on once some have ended.

        Args:
            scores: float (t, K), probabilities of the classes of each patch token, in order.
            rule: which end.

        Returns:
            The others, but of images without a patch left nothing; and int64 (e,), the cells of those that ended.
        """
        patch = (self.cell >= 0).nonzero().squeeze(1)
        ends, found = ending(scores, self.image[patch], rule)
        gone = patch[ends]
        if not len(gone):
            return self, gone
        stays = torch.ones_like(self.image, dtype=torch.bool)
        stays[gone] = False
        left = torch.bincount(self.image[stays & (self.cell >= 0)], minlength=len(self.tokens.lengths)) > 0
        stays &= left[self.image]
        values, image, cell = self.tokens.values[stays], self.image[stays], self.cell[stays]
        if rule.averages:
            means, owner = class_means(self.tokens.values[gone], self.image[gone], found[ends], scores.shape[1])
            means, owner = means[left[owner]], owner[left[owner]]
            image = torch.cat([image, owner])
            order = image.argsort(stable=True)
            values = torch.cat([values, means])[order]
            image, cell = image[order], torch.cat([cell, cell.new_full((len(owner),), -1)])[order]
        lengths = torch.bincount(image, minlength=len(self.tokens.lengths)).tolist()
        return Travellers(RaggedTokens(values, tuple(lengths)), image, cell), self.cell[gone]
