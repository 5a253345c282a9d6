"""The semantic sample: determinism, masks against outlines and colours, the layout, and its treatment of folders."""

from __future__ import annotations

import colorsys
import fcntl
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray
from PIL import Image, ImageFilter

import tokenlabels
from tokenlabels import sample_folder
from tokenlabels.errors import OutputError, ParameterError, TokenLabelsError
from tokenlabels.sample import write_sample
from tokenlabels.sample_drawing import MATERIALS
from tokenlabels.sample_folder import INCOMPLETE, MARKER
from tokenlabels.sample_semantic import write_semantic_sample
from tokenlabels.sample_stuff import CLASSES, SHAPES, STUFF, StuffScene, plan_stuff, render_stuff

IMAGES = 36
SPLITS = {
    "train": [n for n in range(1, IMAGES + 1) if n % 5 != 2],
    "val": [n for n in range(1, IMAGES + 1) if n % 5 == 2],
}
VOID = 255


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def mask_of(root: Path, number: int) -> NDArray[np.uint8]:
    with Image.open(root / f"SegmentationClass/{number:012d}.png") as mask:
        assert mask.mode == "P"
        return np.asarray(mask)


def scene_of(number: int, seed: int = 0) -> StuffScene:
    return plan_stuff(number, np.random.default_rng([seed, number]).spawn(2)[0])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("semantic") / "drawn"
    write_semantic_sample(out, images=IMAGES)
    return out


# --- determinism ------------------------------------------------------------------------------------------------------


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(root: Path, tmp_path: Path) -> None:
    for name, seed in (("again", 0), ("other", 1)):
        write_semantic_sample(tmp_path / name, images=6, seed=seed)
    once, other = contents(tmp_path / "again"), contents(tmp_path / "other")
    drawn = {name for name in once if name.endswith((".jpg", ".png"))}
    assert len(drawn) == 12
    assert all(once[name] != other[name] for name in drawn)
    whole = contents(root)
    assert all(once[name] == whole[name] for name in drawn), "an image depends on how many there are"


def test_the_summary_counts_and_a_finished_sample_is_not_drawn_again(tmp_path: Path) -> None:
    finished: list[int] = []
    summary = write_semantic_sample(tmp_path, images=7, progress=finished.append)
    assert sum(finished) == summary.images == 7
    assert summary.splits == {"train": 5, "val": 2}
    assert summary.annotations == sum(len(scene_of(number).things) for number in range(1, 8))
    before = contents(tmp_path)
    assert write_semantic_sample(tmp_path, images=7, progress=finished.append) == summary
    assert sum(finished) == 7
    assert contents(tmp_path) == before


# --- the masks --------------------------------------------------------------------------------------------------------


def test_there_are_seven_kinds_of_stuff_and_six_shapes() -> None:
    assert CLASSES[0] == "background"
    assert CLASSES[1:7] == STUFF[1:]
    assert [shape.name for shape in SHAPES] == [*CLASSES[7:]]
    assert len(CLASSES) == 13


@pytest.mark.parametrize("split", SPLITS)
def test_every_class_occurs_in_every_split(split: str, root: Path) -> None:
    values = {int(value) for number in SPLITS[split] for value in np.unique(mask_of(root, number))}
    assert values == {*range(13), VOID}


def test_any_seven_images_hold_every_class() -> None:
    for first in (1, 100, 4321):
        found = {int(value) for number in range(first, first + 7) for value in np.unique(scene_of(number, 3).mask())}
        assert found == {*range(13), VOID}


@pytest.mark.parametrize("seed", range(3))
def test_scenes_keep_to_their_description(seed: int) -> None:
    scenes = [scene_of(number, seed) for number in range(1, 31)]
    assert {len(scene.stuff) for scene in scenes} == {2, 3, 4}
    assert {len(scene.things) for scene in scenes} == {1, 2, 3, 4}
    assert {scene.regions.shape for scene in scenes} == {(240, 320), (320, 240), (288, 288)}
    for scene in scenes:
        assert len(set(scene.stuff)) == len(scene.stuff)
        assert np.bincount(scene.regions.ravel()).min() >= 0.12 * scene.regions.size
        bare = np.bincount(scene.regions[scene.objects == 0], minlength=len(scene.stuff))
        assert bare.min() >= 0.05 * scene.regions.size
        for thing in scene.things:
            across = np.ptp(thing.outline, axis=0).max() / min(scene.regions.shape)
            assert 0.25 <= across <= 0.6


