"""What training asks of a detector: answers after its last blocks, and of its patches."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor, nn

from bavit.detect.soft import soft_blocks
from bavit.detect.yolos import Yolos
from bavit.ragged import RaggedTokens


class Answering(nn.Module):
    """A detector that answers after its last blocks, not only the last one.

    Args:
        yolos: the detector.
        auxiliary: blocks before the last.
        prune_after: blocks that see all patches.
        guided: patches answer, too, halfway through the blocks.
    """

    def __init__(self, yolos: Yolos, auxiliary: int, prune_after: int, *, guided: bool) -> None:
        super().__init__()
        self.yolos, self._answers, self._prune_after = yolos, 1 + auxiliary, prune_after
        self._guided_after = max(yolos.config.depth // 2, prune_after) if guided else -1

    def forward(
        self, pixels: Tensor | list[Tensor], keep: list[Tensor] | None, policy: list[Tensor] | None = None
    ) -> tuple[tuple[Tensor, Tensor], ...]:
        """Logits (..., K + 1) and boxes (..., 4) of each answer: (B, T), the last block's last; first those of patches.

        Patches are (patches kept in all,), image after image; they are there only where they are guided.

        Args:
            pixels: see `Yolos.forward`.
            keep: bool (rows_i, cols_i) of each image, or None.
            policy: the same decisions as numbers that have gradients, see `soft.py`; None: they are not learned.
        """
        if policy is None:
            blocks = self.yolos.blocks(pixels, keep, prune_after=self._prune_after)
        else:
            blocks = soft_blocks(self.yolos, pixels, policy, prune_after=self._prune_after)
        found = []
        answers: deque[RaggedTokens] = deque(maxlen=self._answers)
        for index, tokens in enumerate(blocks):
            if index == self._guided_after:
                patches = torch.cat([image[1 : -self.yolos.config.detection_tokens] for image in tokens.images()])
                if policy is not None and keep is not None:
                    patches = patches[torch.cat([mask.flatten() for mask in keep])]
                found.append(self.yolos.answer(patches))
            answers.append(tokens)
        found += [self.yolos.read(tokens) for tokens in answers]
        return tuple((answer.logits, answer.boxes) for answer in found)
