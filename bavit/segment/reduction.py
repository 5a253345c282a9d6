"""The grid halved within a network: what early exit is compared with in the supplement of DToP."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from bavit.segment.config import Reduction


class HalvedGrid(nn.Module):
    """Patch tokens on a grid of half the rows and columns, rounded up.

    conv     a 3 x 3 convolution of stride 2
    pool     the mean of each 2 x 2
    nearest  the upper left of each 2 x 2

    Args:
        kind: one of these.
        dim: width of a token.
    """

    def __init__(self, kind: Reduction, dim: int) -> None:
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv2d(dim, dim, 3, stride=2, padding=1) if kind == "conv" else None

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, rows, cols, dim) -> (B, ceil(rows / 2), ceil(cols / 2), dim)."""
        if self.kind == "nearest":
            return tokens[:, ::2, ::2]
        planes = tokens.permute(0, 3, 1, 2)
        if self.conv is not None:
            halved: Tensor = self.conv(planes)
        else:
            halved = avg_pool2d(planes, 2, ceil_mode=True, count_include_pad=False)
        return halved.permute(0, 2, 3, 1)

    def macs(self, rows: int, cols: int) -> int:
        """Multiply-accumulates for a grid of `rows` x `cols`."""
        return -(-rows // 2) * -(-cols // 2) * self.conv.weight.numel() if self.conv is not None else 0
