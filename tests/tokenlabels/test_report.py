"""The report: one file that needs nothing else, whatever the build and its pictures are like."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import io
import itertools
import json
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np
import pytest
from PIL import Image

import tokenlabels
from tokenlabels.errors import OutputError, ParameterError
from tokenlabels.figures import Agreement, Comparison, Figures
from tokenlabels.reader import Build
from tokenlabels.report import write_report
from tokenlabels.report.page import MAX_BYTES
from tokenlabels.report.plots import pooled, ticks
from tokenlabels.report.samples import Pool, choose

FiguresOf: TypeAlias = Callable[..., Figures]
WriteJson: TypeAlias = Callable[[Path, Any], Path]
Document: TypeAlias = dict[str, Any]

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&\u2028\u202egnp.exe"


class Elements(html.parser.HTMLParser):
    """Every start tag with its attributes, and the text of `script` and `style` elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.raw: list[tuple[str, dict[str, str | None], str]] = []
        self.words: list[str] = []
        self.in_raw = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.in_raw = tag in ("script", "style")
        if self.in_raw:
            self.raw.append((tag, dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self.in_raw = False

    def handle_data(self, data: str) -> None:
        if self.in_raw:
            tag, attributes, before = self.raw[-1]
            self.raw[-1] = (tag, attributes, before + data)
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def data_of(page: str, element: str) -> Any:
    """The JSON in an element of the page, as a browser would read it."""
    found = re.search(rf'<script type="application/json" id="{element}">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def labels_at_build(sample: dict[str, Any], tau: float, *, inclusive: bool) -> list[int]:
    """Labels from what the page holds; only for grids without padding."""
    if sample["scores"] is None:
        return list(base64.b64decode(sample["labels"]))
    scores = np.frombuffer(base64.b64decode(sample["scores"]), "<f4")
    ignorable = np.frombuffer(base64.b64decode(sample["ignorable"] or ""), np.uint8)
    passes = scores >= np.float32(tau) if inclusive else scores > np.float32(tau)
    ignored = ignorable.astype(bool) if len(ignorable) else np.zeros(len(scores), bool)
    return [int(label) for label in np.where(passes, 1, np.where(ignored, 255, 0))]


@pytest.fixture(scope="module")
def sample_build(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    return tokenlabels.build("coco", root=sample_root, out=tmp_path_factory.mktemp("report") / "labels")


@pytest.fixture(scope="module")
def sample_figures(sample_build: Build, figures_of: FiguresOf) -> Figures:
    return figures_of(sample_build)


@pytest.fixture(scope="module")
def sample_page(
    sample_build: Build, sample_figures: Figures, sample_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    assert write_report(path, sample_build, sample_figures, images=sample_root) == path
    return path.read_text("utf-8")


def build_of(document: Document, folder: Path, write_json: WriteJson, **options: Any) -> Build:
    """A build in `folder`, of the images in `folder / "images"` where that is there."""
    annotations = write_json(folder / "instances.json", document)
    images = folder / "images" if (folder / "images").is_dir() else None
    return tokenlabels.build("coco", annotations=annotations, images=images, out=folder / "labels", **options)


def page_of(build: Build, figures: Figures, folder: Path, **options: Any) -> str:
    return write_report(folder / "report.html", build, figures, **options).read_text("utf-8")


class TestOneFile:
    def test_nothing_is_loaded_from_elsewhere(self, sample_page: str) -> None:
        """Pictures are inside the JSON; no attribute or style names an address."""
        assert not re.search(
            r"https?:|//[a-z]|@import|url\(|sourceMappingURL", re.sub(r'"data:image[^"]*"', "", sample_page)
        )
        for tag, attributes in Elements(sample_page).tags:
            assert "src" not in attributes, tag
            assert (attributes.get("href") or "#").startswith(("#", "data:")), tag
            assert not [name for name in attributes if name.startswith("on") or name == "style"], tag

    def test_the_policy_allows_its_own_script_and_style_and_nothing_else(self, sample_page: str) -> None:
        elements = Elements(sample_page)
        policy = next(a["content"] for t, a in elements.tags if a.get("http-equiv") == "Content-Security-Policy")
        assert policy
        assert policy.startswith("default-src 'none'; img-src data:; ")
        assert "unsafe" not in policy
        for tag, attributes, text in elements.raw:
            if attributes.get("type") != "application/json":
                digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
                assert f"{tag}-src 'sha256-{digest}'" in policy

    def test_the_same_build_gives_the_same_bytes(
        self, sample_build: Build, sample_figures: Figures, sample_root: Path, sample_page: str, tmp_path: Path
    ) -> None:
        assert page_of(sample_build, sample_figures, tmp_path, images=sample_root) == sample_page

    def test_all_figures_are_in_the_page(self, sample_page: str, sample_figures: Figures) -> None:
        held = msgspec.convert(data_of(sample_page, "figures"), Figures)
        assert msgspec.structs.replace(held, path=sample_figures.path) == sample_figures
        assert held.path == "labels", "the way to the folder is nobody's business"

    def test_the_text_says_the_key_figures_and_the_parameters(
        self, sample_page: str, sample_figures: Figures, sample_build: Build
    ) -> None:
        text = Elements(sample_page).text
        for words in (
            f"{sample_figures.fg_share:.2%}",
            f"{sample_figures.foreground:,} of {sample_figures.patches:,} patches",
            f"{sample_figures.lost_share:.2%} make no patch foreground",
            "grids[0].name 384x384-p16",
            *(source["sha256"] for source in sample_build.manifest["sources"].values()),
            *(category.name for category in sample_build.categories),
        ):
            assert words in text

    def test_every_plot_has_a_title_and_words_for_who_cannot_see_it(self, sample_page: str) -> None:
        drawings = [attributes for tag, attributes in Elements(sample_page).tags if tag == "svg"]
        plots = [attributes for attributes in drawings if attributes.get("class") == "plot"]
        assert len(plots) == 4
        assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in plots)
        assert all(attributes.get("aria-hidden") for attributes in drawings if attributes not in plots)
        assert sample_page.count("<figcaption><h3>") == sample_page.count('<figure class="card')

    def test_headings_never_skip_a_level(self, sample_page: str) -> None:
        levels = [int(tag[1]) for tag, _ in Elements(sample_page).tags if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


class TestNames:
    def test_hostile_names_are_text(
        self, document: Document, tmp_path: Path, write_json: WriteJson, figures_of: FiguresOf
    ) -> None:
        document["categories"][0]["name"] = HOSTILE
        document["images"][0]["file_name"] = HOSTILE + ".png"
        document["annotations"][0]["bbox"] = [2, 3, 1, 1]  # lost, so that its file is named in the page
        folder = tmp_path / "</title><b>\x07"
        build = build_of(document, folder, write_json)
        figures = figures_of(build)
        page = page_of(build, figures, tmp_path, comparison=Comparison([figures], None, HOSTILE))
        elements = Elements(page)
        assert not [tag for tag, _ in elements.tags if tag in ("img", "b")]
        assert not [a for _, a in elements.tags if any(name.startswith("on") for name in a)]
        assert "\u202e" not in page
        assert not re.search("[\x00-\x08\x0e-\x1f\u2028\u2029]", page)
        assert data_of(page, "figures")["by_category"][0]["name"] == HOSTILE
        shown = [a["id"] for t, a, _ in elements.raw if a.get("type") == "application/json"]
        assert shown == ["figures", "comparison", "samples"]
        assert "onerror=alert(1)" in elements.text, "as text"

    def test_a_finding_of_an_unknown_code_is_shown_by_its_code(
        self, sample_build: Build, sample_figures: Figures, tmp_path: Path
    ) -> None:
        build = tokenlabels.open(sample_build.path)
        build.manifest |= {
            "findings": {"XYZ999": 7, "COCO043": 2},
            "finding_examples": [{"code": "XYZ999", "severity": "warning", "file": "f.json", "message": "odd <i>"}],
        }
        text = Elements(page_of(build, sample_figures, tmp_path)).text
        assert "XYZ999 7" in text
        assert "COCO043 2 image on disk is not in the annotation file not built" in text
        assert "f.json: odd <i>" in text


class TestPictures:
    def test_pictures_of_a_folder_are_small_jpegs(self, sample_page: str) -> None:
        samples = data_of(sample_page, "samples")["samples"]
        assert len(samples) == 16
        for sample in samples:
            picture = decoded(sample["picture"])
            assert picture.format == "JPEG"
            assert max(picture.size) == min(400, max(sample["width"], sample["height"]))
            assert picture.width / picture.height == pytest.approx(sample["width"] / sample["height"], rel=0.02)

    def test_embedded_pictures_need_no_folder(self, sample_root: Path, tmp_path: Path, figures_of: FiguresOf) -> None:
        build = tokenlabels.build("coco", root=sample_root, out=tmp_path / "labels", embed_images=True, shard_rows=5)
        samples = data_of(page_of(build, figures_of(build), tmp_path), "samples")["samples"]
        for sample in samples:
            file = sample_root / sample["split"] / sample["file_name"]
            with Image.open(file) as image:
                small = image.convert("RGB").resize(decoded(sample["picture"]).size)
            difference = np.abs(np.asarray(small, float) - np.asarray(decoded(sample["picture"]), float))
            assert difference.mean() < 8, "the picture of this very image"
            assert not sample["covers_input"]

    def test_pictures_of_the_input_size_cover_the_input(
        self, document: Document, tmp_path: Path, write_json: WriteJson, figures_of: FiguresOf
    ) -> None:
        for name, size in (("a.png", (40, 30)), ("b.png", (64, 48))):
            (tmp_path / "images").mkdir(exist_ok=True)
            Image.new("RGB", size, "red").save(tmp_path / "images" / name)
        build = build_of(document, tmp_path, write_json, embed_images=True)
        document["images"][0] |= {"width": 41}  # any size will do, so shrink what is annotated instead
        build.manifest["parameters"]["embed_size"] = [384, 384]
        samples = data_of(page_of(build, figures_of(build), tmp_path), "samples")["samples"]
        assert [sample["covers_input"] for sample in samples] == [True, True]
        assert all(sample["picture"] for sample in samples)

    def test_without_images_the_gallery_has_grids_and_boxes(
        self, sample_build: Build, sample_figures: Figures, tmp_path: Path
    ) -> None:
        page = page_of(sample_build, sample_figures, tmp_path)
        samples = data_of(page, "samples")["samples"]
        assert all(sample["picture"] is None and sample["note"] is None for sample in samples)
        assert "draws grids and boxes on a neutral ground" in Elements(page).text

    @pytest.mark.parametrize(
        ("make", "reason"),
        [
            pytest.param(lambda path: None, "No such file", id="missing"),
            pytest.param(lambda path: path.write_bytes(b""), "cannot be read", id="empty"),
            pytest.param(lambda path: path.write_bytes(png_bytes(40, 30)[:60]), "cannot be read", id="cut short"),
            pytest.param(lambda path: path.write_text("<svg/>"), "cannot be read", id="no image"),
            pytest.param(lambda path: path.mkdir(), "No such file", id="a folder"),
            pytest.param(lambda path: path.write_bytes(png_bytes(30, 40)), "is 30 x 40, not as annotated", id="turned"),
            pytest.param(lambda path: path.write_bytes(png_header(9_000, 15_000)), "more than 100,000,000", id="huge"),
            pytest.param(lambda path: path.write_bytes(png_header(10**6, 10**6)), "absurd number", id="a bomb"),
        ],
    )
    def test_a_picture_that_cannot_be_used_gives_a_reason(
        self,
        make: Callable[[Path], object],
        reason: str,
        document: Document,
        tmp_path: Path,
        write_json: WriteJson,
        figures_of: FiguresOf,
    ) -> None:
        (tmp_path / "images").mkdir()
        (tmp_path / "images" / "b.png").write_bytes(png_bytes(64, 48))
        make(tmp_path / "images" / "a.png")
        build = build_of(document, tmp_path, write_json)
        page = page_of(build, figures_of(build), tmp_path, images=tmp_path / "images")
        first, second = data_of(page, "samples")["samples"]
        assert first["picture"] is None
        assert reason in first["note"]
        assert second["picture"]
        assert second["note"] is None

    @pytest.mark.parametrize("name", ["../secret.png", "/etc/secret.png", "a/../../secret.png", "", "x" * 300])
    def test_file_names_cannot_leave_the_folder(
        self, name: str, document: Document, tmp_path: Path, write_json: WriteJson, figures_of: FiguresOf
    ) -> None:
        (tmp_path / "images").mkdir()
        (tmp_path / "secret.png").write_bytes(png_bytes(40, 30))
        document["images"][0]["file_name"] = name
        build = build_of(document, tmp_path, write_json)
        page = page_of(build, figures_of(build), tmp_path, images=tmp_path / "images")
        sample = data_of(page, "samples")["samples"][0]
        assert sample["picture"] is None
        assert sample["note"]

    def test_noise_of_24_large_pictures_stays_below_5_mb(
        self, document: Document, tmp_path: Path, write_json: WriteJson, figures_of: FiguresOf
    ) -> None:
        """Noise compresses worst of all; the quality gives way."""
        noise = np.random.default_rng(0).integers(0, 256, (900, 1200, 3), np.uint8)
        content = io.BytesIO()
        Image.fromarray(noise).save(content, "PNG")
        (tmp_path / "images").mkdir()
        document["images"] = []
        for index in range(24):
            document["images"].append({"id": index + 1, "file_name": f"{index}.png", "width": 1200, "height": 900})
            (tmp_path / "images" / f"{index}.png").write_bytes(content.getvalue())
        build = build_of(document, tmp_path, write_json, patch=4)
        page = page_of(build, figures_of(build), tmp_path, images=tmp_path / "images")
        samples = data_of(page, "samples")["samples"]
        assert all(sample["picture"] and sample["scores"] for sample in samples)
        assert len(page.encode()) < MAX_BYTES == 5_000_000


class TestSamples:
    def test_samples_hold_the_scores_of_their_rows(self, sample_page: str, sample_build: Build) -> None:
        table = {row["image_id"]: row for row in sample_build.table().to_pylist()}
        tau = sample_build.manifest["parameters"]["tau"]
        for sample in data_of(sample_page, "samples")["samples"]:
            row = table[sample["id"]]
            assert labels_at_build(sample, tau, inclusive=True) == row["labels"]
            assert sample["foreground"] == row["fg_count"]
            assert sample["labels"] is None, "they follow from the scores"
            boxes = [item["bbox"] for item in sample["objects"]]
            assert boxes == [list(box) for box in row["objects"]["bbox"]]
            assert [item["id"] for item in sample["objects"]] == [str(index) for index in row["objects"]["id"]]

    @pytest.mark.parametrize("count", [0, 1, 2, 5, 16, 100])
    def test_as_many_samples_as_asked_for_from_every_split(
        self, count: int, sample_build: Build, sample_figures: Figures, tmp_path: Path
    ) -> None:
        samples = data_of(page_of(sample_build, sample_figures, tmp_path, samples=count), "samples")["samples"]
        assert len(samples) == min(count, 16)
        assert len({sample["id"] for sample in samples}) == len(samples)
        if count >= 2:
            assert {sample["split"] for sample in samples} == {"train", "val"}

    def test_one_split(self, sample_build: Build, figures_of: FiguresOf, tmp_path: Path) -> None:
        figures = figures_of(sample_build, "val")
        samples = data_of(page_of(sample_build, figures, tmp_path, split="val"), "samples")["samples"]
        assert {sample["split"] for sample in samples} == {"val"}
        with pytest.raises(ParameterError, match="no split 'other'"):
            write_report(tmp_path / "other.html", sample_build, figures, split="other")

    def test_the_choice_spreads_over_shares_and_splits_and_has_the_rare_kinds(self) -> None:
        """One empty image and one with a lost object among 10,000 are found and kept."""
        random = np.random.default_rng(1)
        share = random.uniform(0.01, 1, 10_000).astype(np.float32)
        split = (np.arange(10_000) >= 9_000).astype(np.uint16)
        empty, lost = np.zeros(10_000, np.bool_), np.zeros(10_000, np.bool_)
        empty[4_321] = lost[9_876] = True
        share[4_321] = 0
        chosen = choose(Pool(share, empty, lost, split), 24)
        assert chosen == sorted(set(chosen))
        assert len(chosen) == 24
        assert {4_321, 9_876} <= set(chosen)
        for part in (0, 1):
            shares = np.sort(share[[row for row in chosen if split[row] == part]])
            assert len(shares) == 12
            assert np.abs(shares - (np.arange(12) + 0.5) / 12).max() < 0.09

    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_few_seats_keep_what_they_have(self, count: int) -> None:
        """With one seat the empty image takes it, with two the lost object has the other."""
        share = np.array([0.5, 0.0, 0.9, 0.4], np.float32)
        pool = Pool(share, share == 0, share > 0.8, np.zeros(4, np.uint16))
        chosen = choose(pool, count)
        assert len(chosen) == count
        assert 1 in chosen
        assert 2 in chosen or count == 1

    def test_no_images(self) -> None:
        none = np.zeros(0)
        assert choose(Pool(none.astype(np.float32), none > 0, none > 0, none.astype(np.uint16)), 24) == []

    def test_embedded_pictures_of_other_rows_are_not_read(
        self, sample_root: Path, tmp_path: Path, figures_of: FiguresOf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No whole row group is ever read with its pictures."""
        import pyarrow.parquet as pq

        build = tokenlabels.build("coco", root=sample_root, out=tmp_path / "labels", embed_images=True)
        figures = figures_of(build)
        asked: list[list[str]] = []
        original = pq.ParquetFile.read_row_group

        def read(self: Any, group: int, columns: list[str] | None = None, **options: Any) -> Any:
            asked.append(columns or ["image"])
            return original(self, group, columns=columns, **options)

        monkeypatch.setattr(pq.ParquetFile, "read_row_group", read)
        page_of(build, figures, tmp_path, samples=3)
        assert asked
        assert not [
            columns for columns in asked if any(name.startswith("image.") or name == "image" for name in columns)
        ]


class TestBuilds:
    def test_no_scores(self, sample_root: Path, tmp_path: Path, figures_of: FiguresOf) -> None:
        build = tokenlabels.build("coco", root=sample_root, out=tmp_path / "labels", scores=False)
        page = page_of(build, figures_of(build), tmp_path)
        elements = Elements(page)
        assert "stores no scores (--no-scores)" in elements.text
        slider = next(a for t, a in elements.tags if a.get("id") == "tau")
        assert "disabled" in slider
        table = {row["image_id"]: row for row in build.table().to_pylist()}
        for sample in data_of(page, "samples")["samples"]:
            assert sample["scores"] is None
            assert labels_at_build(sample, 0.5, inclusive=True) == table[sample["id"]]["labels"]

    def test_pixel_ratio_with_ignored_crowds(
        self, document: Document, tmp_path: Path, write_json: WriteJson, figures_of: FiguresOf
    ) -> None:
        build = build_of(document, tmp_path, write_json, rule="pixel-ratio", crowd="ignore")
        figures = figures_of(build)
        assert figures.ignored
        page = page_of(build, figures, tmp_path)
        assert data_of(page, "figures")["inclusive"] is False
        table = {row["image_id"]: row for row in build.table().to_pylist()}
        for sample in data_of(page, "samples")["samples"]:
            assert labels_at_build(sample, 0.1, inclusive=False) == table[sample["id"]]["labels"]

    def test_native_grids_differ_from_image_to_image(
        self, document: Document, tmp_path: Path, write_json: WriteJson, figures_of: FiguresOf
    ) -> None:
        build = build_of(document, tmp_path, write_json, image_size="native", padding="ignore")
        page = page_of(build, figures_of(build), tmp_path)
        samples = data_of(page, "samples")["samples"]
        assert [(sample["rows"], sample["cols"]) for sample in samples] == [(2, 3), (3, 4)]
        assert "so they are scaled to one size" in Elements(page).text

    def test_very_large_grids_stay_within_bounds(
        self, document: Document, tmp_path: Path, write_json: WriteJson, figures_of: FiguresOf
    ) -> None:
        """One grid with scores, one with labels only, one that is not drawn: the page says so."""
        sides = [(500, 500), (700, 700), (2_000, 2_000)]
        document["images"] = [
            {"id": index + 1, "file_name": f"{index}.png", "width": width, "height": height}
            for index, (width, height) in enumerate(sides)
        ]
        build = build_of(document, tmp_path, write_json, image_size="native", patch=1)
        figures = msgspec.structs.replace(
            figures_of_small(figures_of, tmp_path, document, write_json), grid="native-p1"
        )
        page = page_of(build, figures, tmp_path)
        first, second, third = data_of(page, "samples")["samples"]
        assert first["scores"]
        assert first["note"] is None
        assert second["scores"] is None
        assert second["labels"]
        assert "too many for their scores" in second["note"]
        assert third["labels"] is None
        assert "too many to be drawn" in third["note"]
        assert len(page.encode()) < MAX_BYTES

    def test_a_large_position_map_is_averaged(
        self, sample_build: Build, sample_figures: Figures, tmp_path: Path
    ) -> None:
        share = np.random.default_rng(0).random((384, 384))
        position = msgspec.structs.replace(
            sample_figures.position,
            rows=384,
            cols=384,
            fg_probability=share.tolist(),
            patches=np.full((384, 384), 3).tolist(),
        )
        figures = msgspec.structs.replace(sample_figures, position=position)
        page = page_of(sample_build, figures, tmp_path)
        held = data_of(page, "figures")["position"]
        assert (held["rows"], held["cols"], held["scaled"]) == (128, 128, True)
        assert np.allclose(held["fg_probability"], share.reshape(128, 3, 128, 3).mean(axis=(1, 3)))
        assert np.sum(held["patches"]) == 3 * 384 * 384
        assert len(page.encode()) < 2_000_000

    def test_positions_that_are_always_ignored_are_not_the_least(
        self, sample_build: Build, sample_figures: Figures, tmp_path: Path
    ) -> None:
        position = msgspec.structs.replace(
            sample_figures.position, rows=1, cols=3, fg_probability=[[0.0, 0.25, 0.75]], patches=[[0, 4, 4]]
        )
        page = page_of(sample_build, msgspec.structs.replace(sample_figures, position=position), tmp_path)
        assert "row 1, column 3 (75.00%), least in row 1, column 2 (25.00%)" in Elements(page).text

    @pytest.mark.parametrize("empty", ["no annotations", "no categories with objects", "one image"])
    def test_builds_with_nothing_in_them(
        self, empty: str, document: Document, tmp_path: Path, write_json: WriteJson, figures_of: FiguresOf
    ) -> None:
        document["annotations"] = []
        if empty == "one image":
            document["images"] = document["images"][:1]
        if empty == "no categories with objects":
            document["categories"] = []
        build = build_of(document, tmp_path, write_json)
        page = page_of(build, figures_of(build), tmp_path)
        text = Elements(page).text
        assert text.count("This build holds no objects.") == 1
        assert "lost" not in text.replace("dashed: object without", "").lower()
        assert "nan" not in text.lower().replace("finance", "")

    def test_tau_that_is_no_stop_of_the_slider(self, sample_root: Path, tmp_path: Path, figures_of: FiguresOf) -> None:
        build = tokenlabels.build("coco", root=sample_root, out=tmp_path / "labels", tau=0.123)
        page = page_of(build, figures_of(build), tmp_path)
        assert data_of(page, "figures")["tau"] == 0.123
        assert "overlap, tau 0.123" in Elements(page).text

    def test_comparison(self, sample_build: Build, sample_figures: Figures, tmp_path: Path) -> None:
        other = msgspec.structs.replace(sample_figures, path="/x/other", rule="pixel-ratio", tau=0.1, tau_curve=None)
        agreement = Agreement(
            ["overlap 0.5", "pixel-ratio 0.1"], 16, 9_216, [[1, 0.875], [0.875, 1]], [[1, 0.5], [0.5, 1]]
        )
        comparison = Comparison([sample_figures, other], agreement)
        page = page_of(sample_build, sample_figures, tmp_path, comparison=comparison)
        text = Elements(page).text
        assert "other 384x384-p16 pixel-ratio 0.1" in text
        assert "87.50%" in text
        assert "0.500" in text
        assert data_of(page, "comparison")["agreement"]["images"] == 16
        page = page_of(sample_build, sample_figures, tmp_path, comparison=Comparison([other], None, "other grids"))
        assert "No agreement of labels: other grids." in Elements(page).text


class TestWriting:
    def test_a_file_that_cannot_be_written_is_one_sentence(
        self, sample_build: Build, sample_figures: Figures, tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_text("")
        for path in (tmp_path / "file" / "report.html", tmp_path):
            with pytest.raises(OutputError, match="cannot be written"):
                write_report(path, sample_build, sample_figures, samples=1)
        assert [path.name for path in tmp_path.iterdir()] == ["file"], "nothing is left behind"

    def test_a_failure_keeps_the_old_report(
        self, sample_build: Build, sample_figures: Figures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "report.html"
        path.write_text("old")

        def full(_file: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(OutputError, match="No space left"):
            write_report(path, sample_build, sample_figures, samples=1)
        assert path.read_text() == "old"
        assert len(list(tmp_path.iterdir())) == 1

    def test_progress_counts_images_and_pictures(
        self, sample_build: Build, sample_figures: Figures, tmp_path: Path
    ) -> None:
        class Told:
            def __init__(self) -> None:
                self.stages: dict[str, list[int | None]] = {}

            def stage(self, name: str, total: int | None = None) -> None:
                self.stages[name] = [total, 0]
                self.now = self.stages[name]

            def advance(self, steps: int) -> None:
                self.now[1] = (self.now[1] or 0) + steps

            def note(self, text: str) -> None: ...

        told = Told()
        write_report(tmp_path / "r.html", sample_build, sample_figures, samples=5, progress=told)
        assert told.stages == {"choosing samples": [16, 16], "reading pictures": [5, 5]}

    @pytest.mark.slow
    def test_many_rows(self, document: Document, tmp_path: Path, write_json: WriteJson, figures_of: FiguresOf) -> None:
        document["images"] = [
            {"id": index, "file_name": f"{index}.jpg", "width": 640, "height": 480} for index in range(20_000)
        ]
        document["annotations"] = [
            document["annotations"][0] | {"id": index, "image_id": index // 7, "bbox": [index % 500, 3, 80, 70]}
            for index in range(140_000)
        ]
        build = build_of(document, tmp_path, write_json)
        figures = figures_of_small(figures_of, tmp_path / "small", document, write_json)
        page = page_of(build, figures, tmp_path)
        assert len(data_of(page, "samples")["samples"]) == 24


def test_ticks_are_round_and_enclose() -> None:
    for high in (1, 3, 7, 35, 99, 1_234, 0.37):
        found = ticks(0, high)
        assert found[0] == 0
        assert found[-1] >= high
        assert found[-2] < high
        assert 2 <= len(found) <= 7
    assert ticks(0, 40) == [0, 10, 20, 30, 40]


def test_pooling_is_a_weighted_mean() -> None:
    values, weights = np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([[3.0, 1.0], [0.0, 0.0]])
    assert pooled(values, weights, 1).tolist() == [[0.25]]
    assert pooled(values, weights, 2) is values


def decoded(address: str) -> Image.Image:
    assert address.startswith("data:image/jpeg;base64,")
    return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))


def png_bytes(width: int, height: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (width, height), (200, 40, 40)).save(content, "PNG")
    return content.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def figures_of_small(figures_of: FiguresOf, folder: Path, document: Document, write_json: WriteJson) -> Figures:
    """Figures of a like build that is quick to count, for builds whose figures do not matter."""
    small = document | {"images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 48}], "annotations": []}
    return figures_of(build_of(small, folder / "counted", write_json))
