"""A pruned detector in a folder, read back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bavit import BAViT, PrunedDetector, Yolos
from bavit.detect.config import YolosConfig
from bavit.detect.saved import is_saved
from tokenlabels.errors import OutputError, ParameterError, TokenLabelsError


def small_detector(**options: object) -> PrunedDetector:
    torch.manual_seed(0)
    config = YolosConfig(dim=64, depth=2, heads=2, mlp_hidden=128, detection_tokens=5, image_size=(64, 64))
    return PrunedDetector(BAViT(depth=1, width=64, image_size=64), Yolos(config), **options)  # type: ignore[arg-type]


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    detector = small_detector(threshold=0.4, max_tokens=7, refine_steps=2, prune_after=1)
    detector.budget = {"target": "macs", "value": 1e9}
    detector.save_pretrained(tmp_path / "saved")
    found = PrunedDetector.from_pretrained(tmp_path / "saved")
    assert is_saved(tmp_path / "saved")
    assert found.pruning == detector.pruning
    assert found.budget == detector.budget
    picture = torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8)
    mine, again = detector(picture)[0], found(picture)[0]
    assert torch.equal(mine.boxes, again.boxes)
    assert torch.equal(mine.keep, again.keep)


def test_without_a_background_model_there_is_nothing_to_save(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="without a BAViT"):
        PrunedDetector(None, small_detector().yolos).save_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": 2}, "format 2"),
        ({"pruning": {"threshold": 3}}, "threshold 3 is out of range"),
        ({"pruning": {"prune_after": 9}}, "does not fit"),
        ({"pruning": "much"}, "does not describe"),
    ],
)
def test_damage_is_told_in_a_sentence(tmp_path: Path, change: dict[str, object], told: str) -> None:
    small_detector().save_pretrained(tmp_path)
    path = tmp_path / "pruned.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(TokenLabelsError, match=told):
        PrunedDetector.from_pretrained(tmp_path)


def test_a_description_nested_beyond_all_measure_is_told(tmp_path: Path) -> None:
    (tmp_path / "pruned.json").write_text('{"pruning": {}, "budget": {"a": ' + "[" * 100_000 + "]" * 100_000 + "}}")
    with pytest.raises(TokenLabelsError, match="does not describe"):
        PrunedDetector.from_pretrained(tmp_path)


def test_a_file_in_the_place_of_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        small_detector().save_pretrained(tmp_path / "file" / "saved")


def test_a_folder_without_its_last_file_is_not_finished(tmp_path: Path) -> None:
    small_detector().save_pretrained(tmp_path)
    (tmp_path / "pruned.json").unlink()
    assert not is_saved(tmp_path)
    with pytest.raises(TokenLabelsError, match="No such file"):
        PrunedDetector.from_pretrained(tmp_path)
