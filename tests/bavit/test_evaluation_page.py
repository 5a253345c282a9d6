"""The page of an evaluation: one file that needs nothing else, says every figure, and takes any text as text."""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from evaluations import make_evaluation, nothing_counted
from pages import HOSTILE, Elements
from PIL import Image

from bavit.background.figures import Evaluation, Group
from bavit.background.page import write_evaluation_page
from bavit.gallery import MAX_SAMPLES, Sample
from tokenlabels.errors import OutputError
from tokenlabels.report.page import MAX_BYTES


def samples(count: int, size: tuple[int, int] = (320, 100)) -> list[Sample]:
    return [Sample(f"val/{index}.jpg", Image.new("RGB", size, (20 * index % 256, 90, 160))) for index in range(count)]


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return make_evaluation()


@pytest.fixture(scope="module")
def page(evaluation: Evaluation, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "new" / "evaluation.html"
    facts = {"run": "runs/a", "split": "val"}
    assert write_evaluation_page(evaluation, path, title="runs/a on val", facts=facts, samples=samples(3)) == path
    return path.read_text("utf-8")


class TestOneFile:
    def test_nothing_is_loaded_from_elsewhere(self, page: str) -> None:
        assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r'"data:image[^"]*"', "", page))
        for tag, attributes in Elements(page).tags:
            assert (attributes.get("src") or "data:").startswith("data:"), tag
            assert (attributes.get("href") or "#").startswith(("#", "data:")), tag
            assert not [name for name in attributes if name.startswith("on") or name == "style"], tag

    def test_the_policy_allows_its_own_style_and_no_script(self, page: str) -> None:
        elements = Elements(page)
        policy = next(a["content"] for t, a in elements.tags if a.get("http-equiv") == "Content-Security-Policy")
        digest = base64.b64encode(hashlib.sha256(elements.style.encode()).digest()).decode()
        assert policy == (
            f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; script-src 'none'; "
            "base-uri 'none'; form-action 'none'"
        )
        assert not [tag for tag, _ in elements.tags if tag == "script"]

    def test_the_same_evaluation_gives_the_same_bytes(self, evaluation: Evaluation, page: str, tmp_path: Path) -> None:
        facts = {"run": "runs/a", "split": "val"}
        path = tmp_path / "again.html"
        write_evaluation_page(evaluation, path, title="runs/a on val", facts=facts, samples=samples(3))
        assert path.read_text("utf-8") == page

    def test_links_lead_somewhere(self, page: str) -> None:
        tags = Elements(page).tags
        ids = [attributes["id"] for _, attributes in tags if attributes.get("id")]
        assert len(ids) == len(set(ids))
        assert {(a.get("href") or "")[1:] for tag, a in tags if tag == "a"} <= set(ids)

    @pytest.mark.parametrize("place", ["folder", "file/page.html"])
    def test_a_place_that_cannot_be_written_is_refused(
        self, evaluation: Evaluation, place: str, tmp_path: Path
    ) -> None:
        (tmp_path / "folder").mkdir()
        (tmp_path / "file").touch()
        with pytest.raises(OutputError, match=r"cannot be written"):
            write_evaluation_page(evaluation, tmp_path / place, title="t", facts={})


