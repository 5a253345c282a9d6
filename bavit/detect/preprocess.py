"""Pictures as a YOLOS takes them, sized as its authors evaluate it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bavit.detect.config import YolosConfig
from bavit.pictures import Picture, as_tensor, resize, several_pictures
from tokenlabels.errors import ParameterError


def detector_size(width: int, height: int, shortest: int, longest: int, patch: int) -> tuple[int, int]:
    """The size at which a detector sees a picture.

    The short side becomes `shortest`, or less where the long one would exceed `longest`; then both are cut to whole
    patches, as transformers' image processor does it, whose roundings these are. Slivers get one patch, where that
    processor fails.

    Args:
        width: of the picture, in pixels.
        height: of the picture.
        shortest: pixels of the short side.
        longest: most pixels of the long side.
        patch: side of a patch.

    Returns:
        (H, W), multiples of `patch`.

    Raises:
        ParameterError: the picture has no pixels.
    """
    if width < 1 or height < 1:
        raise ParameterError(f"a picture of {width} x {height} pixels has nothing to detect.")
    short, long = min(width, height), max(width, height)
    scaled: float = shortest if long / short * shortest <= longest else longest * short / long
    near = round(scaled)
    far = long if width >= height and near == short else int(scaled * long / short)
    sides = (far, near) if width < height else (near, far)
    rows, cols = (max(1, side // patch) for side in sides)
    return rows * patch, cols * patch


def preprocess(
    images: Picture | Sequence[Picture], config: YolosConfig, device: torch.device | str = "cpu"
) -> Tensor | list[Tensor]:
    """Pictures resized (bilinear, antialiased) and normalised.

    Args:
        images: one or several; PIL images, or uint8 tensors (3, H, W) of RGB. EXIF orientation is not applied.
        config: sizes, mean and std.
        device: where the pixels are wanted.

    Returns:
        float32 (B, 3, H', W') where all become one size, else a list of (3, H'_i, W'_i); nothing is padded.

    Raises:
        ParameterError: a tensor of another shape or type, or a picture without pixels.
    """
    return normalise([_resized(as_tensor(image), config) for image in several_pictures(images)], config, device)


def stretched(images: Sequence[Picture], config: YolosConfig, size: tuple[int, int]) -> Tensor:
    """Pictures resized as `preprocess` does it, but all to one size, whatever shape they have.

    Args:
        images: one or several, see `preprocess`.
        config: mean and std.
        size: (H, W).

    Returns:
        float32 (B, 3, H, W), on the CPU.
    """
    found = normalise([resize(as_tensor(image), size) for image in images], config, "cpu")
    assert isinstance(found, Tensor)
    return found


def normalise(images: Sequence[Tensor], config: YolosConfig, device: torch.device | str) -> Tensor | list[Tensor]:
    """(3, H_i, W_i) of 0 to 255 as `preprocess` returns them."""
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (config.mean, config.std))
    scale, shift = 1 / (255 * std), -mean / std
    if len({image.shape for image in images}) != 1:
        return [image.to(device).float().mul_(scale).add_(shift) for image in images]
    found = torch.empty(len(images), *images[0].shape, device=device)
    for target, image in zip(found, images, strict=True):
        target.copy_(image)
    return found.mul_(scale).add_(shift)


def _resized(image: Tensor, config: YolosConfig) -> Tensor:
    size = detector_size(image.shape[2], image.shape[1], config.shortest_edge, config.longest_edge, config.patch)
    return resize(image, size)
