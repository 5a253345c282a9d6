"""SIGINT and SIGTERM as a wish that is looked at between steps, so that a run ends with its state saved."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any


class Interrupted(Exception):  # noqa: N818  it is no error
    """Training was asked to stop, and has saved its state.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int, message: str) -> None:
        self.number = number
        super().__init__(message)


class Interruption:
    """While this is entered, the two signals set `number` instead of ending the process; a third wish ends it.

    Attributes:
        number: of the signal that came, or 0.
    """

    def __init__(self) -> None:
        self.number = 0
        self._wishes = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        for name in (signal.SIGINT, signal.SIGTERM):
            self._before[name] = signal.signal(name, self._answer)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)

    def _answer(self, number: int, _frame: FrameType | None) -> None:
        self.number = number
        self._wishes += 1
        if self._wishes >= 3:
            raise KeyboardInterrupt