class TestFigures:
    def test_the_text_says_every_headline_figure(self, page: str, evaluation: Evaluation) -> None:
        text = Elements(page).text
        for words in (
            f"accuracy {evaluation.accuracy:.2%}",
            f"{100 * (evaluation.accuracy - evaluation.majority):+.2f} points on the majority",
            f"{100 * (evaluation.accuracy - evaluation.position_prior):+.2f} points on the position prior",
            f"majority {evaluation.majority:.2%}",
            f"position prior {evaluation.position_prior:.2%}",
            f"balanced accuracy {evaluation.balanced_accuracy:.2%}",
            f"foreground recall {evaluation.fg_recall:.2%}",
            f"foreground precision {evaluation.fg_precision:.2%}",
            f"foreground IoU {evaluation.fg_iou:.2%}",
            f"AUROC {evaluation.auroc:.4f}",
            f"ECE {evaluation.ece:.4f}",
            f"sparsity {evaluation.sparsity:.2%}",
            f"lost objects {evaluation.lost_objects:.2%}",
            "0.85 GMAC",
            f"{evaluation.parameters:,} parameters",
            f"threshold {evaluation.threshold:g}",
            "run runs/a split val",
        ):
            assert words in text

    def test_tables_say_what_the_evaluation_says(self, page: str, evaluation: Evaluation) -> None:
        text = Elements(page).text
        for step in evaluation.refinement:
            named = f"{step.steps}, as evaluated" if step.steps == evaluation.refine_steps else str(step.steps)
            shares = (step.accuracy, step.balanced_accuracy, step.fg_precision, step.fg_recall, step.fg_iou)
            assert " ".join([named, *(f"{share:.2%}" for share in (*shares, step.sparsity))]) in text
        for group in (*evaluation.by_size, *evaluation.by_category):
            numbers = f"{group.fg_recall:.2%} {group.patches:,} {group.objects} {group.lost} {group.lost_share:.2%}"
            assert f"{group.name} {numbers} {group.without_patches}" in text
        for part in evaluation.reliability:
            assert f"{part.low:.2f} to {part.high:.2f} {part.count} {part.confidence:.3f}" in text

    def test_the_category_of_which_least_is_kept_comes_first_and_what_has_none_last(self, tmp_path: Path) -> None:
        groups = [
            Group("best", 5, 0, 50, 0.9, 0, 0.0),
            Group("unseen", 0, 4, 0, 0.0, 0, 0.0),
            Group("worst", 5, 0, 50, 0.2, 4, 0.8),
        ]
        evaluation = msgspec.structs.replace(make_evaluation(), by_category=groups)
        text = Elements(written(evaluation, tmp_path)).text
        assert text.index("worst 20.00%") < text.index("best 90.00%") < text.index("unseen \u2013 0 0 0 \u2013 4")

    def test_a_set_of_which_nothing_counts_makes_a_page(self, tmp_path: Path) -> None:
        text = Elements(written(nothing_counted(), tmp_path)).text
        assert "There is no patch that counts." in text
        assert "This set holds no objects." in text
        assert "Samples" not in text
        assert "nan" not in text

    def test_every_plot_has_words_and_every_table_a_caption_and_heads(self, page: str) -> None:
        tags = Elements(page).tags
        drawings = [attributes for tag, attributes in tags if tag == "svg"]
        plots = [attributes for attributes in drawings if attributes.get("class") == "plot"]
        assert len(plots) == 4
        assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in plots)
        assert all(attributes.get("aria-hidden") for attributes in drawings if attributes not in plots)
        names = [tag for tag, _ in tags]
        assert names.count("table") == names.count("caption") == 5
        assert all(attributes.get("scope") for tag, attributes in tags if tag == "th")
        assert all(attributes.get("alt") for tag, attributes in tags if tag == "img")

    def test_headings_never_skip_a_level(self, page: str) -> None:
        levels = [int(tag[1]) for tag, _ in Elements(page).tags if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def written(evaluation: Evaluation, folder: Path, **options: object) -> str:
    arguments: dict[str, object] = {"title": "t", "facts": {}} | options
    return write_evaluation_page(evaluation, folder / "page.html", **arguments).read_text("utf-8")  # type: ignore[arg-type]


class TestNames:
    def test_hostile_text_is_text(self, tmp_path: Path) -> None:
        evaluation = make_evaluation(categories=(HOSTILE, "cup"))
        page = written(
            evaluation,
            tmp_path,
            title=HOSTILE,
            facts={HOSTILE: HOSTILE},
            samples=[Sample(HOSTILE, Image.new("RGB", (8, 8)))],
        )
        elements = Elements(page)
        assert [tag for tag, _ in elements.tags].count("img") == 1
        assert not [tag for tag, _ in elements.tags if tag == "script"]
        assert not [a for _, a in elements.tags if any(name.startswith("on") for name in a)]
        assert not re.search("[\x00-\x08\x0e-\x1f\u2028\u2029\u202e]", page)
        assert elements.text.count("<script>alert(1)</script>") == 6, "title, heading, fact twice, category, sample"
        assert elements.text.count("{{tiles}}") == 6, "what looks like a part of the template is none"


class TestPictures:
    def test_each_sample_is_a_jpeg_with_its_title(self, page: str) -> None:
        elements = Elements(page)
        pictures = elements.pictures()
        assert [picture.size for picture in pictures] == [(320, 100)] * 3
        for index, picture in enumerate(pictures):
            assert np.asarray(picture, int).mean((0, 1)) == pytest.approx([20 * index, 90, 160], abs=6)
            assert f"val/{index}.jpg" in elements.text

    def test_the_page_stays_below_its_limit(self, evaluation: Evaluation, tmp_path: Path) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (500, 1500, 3), np.uint8)
        many = [Sample(str(index), Image.fromarray(np.roll(noise, index, 0))) for index in range(16)]
        page = written(evaluation, tmp_path, samples=many)
        assert MAX_BYTES / 2 < len(page.encode()) < MAX_BYTES
        assert len(Elements(page).pictures()) == 16

    def test_of_too_many_samples_the_first_are_shown(self, evaluation: Evaluation, tmp_path: Path) -> None:
        elements = Elements(written(evaluation, tmp_path, samples=samples(MAX_SAMPLES + 5)))
        assert len(elements.pictures()) == MAX_SAMPLES
        assert f"The first {MAX_SAMPLES} of {MAX_SAMPLES + 5} samples." in elements.text
