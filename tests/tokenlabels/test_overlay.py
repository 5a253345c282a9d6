"""Overlays: the colours say the labels, the canvas shows the padding, and faults are one sentence."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import Result

import tokenlabels
from tokenlabels.errors import NotABuildError, OutputError, ParameterError, TokenLabelsError
from tokenlabels.grid import PatchGrid
from tokenlabels.overlay import draw_overlay

Invoke: TypeAlias = Callable[..., Result]

FOREGROUND, BACKGROUND, IGNORE = 1, 0, 255


def picture(width: int, height: int, colour: tuple[int, int, int] = (60, 140, 90)) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def patch_of(drawn: Image.Image, grid: PatchGrid, size: tuple[int, int], row: int, col: int) -> NDArray[np.float64]:
    """float64 (n, 3): the pixels of a patch, without a border where grid lines and boxes are."""
    y_edges, x_edges = grid.edges(*size)
    left, top = min(0.0, x_edges[0]), min(0.0, y_edges[0])
    factor = drawn.width / (max(size[0], x_edges[-1]) - left)
    x = ((x_edges[col : col + 2] - left) * factor).round().astype(int)
    y = ((y_edges[row : row + 2] - top) * factor).round().astype(int)
    inside = np.asarray(drawn, np.float64)[y[0] + 8 : y[1] - 8, x[0] + 8 : x[1] - 8]
    assert inside.size
    return inside.reshape(-1, 3)


def is_red(pixels: NDArray[np.float64]) -> bool:
    return bool((pixels[:, 0] > pixels[:, 1] + 15).all() and (pixels[:, 0] > pixels[:, 2] + 15).all())


def is_grey(pixels: NDArray[np.float64]) -> bool:
    return bool(np.ptp(pixels, axis=1).max() <= 1 and np.ptp(pixels) <= 2)


def is_hatched(pixels: NDArray[np.float64]) -> bool:
    """Two greys, each a good part of it."""
    levels, counts = np.unique(pixels[:, 0].round(), return_counts=True)
    return bool(
        np.ptp(pixels, axis=1).max() <= 1
        and len(levels) == 2
        and np.ptp(levels) > 40
        and min(counts) > 0.3 * counts.sum()
    )


def test_colours_say_the_labels() -> None:
    """Every patch of a board of the three labels; a green picture becomes red, grey and hatched."""
    grid = PatchGrid.parse(16, 64)
    board = np.array([[1, 0, 255, 1], [0, 1, 0, 255], [255, 255, 1, 0], [0, 0, 0, 1]], np.uint8)
    drawn = draw_overlay(picture(64, 64), grid, board, [], [])
    assert drawn.mode == "RGB"
    assert drawn.width == drawn.height >= 64 * 2
    kinds = {FOREGROUND: is_red, BACKGROUND: is_grey, IGNORE: is_hatched}
    for row in range(4):
        for col in range(4):
            pixels = patch_of(drawn, grid, (64, 64), row, col)
            assert {label: kind(pixels) for label, kind in kinds.items()} == {
                label: label == board[row, col] for label in kinds
            }, (row, col)


@pytest.mark.parametrize("size", [(100, 60), (60, 100), (640, 480), (1, 1)])
def test_a_squashed_grid_covers_the_source_image(size: tuple[int, int]) -> None:
    """The overlay is in source pixels: fractional patches, no padding."""
    grid = PatchGrid.parse(16, 32)
    drawn = draw_overlay(picture(*size), grid, np.array([[1, 0], [255, 1]], np.uint8), [], [])
    assert drawn.width * size[1] == drawn.height * size[0]
    assert drawn.width % size[0] == 0
    assert is_red(patch_of(drawn, grid, size, 0, 0))
    assert is_grey(patch_of(drawn, grid, size, 0, 1))
    assert is_hatched(patch_of(drawn, grid, size, 1, 0))


@pytest.mark.parametrize(
    ("grid", "size", "canvas", "padded"),
    [
        pytest.param(PatchGrid.parse(16, 64, "letterbox"), (60, 30), (60, 60), [(0, 0), (3, 3)], id="letterbox, wide"),
        pytest.param(PatchGrid.parse(16, 64, "letterbox"), (30, 60), (60, 60), [(0, 0), (3, 3)], id="letterbox, tall"),
        pytest.param(PatchGrid.parse(16, "native"), (40, 20), (48, 32), [], id="native, pads right and bottom"),
        pytest.param(PatchGrid.parse(16, "native"), (48, 32), (48, 32), [], id="native, fits"),
    ],
)
def test_the_canvas_shows_the_padding(
    grid: PatchGrid, size: tuple[int, int], canvas: tuple[int, int], padded: list[tuple[int, int]]
) -> None:
    rows, cols = grid.edges(*size)[0].size - 1, grid.edges(*size)[1].size - 1
    labels = np.zeros((rows, cols), np.uint8)
    for place in padded:
        labels[place] = IGNORE
    drawn = draw_overlay(picture(*size, (255, 255, 255)), grid, labels, [], [])
    assert drawn.width * canvas[1] == drawn.height * canvas[0]
    factor = drawn.width // canvas[0]
    assert drawn.size == (canvas[0] * factor, canvas[1] * factor)
    for place in padded:
        pixels = patch_of(drawn, grid, size, *place)
        assert pixels.max() < 120, "padding is dark"
    shown = patch_of(drawn, grid, size, rows // 2 - 1 if padded else 0, cols // 2 - 1 if padded else 0)
    assert shown.min() > 120, "the image is bright"


def test_boxes_are_outlined_and_never_filled() -> None:
    """Also one far beyond the image, and one without area, which is not drawn."""
    grid = PatchGrid.parse(32, 96)
    boxes = [[20.0, 20.0, 50.0, 50.0], [-1e6, -1e6, 3e6, 3e6], [10.0, 10.0, 0.0, 5.0]]
    plain = draw_overlay(picture(96, 96), grid, np.zeros((3, 3), np.uint8), [], [])
    drawn = draw_overlay(picture(96, 96), grid, np.zeros((3, 3), np.uint8), boxes, [0, 1, 2])
    changed = (np.asarray(plain) != np.asarray(drawn)).any(axis=2)
    factor = drawn.width // 96
    assert changed[20 * factor, 45 * factor]
    assert not changed[45 * factor, 45 * factor]
    assert not changed[12 * factor, 10 * factor]
    assert changed.mean() < 0.15


# --- show -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path, document: dict[str, Any]) -> Path:
    """Two images; the ids are not the file stems."""
    (tmp_path / "annotations").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "annotations" / "instances_mine.json").write_text(json.dumps(document))
    picture(40, 30).save(tmp_path / "mine" / "a.png")
    picture(64, 48).save(tmp_path / "mine" / "b.png")
    return tmp_path


@pytest.fixture
def built(data: Path) -> tokenlabels.Build:
    return tokenlabels.build("coco", root=data, out=data / "out", patch=[16, 32], image_size=64)


@pytest.mark.parametrize("image_id", ["2", "b"])
@pytest.mark.parametrize("folder", [".", "mine"])
def test_images_are_found_by_id_and_stem_below_the_folder_or_its_split(
    image_id: str, folder: str, built: tokenlabels.Build, data: Path
) -> None:
    path = tokenlabels.show(built, image_id, data / "overlay.png", images=data / folder)
    assert path == data / "overlay.png"
    with Image.open(path) as drawn:
        assert drawn.format == "PNG"
        assert drawn.size == (64 * 15, 48 * 15)
        assert is_red(patch_of(drawn, built.grids["64x64-p16"], (64, 48), 0, 0))
        assert is_grey(patch_of(drawn, built.grids["64x64-p16"], (64, 48), 3, 0))


def test_an_id_goes_before_a_stem(document: dict[str, Any], tmp_path: Path) -> None:
    """Image 1 is called 2.png."""
    (tmp_path / "annotations").mkdir()
    (tmp_path / "mine").mkdir()
    document["images"][0]["file_name"] = "2.png"
    (tmp_path / "annotations" / "instances_mine.json").write_text(json.dumps(document))
    picture(40, 30).save(tmp_path / "mine" / "2.png")
    picture(64, 48).save(tmp_path / "mine" / "b.png")
    built = tokenlabels.build("coco", root=tmp_path, out=tmp_path / "out")
    with Image.open(tokenlabels.show(built, "2", tmp_path / "x.png", images=tmp_path / "mine")) as drawn:
        assert drawn.width * 48 == drawn.height * 64


def test_the_grid_can_be_chosen(built: tokenlabels.Build, data: Path) -> None:
    drawn = {}
    for grid in (None, "64x64-p16", "64x64-p32"):
        tokenlabels.show(built, "1", data / "x.png", images=data / "mine", grid=grid)
        drawn[grid] = (data / "x.png").read_bytes()
    assert drawn[None] == drawn["64x64-p16"] != drawn["64x64-p32"]


def test_embedded_images_need_no_folder(data: Path) -> None:
    built = tokenlabels.build("coco", root=data, out=data / "out", embed_images=True)
    for file in (data / "mine").iterdir():
        file.unlink()
    tokenlabels.show(built, "1", data / "x.png")
    with Image.open(data / "x.png") as drawn:
        assert drawn.width * 30 == drawn.height * 40


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "CMYK", "I;16"])
def test_images_of_any_mode_are_shown(mode: str, built: tokenlabels.Build, data: Path) -> None:
    suffix = "TIFF" if mode == "CMYK" else "PNG"
    Image.new(mode, (40, 30)).save(data / "mine" / "a.png", suffix)
    tokenlabels.show(built, "1", data / "x.png", images=data / "mine")
    with Image.open(data / "x.png") as drawn:
        assert drawn.mode == "RGB"


def cut_image(data: Path) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((40, 30), 80).convert("RGB").save(buffer, "PNG")
    (data / "mine" / "a.png").write_bytes(buffer.getvalue()[:900])


def escape(data: Path) -> None:
    """An image whose file_name leaves the folder, and is there."""
    (data / "a.png").write_bytes((data / "mine" / "a.png").read_bytes())
    document = json.loads((data / "annotations" / "instances_mine.json").read_text())
    document["images"][0]["file_name"] = "../a.png"
    (data / "annotations" / "instances_mine.json").write_text(json.dumps(document))
    tokenlabels.build("coco", root=data, out=data / "out", patch=[16, 32], image_size=64, overwrite=True)


def damage(data: Path, first: str = "image_id") -> None:
    """Zeros in the columns of the shard from the first named on, its footer whole."""
    for shard in (data / "out" / "64x64-p16").iterdir():
        content = shard.read_bytes()
        group = pq.ParquetFile(shard).metadata.row_group(0)
        start = next(
            c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == first
        ).data_page_offset
        footer = int.from_bytes(content[-8:-4], "little") + 8
        shard.write_bytes(content[:start] + bytes(len(content) - footer - start) + content[-footer:])


SHOW_FAULTS: list[Any] = [
    pytest.param(lambda data: (data / "mine" / "a.png").unlink(), {}, "no such image file", id="missing image"),
    pytest.param(lambda data: picture(30, 40).save(data / "mine" / "a.png"), {}, "stored as 30 x 40", id="other size"),
    pytest.param(lambda data: (data / "mine" / "a.png").write_bytes(b"x"), {}, "cannot be read", id="no image"),
    pytest.param(cut_image, {}, "cannot be read", id="image cut short"),
    pytest.param(escape, {}, "not opened", id="file_name that leaves the folder"),
    pytest.param(damage, {}, "damaged", id="damaged shard"),
    pytest.param(lambda data: damage(data, "width"), {}, "damaged", id="damaged where ids are not"),
    pytest.param(lambda data: None, {"image_id": "99"}, "holds no image '99'", id="unknown id"),
    pytest.param(lambda data: None, {"image_id": ""}, "holds no image ''", id="empty id"),
    pytest.param(lambda data: None, {"--images": None}, "--images", id="no folder named"),
    pytest.param(lambda data: None, {"--images": "nowhere"}, "no such image file", id="folder that is not there"),
    pytest.param(lambda data: None, {"--grid": "64x64-p8"}, "no grid '64x64-p8'", id="unknown grid"),
    pytest.param(lambda data: None, {"--split": "val"}, "no split 'val'", id="unknown split"),
    pytest.param(lambda data: None, {"-o": "mine/a.png/x.png"}, "cannot be written", id="output below a file"),
    pytest.param(lambda data: None, {"-o": "nowhere/x.png"}, "cannot be written", id="output in no folder"),
    pytest.param(lambda data: None, {"-o": "mine"}, "no file name for a PNG", id="output that is a folder"),
    pytest.param(lambda data: None, {"-o": "/proc/x.png"}, "cannot be written", id="output nobody can write"),
]


@pytest.mark.parametrize(("change", "words", "says"), SHOW_FAULTS)
def test_faults_are_one_sentence_and_leave_no_file(
    change: Callable[[Path], Any],
    words: dict[str, str | None],
    says: str,
    built: tokenlabels.Build,
    data: Path,
    invoke: Invoke,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(data)
    change(data)
    before = {path for path in data.rglob("*") if path.is_file()}
    options = {"image_id": "1", "--images": "mine", "-o": "x.png"} | words
    image_id = options.pop("image_id")
    result = invoke(
        "show", "out", image_id, *(word for pair in options.items() if pair[1] is not None for word in pair)
    )
    assert result.exit_code == (2 if "grid" in says or "split" in says or says == "--images" else 1)
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: ")
    assert says in result.stderr
    assert "--debug" not in result.stderr
    assert {path for path in data.rglob("*") if path.is_file()} == before


def test_errors_of_the_function_have_their_kinds(built: tokenlabels.Build, data: Path) -> None:
    with pytest.raises(ParameterError):
        tokenlabels.show(built, "1", data / "x.png")
    with pytest.raises(OutputError):
        tokenlabels.show(built, "1", data / "out" / "README.md", images=data / "mine")
    with pytest.raises(TokenLabelsError, match="99"):
        tokenlabels.show(built, "99", data / "x.png", images=data)
    built.files()[0].unlink()
    with pytest.raises((NotABuildError, TokenLabelsError), match="missing or damaged"):
        tokenlabels.show(built, "1", data / "x.png", images=data)