@pytest.mark.parametrize("number", range(1, 13))
def test_a_mask_says_what_outlines_cover(number: int, root: Path) -> None:
    scene, mask = scene_of(number), mask_of(root, number)
    height, width = mask.shape
    xs, ys = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    expected = np.array(scene.stuff, np.uint8)[scene.regions]
    visible: list[Any] = []
    for thing in scene.things:
        shape = shapely.Polygon(thing.outline)
        expected[shapely.contains_xy(shape, xs, ys)] = CLASSES.index(thing.category.name)
        visible = [*(shapely.difference(other, shape) for other in visible), shape]
    void = mask == VOID
    assert (mask == expected)[~void].all()
    edges = shapely.union_all([shapely.boundary(region) for region in visible])
    shapely.prepare(edges)
    spots = shapely.points(xs, ys)
    assert shapely.dwithin(edges, spots[void], 3.0 * 2**0.5).all(), "void far from every border"
    # Outlines are drawn in half pixels, and the frame may cut off one side of a border.
    at_edges = shapely.dwithin(edges, spots, 0.2)[2:-2, 2:-2]
    assert void[2:-2, 2:-2][at_edges].mean() > 0.99, "borders without void"  # tips thinner than a pixel have none


@pytest.mark.parametrize("number", range(1, 7))
def test_void_is_one_pixel_of_a_shape_and_two_around_it(number: int, root: Path) -> None:
    objects = scene_of(number).objects
    picture = Image.fromarray(objects)
    largest, least, wider = (
        np.asarray(picture.filter(chosen))
        for chosen in (ImageFilter.MaxFilter(3), ImageFilter.MinFilter(3), ImageFilter.MaxFilter(5))
    )
    expected = (largest != least) | ((objects == 0) & (wider > 0))
    inside = np.s_[2:-2, 2:-2]  # Pillow's filters leave the frame to itself
    np.testing.assert_array_equal((mask_of(root, number) == VOID)[inside], expected[inside])


# --- the pictures -----------------------------------------------------------------------------------------------------


def colours(root: Path, value: int) -> list[NDArray[np.float64]]:
    """The mean colour in 0..1 of a class in every image that holds enough of it."""
    found = []
    for number in range(1, IMAGES + 1):
        chosen = mask_of(root, number) == value
        if chosen.sum() > 500:
            with Image.open(root / f"JPEGImages/{number:012d}.jpg") as picture:
                assert (picture.mode, picture.size) == ("RGB", chosen.shape[::-1])
                found.append(np.asarray(picture)[chosen].mean(axis=0) / 255)
    return found


@pytest.mark.parametrize("category", SHAPES, ids=lambda category: category.name)
def test_shapes_have_the_hue_of_their_category(category: Any, root: Path) -> None:
    found = colours(root, CLASSES.index(category.name))
    assert len(found) >= 6
    for colour in found:
        away = abs(colorsys.rgb_to_hsv(*colour)[0] - category.hue)
        assert min(away, 1 - away) < 0.12


@pytest.mark.parametrize("value", range(7))
def test_stuff_has_the_colours_of_its_material(value: int, root: Path) -> None:
    found = colours(root, value)
    assert len(found) >= 6
    mean = np.mean(found, axis=0)
    typical = {name: np.mean(MATERIALS[name].ramp, axis=0) for name in STUFF}
    chromatic = {name: colour / colour.sum() for name, colour in typical.items()}
    nearest = sorted(STUFF, key=lambda name: float(np.square(chromatic[name] - mean / mean.sum()).sum()))
    assert STUFF[value] in nearest[:2]


def test_a_scene_is_drawn_where_it_is_planned() -> None:
    """Without its shapes a picture differs where they and their shadows are."""
    scene = next(scene for scene in map(scene_of, range(1, 50)) if len(scene.things) == 1)
    bare = StuffScene(scene.stuff, scene.regions, (), np.zeros_like(scene.objects))
    with_shape, without = (
        np.asarray(render_stuff(each, np.random.default_rng(4)).filter(ImageFilter.BoxBlur(3)), np.float64)
        for each in (scene, bare)
    )
    change = np.abs(with_shape / with_shape.mean() - without / without.mean()).max(axis=2)
    assert np.median(change[scene.objects > 0]) > 2 * np.median(change[scene.objects == 0])


# --- the layout -------------------------------------------------------------------------------------------------------


def test_the_folder_is_in_the_layout_of_masks(root: Path) -> None:
    names = [f"{number:012d}" for number in range(1, IMAGES + 1)]
    lists = {f"ImageSets/Segmentation/{split}.txt" for split in SPLITS}
    pictures = {f"JPEGImages/{name}.jpg" for name in names} | {f"SegmentationClass/{name}.png" for name in names}
    assert set(contents(root)) == {MARKER, "labelmap.txt", *lists, *pictures}
    for split, numbers in SPLITS.items():
        listed = (root / f"ImageSets/Segmentation/{split}.txt").read_text().split()
        assert listed == [f"{number:012d}" for number in numbers]


