"""Which splits of a build are trained on and which are evaluated, where nobody says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from tokenlabels.errors import ParameterError

if TYPE_CHECKING:
    from tokenlabels.storage import Location


class HasSplits(Protocol):
    """A build, or what one is to be made of."""

    @property
    def path(self) -> Location:
        """Where it is."""

    @property
    def splits(self) -> Sequence[str]:
        """Names of its splits, in order."""


def training_splits(build: HasSplits, named: Sequence[str] | None) -> list[str]:
    """The splits named, else those that begin with `train`, else with `trainval`, else the only one.

    Raises:
        ParameterError: nothing says which.
    """
    found = [split for split in _of(build, "train") if not split.startswith("trainval")]
    return list(
        dict.fromkeys(named or ()) or found or _of(build, "trainval") or _only(build, "--train-split", "to train on")
    )


def validation_splits(build: HasSplits, named: Sequence[str] | None, *, own: bool) -> list[str]:
    """The splits named, else those that begin with `val`; else, of a build of its own, the only one.

    Args:
        build: where they are looked for.
        named: what a person says.
        own: the build is not the one that is trained on.

    Raises:
        ParameterError: nothing says which.
    """
    found = list(dict.fromkeys(named or ()) or _of(build, "val"))
    if not found and not own:
        have = ", ".join(build.splits)
        raise ParameterError(
            f"{build.path} has no split to validate on (it has {have}): name one with --val-split, or another build "
            "with --val."
        )
    return found or _only(build, "--val-split", "to validate on")


def evaluation_splits(build: HasSplits, named: Sequence[str] | None) -> list[str]:
    """The splits named, else those that begin with `val`, else all."""
    return list(dict.fromkeys(named or ()) or _of(build, "val") or build.splits)


def _of(build: HasSplits, prefix: str) -> list[str]:
    return [split for split in build.splits if split.startswith(prefix)]


def _only(build: HasSplits, option: str, purpose: str) -> list[str]:
    if len(build.splits) > 1:
        raise ParameterError(f"{build.path} has the splits {', '.join(build.splits)}: name those {purpose}, {option}.")
    return list(build.splits)
