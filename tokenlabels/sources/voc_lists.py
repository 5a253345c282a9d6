"""VOC's image sets: which lists there are, and the ids in one.

A list has one id a line. Those of one class, `person_train.txt`, have a flag besides: 1 the image shows it, 0 only
difficult ones, -1 not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenlabels import check
from tokenlabels.check import FindingLog
from tokenlabels.errors import AnnotationFileError, TokenLabelsError
from tokenlabels.sources.paths import is_inside, is_text
from tokenlabels.storage import content, globbed
from tokenlabels.store_faults import reason_of

if TYPE_CHECKING:
    from tokenlabels.storage import Location

_SETS = "ImageSets"
_KINDS = ("Main", "Segmentation")
_PREFERRED = "trainval"
_MAX_BYTES = 256 << 20
_BEGINNING = 1 << 16
_FLAGGED = re.compile(r"(.*\S)\s+(-1|0|1)")


@dataclass(frozen=True, slots=True)
class ImageSet:
    """One list: its name, `Main` or `Segmentation`, and its path. Without a path: every XML file there is."""

    name: str
    kind: str
    path: Location
    everything: bool = False

    @property
    def file(self) -> str:
        """The path inside the data set, for messages and the manifest."""
        return self.path.name if self.everything else f"{_SETS}/{self.kind}/{self.path.name}"


def find_lists(
    root: Location, splits: Sequence[str], kind: str, note: Callable[[str], None] = lambda _text: None
) -> list[ImageSet]:
    """The lists to read.

    Args:
        root: VOC folder.
        splits: names of lists; none: `trainval`, else every list that is neither of one class nor empty; where there
            are no lists at all, every XML file, as split `all`.
        kind: `Main` or `Segmentation`; the other one is taken, with a note, where a list is absent there.
        note: told about that.

    Raises:
        TokenLabelsError: no such list.
    """
    other = next(each for each in _KINDS if each != kind)
    available = {each: _lists(root / _SETS / each) for each in (kind, other)}
    if not any(available.values()):
        if splits:
            raise TokenLabelsError(f"{root}: no {_SETS} in it, so no list {splits[0]!r}: leave --split out.")
        note(f"{root} has no {_SETS}: every file in Annotations is read, as split 'all'.")
        return [ImageSet("all", kind, root / "Annotations", everything=True)]
    wanted = list(splits)
    if not wanted:
        names = sorted({name for lists in available.values() for name in lists})
        wanted = [_PREFERRED] if _PREFERRED in names else []
        wanted = wanted or [name for name in names if _is_split(available[kind].get(name) or available[other][name])]
        if not wanted:
            raise TokenLabelsError(f"{root}: every list in {_SETS} is of one class or empty: name one with --split.")
    found = []
    for name in wanted:
        held = next((each for each in (kind, other) if name in available[each]), None)
        if held is None:
            names = sorted({name for lists in available.values() for name in lists})
            shown = ", ".join(names[:20]) or "none"
            raise TokenLabelsError(f"{root}: no {_SETS}/{kind}/{name}.txt; the lists there are {shown}.")
        if held != kind:
            note(f"{_SETS}/{kind} has no list {name}: {_SETS}/{held}/{name}.txt is read.")
        found.append(ImageSet(name, held, available[held][name]))
    return found


def _lists(folder: Location) -> dict[str, Location]:
    return {path.stem: path for path in globbed(folder, "*.txt")}


def _is_split(path: Location) -> bool:
    """Whether a list is that of a split: neither of one class nor empty."""
    try:
        whole_lines, _, rest = content(path, _BEGINNING).decode("utf-8", "replace").rpartition("\n")
    except OSError:
        return True  # reading it will say why
    entries = _entries(whole_lines or rest)
    return bool(entries) and not any(flag for _, flag in entries)


def _entries(text: str) -> list[tuple[str, str]]:
    """Id and flag of every line, flags empty where not every line has one: then it is ids that hold spaces."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    flagged = [_FLAGGED.fullmatch(line) for line in lines]
    if all(flagged):
        return [(found[1], found[2]) for found in flagged if found]
    return [(line, "") for line in lines]


def read_list(chosen: ImageSet, log: FindingLog) -> tuple[list[str], bytes]:
    """The ids of a list, sorted, and its content.

    Raises:
        AnnotationFileError: it cannot be read, or holds nothing.
    """
    if chosen.everything:
        names = sorted(path.stem for path in globbed(chosen.path, "*.xml"))
        if not names:
            raise AnnotationFileError(chosen.path, "holds no XML files: name another --root.")
        foreign = [name for name in names if not is_text(name)]
        for name in foreign:
            log.add(check.LIST_PATH, chosen.file, f"the file name {ascii(name)[1:-1]}.xml is no UTF-8 text: rename it.")
        names = [name for name in names if name not in foreign]
        return names, "\n".join(names).encode()
    try:
        data = content(chosen.path, _MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise AnnotationFileError(chosen.path, f"is larger than {_MAX_BYTES >> 20} MiB: this is no list of ids.")
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise AnnotationFileError(chosen.path, "is no UTF-8 text: a list has one id a line.") from None
    except OSError as fault:
        raise AnnotationFileError(chosen.path, f"cannot be read ({reason_of(fault)}).") from None
    ids: dict[str, None] = {}
    for image_id, flag in _entries(text):
        if flag == "-1":
            continue
        if "/" in image_id or not is_inside(image_id):
            message = f"the id {image_id[:200]!r} is no plain name: an id is that of an XML file, without suffix."
            log.add(check.LIST_PATH, chosen.file, message, image_id=image_id[:200])
        elif image_id in ids:
            log.add(check.LIST_DUPLICATE, chosen.file, f"image {image_id} is listed twice.", image_id=image_id)
        else:
            ids[image_id] = None
    if not ids:
        raise AnnotationFileError(chosen.path, "lists no images: a list has one id a line.")
    return sorted(ids), data
