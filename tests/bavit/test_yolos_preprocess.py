"""Pictures for YOLOS against transformers' image processor, slivers that it cannot take, and boxes in pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import YolosImageProcessor
from transformers.models.yolos.image_processing_yolos import get_size_with_aspect_ratio_yolos

from bavit.detect.config import YolosConfig
from bavit.detect.preprocess import detector_size, preprocess
from tokenlabels.errors import ParameterError

CONFIG = YolosConfig()
SIZES = [(640, 480), (480, 640), (500, 375), (333, 500), (512, 512), (682, 512), (512, 683), (1000, 300), (300, 999),
         (17, 23), (1, 1), (640, 427), (427, 640), (853, 512), (1500, 901)]  # fmt: skip


def _picture(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 10_000 + height)
    rough = Image.fromarray(rng.integers(0, 256, (max(1, height // 7), max(1, width // 7), 3), np.uint8))
    smooth = np.asarray(rough.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    return Image.fromarray((smooth + rng.integers(-20, 20, (height, width, 3))).clip(0, 255).astype(np.uint8))


def test_the_official_size() -> None:
    assert detector_size(640, 480, 512, 853, 16) == (512, 672)
    assert detector_size(480, 640, 512, 853, 16) == (672, 512)
    assert detector_size(640, 480, 512, 853, 32) == (512, 672)
    assert detector_size(1280, 720, 512, 853, 16) == (480, 848)
    assert detector_size(100_000, 1, 512, 853, 16) == (16, 848)


@pytest.mark.parametrize("edges", [(512, 853), (96, 160), (800, 1333)])
def test_sizes_are_those_of_transformers(edges: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    drawn = np.exp(rng.uniform(np.log(20), np.log(3000), (4000, 2))).astype(int).tolist()
    for width, height in [*SIZES, *drawn]:
        wanted = get_size_with_aspect_ratio_yolos((height, width), *edges)
        assert detector_size(width, height, *edges, 16) == tuple(max(16, side) for side in wanted)


@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_those_of_transformers(size: tuple[int, int]) -> None:
    config = replace(CONFIG, shortest_edge=160, longest_edge=267, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    processor = YolosImageProcessor(
        size={"shortest_edge": 160, "longest_edge": 267}, image_mean=list(config.mean), image_std=list(config.std)
    )
    picture = _picture(*size)
    found = preprocess(picture, config)
    assert isinstance(found, torch.Tensor)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, processor(picture, return_tensors="pt")["pixel_values"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(640, 480), (301, 500)])
def test_pixels_are_those_of_pillow_but_for_a_rounding(size: tuple[int, int]) -> None:
    """The authors resize with Pillow."""
    config = replace(CONFIG, shortest_edge=160, longest_edge=267, mean=(0, 0, 0), std=(1, 1, 1))
    picture = _picture(*size)
    found = preprocess(picture, config)
    height, width = found[0].shape[1:]
    wanted = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR), np.float32)
    assert (found[0].permute(1, 2, 0).numpy() * 255 - wanted).__abs__().max() < 1.01


def test_pictures_and_tensors_one_size_and_several() -> None:
    config = replace(CONFIG, shortest_edge=64, longest_edge=128)
    wide, tall = _picture(90, 70), _picture(70, 90)
    pixels = torch.from_numpy(np.array(wide)).permute(2, 0, 1)
    batch = preprocess([wide, pixels, pixels.contiguous(), _picture(90, 70).convert("RGBA")], config)
    assert isinstance(batch, torch.Tensor)
    assert batch.shape == (4, 3, 64, 80)
    assert all(torch.equal(image, batch[0]) for image in batch)
    several = preprocess([wide, tall], config)
    assert isinstance(several, list)
    assert [tuple(image.shape) for image in several] == [(3, 64, 80), (3, 80, 64)]
    torch.testing.assert_close(several[0], batch[0])
    assert preprocess([], config) == []


def test_grey_pictures_are_taken() -> None:
    config = replace(CONFIG, shortest_edge=32, longest_edge=64, mean=(0, 0, 0), std=(1, 1, 1))
    found = preprocess(Image.new("L", (40, 40), 51), config)
    torch.testing.assert_close(found, torch.full((1, 3, 32, 32), 0.2))


@pytest.mark.parametrize("size", [(3000, 1), (1, 3000), (853, 3)])
def test_slivers_have_one_patch(size: tuple[int, int]) -> None:
    found = preprocess(Image.new("RGB", size), CONFIG)
    assert min(found[0].shape[1:]) == 16
    assert max(found[0].shape[1:]) <= 853


@pytest.mark.parametrize(
    "picture",
    [
        torch.zeros(3, 8, 8),
        torch.zeros(8, 8, 3, dtype=torch.uint8),
        torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
        torch.zeros(3, 0, 8, dtype=torch.uint8),
        Image.new("RGB", (0, 4)),
    ],
)
def test_what_is_no_picture(picture: Image.Image | torch.Tensor) -> None:
    with pytest.raises(ParameterError, match=r"uint8|nothing to detect") as caught:
        preprocess([picture], CONFIG)
    assert "\n" not in str(caught.value)
