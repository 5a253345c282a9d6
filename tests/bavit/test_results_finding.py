"""Results are known by what files hold; what is none, or damaged, is one sentence that names the file."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from PIL import Image
from results import adaptive, comparison, joint, segment_sweep, write, write_results, write_training
from sweeps import make_sweep

from bavit.background.model import BAViT
from bavit.detect.sweep_figures import save_json
from bavit.export.described import describe
from bavit.gallery import Sample, keep_samples
from bavit.report import finding, reading
from bavit.report.finding import find, short_names
from bavit.report.pictures import samples
from bavit.report.records import tables_of
from bavit.report.results import Results, Shown, Spread
from tokenlabels.errors import ParameterError, TokenLabelsError
from tokenlabels.progress import Silent


class Heard(Silent):
    """Progress that keeps its notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def found(*places: Path) -> Results:
    return find(places, Silent())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_results(tmp_path_factory.mktemp("runs") / "all")


class TestKinds:
    def test_a_folder_of_runs_holds_all_of_them(self, runs: Path) -> None:
        results = found(runs)
        names = [[each.name for each in kind] for kind in results.named()]
        assert names == [
            ["after", "before"], ["eval"], ["segments"], ["bavit", "detector", "segmenter"], ["pruned"],
            ["adaptive", "joint"], ["methods", "onnx"],
        ]  # fmt: skip
        assert [each.trained for each in results.trainings] == ["BAViT", "detector", "segmenter"]
        assert len(results) == 12
        assert [each.title for each in results.pictures] == [f"before: scenes val {number}" for number in range(4)]

    @pytest.mark.parametrize(
        ("name", "kind"),
        [("before/sweep.json", 0), ("eval.json", 1), ("segments/sweep.json", 2), ("pruned/pruned.json", 4)],
    )
    def test_a_file_is_known_by_what_it_holds(self, name: str, kind: int, runs: Path, tmp_path: Path) -> None:
        other = tmp_path / "renamed.json"
        other.write_bytes((runs / name).read_bytes())
        results = found(other)
        assert [len(each) for each in results.named()] == [int(place == kind) for place in range(7)]
        assert results.named()[kind][0].name == "renamed"

    def test_figures_come_back(self, runs: Path) -> None:
        results = found(runs / "before", runs / "detector", runs / "pruned")
        assert results.sweeps[0].sweep == msgspec.json.decode(
            (runs / "before" / "sweep.json").read_bytes(), type=type(results.sweeps[0].sweep)
        )
        training = results.trainings[0]
        assert [epoch for epoch, _ in training.series("val_ap")] == [1, 3]
        assert [value for _, value in training.series("val_ap")] == pytest.approx([0.55 / 3, 0.55])
        assert (training.quality, training.seconds, training.images) == ("val_ap", 210.0, 40)
        assert training.data == "labels train"
        assert results.detectors[0].pruning["threshold"] == 0.4
        assert results.detectors[0].budget["achieved"] == 7.9e9

    def test_what_is_named_twice_counts_once(self, runs: Path) -> None:
        assert len(found(runs / "before", runs / "before")) == 1
        again = runs / "after" / ".." / "before" / "sweep.json"
        results = found(runs / "before", again, runs / "before" / "samples" / "..", runs / "before")
        assert (len(results), len(results.pictures)) == (1, 4)
        whole = found(runs, runs / "eval.json", runs / "detector" / "run.json", runs / "pruned")
        assert len(whole) == len(found(runs))

    def test_a_run_that_is_both_trained_and_saved_is_both(self, runs: Path, tmp_path: Path) -> None:
        folder = write_training(tmp_path / "joint", {}, {"val_ap": 0.5}, command="joint")
        (folder / "pruned.json").write_bytes((runs / "pruned" / "pruned.json").read_bytes())
        results = found(folder)
        assert results.trainings[0].name == results.detectors[0].name == "joint"
        assert results.trainings[0].trained == "BAViT and detector"
        write_training(folder, {"train": "threshold"}, {"val_ap": 0.5}, command="joint")
        assert found(folder).trainings[0].trained == "threshold"

    def test_names_are_as_short_as_they_can_be(self, tmp_path: Path) -> None:
        paths = [tmp_path / name for name in ("a/x/sweep", "b/x/sweep", "b/y", "a/x")]
        assert list(short_names(paths).values()) == ["a/x/sweep", "b/x/sweep", "y", "x"]

    def test_a_segmenter_of_before_is_read_too(self, tmp_path: Path) -> None:
        """Sweeps written before they told of themselves have rows alone."""
        older = {"rows": [{key: row[key] for key in row if key != "throughput"} for row in segment_sweep()["rows"]]}
        results = found(write(tmp_path / "sweep.json", older))
        assert [row.throughput for row in results.segmentations[0].rows] == [None] * 3


