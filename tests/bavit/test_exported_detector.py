"""Exported detectors: they find what PyTorch finds in the same stretched pictures; bad files are one sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch
from exported import changed, constant_model
from PIL import Image
from torch import Tensor, nn

from bavit import BAViT, PrunedDetector, Yolos
from bavit.detect.config import YolosConfig
from bavit.detect.detector import mean_cost
from bavit.detect.preprocess import stretched
from bavit.detect.pruned import Detection, StageTimes
from bavit.detect.pruning import Pruning
from bavit.export.choice import Choice, Models, describe_choice, graph_of, random_inputs
from bavit.export.described import OUTPUTS, Described
from bavit.export.onnx_files import DEFAULT_OPSET, to_onnx
from bavit.export.runtime import ExportedDetector
from bavit.export.torch_files import to_torch
from tokenlabels.errors import ParameterError, TokenLabelsError

SIDE, KEEP = 64, 9
CONFIG = YolosConfig(
    dim=32, depth=2, heads=2, mlp_hidden=64, image_size=(64, 96), detection_tokens=6, labels=("cat", "dog"),
    shortest_edge=SIDE, longest_edge=112,
)  # fmt: skip


@pytest.fixture(scope="module")
def detector() -> PrunedDetector:
    torch.manual_seed(0)
    bavit = BAViT(depth=1, width=32, heads=2, image_size=96).eval()
    nn.init.normal_(bavit.vit.get_parameter("head.weight"), std=2.0)
    return PrunedDetector(bavit, Yolos(CONFIG).eval(), top_k=KEEP, refine_steps=1)


@pytest.fixture(scope="module")
def described(detector: PrunedDetector) -> Described:
    return describe_choice(models_of(detector), Choice())


@pytest.fixture(scope="module")
def file(detector: PrunedDetector, described: Described, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one that `torch.onnx.export` writes: once, for it takes seconds."""
    path = tmp_path_factory.mktemp("exported") / "pruned.onnx"
    models = models_of(detector)
    graph, inputs = graph_of(models, described), random_inputs(models, described, 2)
    path.write_bytes(to_onnx(graph, inputs, described, DEFAULT_OPSET).SerializeToString())
    return path


@pytest.fixture
def constant(described: Described, tmp_path: Path) -> Path:
    """A file that answers the same to every picture."""
    answers = {
        "logits": np.zeros((6, 3), np.float32),
        "boxes": np.full((6, 4), 0.5, np.float32),
        "keep": np.ones((4, 4), np.bool_),
    }
    path = tmp_path / "constant.onnx"
    path.write_bytes(constant_model(described, answers).SerializeToString())
    return path


def models_of(detector: PrunedDetector) -> Models:
    return Models(detector.bavit, detector.yolos, detector.pruning)


def pictures(*sizes: tuple[int, int]) -> list[Image.Image]:
    rng = np.random.default_rng(2)
    return [Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)) for width, height in sizes]


SHOWN = pictures((70, 50), (64, 64), (33, 120), (200, 150))


def by_torch(detector: PrunedDetector, shown: Sequence[Image.Image]) -> list[Detection]:
    """The oracle: the models themselves, on the same stretched pictures."""
    small = None if detector.bavit is None else detector.bavit.preprocess(shown)
    return detector.detect(small, stretched(shown, CONFIG, (SIDE, SIDE)), [picture.size for picture in shown])


def assert_same(found: Sequence[Detection], wanted: Sequence[Detection], shown: Sequence[Image.Image]) -> None:
    assert len(found) == len(wanted) == len(shown)
    for one, other, picture in zip(found, wanted, shown, strict=True):
        scale = torch.tensor(picture.size).repeat(2)
        assert torch.allclose(one.boxes / scale, other.boxes / scale, atol=1e-4)
        assert torch.allclose(one.scores, other.scores, atol=1e-4)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.keep, other.keep)


class Eager:
    """A graph that is not exported at all."""

    runtime, provider = "torch", "cpu"

    def __init__(self, graph: nn.Module, described: Described) -> None:
        self._graph, self._names = graph, OUTPUTS[described.kind]

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(zip(self._names, self._graph(**inputs), strict=True))


class TestWhatIsFound:
    @pytest.mark.slow
    def test_onnxruntime_finds_what_torch_finds(self, detector: PrunedDetector, file: Path) -> None:
        exported = ExportedDetector.open(file, threads=1)
        found = exported(SHOWN)
        assert_same(found, by_torch(detector, SHOWN), SHOWN)
        assert_same([exported(picture)[0] for picture in SHOWN], found, SHOWN)
        assert (exported.runtime, exported.provider) == ("onnx", "CPUExecutionProvider")
        assert len({tuple(each.keep.flatten().tolist()) for each in found}) > 1

    def test_a_torch_file_finds_what_torch_finds(
        self, detector: PrunedDetector, described: Described, tmp_path: Path
    ) -> None:
        path, models = tmp_path / "pruned.pt2", models_of(detector)
        path.write_bytes(to_torch(graph_of(models, described), random_inputs(models, described, 2), described))
        exported = ExportedDetector.open(path)
        assert_same(exported(SHOWN), by_torch(detector, SHOWN), SHOWN)
        assert_same(exported(SHOWN[:1]), by_torch(detector, SHOWN[:1]), SHOWN[:1])
        assert (exported.runtime, exported.provider) == ("torch", "cpu")

    def test_a_dense_graph_keeps_all(self, detector: PrunedDetector) -> None:
        models = Models(None, detector.yolos)
        dense = describe_choice(models, Choice())
        exported = ExportedDetector(Eager(graph_of(models, dense), dense), dense, "dense")
        found = exported(SHOWN)
        assert_same(found, by_torch(PrunedDetector(None, detector.yolos), SHOWN), SHOWN)
        assert all(bool(each.keep.all()) for each in found)
        assert exported.bavit is None

    def test_a_square_picture_is_preprocessed_as_ever(self, detector: PrunedDetector) -> None:
        """Where nothing has to be stretched, the exported detector sees the very pixels that the other sees."""
        square = pictures((150, 150))
        assert torch.equal(stretched(square, CONFIG, (SIDE, SIDE)), torch.as_tensor(detector.yolos.preprocess(square)))

    def test_costs_and_times(self, detector: PrunedDetector, constant: Path) -> None:
        exported, times = ExportedDetector.open(constant, threads=1), StageTimes()
        exported(SHOWN[:2], times)
        assert list(times.seconds) == ["input of BAViT", "input of the detector", "graph", "boxes"]
        assert times.images == 2
        kept, patches = np.array([KEEP, 3]), np.array([16, 16])
        assert mean_cost(exported, kept, patches) == mean_cost(detector, kept, patches)

    def test_no_pictures(self, constant: Path) -> None:
        assert ExportedDetector.open(constant)([]) == []


