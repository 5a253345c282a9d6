"""Files of a YOLOS: what is read of each format, where it is found, and what is said of damaged ones."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoImageProcessor
from transformers import YolosConfig as ReferenceConfig

from bavit.detect.config import SIZES, YolosConfig
from bavit.detect.hub_format import from_hub_names, read_config, to_hub_names
from bavit.detect.weights import read_detector, write_original
from bavit.detect.yolos import Yolos
from tokenlabels.errors import OutputError, ParameterError, TokenLabelsError

TINY = YolosConfig(
    dim=32, depth=3, heads=1, mlp_hidden=64, image_size=(64, 96), detection_tokens=5, labels=("cat", "dog", "cow"),
    mid_positions=True, shortest_edge=96, longest_edge=160, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4),
)  # fmt: skip


@pytest.fixture
def model() -> Yolos:
    torch.manual_seed(2)
    return Yolos(TINY)


@pytest.fixture
def original() -> Yolos:
    """What an original checkpoint can hold."""
    torch.manual_seed(2)
    return Yolos(replace(TINY, mean=YolosConfig().mean, std=YolosConfig().std, mid_positions=False))


def _same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_folder_comes_back(model: Yolos, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "new" / "folder")
    config, state = read_detector(tmp_path / "new" / "folder")
    assert config == TINY
    assert _same(state, model.state_dict())
    names = {path.name for path in (tmp_path / "new" / "folder").iterdir()}
    assert names == {"config.json", "model.safetensors", "preprocessor_config.json"}


def test_transformers_reads_the_preprocessing(model: Yolos, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    load: Any = AutoImageProcessor.from_pretrained
    processor = load(tmp_path)
    pixels = torch.randint(0, 256, (3, 100, 130), dtype=torch.uint8)
    found = model.preprocess(pixels)
    assert isinstance(found, Tensor)
    wanted = processor(pixels, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_names_of_every_version_of_transformers(model: Yolos) -> None:
    theirs = to_hub_names(model.state_dict())
    assert _same(from_hub_names(theirs, Path("x")), model.state_dict())
    newer = {name.replace("encoder.mid_", "encoder.interpolation.mid_"): value for name, value in theirs.items()}
    assert newer.keys() != theirs.keys()
    assert _same(from_hub_names(newer, Path("x")), model.state_dict())


def test_pickled_weights_of_a_folder(model: Yolos, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    half = {name: value.half() for name, value in load_file(tmp_path / "model.safetensors").items()}
    (tmp_path / "model.safetensors").unlink()
    torch.save(half, tmp_path / "pytorch_model.bin")
    _, state = read_detector(tmp_path)
    assert {value.dtype for value in state.values()} == {torch.float32}
    for name, value in model.state_dict().items():
        torch.testing.assert_close(state[name], value, atol=1e-3, rtol=0)


def _reading(folder: Path, changes: dict[str, object], processor: dict[str, object] | None = None) -> YolosConfig:
    (folder / "config.json").write_text(json.dumps({"model_type": "yolos"} | changes))
    if processor is not None:
        (folder / "p.json").write_text(json.dumps(processor))
    return read_config(folder / "config.json", None if processor is None else folder / "p.json", 2)


def test_what_a_config_leaves_out_is_the_default_of_transformers(tmp_path: Path) -> None:
    found, reference = _reading(tmp_path, {}), ReferenceConfig()
    assert (found.dim, found.depth, found.heads) == (768, 12, 12)
    assert (found.mlp_hidden, found.patch) == (reference.intermediate_size, reference.patch_size)
    assert found.layer_norm_eps == reference.layer_norm_eps == 1e-12
    assert found.mid_positions is reference.use_mid_position_embeddings is True
    assert found.image_size == tuple(reference.image_size)
    assert found.detection_tokens == reference.num_detection_tokens
    assert found.qkv_bias is reference.qkv_bias
    assert (found.labels, found.named) == (("LABEL_0", "LABEL_1"), False)
    assert (found.shortest_edge, found.longest_edge) == (800, 1333)


@pytest.mark.parametrize(
    ("processor", "edges"),
    [
        ({"size": 512, "max_size": 1333}, (512, 1333)),
        ({"size": 512}, (512, 1333)),
        ({"size": {"shortest_edge": 512, "longest_edge": 853}}, (512, 853)),
        ({"size": {"shortest_edge": 512, "longest_edge": None, "height": None}}, (512, 1333)),
        ({"size": {"shortest_edge": 512}, "max_size": 900}, (512, 900)),
        ({}, (800, 1333)),
    ],
)
def test_sizes_of_a_preprocessor(processor: dict[str, object], edges: tuple[int, int], tmp_path: Path) -> None:
    """The first is as the published yolos-tiny has it."""
    found = _reading(tmp_path, {}, processor)
    assert (found.shortest_edge, found.longest_edge) == edges


@pytest.mark.parametrize(
    "processor",
    [
        {"size": {"height": 512, "width": 512}},
        {"do_resize": False},
        {"do_normalize": False},
        {"rescale_factor": 1 / 127.5},
        {"resample": 3},
        {"size": [512, 512]},
        {"size": 0},
        {"image_std": [0, 1, 1]},
        {"image_mean": 0.5},
    ],
)
def test_other_preprocessing_is_refused(processor: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(TokenLabelsError) as caught:
        _reading(tmp_path, {}, processor)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_hub_is_asked_for_a_name(model: Yolos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()

    def fetch(repo_id: str, filename: str) -> str:
        assert repo_id == "hustvl/yolos-tiny"
        if not (tmp_path / filename).exists():
            raise EntryNotFoundError("404")
        return str(tmp_path / filename)

    monkeypatch.setattr("bavit.weights.hf_hub_download", fetch)
    found = Yolos.from_pretrained("hustvl/yolos-tiny")
    assert _same(found.state_dict(), model.state_dict())
    assert (found.config.shortest_edge, found.config.longest_edge) == (800, 1333)


@pytest.mark.parametrize("name", ["nobody/nothing", "no such thing", "some/where.pth", "a/b/c"])
def test_no_such_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(TokenLabelsError, match="no such") as caught:
        read_detector(name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_the_authors(original: Yolos, tmp_path: Path) -> None:
    """With all that their training stores."""
    arguments = argparse.Namespace(init_pe_size=[64, 96], mid_pe_size=None, eval_size=96, backbone_name="tiny")
    stored = {"model": original.state_dict(), "optimizer": {"state": {}, "lr": 0.1}, "epoch": 3, "args": arguments}
    torch.save(stored, tmp_path / "yolos.pth")
    config, state = read_detector(tmp_path / "yolos.pth")
    assert _same(state, original.state_dict())
    names = ("LABEL_0", "LABEL_1", "LABEL_2")
    assert config == replace(original.config, labels=names, named=False, longest_edge=159)


@pytest.mark.parametrize("name", ["tiny", "small", "base"])
def test_published_positions_tell_their_grid(name: str, tmp_path: Path) -> None:
    size = SIZES[name]
    model = Yolos(replace(size, dim=64, depth=1, heads=1, mlp_hidden=64))
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    config, _ = read_detector(tmp_path / "model.pth")
    assert config.image_size == size.image_size
    assert (config.labels, config.named) == (size.labels, True)
    assert (config.layer_norm_eps, config.mid_positions) == (1e-6, size.mid_positions)


def test_published_sizes_are_told_by_their_shapes(tmp_path: Path) -> None:
    """Tensors without memory of their own, so that the largest is as quick as the smallest."""
    for name, size in SIZES.items():
        with torch.device("meta"):
            shapes = {key: value.shape for key, value in Yolos(size).state_dict().items()}
        torch.save({key: torch.zeros(1).expand(shape) for key, shape in shapes.items()}, tmp_path / name)
        assert read_detector(tmp_path / name)[0] == size


def test_what_an_original_checkpoint_cannot_hold(model: Yolos, original: Yolos, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="says nothing"):
        write_original(tmp_path / "x.pth", model)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        write_original(tmp_path / "file" / "x.pth", original)
    with pytest.raises(OutputError):
        original.save_pretrained(tmp_path / "file")


def _config(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_bytes())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return change


def _text(text: str, file: str = "config.json") -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / file).write_text(text)

    return write


def _weights(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors")

    return damage


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


QUERY = "vit.encoder.layer.1.attention.attention.query.weight"
MLP = "vit.encoder.layer.1.output.dense.weight"


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (_config(id2label={"0": "a"}), "says classes with no-object: 2, but model.safetensors has 4"),
        (_config(id2label={"0": "a", "7": "b"}), "does not number"),
        (_config(id2label=["a", "b"]), "id2label"),
        (_config(image_size=[64, 64]), "stored positions .those of image_size 64 x 64.: 22"),
        (_config(num_detection_tokens=100), "detection tokens: 100, but"),
        (_config(num_hidden_layers=12), "blocks: 12, but"),
        (_config(num_hidden_layers=10**9), "cannot be made"),
        (_config(hidden_size=0), "cannot be made"),
        (_config(hidden_size=10**40), "cannot be made"),
        (_config(hidden_size=64), "width: 64"),
        (_config(num_attention_heads=5), "cannot be made"),
        (_config(image_size=[10**9, 10**9]), "cannot be made"),
        (_config(image_size=[9000, 9000]), "image_size 9000 x 9000.*they are not of one model"),
        (_config(patch_size=[16, 8]), "square"),
        (_config(patch_size=8, image_size=[32, 48]), "pixels of a patch's side"),
        (_config(layer_norm_eps="small"), "layer_norm_eps"),
        (_config(layer_norm_eps=-1), "cannot be made"),
        (_config(use_mid_position_embeddings=False), "positions after every block: no, but"),
        (_config(qkv_bias=False), "biases of queries"),
        (_config(intermediate_size=65), "width of an MLP"),
        (_config(hidden_act="relu"), "not supported"),
        (_config(num_channels=1), "not supported"),
        (_config(model_type="detr"), "no YOLOS"),
        (_text("{"), "no JSON"),
        (_text("[]"), "no YOLOS"),
        (_text('{"a":' * 100_000), "no JSON"),
        (_text("{", "preprocessor_config.json"), "preprocessor_config.json: is no JSON"),
        (_cut, "cut short"),
        (_text("", "model.safetensors"), "cannot be read"),
        (_weights(lambda state: state.pop(QUERY)), "lacks " + QUERY),
        (_weights(lambda state: state.pop(MLP)), "lacks backbone.blocks.1.mlp.fc2.weight"),
        (_weights(lambda state: state.pop("vit.embeddings.cls_token")), "lacks backbone.cls_token"),
        (_weights(lambda state: state.pop("vit.embeddings.detection_tokens")), "lacks backbone.det_token: it holds no"),
        (_weights(lambda state: state.update(extra=torch.zeros(2))), "holds extra"),
        (_weights(lambda state: state.update({MLP: torch.zeros(2)})), "has shape"),
        (_weights(lambda state: state.update({QUERY: torch.zeros(2)})), "differ in shape"),
        (_weights(lambda state: state.update({MLP: state[MLP].to(torch.int8)})), "only plain floats"),
        (_without("config.json"), "config.json: no such file"),
        (_without("model.safetensors"), "model.safetensors: no such file"),
    ],
)
def test_a_damaged_folder_is_told_in_one_sentence(
    model: Yolos, tmp_path: Path, damage: Callable[[Path], None], named: str
) -> None:
    model.save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(TokenLabelsError, match=named) as caught:
        Yolos.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": {"a": "../a"}}', '{"weight_map": {"a": 3}}', "[", "3"])
def test_an_index_that_is_none(content: str, model: Yolos, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(TokenLabelsError, match="no index of weights"):
        read_detector(tmp_path)


def test_a_missing_piece_of_cut_weights(model: Yolos, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "part-1.safetensors"}}')
    with pytest.raises(TokenLabelsError, match=r"part-1.safetensors: no such file"):
        read_detector(tmp_path)


class Code:
    """Runs when it is unpickled by one who is careless."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("ran",)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"args": Code()}, "holds more"),
        ({"args": argparse.Namespace(code=Code())}, "holds more"),
        ({"args": Path("x")}, "holds more"),
        ({"model": {"a": 3}}, "no state dict"),
        ({"model": [1, 2]}, "no state dict"),
        ({"model": {}}, "lacks backbone.det_token"),
        ([], "no state dict"),
        (torch.zeros(3), "no state dict"),
        ({"args": argparse.Namespace(init_pe_size=[64, 64])}, "stores positions of 24 patches"),
        ({"args": {"init_pe_size": [10**12, "a"]}}, "stores positions of 24 patches"),
        ({"args": 3}, "stores positions of 24 patches"),
    ],
)
def test_a_pickle_that_is_no_checkpoint(
    content: object, named: str, original: Yolos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stored = {"model": original.state_dict()} | content if isinstance(content, dict) else content
    torch.save(stored, tmp_path / "x.pth")
    with pytest.raises(TokenLabelsError, match=named) as caught:
        read_detector(tmp_path / "x.pth")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "x.pth") in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.99])
def test_a_checkpoint_cut_short(share: float, original: Yolos, tmp_path: Path) -> None:
    write_original(tmp_path / "x.pth", original)
    whole = (tmp_path / "x.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(TokenLabelsError, match="cut short"):
        read_detector(tmp_path / "x.pth")
