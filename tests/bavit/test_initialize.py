"""Where training starts: what initialisation from scratch promises, and weights of other ViTs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer

from bavit import BAViT
from bavit.background import initialize
from tokenlabels.errors import TokenLabelsError


def timm_vit(**changes: Any) -> VisionTransformer:
    """A small ViT as ImageNet models are: with CLS token and a head of classes."""
    torch.manual_seed(5)
    options = {"img_size": 64, "patch_size": 16, "embed_dim": 64, "depth": 3, "num_heads": 1, "num_classes": 10}
    return VisionTransformer(**(options | changes)).eval()


def model_of(**changes: Any) -> BAViT:
    torch.manual_seed(6)
    return BAViT(**({"depth": 2, "width": 64, "patch": 16, "image_size": 64} | changes)).eval()


def test_scratch_whitens_the_patches_of_the_data() -> None:
    """Outputs of the first layer have no mean, and no correlation with each other."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(24, 3, 64, 64, generator=generator).cumsum(3) / 64  # neighbours are alike, as in photographs
    model = model_of()
    initialize.from_scratch(model.vit, pixels, generator)
    with torch.inference_mode():
        tokens = model.vit.patch_embed(pixels).flatten(0, 1)
    assert tokens.mean(0).abs().max() < 1e-3
    deviations = tokens.std(0)
    correlation = torch.corrcoef(tokens.T) - torch.eye(64)
    assert correlation.abs().max() < 0.02
    assert deviations[0] > 0.2


def test_scratch_positions_tell_row_and_column() -> None:
    positions = initialize.sine_positions(5, 7, 64)[0].view(5, 7, 64)
    assert torch.equal(positions[:, 0, :32], positions[:, 6, :32])
    assert torch.equal(positions[0, :, 32:], positions[4, :, 32:])
    flat = positions.reshape(35, 64)
    assert (torch.cdist(flat, flat) + torch.eye(35) > 0.1).all()


def test_scratch_is_the_same_for_the_same_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initialize, "_PATCHES", 40)  # of 64
    states = []
    for seed in (1, 1, 2):
        model = model_of()
        initialize.from_scratch(model.vit, torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)),
                                torch.Generator().manual_seed(seed))  # fmt: skip
        with torch.inference_mode():
            states.append(model(torch.ones(1, 3, 64, 64)))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_an_imagenet_vit_gives_its_first_blocks(tmp_path: Path, suffix: str) -> None:
    """Tokens after two blocks are those of the ViT without its CLS token."""
    source, path = timm_vit(), tmp_path / f"vit{suffix}"
    if suffix == ".pth":
        torch.save({"model": source.state_dict()}, path)
    else:
        save_file(source.state_dict(), path)
    model = model_of()
    initialize.from_checkpoint(model, path)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        tokens = source.patch_embed(pixels) + source.get_parameter("pos_embed")[:, 1:]
        for block in source.blocks[:2]:
            tokens = block(tokens)
        torch.testing.assert_close(model.vit.forward_features(pixels), source.norm(tokens))


def test_positions_and_patches_are_resampled(tmp_path: Path) -> None:
    source = timm_vit()
    save_file(source.state_dict(), tmp_path / "vit.safetensors")
    model = model_of(patch=8, image_size=(48, 64))
    initialize.from_checkpoint(model, tmp_path / "vit.safetensors")
    wanted = resample_abs_pos_embed(source.get_parameter("pos_embed")[:, 1:], [6, 8], [4, 4], 0)
    torch.testing.assert_close(model.vit.pos_embed, wanted)
    with torch.inference_mode():  # a patch of one colour keeps its token but for the scale that resampling leaves it
        flat = torch.ones(1, 3, 64, 64)
        cosine = torch.cosine_similarity(
            model.vit.patch_embed(flat[:, :, :48])[0, 0] - model.vit.patch_embed.proj.bias,
            source.patch_embed(flat)[0, 0] - source.patch_embed.proj.bias,
            dim=0,
        )
    assert cosine > 0.99


def test_a_run_on_an_oblong_grid_is_taken_over(tmp_path: Path) -> None:
    source = model_of(image_size=(32, 128))
    source.save_pretrained(tmp_path)
    same, other = model_of(image_size=(32, 128)), model_of(image_size=(64, 64))
    initialize.from_checkpoint(same, tmp_path)
    initialize.from_checkpoint(other, tmp_path / "model.safetensors")
    pixels = torch.randn(1, 3, 32, 128)
    with torch.inference_mode():
        assert torch.equal(same(pixels), source(pixels))
    torch.testing.assert_close(other.vit.pos_embed, resample_abs_pos_embed(source.vit.pos_embed, [4, 4], [2, 8], 0))


def test_imagenet_asks_timm_for_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The download itself cannot be tried without a network; what is asked for, and what becomes of it, can."""
    asked: list[tuple[str, bool]] = []

    def create(name: str, *, pretrained: bool) -> VisionTransformer:
        asked.append((name, pretrained))
        return timm_vit(img_size=384, embed_dim=192, num_heads=3)

    monkeypatch.setattr("bavit.vit_weights.timm.create_model", create)
    model = BAViT(depth=2)
    initialize.from_imagenet(model)
    assert asked == [("vit_tiny_patch16_384.augreg_in21k_ft_in1k", True)]
    torch.testing.assert_close(
        model.vit.pos_embed, timm_vit(img_size=384, embed_dim=192, num_heads=3).get_parameter("pos_embed")[:, 1:]
    )


def test_no_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, *, pretrained: bool) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("bavit.vit_weights.timm.create_model", fail)
    with pytest.raises(TokenLabelsError, match=r"--init none .*name that file with --init"):
        initialize.from_imagenet(model_of())


class Dangerous:
    """What a pickle must not be able to do."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("raise SystemExit('ran')",)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"model": Dangerous()}, "weights alone"),
        ({"a": 1}, "no state dict"),
        ({"a": torch.ones(1)}, "holds no ViT"),
        (timm_vit(depth=1).state_dict(), "has 1 blocks"),
        (timm_vit(embed_dim=128).state_dict(), "has shape"),
    ],
)
def test_files_that_are_no_weights_of_such_a_vit(tmp_path: Path, content: Any, named: str) -> None:
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(TokenLabelsError, match=named) as caught:
        initialize.from_checkpoint(model_of(), path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_truncated_weights(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    (torch.save if name.endswith(".pth") else save_file)(timm_vit().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(TokenLabelsError, match="cannot be read"):
        initialize.from_checkpoint(model_of(), path)
    with pytest.raises(TokenLabelsError, match="no such file"):
        initialize.from_checkpoint(model_of(), tmp_path / "nothing")
