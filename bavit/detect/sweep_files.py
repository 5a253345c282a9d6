"""A sweep as files: JSON, CSV, PNG and HTML, and the pictures that its page shows."""

from __future__ import annotations

from pathlib import Path

from bavit.background.model import BAViT
from bavit.detect.draw import MIN_SCORE
from bavit.detect.sweep import Plan, Swept
from bavit.detect.sweep_figures import Sweep, save_csv, save_json
from bavit.detect.sweep_page import write_sweep_page
from bavit.detect.sweep_plot import draw_sweep
from bavit.detect.sweep_samples import samples
from bavit.detect.yolos import Yolos
from bavit.gallery import keep_samples
from bavit.sweep_cache import SweepCache
from tokenlabels.progress import Progress


def write_sweep(
    swept: Swept,
    bavit: BAViT,
    yolos: Yolos,
    plan: Plan,
    out: Path,
    examples: int,
    min_score: float = MIN_SCORE,
    before: Sweep | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Write `sweep.json`, `.csv`, `.png`, `.html` and `samples/`, and take away what a killed sweep would need.

    Args:
        swept: what is written.
        bavit: the background model.
        yolos: the detector.
        plan: of the sweep.
        out: folder.
        examples: how many images the page shows.
        min_score: boxes of a smaller score are not drawn.
        before: another sweep to draw into the PNG.
        progress: told about the stage.

    Returns:
        The files.

    Raises:
        PictureError: a picture cannot be read.
        OutputError: a file cannot be written.
    """
    if progress is not None:
        progress.stage("drawing")
    shown = samples(swept, bavit, yolos, plan, examples, min_score) if examples else []
    setting = swept.sweep.setting
    title = f"{Path(setting.detector).name} behind {Path(setting.bavit).name}"
    written = [
        save_json(swept.sweep, out / "sweep.json"),
        save_csv(swept.sweep, out / "sweep.csv"),
        draw_sweep(swept.sweep, out / "sweep.png", before=before),
        write_sweep_page(swept.sweep, out / "sweep.html", title=title, samples=shown),
    ]
    keep_samples(shown, out / "samples")
    SweepCache.finish(out)
    return written
