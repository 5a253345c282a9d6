"""Segmentation heads on ragged tokens: SETR-naive's (FCN), and SegViT's attention to mask (ATM)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, pad, scaled_dot_product_attention

from bavit.ragged import RaggedTokens
from bavit.segment.config import HeadName

FCN_WIDTH = 256
"""Channels between the two convolutions of SETR-naive."""

LEAST_TOKENS = 32
"""Of which batch norm learns statistics: where nearly all tokens ended, the few that are left say nothing."""

ATM_LAYERS = 3
_ATM_LEAST_WIDTH = 192
_HEAD_WIDTH = 64
_DROPOUT = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class HeadOutput:
    """What a head says of t tokens of B images.

    Attributes:
        logits: float32 (t, K): of classes (FCN), or of the mask of each class (ATM).
        class_logits: float32 (B, K, 2), of ATM: whether each class is in the image, index 0 says it is. Those of an
            image without tokens mean nothing.
    """

    logits: Tensor
    class_logits: Tensor | None = None


def combined(logits: Tensor, class_logits: Tensor | None, image: Tensor) -> Tensor:
    """What a head believes, as numbers whose greatest is the class.

    Args:
        logits: (t, K) of `HeadOutput`.
        class_logits: (B, K, 2) of `HeadOutput`.
        image: int64 (t,), the image of each token.

    Returns:
        (t, K): logits of FCN as they are; of ATM the probability of the class times that of its mask, in 0..1.
    """
    if class_logits is None:
        return logits
    return class_logits.softmax(-1)[image, :, 0] * logits.sigmoid()


def probabilities(logits: Tensor, class_logits: Tensor | None, image: Tensor) -> Tensor:
    """Probability of each class, (t, K), by which a token may end; arguments as of `combined`."""
    return logits.softmax(-1) if class_logits is None else combined(logits, class_logits, image)


class FcnHead(nn.Module):
    """Norm, 1 x 1 convolution, batch norm, ReLU, 1 x 1 convolution: SETR-naive (Zheng et al., CVPR 2021), section 3.3.

    On tokens a 1 x 1 convolution is a linear layer, and batch norm is over all tokens there are.
    """

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.conv = nn.Linear(dim, FCN_WIDTH, bias=False)
        self.bn = nn.BatchNorm1d(FCN_WIDTH)
        self.classify = nn.Linear(FCN_WIDTH, classes)
        _initialize(self)

    def forward(self, tokens: RaggedTokens) -> HeadOutput:
        """Logits of every token (total, dim)."""
        hidden = self.conv(self.norm(tokens.values))
        if self.training and len(hidden) < LEAST_TOKENS:  # as in evaluation
            bn = self.bn
            hidden = batch_norm(hidden, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)
        else:
            hidden = self.bn(hidden)
        return HeadOutput(self.classify(hidden.relu()).float())

    def macs(self, tokens: int, images: int) -> int:  # noqa: ARG002  all of it is by token
        """Multiply-accumulates for some tokens of some images."""
        return tokens * (self.conv.weight.numel() + self.classify.weight.numel())


class AtmHead(nn.Module):
    """One query for each class, that looks for its class in the tokens: SegViT (Zhang et al., NeurIPS 2022), section 3.

    Tokens pass a linear layer and a norm. In each of three decoder layers queries attend to each other, then to the
    tokens, then pass an MLP, norms following each. The product of queries and keys in the last one, before softmax and
    averaged over heads, is the mask of each class; what becomes of its query says whether the class is there at all.
    """

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        width = max(dim // 2, min(dim, _ATM_LEAST_WIDTH))
        heads = next(count for count in range(max(1, width // _HEAD_WIDTH), 0, -1) if width % count == 0)
        self.project = nn.Linear(dim, width)
        self.norm = nn.LayerNorm(width)
        self.queries = nn.Parameter(torch.empty(classes, width))
        self.layers = nn.ModuleList(_DecoderLayer(width, heads) for _ in range(ATM_LAYERS))
        self.class_embed = nn.Linear(width, 2)
        _initialize(self)
        nn.init.normal_(self.queries)

    def forward(self, tokens: RaggedTokens) -> HeadOutput:
        """Masks of every token (total, dim), and classes of every image."""
        if not self.training and 0 in tokens.lengths:
            return self._of_images_with_tokens(tokens)
        memory = tokens.with_values(self.norm(self.project(tokens.values)))
        found = self.queries.repeat(len(tokens.lengths), 1, 1)
        masks = tokens.values.new_zeros(0)
        for layer in self.layers:
            found, masks = layer(found, memory)
        return HeadOutput(masks.float(), self.class_embed(found).float())

    def _of_images_with_tokens(self, tokens: RaggedTokens) -> HeadOutput:
        """Images without tokens cost nothing; ranks that train must run everything, for others wait for gradients."""
        there = [image for image, length in enumerate(tokens.lengths) if length]
        classes = tokens.values.new_zeros((len(tokens.lengths), len(self.queries), 2), dtype=torch.float32)
        if not there:
            return HeadOutput(tokens.values.new_zeros((0, len(self.queries)), dtype=torch.float32), classes)
        found: HeadOutput = self(RaggedTokens(tokens.values, tuple(tokens.lengths[image] for image in there)))
        assert found.class_logits is not None
        return HeadOutput(
            found.logits, classes.index_copy(0, torch.tensor(there, device=classes.device), found.class_logits)
        )

    def macs(self, tokens: int, images: int) -> int:
        """Multiply-accumulates for some tokens of some images."""
        classes, width = self.queries.shape
        by_token = self.project.weight.numel() + ATM_LAYERS * (2 * width * width + 2 * classes * width)
        query_layers = 4 + 2 + 8  # attention to each other, queries and output of that to tokens, MLP
        by_image = ATM_LAYERS * (query_layers * classes * width * width + 2 * classes * classes * width)
        return tokens * by_token + images * (by_image + classes * self.class_embed.weight.numel())


class _DecoderLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.self_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.cross_out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.ReLU(), nn.Dropout(_DROPOUT), nn.Linear(4 * width, width)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.drop = nn.Dropout(_DROPOUT)

    def forward(self, found: Tensor, memory: RaggedTokens) -> tuple[Tensor, Tensor]:
        """Queries (B, K, width) and tokens -> queries, and the masks (total, K)."""
        first, second, third = self.norms
        found = first(found + self.drop(self.self_out(self._to_each_other(found))))
        attended, masks = self._to_tokens(found, memory)
        found = second(found + self.drop(self.cross_out(attended)))
        return third(found + self.drop(self.mlp(found))), masks

    def _to_each_other(self, found: Tensor) -> Tensor:
        query, key, value = self.qkv(found).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        attended: Tensor = scaled_dot_product_attention(query, key, value)
        return attended.transpose(1, 2).flatten(2)

    def _to_tokens(self, found: Tensor, memory: RaggedTokens) -> tuple[Tensor, Tensor]:
        query = self.query(found).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        pairs = self.key_value(memory.values).unflatten(-1, (2, self.heads, -1))
        lengths = memory.lengths
        if len(set(lengths)) == 1 and lengths[0]:
            attended, masks = _attend(query, pairs.unflatten(0, (len(lengths), -1)))
            return attended, masks.flatten(0, 1)
        if pairs.device.type == "cuda":
            return _attend_padded(query, pairs, lengths)
        parts = [
            _attend(query[index : index + 1], image[None])
            for index, image in enumerate(torch.split(pairs, list(lengths)))
        ]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1][0] for part in parts])


def _attend(query: Tensor, pairs: Tensor, there: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Attention (b, heads, K, d) to (b, n, 2, heads, d): what comes of it (b, K, heads * d), and masks (b, n, K)."""
    key, value = pairs.permute(2, 0, 3, 1, 4).unbind(0)
    products = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    shares = products if there is None else products.masked_fill(~there[:, None, None], -torch.inf)
    attended = shares.softmax(-1) @ value
    return attended.transpose(1, 2).flatten(2), products.mean(1).transpose(1, 2)


def _attend_padded(query: Tensor, pairs: Tensor, lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """`_attend` on packed (total, 2, heads, d) in one go, padding masked; masks are packed again."""
    width = max(1, *lengths)
    full = torch.stack(
        [pad(image, (0, 0) * 3 + (0, width - len(image))) for image in torch.split(pairs, list(lengths))]
    )
    counts = torch.tensor(lengths, device=pairs.device)
    there = torch.arange(width, device=pairs.device) < counts[:, None]
    attended, masks = _attend(query, full, there | (counts == 0)[:, None])
    return attended * (counts > 0)[:, None, None], masks[there]


def _initialize(head: nn.Module) -> None:
    for module in head.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def make_head(name: HeadName, dim: int, classes: int) -> FcnHead | AtmHead:
    """A head that reads tokens of some width."""
    return FcnHead(dim, classes) if name == "fcn" else AtmHead(dim, classes)
