"""What an exported file says of itself: JSON under the key `bavit` of ONNX's metadata, or of a .pt2's extra files."""

from __future__ import annotations

import dataclasses
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from bavit.detect.config import YolosConfig
from bavit.environment import require_export
from tokenlabels import __version__
from tokenlabels.errors import ParameterError, TokenLabelsError

if TYPE_CHECKING:
    from bavit.background.model import BAViT
    from bavit.detect.yolos import Yolos

Kind: TypeAlias = Literal["bavit", "dense", "pruned"]

KEY = "bavit"
ONNX, TORCH = ".onnx", ".pt2"
INPUTS: dict[Kind, tuple[str, ...]] = {
    "bavit": ("bavit_pixels",),
    "dense": ("pixels",),
    "pruned": ("bavit_pixels", "pixels"),
}
OUTPUTS: dict[Kind, tuple[str, ...]] = {
    "bavit": ("logits",),
    "dense": ("logits", "boxes"),
    "pruned": ("logits", "boxes", "keep"),
}

_FORMAT = 1
_MAX_BYTES = 2**31 - 1
_MAX_DESCRIPTION = 1 << 24


class Described(msgspec.Struct, frozen=True, kw_only=True):
    """What is in an exported file.

    Attributes:
        kind: `bavit`, `dense` (a YOLOS) or `pruned` (both).
        image_size: (H, W) of the detector's input; of BAViT's where there is no detector.
        sources: what the file was made of, as a person named it.
        keep: patches of the detector that stay of every image, of kind `pruned`.
        patches: of the detector's input, or of BAViT's where there is no detector.
        refine_steps: of the mask, of kind `pruned`.
        prune_after: blocks of the detector that see all patches.
        bavit: what `BAViT(**bavit)` needs.
        detector: what `YolosConfig` needs.
        quantised: whether the weights of linear layers are int8.
        opset: of ONNX; None of other formats.
        torch: version that wrote it.
        version: of this package.
        format: of this object.
    """

    kind: Kind
    image_size: tuple[int, int]
    patches: int
    sources: tuple[str, ...] = ()
    keep: int | None = None
    refine_steps: int = 0
    prune_after: int = 0
    bavit: dict[str, Any] | None = None
    detector: dict[str, Any] | None = None
    quantised: bool = False
    opset: int | None = None
    torch: str | None = None
    version: str = __version__
    format: int = _FORMAT

    def yolos_config(self) -> YolosConfig:
        """Of the detector.

        Raises:
            TokenLabelsError: there is none, or it is not described as one.
        """
        try:
            return msgspec.convert(self.detector, YolosConfig, strict=False)
        except (msgspec.MsgspecError, ParameterError) as fault:
            raise TokenLabelsError(f"this file does not describe a detector ({fault}): export it again.") from None

    def encoded(self) -> str:
        """As JSON."""
        return msgspec.json.encode(self).decode()


def describe(
    bavit: BAViT | None,
    yolos: Yolos | None,
    size: tuple[int, int] | None = None,
    *,
    keep: int | None = None,
    refine_steps: int = 0,
    prune_after: int = 0,
    sources: tuple[str, ...] = (),
) -> Described:
    """What a file of these models says, but for the format; a BAViT, a YOLOS, or both, of which `size` is the input."""
    if yolos is None:
        assert bavit is not None
        return Described(
            kind="bavit",
            image_size=bavit.grid.image_size or (0, 0),
            patches=bavit.shape[0] * bavit.shape[1],
            bavit=bavit.config,
            sources=sources,
        )
    assert size is not None
    patches = (size[0] // yolos.config.patch) * (size[1] // yolos.config.patch)
    detector = dataclasses.asdict(yolos.config)
    if bavit is None:
        return Described(kind="dense", image_size=size, patches=patches, detector=detector, sources=sources)
    return Described(
        kind="pruned",
        image_size=size,
        patches=patches,
        keep=keep,
        refine_steps=refine_steps,
        prune_after=prune_after,
        bavit=bavit.config,
        detector=detector,
        sources=sources,
    )


def is_exported(path: str | Path) -> bool:
    """Whether a name is that of an exported file that is there."""
    place = Path(path)
    return place.suffix in (ONNX, TORCH) and place.is_file()


def refuse_exported(name: str | Path) -> None:
    """Refuse an exported file where weights are read, to train them or to run them in PyTorch.

    Raises:
        TokenLabelsError: it is one; says what it was exported from.
    """
    if not is_exported(name):
        return
    try:
        found = read_described(name)
    except TokenLabelsError:
        raise TokenLabelsError(
            f"{name}: is a file for running a model, from which no weights are read: name the folder of the model."
        ) from None
    what = f"an exported {'int8 ' if found.quantised else ''}file of kind {found.kind}"
    sources = f" ({' and '.join(each[:100] for each in found.sources)})" if found.sources else ""
    raise TokenLabelsError(
        f"{name}: is {what}, which is run and not trained or read as weights: name what it was exported from{sources}."
    )


def read_described(path: str | Path) -> Described:
    """What an exported file says of itself; nothing of the file is run.

    Raises:
        TokenLabelsError: it is missing, cut short, or none that `bavit export` wrote; or the extra `export` is missing.
    """
    place = Path(path)
    try:
        size = place.stat().st_size
    except OSError as fault:
        reason = fault.strerror or "unreadable"
        raise TokenLabelsError(f"{place}: cannot be read ({reason}): name a file of `bavit export`.") from None
    if size > _MAX_BYTES:
        raise TokenLabelsError(f"{place}: has {size:,} bytes, more than any file of `bavit export`.")
    text = _of_torch(place) if place.suffix == TORCH else _of_onnx(place)
    try:
        found = msgspec.json.decode(text, type=Described)
    except (msgspec.MsgspecError, RecursionError) as fault:
        raise TokenLabelsError(f"{place}: says of itself what cannot be read ({fault}): export it again.") from None
    if found.format != _FORMAT:
        raise TokenLabelsError(f"{place}: has format {found.format}, this version reads {_FORMAT}: update tokenlabels.")
    return found


def _of_onnx(path: Path) -> bytes:
    require_export()
    import onnx

    try:
        model = onnx.load_model(str(path), load_external_data=False)
    except Exception:  # noqa: BLE001  of protobuf, whose faults have no public base
        raise TokenLabelsError(f"{path}: is no ONNX file, or is cut short: export it again.") from None
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise TokenLabelsError(f"{path}: keeps weights in other files, which is not read: export it again.")
    for entry in model.metadata_props:
        if entry.key == KEY:
            return str(entry.value).encode()
    raise TokenLabelsError(f"{path}: was not written by `bavit export`: it does not say what it takes and gives.")


def _of_torch(path: Path) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [each for each in archive.infolist() if each.filename.endswith(f"/extra/{KEY}")]
            if len(entries) == 1 and entries[0].file_size <= _MAX_DESCRIPTION:
                return archive.read(entries[0])
    except (OSError, zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, NotImplementedError, RuntimeError,
            ValueError, EOFError):  # fmt: skip
        raise TokenLabelsError(f"{path}: is no file of torch.export, or is cut short: export it again.") from None
    raise TokenLabelsError(f"{path}: was not written by `bavit export`: it does not say what it takes and gives.")