def saying(**values: Any) -> Callable[[onnx.ModelProto], None]:
    """A change of what a file says of itself; the members of nested objects are changed, too."""

    def change(model: onnx.ModelProto) -> None:
        for entry in model.metadata_props:
            said = msgspec.json.decode(entry.value)
            for name, value in values.items():
                said[name] = said[name] | value if isinstance(value, dict) else value
            entry.value = msgspec.json.encode(said).decode()

    return change


def without_words(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]


def elsewhere(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret.bin")


def elsewhere_within(model: onnx.ModelProto) -> None:
    """In a constant's attribute rather than among the weights."""
    tensor = onnx.numpy_helper.from_array(np.zeros(3, np.float32))
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["unused"], value=tensor))


def renamed(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = "other"
    model.graph.node[0].input[0] = "other"


def unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "Shapes"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (without_words, "was not written by `bavit export`"),
        (elsewhere, "weights in other files"),
        (elsewhere_within, "weights in other files"),
        (renamed, "takes and gives other things"),
        (unknown_operator, "cannot load it"),
        (saying(kind="dense"), "other things than a file of kind dense"),
        (saying(kind="huge"), "says of itself"),
        (saying(format=7), "format 7"),
        (saying(image_size=[96, 96], patches=36), "takes and gives other things"),
        (saying(image_size=[60, 60]), "takes and gives other things"),
        (saying(patches=17), "contradicts itself"),
        (saying(keep=17), "contradicts itself"),
        (saying(keep=None), "contradicts itself"),
        (saying(prune_after=2), "contradicts itself"),
        (saying(bavit={"depth": 10**9}), "does not describe a BAViT"),
        (saying(bavit={"depth": "many"}), "does not describe a BAViT"),
        (saying(bavit={"mean": None}), "does not describe a BAViT"),
        (saying(bavit={"width": 0}), "does not describe a BAViT"),
        (saying(bavit={"image_size": 64}), "takes and gives other things"),
        (saying(bavit={"image_size": [64, 64]}), "takes and gives other things"),
        (saying(detector={"dim": -1}), "does not describe a detector"),
    ],
)
def test_a_file_that_contradicts_itself_is_one_sentence(
    change: Callable[[onnx.ModelProto], object], told: str, constant: Path, tmp_path: Path
) -> None:
    path = changed(constant, tmp_path / "changed.onnx", change)
    with pytest.raises(TokenLabelsError, match=told) as raised:
        ExportedDetector.open(path, threads=1)
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)


def test_answers_of_other_shapes_are_one_sentence(constant: Path, tmp_path: Path) -> None:
    more = ("cat", "dog", "bird")
    path = changed(constant, tmp_path / "changed.onnx", saying(detector={"labels": more}))
    with pytest.raises(TokenLabelsError, match=r"gives torch.float32 \(1, 6, 3\) as logits"):
        ExportedDetector.open(path, threads=1)(SHOWN[0])


@pytest.mark.parametrize("size", [0, 100, -1])
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_a_file_cut_short_is_one_sentence(size: int, suffix: str, constant: Path, tmp_path: Path) -> None:
    path = tmp_path / f"short{suffix}"
    path.write_bytes(constant.read_bytes()[:size])
    with pytest.raises(TokenLabelsError, match=f"short{suffix}: ") as raised:
        ExportedDetector.open(path)
    assert "\n" not in str(raised.value)


def test_a_bavit_alone_finds_no_boxes(described: Described, tmp_path: Path) -> None:
    alone = msgspec.structs.replace(described, kind="bavit", detector=None, keep=None)
    path = tmp_path / "bavit.onnx"
    path.write_bytes(constant_model(alone, {"logits": np.zeros((36, 2), np.float32)}).SerializeToString())
    with pytest.raises(ParameterError, match="BAViT alone"):
        ExportedDetector.open(path)


def test_a_device_that_is_not_there_is_one_sentence(constant: Path) -> None:
    with pytest.raises(ParameterError, match="--device mps: onnxruntime has"):
        ExportedDetector.open(constant, device="mps")


def test_a_detector_is_pruned_anew(detector: PrunedDetector) -> None:
    other = PrunedDetector(detector.bavit, detector.yolos, top_k=KEEP)
    other.prune(Pruning(top_k=2))
    assert [int(each.keep.sum()) for each in other(SHOWN)] == [2] * len(SHOWN)
    with pytest.raises(ParameterError, match="prune_after 2"):
        other.prune(Pruning(prune_after=2))
