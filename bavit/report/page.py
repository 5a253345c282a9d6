"""The page of results: one HTML file that opens offline, without a script, in light and dark, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from bavit.colours import LINES
from bavit.gallery import Sample, write_page
from bavit.report import (
    sections_comparisons,
    sections_costs,
    sections_detection,
    sections_models,
    sections_segment,
    sections_table_two,
    sections_tables,
)
from bavit.report.results import Results
from bavit.report.section import NONE, Section
from bavit.report.summary import PAPER, PRINTED, exported, fastest, headline, segment_headline, table_two
from tokenlabels.errors import OutputError, TokenLabelsError
from tokenlabels.report.markup import Column, Row, card, count, esc, name, table
from tokenlabels.report.page import MAX_BYTES, check_places

_HOME = Path(__file__)
_TEMPLATE, _STYLE = _HOME.with_name("page.html"), _HOME.with_name("page.css")
_ROOM = 1_000_000
"""Bytes that pictures, style and template have at least."""

_NOTE = (
    "What runs left behind: of sweeps the ground truth and what is found at some thresholds, removed patches greyed "
    "out; of segmenters labels, prediction and the stages at which tokens ended."
)


def check_page(path: Path) -> None:
    """Refuse at once what the page cannot be written to, and a file that is none: results would be lost.

    Raises:
        OutputError: `path` is a folder or a device, lies in no folder that can be written, or holds something else.
    """
    check_places(path, None)
    if path.suffix.lower() not in (".html", ".htm") and path.exists() and path.stat().st_size:
        raise OutputError(f"{path}: is there, and no page by its name: name another file with --out, such as a.html.")


def write_results_page(results: Results, path: str | Path, *, title: str, samples: Sequence[Sample] = ()) -> Path:
    """Write results as one HTML file of less than 5 MB that needs nothing else.

    The bytes depend on the arguments only.

    Args:
        results: what is shown.
        path: the file.
        title: heading, untrusted text.
        samples: pictures to show; of more than the gallery has room for the first.

    Returns:
        `path`.

    Raises:
        OutputError: `path` cannot be written.
        TokenLabelsError: the page would be larger.
    """
    before = [sections_detection.curves(results), sections_table_two.section(results)]
    if not samples and results.sweeps:
        before.append(Section("samples-none", "Samples", _NO_PICTURES))
    after = [
        sections_costs.section(results),
        sections_comparisons.section(results),
        sections_models.evaluations(results),
        sections_models.budgets(results),
        sections_segment.section(results),
        sections_models.trainings(results),
        sections_tables.section(results),
        Section("runs", "Runs", _runs(results)),
    ]
    tiles = sections_detection.tiles(results)
    parts = {
        "title": esc(title),
        "heading": name(title),
        "facts": "".join(f"<li>{esc(fact)}</li>" for fact in _facts(results)),
        "key-figures": _key_figures(tiles),
        "nav-before": _links([Section("key-figures", "Key figures", tiles), *before]),
        "nav-after": _links(after),
        "before": _sections(before),
        "after": _sections(after),
    }
    size = sum(len(part.encode()) for part in parts.values())
    if size > MAX_BYTES - _ROOM:
        raise TokenLabelsError(f"these results make a page of {size / 1e6:.0f} MB, more than people open: name fewer.")
    return write_page(_TEMPLATE, path, parts, samples, _NOTE, _colours() + _STYLE.read_text("utf-8"))


def as_json(results: Results, title: str) -> dict[str, Any]:
    """Everything that the page says, as one object: what was read, and what was computed from it."""
    best, segment, quick = headline(results), segment_headline(results), fastest(results)
    found: dict[str, Any] = {
        "title": title,
        "headline": best,
        "fastest": None if quick is None else {"run": quick[0], "row": quick[1]},
        "segment_headline": segment,
        "exported": exported(results),
        "table_two": table_two(results) if results.sweeps else [],
        "paper": {
            "source": PAPER,
            "printed_in_its_abstract": [{"figure": what, "value": value} for what, value in PRINTED],
        },
    }
    every: dict[str, Any] = msgspec.to_builtins(found | msgspec.structs.asdict(results))
    return every


def default_title(results: Results) -> str:
    """A heading for a page that was given none."""
    names = list(dict.fromkeys(each.name for kind in results.named() for each in kind))
    if len(names) <= 3:
        return f"BAViT: {', '.join(names)}"
    return f"BAViT: {count(len(results))} results"


_NO_PICTURES = (
    '<p class="notice">The sweeps left no pictures behind: they do where <code>bavit sweep</code> is run with '
    "--samples, which puts them into the folder samples beside sweep.json.</p>"
)


def _facts(results: Results) -> list[str]:
    """What was measured on, and where, without saying anything twice."""
    settings = [each.sweep.setting for each in results.sweeps]
    machines = [each.environment for each in settings] + [each.environment for each in results.segmentations]
    found = ["1 result" if len(results) == 1 else f"{count(len(results))} results"]
    found += dict.fromkeys(f"{setting.data}, {count(setting.images)} images" for setting in settings)
    for key, words in (
        ("device", "{}"),
        ("precision", "precision {}"),
        ("threads", "threads {}"),
        ("torch", "torch {}"),
    ):
        values = dict.fromkeys(str(each[key]) for each in machines if key in each)
        if values:
            found.append(words.format(" and ".join(values)))
    return found


def _runs(results: Results) -> str:
    rows: list[Row] = []
    for each in results.sweeps:
        setting = each.sweep.setting
        made = f"{count(setting.images)} images, {count(setting.images_timed)} timed in {setting.rounds} rounds"
        rows.append(
            [name(each.name), "sweep", name(setting.data), f"{made}; {_machine(setting.environment)}", name(each.path)]
        )
    rows += [
        [name(one.name), "evaluation of a BAViT", NONE, f"{count(one.evaluation.images)} images", name(one.path)]
        for one in results.evaluations
    ]
    for seg in results.segmentations:
        kind = "sweep of a segmenter" if seg.swept else "evaluation of a segmenter"
        images = seg.rows[0].images if seg.rows else 0
        rows.append(
            [name(seg.name), kind, NONE, f"{count(images)} images; {_machine(seg.environment)}", name(seg.path)]
        )
    rows += [
        [name(run.name), f"training, {run.trained}", name(run.data), _machine(run.environment), name(run.path)]
        for run in results.trainings
    ]
    rows += [[name(saved.name), "saved pruned detector", NONE, NONE, name(saved.path)] for saved in results.detectors]
    rows += [
        [name(one.name), "comparison of methods", NONE, f"{count(one.seeds)} seeds", name(one.path)]
        for one in results.comparisons
    ]
    for other in results.tables:
        machine = {key: str(other.facts[key]) for key in _MACHINE if other.facts.get(key) is not None}
        rows.append([name(other.name), "measurements", NONE, _machine(machine), name(other.path)])
    columns = [Column(title, numeric=False) for title in ("run", "what it is", "data", "how and where", "read from")]
    return card("What this page was made from", "Files, as they were named.", table("Runs", columns, rows), wide=True)


_MACHINE = ("device", "devices", "precision", "threads", "cpu_threads", "python", "torch", "timm", "onnxruntime")


def _machine(environment: dict[str, str]) -> str:
    told = [f"{key.replace('_', ' ')} {environment[key]}" for key in _MACHINE if key in environment]
    return esc(", ".join(told)) or NONE


def _key_figures(tiles: str) -> str:
    if not tiles:
        return ""
    return (
        '<section id="key-figures" aria-labelledby="key-figures-title">'
        f'<h2 id="key-figures-title" class="quiet">Key figures</h2>{tiles}</section>'
    )


def _links(sections: Sequence[Section]) -> str:
    return "".join(f'<li><a href="#{each.key}">{esc(each.title)}</a></li>' for each in sections if each.content)


def _sections(sections: Sequence[Section]) -> str:
    return "\n".join(
        f'<section id="{each.key}" aria-labelledby="{each.key}-title"><h2 id="{each.key}-title">{esc(each.title)}</h2>'
        f'<div class="cards">{each.content}</div></section>'
        for each in sections
        if each.content
    )


def _colours() -> str:
    """The colours of lines, as variables."""
    pairs = "".join(f"--c{number}: light-dark({light}, {dark});" for number, (light, dark) in enumerate(LINES))
    kinds = "".join(
        f".c{number} {{ --line: var(--c{number}); }}\n"
        f".k{number} {{ fill: var(--c{number}); background: var(--c{number}); }}\n"
        for number in range(len(LINES))
    )
    return f":root {{ {pairs} }}\n{kinds}\n"