class TestExported:
    def test_a_graph_says_what_it_is(self, tmp_path: Path) -> None:
        """Of a file of torch.export the description alone is read."""
        path, told = tmp_path / "graph.pt2", describe(BAViT(width=48, heads=3, image_size=(32, 32)), None)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("graph/extra/bavit", told.encoded())
        result = found(path).tables[0]
        assert (result.name, result.facts["kind"], result.facts["patches"]) == ("graph.pt2", "bavit", 4)
        assert result.facts["image_size"] == "32, 32"
        path.write_bytes(b"PK")
        with pytest.raises(TokenLabelsError, match=r"graph\.pt2: is no file of torch\.export"):
            found(path)


class TestComparisons:
    def test_joint_training_has_what_its_file_says(self, tmp_path: Path) -> None:
        result = found(write(tmp_path / "any.json", joint())).comparisons[0]
        assert (result.name, result.seeds, [each.name for each in result.methods]) == ("any", 3, ["separate", "joint"])
        method = result.methods[1]
        assert [point.macs_share.mean for point in method.points] == [0.4, 0.6], "none beyond the curves"
        assert [point.ap.mean for point in method.points] == pytest.approx([0.5, 0.52])
        assert [point.ap50 and point.ap50.std for point in method.points] == [0.015, 0.015]
        assert method.dense == Spread(pytest.approx(0.55), pytest.approx(0))  # type: ignore[arg-type]

    def test_an_adaptive_threshold_beside_a_fixed_one(self, tmp_path: Path) -> None:
        """Gains of 1, 2 and 3 points: 2 on average, and a point apart."""
        result = found(write(tmp_path / "any.json", adaptive())).comparisons[0]
        assert [each.name for each in result.methods] == ["adaptive", "fixed", "fixed, any threshold", "oracle"]
        assert len(result.gains) == 2
        for gain in result.gains.values():
            assert (gain.mean, gain.std) == pytest.approx((0.02, 0.01))
        assert [point.macs_share.mean for point in result.methods[0].points] == pytest.approx([0.5, 0.6])

    @pytest.mark.parametrize("content", [joint(), adaptive()])
    def test_damage_is_told(self, content: dict[str, Any], tmp_path: Path) -> None:
        key = "methods" if "methods" in content else "policies"
        damaged = content | {key: {"a": {"at": 1, "curves": 2}} if key == "methods" else [{"policy": 1}]}
        with pytest.raises(TokenLabelsError, match=r"any\.json: is not a comparison of methods"):
            found(write(tmp_path / "any.json", damaged))


class TestTables:
    def test_mean_and_spread_are_one_figure_however_they_are_told(self) -> None:
        facts, tables = tables_of(comparison())
        assert facts == {"seeds": 3}
        assert tables[0].columns == ["method", "macs", "ap"]
        assert [row["ap"] for row in tables[0].rows] == [Spread(0.54, 0.008), Spread(0.565, 0.01)]
        assert [row["macs"] for row in tables[0].rows] == [Spread(2.4e9, 1e7), Spread(2.2e9, 2e7)]

    def test_lists_within_records_are_tables_of_their_own(self) -> None:
        content = {
            "device": "cpu",
            "batches": [{"batch_size": size, "rows": [{"side": "a", "ms": 2.0}]} for size in (8, 1)],
        }
        facts, tables = tables_of(content)
        assert facts == {"device": "cpu"}
        assert [table.title for table in tables] == ["batches: batch_size 8: rows", "batches: batch_size 1: rows"]
        assert [table.rows for table in tables] == [[{"side": "a", "ms": 2.0}]] * 2

    def test_objects_alike_are_rows_and_others_are_opened_out(self) -> None:
        alike = {"dense": {"ms": 3.0, "mib": 9}, "pruned": {"ms": 2.0, "mib": 7}}
        _, tables = tables_of({"graphs": alike, "best": {"ms": 2.0}})
        assert tables[0].rows == [{"": "dense", "ms": 3.0, "mib": 9}, {"": "pruned", "ms": 2.0, "mib": 7}]
        assert tables_of({"graph": {"onnx": {"ms": 3.0}}})[0] == {"graph onnx ms": 3.0}

    def test_what_is_large_is_cut(self) -> None:
        rows = [{f"column {number}": number for number in range(200)} | {"text": "x" * 9_999}] * 3_000
        facts, tables = tables_of({"rows": rows} | {f"fact {number}": number for number in range(500)})
        assert len(facts) == 80
        assert (len(tables[0].rows), len(tables[0].columns)) == (400, 48)


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is no JSON that can be read"),
    "cut": (b'{"rows": [', "is no JSON that can be read"),
    "no text": (b"\xff\xfe\x00", "is no JSON that can be read"),
    "deep": (b"[" * 100_000, "is no JSON that can be read"),
    "nothing in it": (b"{}", "holds no results"),
    "text alone": (b'"hello"', "holds no results"),
    "names of a data set": (b'{"categories": [{"name": "cup"}]}', "holds no results"),
    "sweep without rows": (b'{"rows": [], "dense": {}, "setting": {}}', "is not a sweep"),
    "sweep of words": (b'{"rows": "x", "dense": {}, "setting": {}}', "is not a sweep"),
    "evaluation of words": (b'{"reliability": 1, "curve": 2, "position_prior": 3}', "is not the evaluation of a BAViT"),
    "pruning of words": (b'{"pruning": 1, "format": 1}', "does not describe a pruned detector"),
    "segmenter of words": (b'{"rows": [{"miou": "x", "exit_after": [], "macs": 1}]}', "is not a sweep of a segmenter"),
}


