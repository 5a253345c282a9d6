"""The end of every build, whatever its shards were made from: totals, card, Croissant metadata and manifest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from tokenlabels.card import card_text
from tokenlabels.croissant import croissant_json
from tokenlabels.output import CARD, CROISSANT, JournalEntry, finish
from tokenlabels.totals import totals

if TYPE_CHECKING:
    from tokenlabels.storage import Location


def finish_build(folder: Location, manifest: dict[str, Any], entries: Sequence[JournalEntry]) -> None:
    """Write what stands beside the shards, the manifest last.

    Args:
        folder: of the build; every shard is there.
        manifest: all but its `shards` and `totals`.
        entries: every shard, in order.

    Raises:
        OutputError: a file cannot be written.
    """
    whole = manifest | {"shards": [msgspec.to_builtins(entry.shard) for entry in entries]}
    whole["totals"] = totals({entry.shard.file: entry.sums for entry in entries}, whole)
    finish(folder, whole, {CARD: card_text(whole, folder).encode(), CROISSANT: croissant_json(whole, folder)})
