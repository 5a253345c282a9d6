"""Multiply-accumulates (MACs) of vision transformers: counted by formula, and measured.

Counted are the products of matrices: patch embedding, linear layers, both products of attention, heads. Norms,
activations, softmax, biases and position embeddings are not, as in the papers this package follows, whose "GFLOPs" are
MACs. Every figure is per image.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True, slots=True)
class VitShape:
    """What the cost of a ViT depends on.

    Attributes:
        dim: width of a token.
        depth: blocks.
        patch_numbers: numbers that a patch holds: height x width x 3 colours.
        extra_tokens: CLS, registers, detection tokens: those besides the patches.
        head_macs: of the head, for an image, whatever the number of patches.
        head_macs_per_patch: of a head that reads every patch token.
        mlp_ratio: width of the hidden layer of a block's MLP by `dim`; a fraction where it must be exact.
    """

    dim: int
    depth: int
    patch_numbers: int = 16 * 16 * 3
    extra_tokens: int = 0
    head_macs: int = 0
    head_macs_per_patch: int = 0
    mlp_ratio: float | Fraction = 4

    @overload
    def macs(self, patches: int, *, embedded: int | None = None, whole_blocks: int = 0) -> int: ...

    @overload
    def macs(
        self,
        patches: NDArray[np.integer],
        *,
        embedded: int | NDArray[np.integer] | None = None,
        whole_blocks: int = 0,
    ) -> NDArray[np.int64]: ...

    def macs(
        self,
        patches: int | NDArray[np.integer],
        *,
        embedded: int | NDArray[np.integer] | None = None,
        whole_blocks: int = 0,
    ) -> int | NDArray[np.int64]:
        """MACs of images of which some patches are kept; attention makes them quadratic.

        Args:
            patches: patch tokens in the blocks, extra tokens left out: a number, or any array of whole numbers.
            embedded: patches that are embedded, where that is done before the others are dropped; by default `patches`.
                Of the same shape where it is an array.
            whole_blocks: the first blocks, which see all the embedded patches.

        Returns:
            A whole number, or int64 of the same shape.
        """
        kept, whole = _counts(patches), _counts(patches if embedded is None else embedded)
        blocks = vit_macs(kept + self.extra_tokens, self.dim, self.depth - whole_blocks, mlp_ratio=self.mlp_ratio)
        before = vit_macs(whole + self.extra_tokens, self.dim, whole_blocks, mlp_ratio=self.mlp_ratio)
        embedding = whole * (self.patch_numbers * self.dim)
        return before + blocks + embedding + kept * self.head_macs_per_patch + self.head_macs


def _counts(patches: int | NDArray[np.integer]) -> int | NDArray[np.int64]:
    return patches.astype(np.int64) if isinstance(patches, np.ndarray) else int(patches)


@overload
def vit_macs(tokens: int, dim: int, depth: int, *, mlp_ratio: float | Fraction = 4) -> int: ...


@overload
def vit_macs(
    tokens: int | NDArray[np.int64], dim: int, depth: int, *, mlp_ratio: float | Fraction = 4
) -> int | NDArray[np.int64]: ...


def vit_macs(
    tokens: int | NDArray[np.int64], dim: int, depth: int, *, mlp_ratio: float | Fraction = 4
) -> int | NDArray[np.int64]:
    """MACs of the blocks of a ViT: n (4 + 2 mlp_ratio) dim^2 for the linear layers, 2 n^2 dim for attention, each.

    Args:
        tokens: n, all tokens of an image.
        dim: width of a token.
        depth: blocks.
        mlp_ratio: width of the hidden layer by `dim`.
    """
    linear = 4 * dim * dim + 2 * dim * int(dim * mlp_ratio)
    return (tokens * linear + tokens * tokens * (2 * dim)) * depth


def block_macs(block: nn.Module, tokens: Tensor) -> Tensor:
    """MACs of a block of timm's, measured by the layers it holds: of any width of attention, gated MLPs too.

    Args:
        block: one that `vit.run_block` knows.
        tokens: int64 of any shape, all tokens of an image.

    Returns:
        int64 of the same shape.
    """
    attention: Any = block.attn
    width: int = attention.proj.in_features
    return tokens * linear_macs(block) + tokens * tokens * (2 * width)


def linear_macs(module: nn.Module) -> int:
    """MACs of all linear layers of a module for one token."""
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))


def background_vit(depth: int = 2, *, dim: int = 192, patch: tuple[int, int] = (16, 16)) -> VitShape:
    """BAViT: no token besides the patches, two outputs for each. 0.850 GMAC at depth 2 with 576 patches."""
    return VitShape(dim, depth, patch[0] * patch[1] * 3, head_macs_per_patch=2 * dim)


def yolos(
    depth: int = 12,
    *,
    dim: int = 192,
    patch: tuple[int, int] = (16, 16),
    detection_tokens: int = 100,
    classes: int = 92,
    mlp_hidden: int | None = None,
) -> VitShape:
    """YOLOS: a CLS token, detection tokens, and on each of these two MLPs of three layers: classes and box.

    Args:
        classes: outputs of the first MLP, no-object included.
        mlp_hidden: width of the hidden layer of a block's MLP, by default 4 `dim`.
    """
    head = detection_tokens * (2 * dim * dim + dim * classes + 2 * dim * dim + dim * 4)
    ratio = Fraction(4 * dim if mlp_hidden is None else mlp_hidden, dim)
    extra = 1 + detection_tokens
    return VitShape(dim, depth, patch[0] * patch[1] * 3, extra_tokens=extra, head_macs=head, mlp_ratio=ratio)


YOLOS_TINY = yolos()
"""YOLOS-tiny, 11.97 GMAC at 512 x 512."""


def count_macs(module: nn.Module, *inputs: object) -> int:
    """MACs of one call, measured by `torch.utils.flop_counter`, of the whole batch.

    Attention runs on the plain backend, whose products of matrices every version of torch counts. Operators that the
    counter does not know, custom ones above all, count as nothing.

    Args:
        module: called once, without gradients, in the mode it is in.
        inputs: its arguments, on its device.
    """
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return int(counter.get_total_flops()) // 2  # a multiply-accumulate is two operations