def test_it_builds_with_its_own_thirteen_categories(root: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"image_size": 64, "embed_images": True, "embed_masks": True, "workers": 1}
    built = tokenlabels.build("semantic", root=root, out=tmp_path / "out", **options)
    assert [(category.id, category.name) for category in built.categories] == [*enumerate(CLASSES)]
    assert built.manifest["splits"].keys() == SPLITS.keys()
    table = built.table()
    assert sorted(table["image_id"].to_pylist()) == sorted(f"{number:012d}" for number in range(1, IMAGES + 1))


# --- the folder -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "seed"), [(0, 0), (1_000_001, 0), (2, -1)])
def test_numbers_out_of_range_are_refused(images: int, seed: int, tmp_path: Path) -> None:
    with pytest.raises(ParameterError):
        write_semantic_sample(tmp_path / "out", images=images, seed=seed)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["notes.txt", MARKER, INCOMPLETE])
def test_a_folder_with_other_things_is_refused_and_left_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{"generator": "somebody else"}')
    before = contents(tmp_path)
    with pytest.raises(OutputError, match=str(tmp_path)):
        write_semantic_sample(tmp_path, images=2)
    assert contents(tmp_path) == before


def test_neither_kind_of_sample_replaces_the_other(tmp_path: Path) -> None:
    writers = {"photo": write_sample, "semantic": write_semantic_sample}
    for name, write in writers.items():
        write(tmp_path / name, images=2)
        before = contents(tmp_path / name)
        for other in writers.values():
            if other is not write:
                with pytest.raises(OutputError, match="no generated sample of this kind"):
                    other(tmp_path / name, images=2)
        assert contents(tmp_path / name) == before


def test_an_interrupted_run_is_redone_by_its_own_kind_alone(tmp_path: Path) -> None:
    def interrupt(_: int) -> None:
        if len(list((tmp_path / "cut/JPEGImages").iterdir())) == 5:
            raise KeyboardInterrupt

    write_semantic_sample(tmp_path / "whole", images=3)
    with pytest.raises(KeyboardInterrupt):
        write_semantic_sample(tmp_path / "cut", images=6, progress=interrupt)
    assert (tmp_path / "cut" / INCOMPLETE).exists()
    assert not (tmp_path / "cut" / MARKER).exists()
    with pytest.raises(OutputError):
        write_sample(tmp_path / "cut", images=3)
    write_semantic_sample(tmp_path / "cut", images=3)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_another_sample_replaces_ours_and_nothing_else(tmp_path: Path) -> None:
    write_semantic_sample(tmp_path / "wanted", images=1, seed=2)
    write_semantic_sample(tmp_path / "out", images=4)
    (tmp_path / "out/notes.txt").write_text("mine")
    write_semantic_sample(tmp_path / "out", images=1, seed=2)
    assert contents(tmp_path / "out") == {**contents(tmp_path / "wanted"), "notes.txt": b"mine"}


def test_a_sample_that_lost_a_list_is_redrawn(tmp_path: Path) -> None:
    write_semantic_sample(tmp_path, images=2)
    before = contents(tmp_path)
    (tmp_path / "ImageSets/Segmentation/val.txt").unlink()
    write_semantic_sample(tmp_path, images=2)
    assert contents(tmp_path) == before


def test_two_at_once_draw_one_sample(tmp_path: Path) -> None:
    write_semantic_sample(tmp_path / "whole", images=3)
    with ThreadPoolExecutor(3) as pool:
        summaries = list(pool.map(lambda _: write_semantic_sample(tmp_path / "shared", images=3), range(3)))
    assert summaries[0] == summaries[1] == summaries[2]
    assert contents(tmp_path / "shared") == contents(tmp_path / "whole")


def test_who_waited_while_another_kind_was_drawn_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim that is only begun does not yet say of which kind; the marker does when the lock is free."""
    out = tmp_path / "out"
    out.mkdir()
    looked: list[Path] = []
    refuse = sample_folder._refuse_foreign

    def look(root: Path, generator: Any) -> None:
        refuse(root, generator)
        looked.append(root)
        if len(looked) == 1:  # it will wait for nobody, and find what another drew meanwhile
            (out / INCOMPLETE).unlink()
            write_semantic_sample(out, images=1)

    with (out / INCOMPLETE).open("w") as claim:
        fcntl.flock(claim, fcntl.LOCK_EX)
        monkeypatch.setattr(sample_folder, "_refuse_foreign", look)
        with pytest.raises(TokenLabelsError, match="no generated sample of this kind"):
            write_sample(out, images=1)
    monkeypatch.undo()
    write_semantic_sample(tmp_path / "wanted", images=1)
    assert contents(out) == contents(tmp_path / "wanted")
    assert json.loads((out / MARKER).read_text())["generator"] == "tokenlabels.sample_semantic"
