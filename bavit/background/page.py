"""The page of an evaluation: one HTML file that opens offline, without a script, in light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bavit.background import page_sections as sections
from bavit.background.figures import Evaluation
from bavit.gallery import Sample, write_page
from tokenlabels.report.markup import count, esc, name

_TEMPLATE = Path(__file__).with_name("page.html")


def write_evaluation_page(
    evaluation: Evaluation,
    path: str | Path,
    *,
    title: str,
    facts: Mapping[str, str],
    samples: Sequence[Sample] = (),
) -> Path:
    """Write an evaluation as one HTML file of less than 5 MB that needs nothing else.

    The bytes depend on the arguments only.

    Args:
        evaluation: its figures.
        path: the file.
        title: what was evaluated, untrusted text.
        facts: how, by name, untrusted text: the run, the build, the split, the device.
        samples: pictures to show; of more than `MAX_SAMPLES` the first.

    Returns:
        `path`.

    Raises:
        OutputError: `path` cannot be written.
    """
    note = "Removed patches are greyed out, those that refinement adds outlined, ignored ones hatched."
    return write_page(_TEMPLATE, path, _parts(evaluation, title, facts), samples, note)


def _parts(evaluation: Evaluation, title: str, facts: Mapping[str, str]) -> dict[str, str]:
    steps = "not refined" if not evaluation.refine_steps else f"refinement steps: {evaluation.refine_steps}"
    heads = (f"{count(evaluation.images)} images", f"threshold {evaluation.threshold:g}", steps)
    return {
        "title": esc(title),
        "heading": name(title),
        "facts": "".join(f"<li>{esc(head)}</li>" for head in heads),
        "tiles": sections.tiles(evaluation),
        "threshold": sections.threshold(evaluation),
        "objects": sections.objects(evaluation),
        "run": sections.run(evaluation, facts),
    }