class TestBadInput:
    @pytest.mark.parametrize("kind", BAD)
    def test_one_sentence_names_the_file(self, kind: str, tmp_path: Path) -> None:
        content, words = BAD[kind]
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(TokenLabelsError, match=rf"bad\.json: {words}") as fault:
            found(tmp_path / "bad.json")
        assert "\n" not in str(fault.value)

    def test_nothing_named_missing_and_empty(self, tmp_path: Path) -> None:
        with pytest.raises(ParameterError, match="nothing is named"):
            found()
        with pytest.raises(TokenLabelsError, match="none: no such file or folder"):
            found(tmp_path / "none")
        with pytest.raises(TokenLabelsError, match=r"holds no results: name the folder or file of a sweep"):
            found(tmp_path)

    @pytest.mark.parametrize("word", ["NaN", "Infinity", "1e999", "1" + "0" * 400])
    def test_numbers_that_are_none_are_not_measured(self, word: str, tmp_path: Path) -> None:
        """Where a figure may be missing it is, where it may not the file is refused."""
        path = tmp_path / "bench.json"
        path.write_text(f'{{"rows": [{{"name": "a", "ms": {word}, "mib": 3}}]}}')
        assert found(path).tables[0].tables[0].rows == [{"name": "a", "ms": None, "mib": 3}]
        content = save_json(make_sweep(), tmp_path / "sweep.json").read_text()
        content = content.replace(f'"ap": {make_sweep().dense.ap}', f'"ap": {word}')
        path.write_text(content)
        with pytest.raises(TokenLabelsError, match=r"is not a sweep as this version writes it"):
            found(path)

    def test_a_curve_whose_lists_differ_in_length(self, runs: Path, tmp_path: Path) -> None:
        content = json.loads((runs / "eval.json").read_text())
        content["curve"]["sparsity"].pop()
        with pytest.raises(TokenLabelsError, match="lists differ in length"):
            found(write(tmp_path / "eval.json", content))

    def test_a_sweep_without_a_row_or_of_too_many(self, tmp_path: Path) -> None:
        save_json(msgspec.structs.replace(make_sweep(), rows=[]), tmp_path / "sweep.json")
        with pytest.raises(TokenLabelsError, match="is a sweep of 0 rows: a page shows 1 to 500"):
            found(tmp_path)
        many = msgspec.structs.replace(make_sweep(), rows=make_sweep().rows * 28)
        save_json(many, tmp_path / "sweep.json")
        with pytest.raises(TokenLabelsError, match="is a sweep of 504 rows"):
            found(tmp_path)

    def test_more_results_than_a_page_shows(self, tmp_path: Path) -> None:
        for number in range(301):
            (tmp_path / f"{number}.json").write_text('{"ms": 1}')
        with pytest.raises(ParameterError, match="301 results are named"):
            found(tmp_path)

    def test_a_file_beyond_bounds_is_not_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(reading, "MAX_FILE", 1 << 20)
        path = tmp_path / "huge.json"
        with path.open("wb") as file:
            file.truncate((1 << 20) + 1)
        with pytest.raises(TokenLabelsError, match="has more than 1 MiB"):
            found(path)

    def test_a_folder_of_very_much_is_looked_at_in_part_and_says_so(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Pictures and other files do not count."""
        for number in range(3):
            write(tmp_path / f"{number}.json", {"ap": number})
            (tmp_path / f"0-{number}.png").touch()
        monkeypatch.setattr(finding, "_MOST_ENTRIES", 2)
        heard = Heard()
        assert [each.name for each in find([tmp_path], heard).tables] == ["0", "1"]
        assert heard.notes == [f"{tmp_path}: the first 2 of 3 were looked at: name others."]

    @pytest.mark.parametrize("content", [joint(), adaptive()])
    def test_absurd_figures_of_a_comparison_are_told(self, content: dict[str, Any], tmp_path: Path) -> None:
        for each in content.get("policies", ()):
            each["ap"] = 1e308
        for each in content.get("methods", {}).values():
            each["ap_dense"] = [1e308] * 3
        with pytest.raises(TokenLabelsError, match=r"any\.json: is not a comparison of methods"):
            found(write(tmp_path / "any.json", content))

    def test_a_cost_that_is_no_number_is_passed_over(self, tmp_path: Path) -> None:
        content = joint()
        told = content["methods"]["joint"]["at"]
        told["ap at 1.2.3"] = told["ap at ..."] = told["ap at 0.4"]
        method = found(write(tmp_path / "any.json", content)).comparisons[0].methods[1]
        assert [point.macs_share.mean for point in method.points] == [0.4, 0.6]

    def test_of_a_killed_run_the_whole_epochs_count(self, tmp_path: Path) -> None:
        folder = write_training(tmp_path / "run", {}, {"val_ap": 0.5})
        with (folder / "metrics.jsonl").open("a") as file:
            file.write('{"epoch": 4, "train_lo')
        assert [record["epoch"] for record in found(folder).trainings[0].epochs] == [1, 2, 3]
        (folder / "metrics.jsonl").write_text('{"epoch": 1}\n[1]\n{"epoch": 2}\n')
        with pytest.raises(TokenLabelsError, match="line 2 is no JSON object"):
            found(folder)

    def test_what_is_loose_in_a_folder_and_no_result_is_noted(self, tmp_path: Path) -> None:
        save_json(make_sweep(), tmp_path / "sweep.json")
        (tmp_path / "other.json").write_text("{")
        (tmp_path / "config.json").write_text('{"dim": 192}')
        heard = Heard()
        assert len(find([tmp_path], heard)) == 1
        assert heard.notes == [f"left out: {tmp_path / 'other.json'}: is no JSON that can be read: make it again."]


class TestPictures:
    def test_samples_of_a_sweep_come_back(self, tmp_path: Path) -> None:
        save_json(make_sweep(), tmp_path / "sweep.json")
        wanted = [Sample(f"{number}.jpg", Image.new("RGB", (60, 40), (50 * number, 80, 90))) for number in range(3)]
        keep_samples(wanted, tmp_path / "samples")
        shown = samples(found(tmp_path).pictures, Silent())
        assert [each.title for each in shown] == [f"{tmp_path.name}: {number}.jpg" for number in range(3)]
        for number, each in enumerate(shown):
            red, *_ = each.picture.getpixel((30, 20))  # type: ignore[misc]
            assert abs(red - 50 * number) < 6

    def test_fewer_samples_leave_nothing_of_those_before(self, tmp_path: Path) -> None:
        keep_samples([Sample("a", Image.new("RGB", (8, 8)))] * 3, tmp_path)
        keep_samples([Sample("b", Image.new("RGB", (8, 8)))], tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["sample-00.jpg", "samples.json"]
        (tmp_path / "00.jpg").touch()  # a person's own
        keep_samples([], tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["00.jpg"]

    @pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd", "C:\\x.jpg", 3, None])
    def test_a_picture_elsewhere_is_refused(self, name: Any, tmp_path: Path) -> None:
        save_json(make_sweep(), tmp_path / "sweep.json")
        write(tmp_path / "samples" / "samples.json", [{"file": name, "title": "a"}])
        with pytest.raises(TokenLabelsError, match="names a picture that does not lie beside it"):
            found(tmp_path)

    def test_what_is_no_picture_is_left_out_with_a_note(self, tmp_path: Path) -> None:
        Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
        (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 40)
        Image.new("RGB", (8, 8)).save(tmp_path / "other.png", "GIF")
        heard = Heard()
        shown = samples([Shown(name, "", str(tmp_path / name)) for name in ("good.png", "bad.png", "other.png")], heard)
        assert [each.title for each in shown] == ["good.png"]
        assert len(heard.notes) == 2
