"""BAViT: shapes, sizes, preprocessing, saving and loading, and what is said of damaged files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer

from bavit import BAViT
from bavit.background.model import load_model
from bavit.flops import count_macs
from tokenlabels.errors import ParameterError, TokenLabelsError


@pytest.fixture
def small() -> BAViT:
    torch.manual_seed(3)
    return BAViT(depth=1, width=64, patch=(16, 8), image_size=(64, 48)).eval()


@pytest.mark.parametrize(("depth", "parameters"), [(2, 1_148_738), (10, 4_707_650)])
def test_parameters_are_those_of_the_design(depth: int, parameters: int) -> None:
    model = BAViT(depth=depth)
    assert sum(value.numel() for value in model.parameters()) == model.parameter_count == parameters
    assert round(model.macs / 1e9, 2) == {2: 0.85, 10: 3.91}[depth]


def test_macs_are_counted(small: BAViT) -> None:
    measured = count_macs(small, torch.zeros(1, 3, 64, 48))
    assert measured == small.macs


def test_logits_are_those_of_the_same_timm_model(small: BAViT) -> None:
    plain = VisionTransformer((64, 48), (16, 8), embed_dim=64, depth=1, num_heads=1, num_classes=2, class_token=False,
                              global_pool="").eval()  # fmt: skip
    plain.load_state_dict(small.vit.state_dict())
    pixels = torch.randn(2, 3, 64, 48)
    with torch.inference_mode():
        found = small(pixels)
        torch.testing.assert_close(found, plain(pixels))
        torch.testing.assert_close(small.background(pixels), found.softmax(-1)[..., 0].view(2, 4, 6))
    assert found.shape == (2, 24, 2)


def test_preprocessing_takes_pictures_and_tensors_alike(small: BAViT) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    picture = Image.fromarray(noise)
    found = small.preprocess([picture, torch.from_numpy(noise).permute(2, 0, 1)])
    resized = np.asarray(picture.resize((48, 64), Image.Resampling.BICUBIC), np.float32)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[0], torch.from_numpy((resized / 255 - 0.5) / 0.5).permute(2, 0, 1))
    assert torch.equal(found[0], found[1])
    assert torch.equal(small.preprocess(picture), found[:1])
    assert small.preprocess([]).shape == (0, 3, 64, 48)


def test_letterbox_keeps_the_aspect() -> None:
    model = BAViT(depth=1, width=64, image_size=64, resize="letterbox")
    pixels = model.preprocess(Image.new("RGB", (64, 32), (255, 255, 255)))
    assert (pixels[0, :, 18:46] > 0.98).all()
    assert (pixels[0, :, :14].abs() < 0.01).all()


def test_kept_follows_threshold_and_refinement(small: BAViT) -> None:
    pixels = torch.randn(2, 3, 64, 48)
    background = small.background(pixels).detach()
    small.threshold = float(background.median())
    assert torch.equal(small.kept(pixels), background <= small.threshold)
    small.refine_steps = 2
    assert (small.kept(pixels) >= (background <= small.threshold)).all()


def test_a_saved_model_comes_back(small: BAViT, tmp_path: Path) -> None:
    small.threshold, small.refine_steps, small.calibration = 0.25, 3, {"target": "sparsity"}
    small.save_pretrained(tmp_path / "run")
    found = BAViT.from_pretrained(tmp_path / "run")
    pixels = torch.randn(1, 3, 64, 48)
    assert found.config == small.config
    assert not found.training
    with torch.inference_mode():
        assert torch.equal(found(pixels), small(pixels))
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.json", "model.safetensors"}


def test_loading_prints_nothing(small: BAViT, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output belongs to the one JSON object."""
    small.save_pretrained(tmp_path)
    BAViT.from_pretrained(tmp_path)
    assert capsys.readouterr() == ("", "")


def test_the_hub_is_asked_for_a_name(small: BAViT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as can be tried without a network: the files that the hub would give are fetched by its own client."""
    small.save_pretrained(tmp_path)

    def fetch(repo_id: str, filename: str, **options: object) -> str:
        assert repo_id == "someone/bavit-small"
        return str(tmp_path / filename)

    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", fetch)
    monkeypatch.setattr("bavit.background.model.hf_hub_download", fetch)
    assert BAViT.from_pretrained("someone/bavit-small").config == small.config


def test_pushing_uploads_config_weights_and_card(small: BAViT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, bytes] = {}

    class Api:
        def __init__(self, token: object) -> None: ...

        def create_repo(self, repo_id: str, **options: object) -> object:
            return type("Url", (), {"repo_id": repo_id})()

        def upload_folder(self, folder_path: Path, **options: object) -> str:
            seen.update({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})
            return "done"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    assert small.push_to_hub("someone/bavit-small") == "done"
    assert json.loads(seen["config.json"]) == small.config
    assert {"model.safetensors", "README.md"} <= seen.keys()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"image_size": 100}, "not a multiple"),
        ({"width": 65, "heads": 2}, "cannot be made"),
        ({"depth": 0}, "cannot be made"),
        ({"resize": "shortest-edge"}, "constant shape"),
        ({"patch": (1, 2, 3)}, "no size"),
    ],
)
def test_sizes_that_make_no_model(options: dict[str, object], named: str) -> None:
    with pytest.raises(ParameterError, match=named):
        BAViT(**options)  # type: ignore[arg-type]


def test_a_tensor_that_is_no_picture(small: BAViT) -> None:
    with pytest.raises(ParameterError, match="uint8"):
        small.preprocess(torch.zeros(3, 8, 8))


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(config | changes))


def _other_shape(folder: Path) -> None:
    _config(folder, width=128)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (_truncate, "cut short"),
        (_other_shape, "has shape"),
        (lambda folder: (folder / "config.json").write_text("{"), "no JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "not the config of a BAViT"),
        (lambda folder: _config(folder, threshold=5), "config.json: does not describe a BAViT"),
        (lambda folder: _config(folder, threshold="0.5"), "config.json: does not describe a BAViT"),
        (lambda folder: _config(folder, refine_steps=10**9), "config.json: does not describe a BAViT"),
        (lambda folder: _config(folder, std=[0, 1, 1]), "config.json: does not describe a BAViT"),
        (lambda folder: _config(folder, image_size=[100, 3]), "config.json: does not describe a BAViT"),
        (lambda folder: (folder / "config.json").unlink(), "no such file"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no such file"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "cannot be read"),
    ],
)
def test_a_damaged_folder_is_told_in_one_sentence(small: BAViT, tmp_path: Path, damage: object, named: str) -> None:
    small.save_pretrained(tmp_path)
    damage(tmp_path)  # type: ignore[operator]
    with pytest.raises(TokenLabelsError, match=named) as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_no_such_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(TokenLabelsError, match="no such folder"):
        load_model(tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(TokenLabelsError, match="is a file"):
        load_model(tmp_path / "file")
