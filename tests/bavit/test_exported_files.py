"""Exported graphs and files against PyTorch's `PrunedDetector`, `Yolos` and `BAViT`."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exports import SIZE, small_bavit, small_yolos
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from torch import Tensor

from bavit.background import critical
from bavit.background.model import load_model
from bavit.detect.pruned import PrunedDetector, detections
from bavit.detect.pruning import Pruning
from bavit.detect.yolos import Yolos, YolosOutput
from bavit.export.check import TOLERANCE, Difference, check_equal, compare_random
from bavit.export.choice import (
    Choice,
    Models,
    describe_choice,
    graph_of,
    input_size,
    left_out,
    parse_size,
    random_inputs,
)
from bavit.export.described import Described, read_described
from bavit.export.exporting import Wish, export_models
from bavit.export.graphs import PrunedGraph, critical_probabilities
from bavit.export.onnx_files import check_opset, open_onnx, runner_of
from bavit.export.torch_files import open_torch
from bavit.vit_weights import read_vit
from tokenlabels.errors import OutputError, ParameterError, TokenLabelsError
from tokenlabels.progress import Silent

KEEP = 13
ROWS, COLS = SIZE[0] // 16, SIZE[1] // 16


@pytest.fixture(scope="module")
def models() -> Models:
    """Both, with positions after every block."""
    return Models(small_bavit(), small_yolos(mid=True), None, ("runs/bavit", "runs/yolos"))


@pytest.fixture(scope="module")
def folder(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pruned.onnx` and `pruned.pt2` of the same."""
    place = tmp_path_factory.mktemp("exported")
    for file in ("pruned.onnx", "pruned.pt2"):
        export_models(models, Choice(KEEP, None, SIZE), Wish(place / file), None, Silent())
    return place


def run_of(path: Path) -> Callable[[Any], list[Tensor]]:
    """What runs a file."""
    return open_torch(path) if path.suffix == ".pt2" else runner_of(open_onnx(path, threads=1))


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float32, st.tuples(st.integers(1, 2), st.integers(1, 6), st.integers(1, 6)),
           elements=st.sampled_from([np.float32(x) for x in (0, 0.1, 0.25, 0.5, 0.75, 1)])),
    st.integers(0, 4),
)  # fmt: skip
def test_critical_probabilities_are_those_of_numpy(background: Any, steps: int) -> None:
    wanted = critical.critical_probabilities(background, steps)
    assert torch.equal(critical_probabilities(torch.from_numpy(background), steps), torch.from_numpy(wanted))


