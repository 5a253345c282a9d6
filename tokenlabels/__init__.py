"""Exact foreground/background labels per ViT patch, as Parquet shards.

    build = tokenlabels.build("coco", root="coco", patch=16, tau=0.5, out="labels")
    build.labels()                      # uint8 (images, rows, cols)
    tokenlabels.open("labels").frame()  # lazy polars frame

Everything is imported on first use, so that `import tokenlabels` costs nothing. No module bears the name of a function
exported here: importing it would put the module in the function's place.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenlabels.agreement import compare
    from tokenlabels.builder import build
    from tokenlabels.downloading import download
    from tokenlabels.errors import TokenLabelsError
    from tokenlabels.exporter import export
    from tokenlabels.grid import PatchGrid
    from tokenlabels.merger import merge
    from tokenlabels.overlay import show
    from tokenlabels.reader import Build
    from tokenlabels.reader import open_build as open  # noqa: A004
    from tokenlabels.relabeler import relabel
    from tokenlabels.report import write_report
    from tokenlabels.sample import write_sample
    from tokenlabels.sources.coco import CocoSource
    from tokenlabels.sources.panoptic import PanopticSource
    from tokenlabels.sources.semantic import SemanticSource
    from tokenlabels.sources.voc import VocSource
    from tokenlabels.splitter import split
    from tokenlabels.stats import statistics
    from tokenlabels.verifier import verify

__version__ = "0.1.0"

__all__ = [
    "Build",
    "CocoSource",
    "PanopticSource",
    "PatchGrid",
    "SemanticSource",
    "TokenLabelsError",
    "VocSource",
    "__version__",
    "build",
    "compare",
    "download",
    "export",
    "merge",
    "open",
    "relabel",
    "show",
    "split",
    "statistics",
    "verify",
    "write_report",
    "write_sample",
]

_HOMES = {
    "Build": ("reader", "Build"),
    "CocoSource": ("sources.coco", "CocoSource"),
    "PanopticSource": ("sources.panoptic", "PanopticSource"),
    "PatchGrid": ("grid", "PatchGrid"),
    "SemanticSource": ("sources.semantic", "SemanticSource"),
    "TokenLabelsError": ("errors", "TokenLabelsError"),
    "VocSource": ("sources.voc", "VocSource"),
    "build": ("builder", "build"),
    "compare": ("agreement", "compare"),
    "download": ("downloading", "download"),
    "export": ("exporter", "export"),
    "merge": ("merger", "merge"),
    "open": ("reader", "open_build"),
    "relabel": ("relabeler", "relabel"),
    "show": ("overlay", "show"),
    "split": ("splitter", "split"),
    "statistics": ("stats", "statistics"),
    "verify": ("verifier", "verify"),
    "write_report": ("report", "write_report"),
    "write_sample": ("sample", "write_sample"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(import_module(f"{__name__}.{module}"), attribute)
