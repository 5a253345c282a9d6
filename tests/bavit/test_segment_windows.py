"""Windows: where they lie, what they show, and that putting them together is an average over each pixel."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from segments import CLASSES, PATCH, sure_segmenter
from torch import Tensor

from bavit.machine import Machine
from bavit.segment.accounting import output_macs
from bavit.segment.inference import Segmented, segment
from bavit.segment.model import Segmenter, upsample
from bavit.segment.mosaic import Mosaic
from bavit.segment.windows import Layout, View, starts
from tokenlabels.errors import ParameterError, TokenLabelsError

CPU = Machine("cpu", "32")


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Something smooth with noise on it."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 7, 3)).astype(np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    return Image.fromarray(np.clip(pixels + rng.normal(0, 12, pixels.shape), 0, 255).astype(np.uint8))


class TestLayout:
    @pytest.mark.parametrize(("side", "window"), [(1, 64), (64, 64), (65, 64), (106, 64), (500, 64), (10, 1), (9, 2)])
    def test_windows_cover_an_axis_two_thirds_apart(self, side: int, window: int) -> None:
        found = starts(side, window)
        assert found[0] == 0
        assert found[-1] == max(side - window, 0)
        steps = np.diff(found)
        assert (steps > 0).all()
        assert (steps <= max(1, window * 2 // 3)).all()
        assert (steps[:-1] == max(1, window * 2 // 3)).all(), "only the last one is moved"

    @pytest.mark.parametrize(
        ("size", "options", "scaled", "count"),
        [
            ((500, 375), {}, (64, 85), 2),
            ((375, 500), {}, (85, 64), 2),
            ((64, 64), {}, (64, 64), 1),
            ((20, 10), {}, (64, 128), 3),
            ((20, 10), {"native": True}, (10, 20), 1),
            ((500, 375), {"native": True}, (375, 500), 9 * 12),
            ((500, 375), {"whole": True}, (64, 85), 1),
            ((500, 375), {"whole": True, "native": True}, (375, 500), 1),
        ],
    )
    def test_size_of_the_scaled_picture(
        self, size: tuple[int, int], options: dict[str, bool], scaled: tuple[int, int], count: int
    ) -> None:
        layout = View((64, 64), **options).lay(*size)
        assert (layout.scaled, len(layout)) == (scaled, count)
        assert layout.window == (scaled if options.get("whole") else (64, 64))

    def test_the_short_side_of_an_oblong_crop_decides(self) -> None:
        layout = View((48, 96)).lay(200, 100)
        assert (layout.scaled, layout.window, len(layout)) == ((48, 96), (48, 96), 1)

    def test_a_sliver_is_not_blown_up(self) -> None:
        layout = View((64, 64)).lay(20_000, 2)
        assert layout.scaled == (1, 32 * 64)
        assert len(layout) < 60

    @pytest.mark.parametrize("options", [{}, {"native": True}])
    def test_windows_are_parts_of_the_scaled_picture(self, options: dict[str, bool]) -> None:
        source = picture(213, 150)
        layout = View((64, 80), **options).lay(*source.size)
        whole = np.asarray(source.resize(layout.scaled[::-1], Image.Resampling.BILINEAR), np.int64)
        for number in range(len(layout)):
            top, left = layout.tops[number // len(layout.lefts)], layout.lefts[number % len(layout.lefts)]
            part = whole[top : top + 64, left : left + 80]
            found = layout.cut(source, number)
            assert found.shape == (64, 80, 3)
            assert np.abs(found[: len(part), : part.shape[1]] - part).max() <= 1

    def test_what_a_picture_does_not_fill_is_grey(self) -> None:
        found = View((64, 64), native=True).lay(20, 10).cut(picture(20, 10), 0)
        assert np.array_equal(found[:10, :20], np.asarray(picture(20, 10)))
        assert (found[10:] == 128).all()
        assert (found[:, 20:] == 128).all()

    def test_a_window_without_pixels_is_refused(self) -> None:
        with pytest.raises(ParameterError, match="no pixels"):
            View((0, 64))


def slowly(layout: Layout, patch: tuple[int, int], answers: list[NDArray[np.float32]]) -> NDArray[np.float64]:
    """(height, width, K): pixel by pixel, the mean over windows of what is between the centres of their cells."""
    height, width = layout.size
    found = np.zeros((height, width, answers[0].shape[0]))
    for y in range(height):
        for x in range(width):
            v, u = (y + 0.5) * layout.scaled[0] / height, (x + 0.5) * layout.scaled[1] / width
            inside = 0
            for number, grid in enumerate(answers):
                top, left = layout.tops[number // len(layout.lefts)], layout.lefts[number % len(layout.lefts)]
                if not (top <= v < top + layout.window[0] and left <= u < left + layout.window[1]):
                    continue
                inside += 1
                found[y, x] += between(grid, (v - top) / patch[0] - 0.5, (u - left) / patch[1] - 0.5)
            assert inside
            found[y, x] /= inside
    return found


def between(grid: NDArray[np.float32], row: float, col: float) -> NDArray[np.float64]:
    """(K,) at a place of a grid (K, rows, cols), whose edges go on outwards."""
    row, col = (min(max(place, 0.0), side - 1.0) for place, side in zip((row, col), grid.shape[1:], strict=True))
    r, c = math.floor(row), math.floor(col)
    below, right = min(r + 1, grid.shape[1] - 1), min(c + 1, grid.shape[2] - 1)
    upper = grid[:, r, c] * (1 - (col - c)) + grid[:, r, right] * (col - c)
    lower = grid[:, below, c] * (1 - (col - c)) + grid[:, below, right] * (col - c)
    return np.asarray(upper * (1 - (row - r)) + lower * (row - r), np.float64)


def random_answers(layout: Layout, patch: tuple[int, int], classes: int = 4) -> list[NDArray[np.float32]]:
    rows, cols = -(-layout.window[0] // patch[0]), -(-layout.window[1] // patch[1])
    rng = np.random.default_rng(0)
    return [rng.normal(size=(classes, rows, cols)).astype(np.float32) for _ in range(len(layout))]


def put_together(layout: Layout, patch: tuple[int, int], answers: list[NDArray[np.float32]]) -> Mosaic:
    mosaic = Mosaic(layout, patch)
    for each in answers:
        assert not mosaic.complete
        mosaic.add(torch.from_numpy(each), np.zeros(each.shape[1:], np.uint8))
    assert mosaic.complete
    return mosaic


class TestMosaic:
    @pytest.mark.parametrize(
        ("size", "view", "patch"),
        [
            ((50, 37), View((24, 24)), (8, 8)),
            ((50, 37), View((24, 24), native=True), (8, 8)),
            ((31, 64), View((20, 26)), (8, 6)),  # patches that stick out of the window
            ((12, 9), View((24, 24), native=True), (8, 8)),  # smaller than the window
            ((61, 45), View((24, 24), whole=True), (8, 8)),
            ((300, 3), View((6, 6)), (3, 3)),
        ],
    )
    @pytest.mark.parametrize("tile", [(1 << 20, 128), (64, 16)])
    def test_each_pixel_has_the_class_of_the_mean(
        self, size: tuple[int, int], view: View, patch: tuple[int, int], tile: tuple[int, int],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setattr("bavit.segment.mosaic._TILE_NUMBERS", tile[0])
        monkeypatch.setattr("bavit.segment.mosaic._TILE_SIDE", tile[1])
        layout = view.lay(*size)
        answers = random_answers(layout, patch)
        slow = slowly(layout, patch, answers)
        found = put_together(layout, patch, answers).classes
        ordered = np.sort(slow, axis=2)
        clear = ordered[..., -1] - ordered[..., -2] > 1e-5  # elsewhere rounding decides
        assert clear.mean() > 0.99
        assert np.array_equal(found[clear], slow.argmax(axis=2)[clear])

    def test_at_its_own_size_it_is_the_mean_of_what_torch_makes_of_each_window(self) -> None:
        layout = View((32, 48), native=True).lay(101, 70)
        answers = random_answers(layout, (16, 16), 5)
        total, count = torch.zeros(5, 70, 101), torch.zeros(70, 101)
        for number, each in enumerate(answers):
            top, left = layout.tops[number // len(layout.lefts)], layout.lefts[number % len(layout.lefts)]
            height, width = min(32, 70 - top), min(48, 101 - left)
            part = upsample(torch.from_numpy(each)[None], (32, 48), (16, 16))[0, :, :height, :width]
            total[:, top : top + height, left : left + width] += part
            count[top : top + height, left : left + width] += 1
        assert set(count.flatten().tolist()) >= {1.0, 2.0, 4.0}
        expected = (total / count).argmax(0).numpy()
        assert (put_together(layout, (16, 16), answers).classes == expected).mean() > 0.999

    def test_a_stage_is_that_of_the_window_in_which_a_pixel_lies_deepest(self) -> None:
        layout = View((20, 20), native=True).lay(33, 46)
        rng = np.random.default_rng(1)
        stages = [rng.integers(0, 200, (5, 5)).astype(np.uint8) for _ in range(len(layout))]
        mosaic = Mosaic(layout, (4, 4))
        for each in stages:
            mosaic.add(torch.zeros(2, 5, 5), each)
        for y in range(46):
            for x in range(33):
                row, col = (
                    min(
                        (place for place, start in enumerate(begin) if start <= at < start + 20),
                        key=lambda place: (abs(at + 0.5 - begin[place] - 10), place),
                    )
                    for at, begin in ((y, layout.tops), (x, layout.lefts))
                )
                found = stages[row * len(layout.lefts) + col][(y - layout.tops[row]) // 4, (x - layout.lefts[col]) // 4]
                assert mosaic.stages[y, x] == found

    def test_windows_above_are_let_go(self) -> None:
        """Of a picture of any height a few rows of windows are held."""
        layout = View((16, 16), native=True).lay(20, 400)
        mosaic = Mosaic(layout, (4, 4))
        held: list[weakref.ref[NDArray[np.uint8]]] = []
        most = 0
        for _ in range(len(layout)):
            stages = np.zeros((4, 4), np.uint8)
            held.append(weakref.ref(stages))
            mosaic.add(torch.zeros(3, 4, 4), stages)
            del stages
            most = max(most, sum(each() is not None for each in held))
        assert len(layout) > 70
        assert most <= 3 * len(layout.lefts)


@pytest.fixture(scope="module", params=["fcn", "atm"])
def model(request: pytest.FixtureRequest) -> Segmenter:
    return sure_segmenter(request.param, p0=0.7)


def plainly(model: Segmenter, source: Image.Image) -> tuple[Any, Tensor]:
    """One picture through the model as it is."""
    pixels = model.normalise(torch.from_numpy(np.array(source)).permute(2, 0, 1)[None])
    with torch.inference_mode():
        output = model(pixels)
    return output, upsample(output.logits, (source.height, source.width), model.patch)[0].argmax(0)


def same(one: Segmented, other: Segmented) -> bool:
    """But for tokens that rounding, which differs from batch to batch, puts on the other side of p0."""
    counts = all(
        np.allclose(getattr(one, name), getattr(other, name), rtol=0.03)
        for name in ("tokens", "heads", "alive", "macs")
    )
    return counts and all((getattr(one, name) == getattr(other, name)).mean() > 0.98 for name in ("classes", "stages"))


class TestSegment:
    @pytest.mark.parametrize(("size", "options"), [((64, 64), {}), ((75, 53), {"whole": True, "native": True})])
    def test_one_window_is_the_model_itself(
        self, model: Segmenter, size: tuple[int, int], options: dict[str, bool]
    ) -> None:
        source = picture(*size)
        ((key, found),) = segment(model, [("a", source)], View((64, 64), **options), CPU, 4)
        output, expected = plainly(model, source)
        assert key == "a"
        assert (torch.from_numpy(found.classes) == expected).float().mean() > 0.999
        cells = np.asarray(output.exit_stage[0]).repeat(PATCH, 0).repeat(PATCH, 1)[: size[1], : size[0]]
        assert np.array_equal(found.stages, cells)
        assert 0 < (cells < 2).mean() < 1, "some tokens end, some do not"
        for name in ("tokens", "heads", "alive"):
            assert np.array_equal(getattr(found, name), getattr(output, name).numpy())
        assert np.array_equal(found.macs, output_macs(model, output))
        assert found.shares_alive == pytest.approx((output.alive[0] / output.alive[0, 0]).tolist())

    def test_windows_of_several_pictures_share_batches(self, model: Segmenter) -> None:
        sizes = [(64, 64), (90, 64), (64, 200), (10, 20), (64, 64), (64, 64)]
        pictures = [(number, picture(*size, seed=number)) for number, size in enumerate(sizes)]
        view = View((64, 64))
        alone = [next(segment(model, [each], view, CPU, 1))[1] for each in pictures]
        batches: list[int] = []
        handle = model.register_forward_pre_hook(lambda _module, inputs: batches.append(len(inputs[0])))
        together = list(segment(model, pictures, view, CPU, 4))
        handle.remove()
        assert [number for number, _ in together] == list(range(len(sizes)))
        assert all(same(found, expected) for (_, found), expected in zip(together, alone, strict=True))
        assert [found.classes.shape for _, found in together] == [size[::-1] for size in sizes]
        windows = sum(len(found.layout) for found in alone)
        assert batches == [4] * (windows // 4) + [windows % 4]

    def test_pictures_are_taken_one_after_the_other(self, model: Segmenter) -> None:
        taken: list[int] = []

        def opened() -> Iterator[tuple[int, Image.Image]]:
            for number in range(6):
                taken.append(number)
                yield number, picture(64, 64)

        for number, _ in segment(model, opened(), View((64, 64)), CPU, 2):
            assert len(taken) <= number + 2

    def test_windows_of_other_sizes_are_not_mixed(self, model: Segmenter) -> None:
        pictures = [(number, picture(40 + 8 * (number % 2), 40, number)) for number in range(4)]
        view = View((64, 64), native=True, whole=True)
        found = dict(segment(model, pictures, view, CPU, 8))
        for number, source in pictures:
            assert (torch.from_numpy(found[number].classes) == plainly(model, source)[1]).float().mean() > 0.999

    def test_damaged_weights_are_told(self) -> None:
        broken = sure_segmenter("fcn")
        with torch.no_grad():
            next(broken.backbone.blocks.parameters())[0] = torch.nan
        with pytest.raises(TokenLabelsError, match="damaged"):
            list(segment(broken, [(0, picture(64, 64))], View((64, 64)), CPU, 1))

    def test_classes_are_those_of_the_model(self, model: Segmenter) -> None:
        found = next(segment(model, [(0, picture(300, 80))], View((64, 64)), CPU, 3))[1]
        assert found.classes.dtype == found.stages.dtype == np.uint8
        assert found.classes.max() < CLASSES
        assert len(found.tokens) == len(found.layout) == 6
