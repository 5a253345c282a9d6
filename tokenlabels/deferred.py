"""Records whose annotations are read where they are needed: for data sets of one annotation file for each image.

A process that plans a build of millions of images holds columns of images, never their annotations; every task reads
those of its own images again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tokenlabels.texts import Texts

if TYPE_CHECKING:
    from tokenlabels.annotations import Records


@dataclass(frozen=True, slots=True, eq=False)
class DeferredRecords:
    """n images, read and checked once, and how to read their annotations again.

    Attributes:
        loader: `module:function` that does the work of `blocks`.
        how: what that function needs besides; plain data, for it is sent to where tasks run.
        sources: n paths of annotation files relative to their folder, with `/`.
        digests: uint64 (n,), the first bytes of the sha256 of each file.
        image_ids: see `Records`.
        file_names: see `Records`.
        widths: see `Records`.
        heights: see `Records`.
        counts: int32 (n,), annotations of each image.
        left_out: int32 (n,), usable annotations of each image that are not among these, by the selection.
    """

    loader: str
    how: Any
    sources: Texts
    digests: NDArray[np.uint64]
    image_ids: Texts
    file_names: Texts
    widths: NDArray[np.int32]
    heights: NDArray[np.int32]
    counts: NDArray[np.int32]
    left_out: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def annotation_count(self) -> int:
        return int(self.counts.sum())

    @property
    def masks(self) -> None:
        """They are with the annotations."""

    @property
    def maps(self) -> None:
        """There are none."""

    @property
    def mask_files(self) -> None:
        """There are none."""

    @classmethod
    def joined(cls, parts: Sequence[DeferredRecords]) -> DeferredRecords:
        """The images of all parts, which are read alike; at least one."""
        return cls(
            parts[0].loader,
            parts[0].how,
            Texts.joined([part.sources for part in parts]),
            np.concatenate([part.digests for part in parts]),
            Texts.joined([part.image_ids for part in parts]),
            Texts.joined([part.file_names for part in parts]),
            np.concatenate([part.widths for part in parts]),
            np.concatenate([part.heights for part in parts]),
            np.concatenate([part.counts for part in parts]),
            np.concatenate([part.left_out for part in parts]),
        )

    def block(self, start: int, stop: int) -> DeferredRecords:
        """Images start..stop-1."""
        part = slice(start, stop)
        return self._each(lambda texts: texts[part], lambda values: values[part])

    def keep_images(self, kept: NDArray[np.bool_]) -> DeferredRecords:
        """The images where `kept` bool (n,) is true."""
        if kept.all():
            return self
        return self._each(lambda texts: texts.keep(kept), lambda values: values[kept])

    def blocks(self) -> Iterator[Records]:
        """The images with their annotations, few at a time, in order; and packed masks, where they are scored.

        Raises:
            TokenLabelsError: a file cannot be read any more, or has changed.
        """
        module, _, name = self.loader.partition(":")
        found: Iterator[Records] = getattr(import_module(module), name)(self)
        return found

    def _each(self, of_texts: Callable[[Texts], Texts], of_values: Callable[[Any], Any]) -> DeferredRecords:
        return replace(
            self,
            sources=of_texts(self.sources),
            digests=of_values(self.digests),
            image_ids=of_texts(self.image_ids),
            file_names=of_texts(self.file_names),
            widths=of_values(self.widths),
            heights=of_values(self.heights),
            counts=of_values(self.counts),
            left_out=of_values(self.left_out),
        )