@pytest.mark.parametrize("mid", [False, True])
@pytest.mark.parametrize(
    ("keep", "after", "steps"), [(KEEP, 0, 3), (KEEP, 1, 3), (1, 0, 0), (ROWS * COLS, 0, 1), (5, 2, 1)]
)
@torch.no_grad()
def test_graph_answers_as_the_pruned_detector(mid: bool, keep: int, after: int, steps: int) -> None:
    bavit, yolos = small_bavit(), small_yolos(mid=mid, depth=3)
    graph = PrunedGraph(bavit, yolos, SIZE, keep, refine_steps=steps, prune_after=after).eval()
    small, pixels = torch.randn(3, 3, 48, 48), torch.randn(3, 3, *SIZE)
    logits, boxes, kept = graph(small, pixels)
    masks = Pruning(top_k=keep, refine_steps=steps).masks(
        bavit.background(small), bavit.grid, [(9, 9)] * 3, [(ROWS, COLS)] * 3, 0.5
    )
    assert torch.equal(kept, torch.stack(masks))
    wanted = yolos(pixels, masks, prune_after=after)
    torch.testing.assert_close(logits, wanted.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(boxes, wanted.boxes, atol=1e-5, rtol=0)


@torch.no_grad()
def test_dense_and_background_graphs_answer_as_their_models() -> None:
    for models in (Models(None, small_yolos(mid=True)), Models(small_bavit(resize="letterbox"), None)):
        described = describe_choice(models, Choice(image_size=None if models.yolos is None else SIZE))
        inputs = random_inputs(models, described, 2)
        found = graph_of(models, described)(*inputs)
        if models.yolos is None:
            assert models.bavit is not None
            torch.testing.assert_close(found, models.bavit(inputs[0]), atol=1e-5, rtol=0)
        else:
            wanted = models.yolos(inputs[0])
            torch.testing.assert_close(found, (wanted.logits, wanted.boxes), atol=1e-5, rtol=0)


@pytest.mark.parametrize("file", ["pruned.onnx", "pruned.pt2"])
def test_file_finds_in_pictures_what_the_pruned_detector_finds(folder: Path, models: Models, file: str) -> None:
    bavit, yolos = models.bavit, models.yolos
    assert bavit is not None
    assert yolos is not None
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (*SIZE, 3), np.uint8)) for _ in range(3)]
    small, pixels = bavit.preprocess(pictures), yolos.preprocess(pictures)
    assert tuple(pixels[0].shape[1:]) == SIZE
    wanted = PrunedDetector(bavit, yolos, top_k=KEEP)(pictures)
    logits, boxes, keep = run_of(folder / file)([small, pixels])
    sizes = [picture.size for picture in pictures]
    found = detections(YolosOutput(logits, boxes), list(keep), [(ROWS, COLS)] * 3, sizes)
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one.keep, other.keep)
        assert torch.equal(one.labels, other.labels)
        torch.testing.assert_close(one.boxes, other.boxes, atol=1e-3, rtol=0)
        torch.testing.assert_close(one.scores, other.scores, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("file", ["pruned.onnx", "pruned.pt2"])
def test_of_equals_the_patches_further_up_and_left_stay(folder: Path, models: Models, file: str) -> None:
    """Each of the 3 x 3 probabilities is that of two or three patches of the detector, refined ones of more."""
    bavit = models.bavit
    assert bavit is not None
    run = run_of(folder / file)
    cut = 0
    for batch in (1, 7):
        inputs = random_inputs(models, read_described(folder / file), batch, seed=batch)
        with torch.no_grad():
            background = bavit.background(inputs[0])
        masks = Pruning(top_k=KEEP).masks(background, bavit.grid, [(9, 9)] * batch, [(ROWS, COLS)] * batch, 0.5)
        keep = run(inputs)[2]
        assert torch.equal(keep, torch.stack(masks))
        values = torch.from_numpy(critical.critical_probabilities(background.numpy(), 3))
        carried = values[:, torch.arange(ROWS) * 3 // ROWS][:, :, torch.arange(COLS) * 3 // COLS]
        for image, mask in zip(carried, keep, strict=True):
            cut += bool((image[~mask] == image[mask].max()).any())
    assert cut >= 4


def test_file_says_what_it_is(folder: Path, models: Models) -> None:
    for file, opset in (("pruned.onnx", 20), ("pruned.pt2", None)):
        found = read_described(folder / file)
        assert models.yolos is not None
        assert (found.kind, found.keep, found.patches, found.refine_steps) == ("pruned", KEEP, ROWS * COLS, 3)
        assert (found.image_size, found.opset, found.quantised) == (SIZE, opset, False)
        assert found.yolos_config() == models.yolos.config
        assert found.bavit == models.bavit.config if models.bavit else False


def test_nothing_but_standard_operators_is_written(folder: Path) -> None:
    import onnx

    model = onnx.load(folder / "pruned.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    assert {node.op_type for node in model.graph.node}.isdisjoint({"Loop", "If", "Scan", "SequenceAt"})
    assert not model.functions
    assert [value.type.tensor_type.shape.dim[0].dim_param for value in model.graph.input] == ["batch", "batch"]
    assert sum(node.op_type == "Conv" for node in model.graph.node) == 1  # BAViT's; YOLOS embeds kept patches alone


@pytest.mark.slow
def test_int8_is_smaller_close_and_told(models: Models, tmp_path: Path) -> None:
    alone = Models(models.bavit, None)
    told = export_models(alone, Choice(), Wish(tmp_path / "int8.onnx", int8=True), None, Silent())
    assert told["bytes"] == (tmp_path / "int8.onnx").stat().st_size < told["float_bytes"]
    assert told["largest_difference"] <= TOLERANCE < told["int8_difference"] < 2
    described = read_described(tmp_path / "int8.onnx")
    assert described.quantised
    assert compare_random(run_of(tmp_path / "int8.onnx"), alone, described).largest == told["int8_difference"]
    assert list(tmp_path.iterdir()) == [tmp_path / "int8.onnx"]
    for read in (load_model, Yolos.from_pretrained, read_vit):
        with pytest.raises(TokenLabelsError, match="an exported int8 file of kind bavit"):
            read(tmp_path / "int8.onnx")


def test_weights_are_not_read_of_exported_files(folder: Path) -> None:
    for file in ("pruned.onnx", "pruned.pt2"):
        for read in (load_model, Yolos.from_pretrained, read_vit):
            with pytest.raises(TokenLabelsError, match=r"kind pruned.*runs/bavit and runs/yolos"):
                read(folder / file)


def test_foreign_and_damaged_files_are_told_in_a_sentence(folder: Path, tmp_path: Path) -> None:
    import onnx

    foreign = onnx.load(folder / "pruned.onnx")
    del foreign.metadata_props[:]
    whole = (folder / "pruned.pt2").read_bytes()
    last = whole.rindex(b"PK\x01\x02") + 46  # where the name of the last member begins
    cases = {
        "name.pt2": whole[:last] + b"\x84\xff" + whole[last + 2 :],
        "cut.onnx": (folder / "pruned.onnx").read_bytes()[:2000],
        "cut.pt2": (folder / "pruned.pt2").read_bytes()[:2000],
        "foreign.onnx": foreign.SerializeToString(),
        "text.pt2": b"not a zip",
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(TokenLabelsError, match=r"cut short|was not written by"):
            read_described(tmp_path / name)
        with pytest.raises(TokenLabelsError, match="no weights are read"):
            load_model(tmp_path / name)
    with pytest.raises(TokenLabelsError, match="No such file"):
        read_described(tmp_path / "absent.onnx")


def test_a_file_of_a_later_version_is_told(folder: Path) -> None:
    found = json.loads(read_described(folder / "pruned.onnx").encoded()) | {"format": 2}
    changed = io.BytesIO()
    with zipfile.ZipFile(changed, "w") as target:
        target.writestr("archive/extra/bavit", json.dumps(found))
    path = folder / "later.pt2"
    path.write_bytes(changed.getvalue())
    with pytest.raises(TokenLabelsError, match="has format 2"):
        read_described(path)


def test_a_description_nested_beyond_all_measure_is_told(tmp_path: Path) -> None:
    path = tmp_path / "deep.pt2"
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("archive/extra/bavit", '{"detector": ' + '{"a": ' * 100_000 + "1" + "}" * 100_001)
    with pytest.raises(TokenLabelsError, match="says of itself what cannot be read"):
        read_described(path)


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        (Choice(), "give --top-k or --sparsity"),
        (Choice(top_k=25, image_size=SIZE), "25 patches cannot stay of 4 x 6.*give 1 to 24"),
        (Choice(top_k=0, image_size=SIZE), "0 patches cannot stay"),
        (Choice(top_k=-1), "top_k -1 is out of range"),
        (Choice(sparsity=1.0), "0 patches cannot stay"),
        (Choice(sparsity=1.1), "sparsity 1.1 is out of range"),
        (Choice(top_k=3, sparsity=0.5), "cannot both"),
        (Choice(top_k=3, prune_after=2), "it is 0 to 1"),
        (Choice(top_k=3, image_size=(64, 90)), "cannot be cut into patches of 16: try 64x96"),
        (Choice(top_k=3, image_size=(16, 16_000)), "at most"),
        (Choice(top_k=3, image_size=(4096, 4096)), "at most 16,384 patches"),
        (Choice(top_k=3, image_size=(0, 64)), "out of range"),
    ],
)
def test_what_cannot_be_exported_is_told_in_a_sentence(models: Models, choice: Choice, told: str) -> None:
    with pytest.raises(ParameterError, match=told):
        graph_of(models, describe_choice(models, choice))


@pytest.mark.parametrize(
    ("own", "choice", "keep"),
    [
        (Pruning(top_k=7), Choice(), 7),
        (Pruning(sparsity=0.25), Choice(), 12),
        (Pruning(threshold=0.3, max_tokens=5), Choice(), 5),
        (Pruning(threshold=0.3, max_tokens=5), Choice(sparsity=0.5), 8),
        (Pruning(sparsity=0.25, max_tokens=5), Choice(), 5),
        (Pruning(top_k=7), Choice(top_k=3), 3),
    ],
)
def test_a_saved_detector_says_how_many_stay(models: Models, own: Pruning, choice: Choice, keep: int) -> None:
    saved = replace(models, pruning=replace(own, refine_steps=2, prune_after=1))
    found = describe_choice(saved, choice)
    assert (found.keep, found.patches, found.refine_steps, found.prune_after) == (keep, 16, 2, 1)
    assert describe_choice(saved, replace(choice, refine_steps=0)).refine_steps == 0


@pytest.mark.parametrize(
    ("own", "choice", "told"),
    [
        (Pruning(threshold=0.3, max_tokens=5), Choice(), True),
        (Pruning(max_tokens=5), Choice(refine_steps=1), True),
        (Pruning(threshold=0.3, max_tokens=5), Choice(top_k=5), False),
        (Pruning(top_k=7, max_tokens=5), Choice(), False),
        (Pruning(sparsity=0.5), Choice(), False),
    ],
)
def test_a_threshold_that_is_left_out_is_told(models: Models, own: Pruning, choice: Choice, told: bool) -> None:
    assert (left_out(replace(models, pruning=own), choice) is not None) == told
    assert left_out(models, choice) is None


def test_letterbox_in_front_of_a_detector_is_refused(models: Models) -> None:
    letterbox = replace(models, bavit=small_bavit(resize="letterbox"))
    with pytest.raises(ParameterError, match="squash"):
        graph_of(letterbox, describe_choice(letterbox, Choice(top_k=3)))


@pytest.mark.parametrize("choice", [Choice(top_k=3), Choice(sparsity=0.1), Choice(refine_steps=1)])
def test_a_model_alone_keeps_all_patches(models: Models, choice: Choice) -> None:
    for alone in (replace(models, bavit=None), replace(models, yolos=None)):
        with pytest.raises(ParameterError, match="in front of a detector"):
            describe_choice(alone, choice)
    with pytest.raises(ParameterError, match="--image-size"):
        describe_choice(replace(models, yolos=None), Choice(image_size=(64, 64)))


def test_sizes(models: Models) -> None:
    assert models.yolos is not None
    assert input_size(models.yolos, None) == (64, 64)
    assert (parse_size("64x96"), parse_size("64"), parse_size(None)) == ((64, 96), (64, 64), None)
    for text in ("", "x", "1x2x3", "-4x4", "64.0x64", "9999999999x1"):
        with pytest.raises(ParameterError, match="is no size"):
            parse_size(text)


@pytest.mark.parametrize(
    ("opset", "told"), [(17, "the oldest.* is 18"), (-1, "too old"), (90, "too new: the newest"), (10**12, "too new")]
)
def test_opsets_that_cannot_be_written_or_run(opset: int, told: str) -> None:
    with pytest.raises(ParameterError, match=told):
        check_opset(opset)
    check_opset(18)


@pytest.mark.parametrize(
    ("name", "wish", "told"),
    [
        ("a.onnx", {"format": "torch"}, "ends in .pt2"),
        ("a.bin", {}, "ends in .onnx or .pt2"),
        ("a.pt2", {"int8": True}, "--int8 is of ONNX"),
        ("a.pt2", {"opset": 20}, "--opset is of ONNX"),
        ("there.onnx", {}, "--overwrite"),
        ("folder.onnx", {"overwrite": True}, "no plain file"),
        ("there.onnx/a.onnx", {}, "no folder to write to"),
    ],
)
def test_places_and_formats_that_contradict(tmp_path: Path, name: str, wish: dict[str, Any], told: str) -> None:
    (tmp_path / "there.onnx").touch()
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises((ParameterError, OutputError), match=told):
        Wish(tmp_path / name, **wish).check()


def test_a_file_that_differs_is_not_written() -> None:
    check_equal(Difference(0.9 * TOLERANCE, 3, 9, 1e-6), "ONNX")
    for found in (Difference(2 * TOLERANCE), Difference(0.0, 1, 9, 1e-3)):
        with pytest.raises(TokenLabelsError, match="nothing is written"):
            check_equal(found, "ONNX")


def test_differences_are_found(models: Models) -> None:
    """A run that is wrong in one way at a time."""
    described = describe_choice(models, Choice(KEEP, None, SIZE))
    graph = graph_of(models, described)

    def run(inputs: Any, *, shift: float = 0.0, flip: bool = False) -> list[Tensor]:
        with torch.no_grad():
            logits, boxes, keep = graph(*inputs)
        return [logits + shift, boxes, keep.flip(2) if flip else keep]

    assert compare_random(run, models, described).largest < 1e-5
    assert compare_random(lambda x: run(x, shift=0.5), models, described).largest == pytest.approx(0.5, abs=1e-5)
    flipped = compare_random(lambda x: run(x, flip=True), models, described)
    assert flipped.patches > 0
    assert flipped.far > 1e-3
    with pytest.raises(TokenLabelsError, match="no number"):
        compare_random(lambda x: run(x, shift=float("nan")), models, described)
    damaged = small_bavit()
    with torch.no_grad():
        damaged.vit.get_classifier().bias.fill_(torch.nan)
    with pytest.raises(TokenLabelsError, match="no number"):
        compare_random(run, replace(models, bavit=damaged), described)
    with pytest.raises(TokenLabelsError, match="does not keep 3"):
        compare_random(run, models, Described(**_fields(described) | {"keep": 3}))


def _fields(described: Described) -> dict[str, Any]:
    return {name: getattr(described, name) for name in described.__struct_fields__}
