"""How long work tells its caller where it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives the stages of a build and the steps within each."""

    def stage(self, name: str, total: int | None = None) -> None:
        """A new stage begins, of `total` steps where that is known."""

    def advance(self, steps: int) -> None:
        """Steps of the current stage are done."""

    def note(self, text: str) -> None:
        """Something a person should know, such as a warning about a parameter."""


class Silent:
    """A progress that tells nobody."""

    def stage(self, name: str, total: int | None = None) -> None:
        """See `Progress`."""

    def advance(self, steps: int) -> None:
        """See `Progress`."""

    def note(self, text: str) -> None:
        """See `Progress`."""
