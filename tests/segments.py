"""What tests of segmentation share: a small segmenter that is sure of some tokens, and one written down plainly."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from bavit.segment.config import HeadName
from bavit.segment.model import Segmenter

PATCH, DEPTH, DIM, CLASSES = 8, 5, 32, 6


def small_vit(**options: int) -> VisionTransformer:
    """A ViT of a few thousand weights, for pictures of 64 x 64."""
    torch.manual_seed(0)
    given: dict[str, int] = {"img_size": 64, "patch_size": PATCH, "embed_dim": DIM, "depth": DEPTH, "num_heads": 2}
    return VisionTransformer(**(given | options), num_classes=0)  # type: ignore[arg-type]


def sure_segmenter(head: HeadName, exit_after: tuple[int, ...] = (2, 4), **options: object) -> Segmenter:
    """A segmenter whose heads are sure of some tokens, and of others not."""
    torch.manual_seed(1)
    model = Segmenter(small_vit(), CLASSES, head, exit_after, **options)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for module in model.heads:
            each: Any = module
            for name, value in each.state_dict().items():
                if name.endswith("weight") and value.ndim == 2:
                    value.copy_(torch.randn(value.shape, generator=generator) * (value.shape[1] ** -0.5))
                elif name == "bn.running_var":
                    value.copy_(0.5 + torch.rand(value.shape, generator=generator))
            if head == "fcn":
                each.classify.weight *= 4
            else:
                each.class_embed.bias.copy_(torch.tensor([3.0, -3.0]))
                each.layers[-1].query.weight *= 6
    return model.eval()


@dataclass
class Plain:
    """One picture, worked through token by token as the paper says it.

    Attributes:
        stage: cell -> stage in which it ended.
        logits: cell -> what its head said of it.
        classes: (K, 2) of the last head that read a token, of ATM.
        seen: tokens that each block saw.
    """

    stage: dict[int, int] = field(default_factory=dict)
    logits: dict[int, Tensor] = field(default_factory=dict)
    classes: Tensor | None = None
    seen: list[int] = field(default_factory=list)


def plainly(model: Segmenter, pixels: Tensor) -> Plain:
    """The oracle for one picture (3, H, W) of whole patches: no packing, no batch, timm's own blocks, loops."""
    vit = model.backbone
    tokens = vit.norm_pre(vit._pos_embed(vit.patch_embed(pixels[None])))[0]
    prefix = vit.num_prefix_tokens
    cells: list[int | None] = [None] * prefix + list(range(len(tokens) - prefix))
    found = Plain()
    places = model.exit_after if model.p0 < 1 else ()
    for done, block in enumerate(vit.blocks, 1):
        if not any(cell is not None for cell in cells):
            tokens, cells = tokens[:0], []
        found.seen.append(len(cells))
        tokens = block(tokens[None])[0] if cells else tokens
        if done not in places and done != len(vit.blocks):
            continue
        stage = places.index(done) if done in places else len(model.exit_after)
        head = model.heads[model.head_after.index(done) if done != len(vit.blocks) else -1]
        rows = [row for row, cell in enumerate(cells) if cell is not None]
        if not rows:
            continue
        logits, found.classes = _head(head, tokens[rows])
        scores = _scores(logits, found.classes)
        for row, line in zip(rows, logits, strict=True):
            found.logits[cells[row]] = line  # type: ignore[index]
        ends = _ends(scores, model) if stage < len(model.exit_after) else list(range(len(rows)))
        for number in ends:
            found.stage[cells[rows[number]]] = stage  # type: ignore[index]
        gone = {rows[number] for number in ends}
        means = []
        if model.method in ("average", "average-top-k"):
            label = scores.argmax(1)
            for value in range(scores.shape[1]):
                members = [rows[number] for number in ends if int(label[number]) == value]
                means += [tokens[members].mean(0)] if members else []
        stays = [row for row in range(len(cells)) if row not in gone]
        tokens = torch.stack([*tokens[stays], *means]) if stays or means else tokens[:0]
        cells = [cells[row] for row in stays] + [None] * len(means)
    return found


