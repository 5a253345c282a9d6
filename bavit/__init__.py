"""Background-aware vision transformers.

    model = bavit.BAViT.from_pretrained("bavit-run")
    kept = model.kept(model.preprocess(pictures))    # bool (B, rows, cols)
    detector = bavit.PrunedDetector(model, bavit.Yolos.from_pretrained("hustvl/yolos-tiny"))
    found = detector(pictures)    # boxes, scores, labels of each
    segmenter = bavit.Segmenter("vit_base_patch16_384", 150, "atm", pretrained=True)
    found = segmenter(segmenter.preprocess(pictures))    # logits (B, 150, rows, cols), where tokens ended
    pruned = bavit.prune(timm.create_model("vit_small_patch14_reg4_dinov2", pretrained=True), model)
    features = pruned(pixels)    # what timm's model gives, on patches of the foreground alone

Everything is imported on first use, so that `import bavit` does not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bavit.background.model import BAViT
    from bavit.background.refine import refine, resize_mask
    from bavit.detect.accounting import token_reduction
    from bavit.detect.adaptive import AdaptiveThreshold
    from bavit.detect.pruned import PrunedDetector
    from bavit.detect.yolos import Yolos
    from bavit.plain_vit.policies import BackgroundPolicy, TokenPolicy
    from bavit.plain_vit.pruned import PrunedViT, prune
    from bavit.segment.model import Segmenter

__all__ = [
    "AdaptiveThreshold", "BAViT", "BackgroundPolicy", "PrunedDetector", "PrunedViT", "Segmenter", "TokenPolicy",
    "Yolos", "prune", "refine", "resize_mask", "token_reduction",
]  # fmt: skip

_HOMES = {
    "AdaptiveThreshold": ("detect.adaptive", "AdaptiveThreshold"),
    "BAViT": ("background.model", "BAViT"),
    "BackgroundPolicy": ("plain_vit.policies", "BackgroundPolicy"),
    "PrunedDetector": ("detect.pruned", "PrunedDetector"),
    "PrunedViT": ("plain_vit.pruned", "PrunedViT"),
    "Segmenter": ("segment.model", "Segmenter"),
    "TokenPolicy": ("plain_vit.policies", "TokenPolicy"),
    "Yolos": ("detect.yolos", "Yolos"),
    "prune": ("plain_vit.pruned", "prune"),
    "refine": ("background.refine", "refine"),
    "resize_mask": ("background.refine", "resize_mask"),
    "token_reduction": ("detect.accounting", "token_reduction"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(import_module(f"{__name__}.{module}"), attribute)
