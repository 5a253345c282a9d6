"""What a page of results shows, whatever it was read from. Shares are in 0..1, MACs are of an image."""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from bavit.background.figures import Evaluation
from bavit.detect.sweep_figures import Sweep

_MAX_POINTS = 400
"""Of a training run that are drawn."""

Scalar: TypeAlias = str | int | float | bool | None


class Spread(msgspec.Struct, frozen=True):
    """A figure of several runs that differ in their seed: mean and standard deviation."""

    mean: float
    std: float


class SweepResult(msgspec.Struct, frozen=True):
    """A sweep of a detector."""

    name: str
    path: str
    sweep: Sweep


class SegmentPoint(msgspec.Struct, frozen=True):
    """One row of a sweep of a segmenter, or its evaluation; see `bavit.segment.figures`. What was not timed is None."""

    p0: float
    exit_after: list[int]
    method: str
    miou: float
    pixel_accuracy: float
    macs: float
    macs_dense: float
    macs_reduction: float
    images: int
    keep_per_class: int = 0
    dense: bool = False
    head: str | None = None
    speedup: float | None = None
    latency_ms: float | None = None
    latency_dense_ms: float | None = None
    throughput: float | None = None
    throughput_dense: float | None = None
    miou_dense: float | None = None
    environment: dict[str, str] = {}


class SegmentResult(msgspec.Struct, frozen=True):
    """A sweep of a segmenter, or, with one row, its evaluation."""

    name: str
    path: str
    rows: list[SegmentPoint]
    swept: bool
    environment: dict[str, str]


class EvaluationResult(msgspec.Struct, frozen=True):
    """An evaluation of a BAViT."""

    name: str
    path: str
    evaluation: Evaluation


class Training(msgspec.Struct, frozen=True):
    """A training run.

    Attributes:
        name: of the run.
        path: its folder.
        trained: what was trained: `BAViT`, `detector`, `segmenter`, or several as in `BAViT and detector`.
        data: what on, as its run.json says.
        images: how many pictures an epoch has.
        settings: choices a person made.
        environment: versions and devices.
        epochs: the figures of each epoch, as metrics.jsonl has them, the last record of an epoch only.
    """

    name: str
    path: str
    trained: str
    data: str
    images: int | None
    settings: dict[str, Scalar]
    environment: dict[str, str]
    epochs: list[dict[str, float]]

    def series(self, key: str) -> list[tuple[float, float]]:
        """Epoch and value of a figure, of those epochs that have it; of very many some, and the last."""
        found = [(record["epoch"], record[key]) for record in self.epochs if key in record]
        step = -(-len(found) // _MAX_POINTS)
        return found[:: step or 1] + (found[-1:] if step > 1 else [])

    @property
    def quality(self) -> str | None:
        """The figure by which such a model is judged on the validation set; None where nothing was validated."""
        keys = {key for record in self.epochs for key in record}
        return next(
            (key for key in ("val_ap", "val_miou", "val_balanced_accuracy", "val_accuracy") if key in keys), None
        )

    @property
    def seconds(self) -> float | None:
        """What training took, validation included; None where that was not recorded."""
        return self.epochs[-1].get("seconds") if self.epochs else None


class DetectorResult(msgspec.Struct, frozen=True):
    """A saved pruned detector: what is kept, and the budget that it was chosen for."""

    name: str
    path: str
    pruning: dict[str, Scalar]
    budget: dict[str, Scalar]


class MethodPoint(msgspec.Struct, frozen=True):
    """A method at one cost: mean and standard deviation over seeds, 0 where there is one.

    Attributes:
        setting: what makes it cost so much, in words.
        macs_share: MACs of the detector, as a share of those for all patches.
        ap: average precision.
        ap50: at IoU 0.5; None where it was not told.
    """

    setting: str
    macs_share: Spread
    ap: Spread
    ap50: Spread | None = None


class Method(msgspec.Struct, frozen=True):
    """One of several methods.

    Attributes:
        name: of the method.
        points: by ascending cost.
        dense: AP with all patches.
        seconds_per_epoch: of training; None where nothing was trained.
    """

    name: str
    points: list[MethodPoint]
    dense: Spread | None = None
    seconds_per_epoch: float | None = None


class ComparisonResult(msgspec.Struct, frozen=True):
    """Methods compared at equal cost, over several seeds.

    Attributes:
        name: of the file.
        path: of the file.
        what: what is compared, in words.
        seeds: how many.
        methods: the methods.
        gains: what one method has over another at the same cost, mean and standard deviation over seeds, by name.
    """

    name: str
    path: str
    what: str
    seeds: int
    methods: list[Method]
    gains: dict[str, Spread] = {}


class Table(msgspec.Struct, frozen=True):
    """Records of one shape.

    Attributes:
        title: where in the file they stand.
        columns: keys, in the order of their first occurrence.
        rows: values by key; a key that is missing was not measured.
    """

    title: str
    columns: list[str]
    rows: list[dict[str, Scalar | Spread]]


class TablesResult(msgspec.Struct, frozen=True):
    """Whatever else a file measures: benchmarks, comparisons of methods, reports of an export."""

    name: str
    path: str
    facts: dict[str, Scalar]
    tables: list[Table]


class Shown(msgspec.Struct, frozen=True):
    """A picture that a run left behind."""

    title: str
    words: str
    path: str


class Results(msgspec.Struct):
    """Everything that was found, by kind, in the order in which it was named."""

    sweeps: list[SweepResult] = []
    evaluations: list[EvaluationResult] = []
    segmentations: list[SegmentResult] = []
    trainings: list[Training] = []
    detectors: list[DetectorResult] = []
    comparisons: list[ComparisonResult] = []
    tables: list[TablesResult] = []
    pictures: list[Shown] = []
    notes: list[str] = []

    def __len__(self) -> int:
        return sum(map(len, self.named()))

    def named(self) -> list[list[Any]]:
        """The lists of results that have a name and a path."""
        return [
            self.sweeps, self.evaluations, self.segmentations, self.trainings, self.detectors, self.comparisons,
            self.tables,
        ]  # fmt: skip
