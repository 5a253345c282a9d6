"""What folders of JSON files are read with: texts end to end, run lengths as text, walks, reading ahead."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Callable
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from typer.testing import Result

from tokenlabels.annotations import MASK_TEXT
from tokenlabels.rle_text import parse_rle
from tokenlabels.sources.mask_check import MaskError, check_masks, decode_segmentation
from tokenlabels.sources.masks import MaskChunk
from tokenlabels.texts import Texts
from tokenlabels.threads import ahead
from tokenlabels.walk import walk

Invoke: TypeAlias = Callable[..., Result]

# --- parts ------------------------------------------------------------------------------------------------------------

texts = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=12)


@given(first=texts, second=texts, start=st.integers(0, 13), stop=st.integers(0, 13), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=150)
def test_texts_are_a_list_of_strings(first: list[str], second: list[str], start: int, stop: int, seed: int) -> None:
    packed, expected = Texts.joined([Texts.of(first), Texts.of(second)]), first + second
    assert list(packed) == expected
    assert [packed[index] for index in range(-len(packed), len(packed))] == expected + expected
    part = pickle.loads(pickle.dumps(packed[start:stop]))
    assert list(part) == [part[index] for index in range(len(part))] == expected[start:stop]
    kept = np.random.default_rng(seed).random(len(expected)) < 0.5
    assert list(packed.keep(kept)) == [text for text, fits in zip(expected, kept, strict=True) if fits]
    with pytest.raises(IndexError):
        packed[len(expected)]


names = st.lists(st.text("ab/-.0é", min_size=1, max_size=8), max_size=10)


@given(paths=names)
@settings(deadline=None, max_examples=60)
def test_files_are_walked_in_the_order_of_their_paths(
    paths: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("walk")
    for path in paths:
        place = folder / path.strip("/")
        if ".." in path or place == folder or not place.name.strip("."):
            continue
        if place.exists() or any(parent.is_file() for parent in place.parents):
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    expected = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    shown = [path for path in expected if not any(part.startswith(".") for part in path.split("/"))]
    assert list(walk(folder)) == sorted(shown)


@pytest.mark.parametrize("seconds", [0.0, 0.001])
def test_reading_ahead_keeps_order_and_passes_faults_on(seconds: float) -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        time.sleep(seconds)
        if item == 30:
            raise ValueError(item)
        return item

    taken, coming = [], ahead(work, range(1000), 4)
    for item in islice(coming, 30):
        taken.append(item)
        assert len(begun) - len(taken) <= 4
    with pytest.raises(ValueError, match="30"):
        next(coming)
    assert taken == list(range(30))
    assert len(begun) < 40


@st.composite
def rle_texts(draw: st.DrawFn) -> tuple[bytes, int, int]:
    """JSON of run lengths of an image of (width, height), right or nearly."""
    width, height = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    pixels = np.array(draw(st.lists(st.booleans(), min_size=width * height, max_size=width * height)), np.uint8)
    counts = coco_mask.encode(np.asfortranarray(pixels.reshape(height, width)))["counts"].decode()
    if draw(st.booleans()):
        counts = draw(st.sampled_from([counts + "0", counts[:-1], counts[1:], "", "\\" + counts, counts + "é"]))
    fields: list[tuple[str, Any]] = [("size", [height, width]), ("counts", counts)]
    fields = draw(st.permutations(fields)) + draw(st.sampled_from([[], [], [("size", [1, 1])], [("more", 1)]]))
    separators = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t:\r ")]))
    body = separators[0].join(f"{json.dumps(key)}{separators[1]}{json.dumps(value)}" for key, value in fields)
    return f"{{{body}}}".encode(), width, height


@given(found=rle_texts(), cut=st.integers(0, 200))
@settings(deadline=None, max_examples=300)
def test_run_lengths_read_from_text_are_those_of_the_json_library(found: tuple[bytes, int, int], cut: int) -> None:
    """Or none; and nothing is read beyond the end of a text."""
    text, width, height = found
    buffer = np.frombuffer(bytearray(b"{" + text + b'"counts":"0"}'), np.uint8)
    counts = parse_rle(buffer, 1, 1 + len(text), width, height).tolist()
    try:
        decoded = decode_segmentation(text, width, height).counts
    except MaskError:
        decoded = None
    if counts:
        assert decoded is not None
        assert counts == decoded.tolist()
    elif b"more" not in text and text.count(b"size") == 1:
        assert decoded is None, "plain text is not left to the library"
    if cut < len(text):
        assert len(parse_rle(buffer, 1, 1 + cut, width, height)) == 0


def test_run_lengths_stay_text_until_they_are_scored() -> None:
    pixels = np.asfortranarray(np.eye(5, 6, dtype=np.uint8))
    counts = coco_mask.encode(pixels)["counts"].decode()
    text = json.dumps({"size": [5, 6], "counts": counts}).encode()
    sides = np.array([6], np.int32), np.array([5], np.int32)
    checked = check_masks(MaskChunk(0, text, np.array([len(text)]), *sides, False, "kernel"))
    assert checked.kinds.tolist() == [MASK_TEXT]
    assert len(checked.counts) == 0
    assert checked.usable.all()
