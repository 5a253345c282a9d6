"""Overlays and masks: what is kept shows the picture, what is removed does not, and every pixel has the right cell."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from bavit.visualize import mask_image, panels, save_masks, save_png
from tokenlabels.errors import OutputError, ParameterError
from tokenlabels.grid import PatchGrid

GAP, MAGENTA = 8, (226, 0, 122)


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Dark, coloured noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 120, (height, width, 3), np.uint8))


def mask(rows: int, cols: int, seed: int = 1) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random((rows, cols)) < 0.5


def split(strip: Image.Image, count: int) -> list[NDArray[np.uint8]]:
    """The panels of a strip, without their captions, each uint8 (height, width, 3)."""
    width = (strip.width + GAP) // count - GAP
    assert (width + GAP) * count - GAP == strip.width
    pixels = np.asarray(strip)
    top = next(y for y in range(strip.height) if (pixels[y, :width] != 255).any(axis=1).all())
    return [pixels[top:, index * (width + GAP) :][:, :width] for index in range(count)]


def cell(panel: NDArray[np.uint8], shape: tuple[int, int], row: int, col: int, border: int = 0) -> NDArray[np.uint8]:
    """The pixels of a cell, without a border."""
    y, x = (np.rint(np.arange(n + 1) * (side / n)).astype(int) for side, n in zip(panel.shape, shape, strict=False))
    return panel[y[row] + border : y[row + 1] - border, x[col] + border : x[col + 1] - border]


class TestPanels:
    @pytest.mark.parametrize(
        ("size", "shape", "panel"),
        [
            ((384, 384), (24, 24), (384, 384)),
            ((96, 64), (4, 6), (384, 256)),
            ((250, 250), (5, 5), (500, 500)),
            ((640, 416), (26, 40), (640, 416)),
            ((1920, 1080), (45, 80), (960, 540)),
            ((960, 32), (2, 60), (960, 32)),
            ((2048, 2048), (128, 128), (960, 960)),
            ((1001, 77), (7, 13), (960, 74)),
        ],
    )
    def test_a_kept_patch_is_the_picture_and_a_removed_one_is_not(
        self, size: tuple[int, int], shape: tuple[int, int], panel: tuple[int, int]
    ) -> None:
        kept = mask(*shape)
        original, shown = split(panels(photo(*size), kept), 2)
        assert (original.shape[1], original.shape[0]) == panel
        for row, col in np.ndindex(shape):
            true, drawn = cell(original, shape, row, col), cell(shown, shape, row, col)
            if kept[row, col]:
                assert np.array_equal(true, drawn)
            else:
                assert drawn.min() > 150, "fog, whatever the picture"
                assert np.ptp(drawn, axis=2).max() < 12, "grey"

    def test_the_original_is_the_picture(self) -> None:
        picture = photo(400, 400)
        assert np.array_equal(split(panels(picture, mask(4, 4)), 2)[0], np.asarray(picture))
        small = photo(100, 50)
        scaled = small.resize((400, 200), Image.Resampling.BICUBIC)
        assert np.array_equal(split(panels(small, mask(5, 10)), 2)[0], np.asarray(scaled))

    def test_there_are_as_many_panels_as_masks(self) -> None:
        kept, labels = mask(6, 6), np.zeros((6, 6), np.uint8)
        widths = [
            panels(photo(384, 384), kept, refined, truth).width
            for refined, truth in ((None, None), (kept, None), (None, labels), (kept, labels))
        ]
        assert widths == [384 * count + GAP * (count - 1) for count in (2, 3, 3, 4)]

    def test_patches_that_refinement_adds_are_outlined(self) -> None:
        kept, refined = mask(6, 6), mask(6, 6) | mask(6, 6, seed=2)
        original, before, after = split(panels(photo(384, 384), kept, refined), 3)
        assert not (before == MAGENTA).all(axis=2).any()
        for row, col in np.ndindex(6, 6):
            drawn = cell(after, (6, 6), row, col)
            outlined = (drawn[[0, -1]] == MAGENTA).all() and (drawn[:, [0, -1]] == MAGENTA).all()
            assert outlined == (refined[row, col] and not kept[row, col])
            if refined[row, col]:
                true, inside = (cell(panel, (6, 6), row, col, border=2) for panel in (original, after))
                assert np.array_equal(true, inside)

    def test_ignored_patches_are_hatched(self) -> None:
        labels = np.array([[0, 1], [255, 0]], np.uint8)
        original, _, truth = split(panels(photo(384, 384), mask(2, 2), labels=labels), 3)
        dark = [[(cell(truth, (2, 2), row, col, 2).max(axis=2) < 60).mean() for col in (0, 1)] for row in (0, 1)]
        assert dark[0][0] == dark[1][1] == 0
        assert 0.15 < dark[1][0] < 0.35
        assert np.array_equal(cell(truth, (2, 2), 0, 1), cell(original, (2, 2), 0, 1))

    def test_captions_fit_and_stand_above_their_panels(self) -> None:
        strip = panels(photo(16, 384), mask(24, 1), mask(24, 1), np.ones((24, 1), np.uint8))
        pixels = np.asarray(strip.convert("L"))
        caption = pixels[: strip.height - 384]
        blank = [bool((caption[:, x] == 255).all()) for x in range(strip.width)]
        assert not (caption == 255).all()
        assert all(blank[-2:]), "no caption is cut off"
        step = (strip.width + GAP) // 4
        assert all(all(blank[index * step - GAP : index * step]) for index in (1, 2, 3)), "none runs into the next"

    def test_any_mode_is_drawn(self) -> None:
        for mode in ("L", "P", "RGBA", "1", "CMYK"):
            assert panels(Image.new(mode, (64, 64)), mask(2, 2)).mode == "RGB"

    @pytest.mark.parametrize(
        ("kept", "refined", "labels"),
        [
            (np.ones((3, 4), bool), None, None),
            (np.ones((4, 4), bool), np.ones((4, 2), bool), None),
            (np.ones((4, 4), bool), None, np.ones((2, 4), np.uint8)),
            (np.ones((0, 4), bool), None, None),
            (np.ones(4, bool), None, None),
        ],
    )
    def test_masks_that_do_not_fit_are_refused(
        self, kept: NDArray[np.bool_], refined: NDArray[np.bool_] | None, labels: NDArray[np.uint8] | None
    ) -> None:
        with pytest.raises(ParameterError, match=r"patches"):
            panels(photo(64, 64), kept, refined, labels)

    def test_the_masks_are_left_as_they_are(self) -> None:
        kept, picture = mask(4, 4), photo(384, 384)
        before = kept.copy(), np.array(picture)
        panels(picture, kept, ~kept, kept.astype(np.uint8))
        assert np.array_equal(kept, before[0])
        assert np.array_equal(np.asarray(picture), before[1])


class TestMaskImage:
    @pytest.mark.parametrize("size", [(640, 480), (37, 91), (500, 3), (1, 1), (96, 96), (384, 123)])
    @pytest.mark.parametrize(
        ("resize", "image_size"),
        [("squash", 96), ("squash", "64x112"), ("letterbox", 96), ("letterbox", "64x112"), ("native", "native")],
    )
    def test_every_pixel_is_that_of_the_cell_its_centre_is_in(
        self, size: tuple[int, int], resize: str, image_size: int | str
    ) -> None:
        grid = PatchGrid.parse(16, image_size, resize)
        width, height = size
        axes = grid.axes(np.array([width], np.int32), np.array([height], np.int32))
        kept = mask(int(axes.rows[0]), int(axes.cols[0]), seed=width)
        drawn = mask_image(kept, grid, width, height)
        assert drawn.mode == "L"
        assert drawn.size == size
        places = []
        for axis, side, cells in ((axes.y[0], height, kept.shape[0]), (axes.x[0], width, kept.shape[1])):
            step, start, divisor = map(int, axis)
            edges = [Fraction(step * index + start, divisor) for index in range(cells + 1)]
            centres = [Fraction(2 * pixel + 1, 2) for pixel in range(side)]
            places.append([next(i for i in range(cells) if edges[i] <= c < edges[i + 1]) for c in centres])
        assert np.array_equal(np.asarray(drawn) == 255, kept[np.ix_(*places)])
        assert set(np.unique(np.asarray(drawn))) <= {0, 255}

    def test_at_the_size_of_the_model_input_cells_are_blocks(self) -> None:
        kept = mask(6, 6)
        drawn = np.asarray(mask_image(kept, PatchGrid.parse(16, 96), 96, 96))
        assert np.array_equal(drawn == 255, np.kron(kept, np.ones((16, 16), bool)))

    def test_a_mask_on_another_grid_is_refused(self) -> None:
        with pytest.raises(ParameterError, match=r"a mask of 6 x 5 patches is not on the grid 96x96-p16"):
            mask_image(mask(6, 5), PatchGrid.parse(16, 96), 100, 100)


class TestFiles:
    def test_masks_load_without_pickle(self, tmp_path: Path) -> None:
        kept = np.stack([mask(3, 4, seed) for seed in range(2)])
        background = np.random.default_rng(0).random((2, 3, 4)).astype(np.float32)
        path = save_masks(tmp_path / "new" / "masks.npz", kept, background, ["a.jpg", Path("été/日本.png")])
        with np.load(path, allow_pickle=False) as held:
            assert sorted(held.files) == ["background", "file_names", "kept"]
            assert held["kept"].dtype == np.bool_
            assert np.array_equal(held["kept"], kept)
            assert held["background"].dtype == np.float32
            assert np.array_equal(held["background"], background)
            assert held["file_names"].tolist() == ["a.jpg", "été/日本.png"]
        again = save_masks(tmp_path / "again", kept, background, ["a.jpg", "été/日本.png"])
        assert again.read_bytes() == path.read_bytes(), "the same masks, the same bytes, and no suffix is added"

    def test_no_images_are_a_file_too(self, tmp_path: Path) -> None:
        path = save_masks(tmp_path / "m.npz", np.zeros((0, 3, 4), bool), np.zeros((0, 3, 4), np.float32), [])
        with np.load(path, allow_pickle=False) as held:
            assert held["kept"].shape == (0, 3, 4)
            assert held["file_names"].shape == (0,)
            assert held["file_names"].dtype.kind == "U"

    def test_arrays_of_different_images_are_refused(self, tmp_path: Path) -> None:
        kept, background = np.zeros((2, 3, 4), bool), np.zeros((2, 3, 4), np.float32)
        for arrays in ((kept[:1], background, ["a", "b"]), (kept, background, ["a"]), (kept[0], background[0], ["a"])):
            with pytest.raises(ParameterError, match=r"not of the same images"):
                save_masks(tmp_path / "m.npz", *arrays)
        assert not list(tmp_path.iterdir())

    def test_pictures_are_written_whole(self, tmp_path: Path) -> None:
        strip = panels(photo(64, 64), mask(2, 2))
        with Image.open(save_png(strip, tmp_path / "strip.png")) as held:
            assert np.array_equal(np.asarray(held), np.asarray(strip))
        (tmp_path / "file").touch()
        with pytest.raises(OutputError, match=r"cannot be written"):
            save_png(strip, tmp_path / "file" / "strip.png")
