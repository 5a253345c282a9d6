"""Any plain ViT of timm on those patches alone that a policy keeps.

    pruned = bavit.prune(timm.create_model("vit_small_patch14_reg4_dinov2", pretrained=True), bavit_model)
    features = pruned(pixels)

Correct is what the model itself gives when removed patches are masked as keys of every attention and left out of the
pooling. With all patches kept that is the model itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from bavit.attention import Backend
from bavit.background.model import BAViT
from bavit.plain_vit.accounting import pruned_macs
from bavit.plain_vit.head import answer
from bavit.plain_vit.policies import BackgroundPolicy, PixelPolicy, TokenPolicy
from bavit.plain_vit.supported import (
    Grid,
    check_dropout,
    check_plain,
    full_mask,
    stated_normalisation,
    whole_patches,
)
from bavit.plain_vit.tokens import KeptTokens, first_tokens, rope_table, turns
from bavit.vit import run_block
from tokenlabels.errors import ParameterError


def prune(
    model: nn.Module,
    policy: PixelPolicy | BackgroundPolicy | TokenPolicy | BAViT | None = None,
    *,
    after: int = 0,
    backend: Backend = "auto",
) -> PrunedViT:
    """A plain ViT of timm that computes kept patches alone; it shares the weights of the model, which stays as it is.

    Gradients flow as in the model; its gradient checkpointing is not used.

    Args:
        model: `VisionTransformer`, `VisionTransformerDistilled` or `Eva` of timm, with any pooling but `prr`.
        policy: which patches stay. A function or module of pixels, see `PixelPolicy`; a `BackgroundPolicy`; a `BAViT`,
            which stands for one with the normalisation that the model states; a `TokenPolicy`. None: those that a call
            says, else all.
        after: blocks that see all patches; at 0 a removed patch is not even embedded, but for a `TokenPolicy`.
        backend: of attention, see `attention.py`.

    Raises:
        ParameterError: no plain ViT, `after` beyond the blocks, or a model that states no normalisation to a BAViT.
    """
    check_plain(model)
    if isinstance(policy, BAViT):
        stated = stated_normalisation(model)
        if stated is None:
            raise ParameterError(
                "the model does not say by which mean and std its pixels are normalised: give "
                "BackgroundPolicy(bavit, mean, std)."
            )
        policy = BackgroundPolicy(policy, *stated)
    return PrunedViT(model, policy, after, backend)


class PrunedViT(nn.Module):
    """What `prune` makes; arguments and faults as there.

    Attributes:
        model: the ViT.
        policy: which patches stay.
        after: blocks that see all patches.
        backend: of attention.
    """

    model: Any

    def __init__(
        self,
        model: Any,
        policy: PixelPolicy | BackgroundPolicy | TokenPolicy | None,
        after: int = 0,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.model, self.policy, self.after, self.backend = model, policy, after, backend
        if not 0 <= after < len(model.blocks):
            raise ParameterError(f"patches leave after block {after}: it is 0 to {len(model.blocks) - 1}.")

    def forward(self, pixels: Tensor, keep: Tensor | None = None) -> Tensor:
        """What the model answers.

        Args:
            pixels: float (batch, channels, H, W), as the model takes them.
            keep: bool (batch, rows, cols) in place of the policy.

        Returns:
            As `model(pixels)`, see `answer`; means, maxima and attention of pooling are over kept patches. Where none
            is left, and pooling does not read the prefix, it reads one token of zeros.

        Raises:
            ParameterError: a size that the model does not take, a mask of another shape or dtype, or dropout of
                attention or patches in training.
        """
        return self.forward_head(self.forward_features(pixels, keep))

    def forward_features(self, pixels: Tensor, keep: Tensor | None = None) -> KeptTokens:
        """The tokens after the last norm, and which patches they are; arguments and faults as of `forward`."""
        model = self.model
        check_dropout(model)
        pixels, grid = whole_patches(model, pixels)
        everything = full_mask(pixels, grid)
        if keep is None and not isinstance(self.policy, TokenPolicy):
            keep = everything if self.policy is None else self._seen(pixels, grid)
        keep = None if keep is None else _checked(keep, everything)
        tokens = first_tokens(model, pixels, everything if keep is None or self.after else keep)
        table = rope_table(model, grid)
        tokens = self._through(tokens, range(self.after), table)
        if keep is None or self.after:
            tokens = tokens.without(self._decided(tokens, grid) if keep is None else keep)
        tokens = self._through(tokens, range(self.after, len(model.blocks)), table)
        return tokens.with_values(model.norm(tokens.tokens.values))

    def forward_head(self, kept: KeptTokens, *, pre_logits: bool = False) -> Tensor:
        """The model's answer to what `forward_features` gives; `pre_logits`: what its classifier reads instead."""
        return answer(self.model, kept, pre_logits=pre_logits)

    def macs(self, keep: Tensor) -> NDArray[np.int64]:
        """Multiply-accumulates of each image without those of the policy, int64 (batch,).

        Args:
            keep: bool (batch, rows, cols), such as `forward_features(pixels).keep`.
        """
        return pruned_macs(self.model, keep, self.after, embed_all=isinstance(self.policy, TokenPolicy))

    def _seen(self, pixels: Tensor, grid: Grid) -> Tensor:
        """What the pixels say."""
        policy: Any = self.policy
        found: Tensor = policy(pixels, grid) if isinstance(policy, BackgroundPolicy) else policy(pixels)
        return found

    def _decided(self, tokens: KeptTokens, grid: Grid) -> Tensor:
        """What the tokens of all patches say."""
        assert isinstance(self.policy, TokenPolicy)
        values = tokens.tokens.values
        return _checked(self.policy(values.view(len(tokens.keep), -1, values.shape[1]), grid), tokens.keep)

    def _through(self, tokens: KeptTokens, blocks: range, table: Tensor | None) -> KeptTokens:
        """Tokens after some blocks."""
        ragged = tokens.tokens
        for number, rope in zip(blocks, turns(table, tokens, blocks), strict=True):
            ragged = run_block(self.model.blocks[number], ragged, self.backend, rope)
        return tokens.with_values(ragged.values)


def _checked(keep: object, like: Tensor) -> Tensor:
    """A mask of the shape of another, on its device."""
    if not isinstance(keep, Tensor) or keep.dtype is not like.dtype or keep.shape != like.shape:
        found = f"{keep.dtype} {tuple(keep.shape)}" if isinstance(keep, Tensor) else type(keep).__name__
        raise ParameterError(f"patches are kept by a bool mask {tuple(like.shape)}, not by {found}.")
    return keep.to(like.device)