def _scores(logits: Tensor, classes: Tensor | None) -> Tensor:
    return logits.softmax(1) if classes is None else classes.softmax(1)[:, 0] * logits.sigmoid()


def _ends(scores: Tensor, model: Segmenter) -> list[int]:
    """Numbers of the tokens that end, by DToP's rule."""
    best, label = scores.max(1)
    order = sorted(range(len(scores)), key=lambda number: -float(best[number]))
    if model.method == "proportion":
        return order[: int(len(scores) * model.proportion + 1e-9)]
    easy = [number for number in order if float(best[number]) >= model.p0]
    keep = model.keep_per_class if model.method in ("top-k", "average-top-k") else 0
    stays: list[int] = []
    for value in range(scores.shape[1]):
        stays += [number for number in easy if int(label[number]) == value][:keep]
    return [number for number in easy if number not in stays]


def _head(head: torch.nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
    """FCN by convolutions, ATM by torch's own attention."""
    state = dict(head.state_dict())
    functional = torch.nn.functional
    if "classify.weight" in state:
        normed = functional.layer_norm(tokens, (tokens.shape[1],), state["norm.weight"], state["norm.bias"], 1e-6)
        plane = normed.T[None, :, :, None]
        plane = functional.conv2d(plane, state["conv.weight"][:, :, None, None])
        plane = functional.batch_norm(
            plane, state["bn.running_mean"], state["bn.running_var"], state["bn.weight"], state["bn.bias"]
        )
        plane = functional.conv2d(plane.relu(), state["classify.weight"][:, :, None, None], state["classify.bias"])
        return plane[0, :, :, 0].T, None
    width = len(state["norm.weight"])
    heads = head.layers[0].heads  # type: ignore[union-attr, index]
    memory = functional.linear(tokens, state["project.weight"], state["project.bias"])
    memory = functional.layer_norm(memory, (width,), state["norm.weight"], state["norm.bias"])
    queries, masks = state["queries"], memory
    for number in range(3):
        part = {name.removeprefix(f"layers.{number}."): value for name, value in state.items()}

        def attend(
            query: Tensor, keys: Tensor, weight: Tensor, bias: Tensor, out: str, part: dict[str, Tensor] = part
        ) -> Tensor:
            return functional.multi_head_attention_forward(
                query[:, None], keys[:, None], keys[:, None], width, heads, weight, bias, None, None, False, 0.0,
                part[f"{out}.weight"], part[f"{out}.bias"], training=False,
            )[0][:, 0]  # fmt: skip

        def norm(values: Tensor, place: int, part: dict[str, Tensor] = part) -> Tensor:
            return functional.layer_norm(values, (width,), part[f"norms.{place}.weight"], part[f"norms.{place}.bias"])

        queries = norm(queries + attend(queries, queries, part["qkv.weight"], part["qkv.bias"], "self_out"), 0)
        query = functional.linear(queries, part["query.weight"], part["query.bias"]).view(-1, heads, width // heads)
        key = functional.linear(memory, part["key_value.weight"][:width], part["key_value.bias"][:width])
        products = torch.einsum("qhd,thd->htq", query, key.view(-1, heads, width // heads))
        masks = (products / (width // heads) ** 0.5).mean(0)
        weight = torch.cat([part["query.weight"], part["key_value.weight"]])
        bias = torch.cat([part["query.bias"], part["key_value.bias"]])
        queries = norm(queries + attend(queries, memory, weight, bias, "cross_out"), 1)
        hidden = functional.linear(queries, part["mlp.0.weight"], part["mlp.0.bias"]).relu()
        queries = norm(queries + functional.linear(hidden, part["mlp.3.weight"], part["mlp.3.bias"]), 2)
    return masks, functional.linear(queries, state["class_embed.weight"], state["class_embed.bias"])
