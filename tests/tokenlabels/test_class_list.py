"""Lists of categories: every format with its variants, and every way in which a list can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tokenlabels.annotations import Category
from tokenlabels.errors import AnnotationFileError
from tokenlabels.sources.class_list import read_class_list

WALL_SKY = {0: "wall", 1: "sky"}

OBJECT_INFO = """Idx\tRatio\tTrain\tVal\tStuff\tName
1\t0.1576\t11664\t1172\t1\twall
2\t0.1072\t6046\t612\t1\tbuilding, edifice
3\t0.0878\t8265\t796\t1\tsky
"""

LABELMAP = """# label:color_rgb:parts:actions
background:0,0,0::
cat:128,0,0:head,tail:run
dog:::
"""

LISTS: list[Any] = [
    pytest.param("wall\nsky\n", WALL_SKY, id="plain names"),
    pytest.param("wall\nsky", WALL_SKY, id="plain names, no line feed at the end"),
    pytest.param("wall\r\nsky\r\n", WALL_SKY, id="carriage returns"),
    pytest.param("\ufeffwall\nsky\n", WALL_SKY, id="byte-order mark"),
    pytest.param("# what there is\n\nwall\n  \n # more\nsky\n", WALL_SKY, id="comments and empty lines"),
    pytest.param("  wall \n\tsky\t\n", WALL_SKY, id="blanks around names"),
    pytest.param("traffic light\nbook, open\n", {0: "traffic light", 1: "book, open"}, id="names of several words"),
    pytest.param("3 wheeler\nsky\n", {0: "3 wheeler", 1: "sky"}, id="a number in front of one name only"),
    pytest.param("Wand\nStraße\n空\n", {0: "Wand", 1: "Straße", 2: "空"}, id="names of any script"),
    pytest.param("0: wall\n1: sky\n", WALL_SKY, id="numbers with a colon"),
    pytest.param("1 sky\n0 wall\n", WALL_SKY, id="numbers with a blank, in any order"),
    pytest.param("0,wall\n1,sky\n", WALL_SKY, id="numbers with a comma"),
    pytest.param("0;wall\n1\tsky\n", WALL_SKY, id="numbers with a semicolon and a tab"),
    pytest.param("7: wall\n255: void\n", {7: "wall", 255: "void"}, id="numbers with gaps"),
    pytest.param(LABELMAP, {0: "background", 1: "cat", 2: "dog"}, id="CVAT labelmap"),
    pytest.param(OBJECT_INFO, {1: "wall", 2: "building, edifice", 3: "sky"}, id="objectInfo150.txt of ADE20K"),
    pytest.param(OBJECT_INFO.replace("\n", "\r\n"), {1: "wall", 2: "building, edifice", 3: "sky"}, id="same, CRLF"),
    pytest.param("id,name\n0,wall\n1,sky\n", WALL_SKY, id="table with commas"),
    pytest.param("name;id\nwall;0\nsky;1\n", WALL_SKY, id="table with semicolons, name first"),
    pytest.param("Name,trainId,id\nwall,9,0\nsky,8,1\n", WALL_SKY, id="table with two numbers: id wins"),
    pytest.param('"id","name"\n"0","wall"\n"1","sky"\n', WALL_SKY, id="table all in quotes"),
    pytest.param('id,name\n0,"wall, brick"\n1,sky\n', {0: "wall, brick", 1: "sky"}, id="table with a comma in quotes"),
    pytest.param("id\tname\tgroup\n0\twall\t\n1\tsky\t\n", WALL_SKY, id="table whose last column is empty"),
    pytest.param('["wall", "sky"]', WALL_SKY, id="JSON names"),
    pytest.param('\n {"1": "sky", "0": "wall"}', WALL_SKY, id="JSON object, as id2label"),
    pytest.param('[{"id": 1, "name": "sky"}, {"id": 0, "name": "wall"}]', WALL_SKY, id="JSON entries"),
    pytest.param('{"info": {}, "categories": [{"id": 5, "name": "a", "isthing": 1}]}', {5: "a"}, id="a COCO file"),
    pytest.param('{"categories": ["wall", "sky"]}', WALL_SKY, id="JSON names under categories"),
]


@pytest.fixture
def listed(tmp_path: Path) -> Any:
    def write(content: str | bytes) -> Path:
        path = tmp_path / "list.txt"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.mark.parametrize(("text", "expected"), LISTS)
def test_list(text: str, expected: dict[int, str], listed: Any) -> None:
    found = read_class_list(listed(text))
    assert {category.id: category.name for category in found} == expected
    assert [category.id for category in found] == sorted(expected)


@pytest.mark.parametrize("text", ["wall\nsky\n", '["wall", "sky"]'])
def test_plain_names_begin_where_they_are_told(text: str, listed: Any) -> None:
    assert read_class_list(listed(text), first=1) == (Category(1, "wall"), Category(2, "sky"))


@pytest.mark.parametrize("text", ["0: wall\n1: sky", LABELMAP, OBJECT_INFO, '{"0": "wall"}', "id,name\n0,wall\n"])
def test_values_that_are_written_down_stay(text: str, listed: Any) -> None:
    assert read_class_list(listed(text), first=1) == read_class_list(listed(text))


def test_supercategories_of_json_entries_are_kept(listed: Any) -> None:
    entries = [{"id": 3, "name": "cat", "supercategory": "animal"}]
    assert read_class_list(listed(json.dumps(entries))) == (Category(3, "cat", "animal"),)


def test_256_categories_fit(listed: Any) -> None:
    assert len(read_class_list(listed("\n".join(f"c{value}" for value in range(256))))) == 256


FAULTS: list[Any] = [
    pytest.param("", "holds no categories", id="empty"),
    pytest.param("\ufeff\r\n# nothing\n", "holds no categories", id="comments alone"),
    pytest.param("id,name\n", "holds no categories", id="a header alone"),
    pytest.param("[]", "holds no categories", id="empty JSON list"),
    pytest.param("{}", "holds no categories", id="empty JSON object"),
    pytest.param("\n".join(f"c{value}" for value in range(1000)), "outside 0..255", id="1000 names"),
    pytest.param("a\n" * 2_000_000, "outside 0..255", id="a name two million times", marks=pytest.mark.slow),
    pytest.param(
        "1: a\n" * 600_000, "the value 1 twice", id="a line six hundred thousand times", marks=pytest.mark.slow
    ),
    pytest.param("256: a\n", "outside 0..255", id="value 256"),
    pytest.param('[{"id": -1, "name": "a"}]', "outside 0..255", id="negative value"),
    pytest.param("id,name\n-1,licence plate\n", "outside 0..255", id="negative value in a table"),
    pytest.param("0: a\n0: b\n", "the value 0 twice", id="a value twice"),
    pytest.param("a\nb\na\n", "the name 'a' twice", id="a name twice"),
    pytest.param("9" * 5000 + ": a\n", "as a mask value", id="a number of 5000 digits"),
    pytest.param("id,name\n²,a\n", "'²' as a mask value", id="a digit that is no number"),
    pytest.param("id,name\none,a\n", "'one' as a mask value", id="a word for a value"),
    pytest.param("id,name\n0,a\n1\n", "a row that is too short: '1'", id="a row without a name"),
    pytest.param("name,r,g,b\nwall,1,2,3\n", "a column `id`", id="a table without values, as CamVid's"),
    pytest.param('id,name\n0,"' + "x" * 200_000, "is no table", id="a quote that never ends"),
    pytest.param('["a", 1]', "is no list of categories", id="JSON of names and numbers"),
    pytest.param('{"a": "wall"}', "is no list of categories", id="JSON object whose keys are no numbers"),
    pytest.param('{"0": {"name": "wall"}}', "is no list of categories", id="JSON object whose names are objects"),
    pytest.param('[{"name": "wall"}]', "missing required field `id`", id="JSON entry without id"),
    pytest.param('[{"id": 1.5, "name": "wall"}]', "is no list of categories", id="JSON entry with a fraction"),
    pytest.param('["wall", "sk', "is no list of categories", id="JSON cut short"),
    pytest.param("[" * 100_000, "is no list of categories", id="JSON nested without end"),
    pytest.param(b"\xff\xfew\0a\0l\0l\0", "no UTF-8 text", id="UTF-16"),
    pytest.param(b"\x89PNG\r\n\x1a\n\xff", "no UTF-8 text", id="a picture"),
    pytest.param(b"a" * ((4 << 20) + 1), "larger than 4 MiB", id="large"),
]


@pytest.mark.parametrize(("content", "problem"), FAULTS)
def test_faulty_list(content: str | bytes, problem: str, listed: Any) -> None:
    path = listed(content)
    with pytest.raises(AnnotationFileError) as caught:
        read_class_list(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert problem in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_folder_is_no_list(tmp_path: Path) -> None:
    with pytest.raises(AnnotationFileError, match="cannot be read"):
        read_class_list(tmp_path)
