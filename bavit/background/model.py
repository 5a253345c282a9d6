"""BAViT: a plain ViT without CLS token that gives every patch two outputs, background and foreground."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from PIL import Image
from safetensors.torch import save
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from bavit.background.refine import refine
from bavit.export.described import refuse_exported
from bavit.flops import background_vit
from bavit.parts import BAVIT_FOLDER, check_part
from bavit.pictures import Picture, several_pictures
from bavit.ragged import RaggedTokens
from bavit.vit import run_block
from bavit.weights import CONFIG_FILE, HUB_FAULTS, HUB_ID, WEIGHTS_FILE, load_weights, read_safetensors
from tokenlabels.atomic import write_atomically
from tokenlabels.errors import ParameterError, TokenLabelsError
from tokenlabels.grid import PatchGrid
from tokenlabels.model_input import model_input

HALF = (0.5, 0.5, 0.5)
MAX_REFINE_STEPS = 1000


class BAViT(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="bavit",
    tags=["background-aware-vit", "token-pruning"],
    license="apache-2.0",
):
    """The background-aware ViT: `model(pixels)` gives logits per patch, index 1 is foreground.

    Source: the BAViT paper; depth 2 is its BAViT-small, depth 10 its BAViT-large. The backbone is timm's
    `VisionTransformer` with `class_token=False`, `global_pool=""`, `num_classes=2`.

    Args:
        depth: transformer blocks.
        width: dimension of a token.
        heads: attention heads, by default one for every 64 of `width`.
        patch: (height, width) of a patch in pixels; one number for both.
        image_size: (H', W') of the model input; one number for both.
        resize: how a picture becomes the model input: `squash` or `letterbox`.
        mean: of each channel of RGB in 0..1, subtracted from pixels.
        std: of each channel, pixels are divided by.
        threshold: a token is removed where its background probability is greater than this.
        refine_steps: steps of refinement after the threshold, see `refine`.
        calibration: what `bavit calibrate` found, kept in the config; None before.

    Attributes:
        grid: the patch grid, as tokenlabels has it.
        shape: (rows, cols) of the grid.

    Raises:
        ParameterError: sizes that make no grid, or that do not divide.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        depth: int = 2,
        width: int = 192,
        heads: int | None = None,
        patch: int | Sequence[int] = 16,
        image_size: int | Sequence[int] = 384,
        resize: str = "squash",
        mean: Sequence[float] = HALF,
        std: Sequence[float] = HALF,
        threshold: float = 0.5,
        refine_steps: int = 0,
        calibration: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.grid = PatchGrid.parse(_pair(patch), _pair(image_size), resize)
        shape = self.grid.constant_shape
        if shape is None or self.grid.image_size is None:
            raise ParameterError("BAViT takes grids of constant shape: resize by squash or letterbox.")
        heads = heads or max(1, width // 64)
        if depth < 1 or width % heads or (width // heads) % 2:
            raise ParameterError(f"a ViT of depth {depth}, width {width} and {heads} heads cannot be made.")
        fine = 0 <= threshold <= 1 and 0 <= refine_steps <= MAX_REFINE_STEPS
        if not fine or len(mean) != 3 or len(std) != 3 or not all(0 < value < 1e6 for value in std):
            raise ParameterError(
                f"threshold {threshold}, refine_steps {refine_steps}, mean {mean} or std {std} is out of range."
            )
        self.shape = shape
        self.depth, self.width, self.heads = depth, width, heads
        self.threshold, self.refine_steps, self.calibration = threshold, refine_steps, calibration
        self.vit = VisionTransformer(
            img_size=self.grid.image_size,
            patch_size=self.grid.patch,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            num_classes=2,
            class_token=False,
            global_pool="",
        )
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits of every patch.

        Args:
            pixels: float (B, 3, H', W'), normalised, see `preprocess`.

        Returns:
            (B, rows * cols, 2), row-major, index 1 is foreground.
        """
        vit = self.vit
        patches: Tensor = vit.pos_drop(vit.patch_embed(pixels) + vit.pos_embed)
        tokens = RaggedTokens(patches.flatten(0, 1), (patches.shape[1],) * len(patches))
        for block in vit.blocks:
            tokens = run_block(block, tokens)
        logits: Tensor = vit.head(vit.norm(tokens.values))
        return logits.view(*patches.shape[:2], -1)

    def background(self, pixels: Tensor) -> Tensor:
        """float32 (B, rows, cols): the probability that a patch is background; shapes as in `forward`."""
        return self.background_of(self(pixels))

    def background_of(self, logits: Tensor) -> Tensor:
        """float32 (B, rows, cols): the probability that a patch is background, of logits as `forward` gives them."""
        margin = logits[..., 0].float() - logits[..., 1].float()
        return torch.sigmoid(margin).reshape(-1, *self.shape)

    def kept(self, pixels: Tensor) -> Tensor:
        """bool (B, rows, cols): the tokens to keep, by `threshold` and `refine_steps`; shapes as in `forward`."""
        return refine(self.background(pixels) <= self.threshold, self.refine_steps)

    def preprocess(self, images: Picture | Sequence[Picture]) -> Tensor:
        """Pictures as this model takes them: resized by the grid's policy, normalised.

        Args:
            images: one or several; PIL images, or uint8 tensors (3, H, W) of RGB. EXIF orientation is not applied.

        Returns:
            float32 (B, 3, H', W'), on the model's device.

        Raises:
            ParameterError: a tensor of another shape or type.
        """
        resized = [np.array(model_input(_as_pil(image), self.grid)) for image in several_pictures(images)]
        if not resized:
            height, width = self.grid.image_size or (0, 0)
            return torch.empty(0, 3, height, width, device=self.mean.device)
        return self.normalise(torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).to(self.mean.device))

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 (B, 3, H', W') to normalised float32, the same shape."""
        return torch.addcmul(-self.mean / self.std, pixels, 1 / (255 * self.std))

    @property
    def parameter_count(self) -> int:
        """Numbers that training changes."""
        return sum(value.numel() for value in self.parameters())

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one picture, by formula; `flops.count_macs` measures the same."""
        return background_vit(self.depth, dim=self.width, patch=self.grid.patch).macs(self.shape[0] * self.shape[1])

    @property
    def config(self) -> dict[str, Any]:
        """What `BAViT(**config)` needs to make the same model; JSON values."""
        return {
            "depth": self.depth,
            "width": self.width,
            "heads": self.heads,
            "patch": list(self.grid.patch),
            "image_size": list(self.grid.image_size or ()),
            "resize": self.grid.resize,
            "mean": [round(value, 6) for value in self.mean.flatten().tolist()],
            "std": [round(value, 6) for value in self.std.flatten().tolist()],
            "threshold": self.threshold,
            "refine_steps": self.refine_steps,
            "calibration": self.calibration,
        }

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write `config.json` and `model.safetensors` into a folder; options as `PyTorchModelHubMixin` has them.

        Raises:
            OutputError: the folder cannot be written.
        """
        self._hub_mixin_config = self.config
        if options:
            found: str | None = super().save_pretrained(save_directory, **options)
            return found
        folder = Path(save_directory)
        self._save_pretrained(folder)
        self.save_config(folder)
        return None

    def save_config(self, folder: Path) -> None:
        """Write `config.json` alone.

        Raises:
            OutputError: it cannot be written.
        """
        write_atomically(folder / CONFIG_FILE, (json.dumps(self.config, indent=2) + "\n").encode())

    def _save_pretrained(self, save_directory: Path) -> None:
        state = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        write_atomically(save_directory / WEIGHTS_FILE, save(state, metadata={"format": "pt"}))

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, map_location: str = "cpu", strict: bool = True, **options: Any
    ) -> BAViT:
        hub = ("revision", "cache_dir", "force_download", "token", "local_files_only")
        known = {name: options.pop(name) for name in hub if name in options}
        for name in ("proxies", "resume_download"):  # what huggingface_hub before 1.0 hands on
            options.pop(name, None)
        folder = Path(model_id)
        path = folder / WEIGHTS_FILE if folder.is_dir() else Path(hf_hub_download(model_id, WEIGHTS_FILE, **known))
        model = cls(**options)
        load_weights(model, read_safetensors(path), path, strict=strict)
        return model.to(map_location).eval()


def load_model(name: str | Path) -> BAViT:
    """`BAViT.from_pretrained`, with faults told in one sentence.

    Args:
        name: a folder with `config.json` and `model.safetensors`, such as a run; or a Hugging Face hub id.

    Raises:
        TokenLabelsError: there is no such model, or its files are damaged.
    """
    refuse_exported(name)
    folder = Path(name)
    local = folder.exists()
    if not local and not HUB_ID.fullmatch(str(name)):
        raise TokenLabelsError(f"{name}: no such folder, and no OWNER/NAME of the Hugging Face hub: name a bavit run.")
    if local and not folder.is_dir():
        raise TokenLabelsError(f"{folder}: is a file: name the folder that holds {CONFIG_FILE} and {WEIGHTS_FILE}.")
    if local:
        for file in (CONFIG_FILE, WEIGHTS_FILE):
            if not (folder / file).is_file():
                check_part(folder, BAVIT_FOLDER)
                raise TokenLabelsError(f"{folder / file}: no such file: name the folder of a finished bavit run.")
        _check_config(folder / CONFIG_FILE)
    try:
        return BAViT.from_pretrained(str(name))
    except ParameterError as fault:
        raise TokenLabelsError(f"{folder / CONFIG_FILE}: does not describe a BAViT ({fault})") from None
    except TokenLabelsError:
        raise
    except HUB_FAULTS as fault:
        raise TokenLabelsError(
            f"{name}: no such folder, and no model of that name could be fetched from the Hugging Face hub "
            f"({type(fault).__name__}): name the folder of a bavit run."
        ) from None
    except (TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as fault:
        reason = str(fault).partition("\n")[0]
        raise TokenLabelsError(f"{folder / CONFIG_FILE}: does not describe a BAViT ({reason}).") from None


def _check_config(path: Path) -> None:
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError):
        raise TokenLabelsError(f"{path}: is no JSON: the run is damaged, train it again or fetch it again.") from None
    if not isinstance(config, dict) or not {"depth", "width", "patch", "image_size"} <= config.keys():
        raise TokenLabelsError(f"{path}: is not the config of a BAViT: name the folder of a bavit run.")


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2:
        raise ParameterError(f"{value!r} is no size: give one number, or height and width.")
    return pair


def _as_pil(image: Picture) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    return Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy()))
