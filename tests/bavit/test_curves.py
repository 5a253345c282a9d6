"""Plots: PNGs of the promised size that show what they are given, however little that is."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from evaluations import make_evaluation, nothing_counted
from PIL import Image, ImageChops, ImageColor

from bavit.background.curves import draw_curves, draw_evaluation
from bavit.background.figures import Bin, Evaluation
from bavit.plots import BLUE, INK, NAME_HEIGHT, ORANGE, RED, apart
from tokenlabels.errors import OutputError, ParameterError

RECORDS = [
    {
        "epoch": epoch,
        "step": 100 * epoch,
        "lr": 1e-3 / epoch,
        "train_loss": 0.3 + 0.4 / epoch,
        "train_accuracy": 0.9 - 0.3 / epoch,
        "val_loss": 0.35 + 0.4 / epoch,
        "val_accuracy": 0.85 - 0.2 / epoch,
        "val_balanced_accuracy": 0.8 - 0.2 / epoch,
        "seconds": 12.5,
    }
    for epoch in range(1, 9)
]


def opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return picture.convert("RGB")


def holds(picture: Image.Image, colour: str) -> bool:
    """Whether a good line's worth of pixels has exactly this colour."""
    return int((np.asarray(picture) == ImageColor.getrgb(colour)).all(axis=2).sum()) > 100


def differ(one: Image.Image, other: Image.Image) -> bool:
    return ImageChops.difference(one, other).getbbox() is not None


class TestTraining:
    def test_every_line_is_drawn(self, tmp_path: Path) -> None:
        picture = opened(draw_curves(RECORDS, tmp_path / "curves.png", majority=0.6, position_prior=0.65))
        assert picture.size == (1200, 400)
        assert all(holds(picture, colour) for colour in (BLUE, ORANGE, RED, INK))
        bare = opened(draw_curves([{"epoch": r["epoch"], "lr": r["lr"]} for r in RECORDS], tmp_path / "bare.png"))
        assert [holds(bare, colour) for colour in (BLUE, ORANGE, RED, INK)] == [False, False, False, True]

    @pytest.mark.parametrize(
        "records",
        [
            pytest.param(RECORDS[:1], id="one epoch"),
            pytest.param([{k: v for k, v in r.items() if "val" not in k} for r in RECORDS], id="no validation"),
            pytest.param([r | {"val_loss": math.nan, "train_loss": math.inf} for r in RECORDS], id="diverged"),
            pytest.param([{"epoch": 1}], id="nothing but the epoch"),
            pytest.param([r | {"train_loss": 0.0, "lr": 0.0} for r in RECORDS], id="zero"),
            pytest.param([r | {"epoch": 500 + r["epoch"]} for r in RECORDS], id="late epochs"),
        ],
    )
    @pytest.mark.filterwarnings("error")
    def test_any_run_can_be_drawn(self, records: list[dict[str, float]], tmp_path: Path) -> None:
        picture = opened(draw_curves(records, str(tmp_path / "curves.png"), majority=0.6))
        assert picture.size == (1200, 400)
        assert len(np.unique(np.asarray(picture))) > 20

    def test_baselines_are_drawn(self, tmp_path: Path) -> None:
        without = opened(draw_curves(RECORDS, tmp_path / "a.png"))
        one = opened(draw_curves(RECORDS, tmp_path / "b.png", majority=0.7))
        both = opened(draw_curves(RECORDS, tmp_path / "c.png", majority=0.7, position_prior=0.75))
        assert differ(without, one)
        assert differ(one, both)

    def test_the_last_record_of_an_epoch_counts_and_their_order_does_not(self, tmp_path: Path) -> None:
        plain = draw_curves(RECORDS, tmp_path / "a.png").read_bytes()
        again = draw_curves([RECORDS[2] | {"train_loss": 9.0}, *reversed(RECORDS)], tmp_path / "b.png").read_bytes()
        assert again == plain

    def test_a_run_without_epochs_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ParameterError, match=r"there is no epoch to draw"):
            draw_curves([], tmp_path / "curves.png")
        assert not list(tmp_path.iterdir())

    def test_a_place_that_cannot_be_written_is_one_sentence(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(OutputError, match=r"cannot be written"):
            draw_curves(RECORDS, tmp_path / "file" / "curves.png")


class TestEvaluation:
    @pytest.mark.filterwarnings("error")
    def test_four_panels_are_drawn(self, tmp_path: Path) -> None:
        picture = opened(draw_evaluation(make_evaluation(), tmp_path / "new" / "evaluation.png"))
        assert picture.size == (1200, 900)
        halves = [half for row in np.array_split(np.asarray(picture, int), 2) for half in np.array_split(row, 2, 1)]
        assert all((np.ptp(half, axis=2) > 60).sum() > 500 for half in halves)

    @pytest.mark.filterwarnings("error")
    def test_a_set_of_which_nothing_counts_can_be_drawn(self, tmp_path: Path) -> None:
        assert opened(draw_evaluation(nothing_counted(), tmp_path / "evaluation.png")).size == (1200, 900)

    @pytest.mark.parametrize(
        "changes",
        [
            pytest.param({"threshold": 0.25}, id="threshold"),
            pytest.param({"refine_steps": 3}, id="steps"),
            pytest.param({"reliability": [Bin(0.0, 1.0, 5, 0.5, 0.25)]}, id="reliability"),
            pytest.param({"sparsity": 0.1}, id="sparsity"),
        ],
    )
    def test_what_it_says_is_in_the_picture(self, changes: dict[str, object], tmp_path: Path) -> None:
        evaluation: Evaluation = make_evaluation()
        changed = msgspec.structs.replace(evaluation, **changes)
        before, after = (draw_evaluation(e, tmp_path / f"{i}.png") for i, e in enumerate((evaluation, changed)))
        assert differ(opened(before), opened(after))


class TestNames:
    @pytest.mark.parametrize(
        "places", [[], [0.5], [0.2, 0.8], [0.0, 0.0, 0.0], [0.98, 0.99, 1.0], [0.1, 0.12, 0.14, 0.16, 0.9], [-0.2, 1.3]]
    )
    def test_names_stand_apart_in_order_and_inside(self, places: list[float]) -> None:
        moved = np.array(apart(places))
        assert len(moved) == len(places)
        assert (np.diff(moved) >= NAME_HEIGHT - 1e-9).all()
        assert ((moved >= 0) & (moved <= 1)).all()

    def test_names_that_are_apart_stay(self) -> None:
        assert apart([0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9])
