"""How both command-line tools speak: tables to stdout, everything else to stderr, one sentence for an error."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import ProgressColumn, TaskID
    from rich.table import Table

_QUIET_SECONDS = 1.0
_PIPED_WIDTH = 200
INTERRUPTED = 130
ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+:)/")
_NUMBERS = re.compile(r"[+-]?(?=[.,]?\d)[\d.,eE+-]+")


def say(text: str) -> None:
    """A line on stderr, unwrapped."""
    print(printable(text), file=sys.stderr, flush=True)  # noqa: T201


def printable(text: str) -> str:
    """One line without control characters: what a data file holds must not steer a terminal."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def print_json(value: Any) -> None:
    """One JSON object on stdout."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        text = json.dumps(value, indent=2)
    print(text)  # noqa: T201


def print_table(table: Table) -> None:
    """A table on stdout."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH).print(table)


def print_line(text: str) -> None:
    """A plain line on stdout, unwrapped."""
    print(printable(text))  # noqa: T201


class PlainCommand(TyperCommand):
    """A command that knows an address where it takes none: typer makes the path `s3:/bucket` of `s3://bucket`."""

    def invoke(self, ctx: Any) -> Any:
        """Refuse it, and run the command."""
        for parameter in self.get_params(ctx):
            for value in _several(ctx.params.get(parameter.name)):
                if isinstance(value, Path) and ADDRESS.match(str(value)):
                    name = parameter.opts[0] if parameter.param_type_name == "option" else parameter.metavar
                    address = ADDRESS.sub(r"\1//", str(value))
                    say(f"error: {name or parameter.name} {address}: is a file or folder on disk only: name a path.")
                    raise typer.Exit(2)
        return super().invoke(ctx)


def _several(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else [value]


class GroupedCommand(PlainCommand):
    """A command whose help has its options in the groups that `rich_help_panel` names, as plain text."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, the groups in order, and last what is in none of them."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            plain = "Arguments" if parameter.param_type_name == "argument" else "Options"
            record = parameter.get_help_record(ctx)
            if record is not None:
                groups.setdefault(getattr(parameter, "rich_help_panel", None) or plain, []).append(record)
        groups["Options"] = groups.pop("Options", [])
        for title, records in groups.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


class ListsCommand(GroupedCommand):
    """One whose options with a metavar that ends in `...` take several numbers: `--at 6 8` is `--at 6 --at 8`.

    A number that is the name of a file is written `./8` after such an option.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Write lists out before anything else looks at the words."""
        lists = {
            name
            for parameter in self.get_params(ctx)
            if getattr(parameter, "multiple", False) and (parameter.metavar or "").endswith("...")
            for name in parameter.opts
        }
        return super().parse_args(ctx, _written_out(args, lists))


def _written_out(words: Sequence[str], lists: Collection[str]) -> list[str]:
    found: list[str] = []
    current, first = "", False
    for place, word in enumerate(words):
        if word == "--":
            return [*found, *words[place:]]
        name, equals, _ = word.partition("=")
        if name in lists:
            current, first = name, not equals
        elif first:
            first = False
        elif current and _NUMBERS.fullmatch(word):
            found.append(current)
        else:
            current = ""
        found.append(word)
    return found


@contextlib.contextmanager
def errors_reported(
    *, debug: bool, interrupted: str = "finished shards are kept, run the same command again to go on"
) -> Iterator[None]:
    """Turn faults into one sentence and an exit code: 1 data or environment, 2 usage, 130 Ctrl-C.

    Args:
        debug: let the traceback through instead.
        interrupted: what a person should know after Ctrl-C.
    """
    from tokenlabels.errors import ParameterError, TokenLabelsError
    from tokenlabels.store_faults import explained

    try:
        with explained():
            yield
    except (TokenLabelsError, KeyboardInterrupt, Exception) as fault:
        if (
            debug
            or isinstance(fault, (typer.Exit, typer.Abort))
            or type(fault).__module__.startswith(("click", "typer"))
        ):
            raise
        if isinstance(fault, KeyboardInterrupt):
            say(f"interrupted: {interrupted}.")
            raise typer.Exit(INTERRUPTED) from None
        if isinstance(fault, TokenLabelsError):
            say(f"error: {fault}")
            raise typer.Exit(2 if isinstance(fault, ParameterError) else 1) from None
        if isinstance(fault, BrokenPipeError):
            sys.stdout = None  # whoever read it is gone
            raise typer.Exit(1) from None
        if isinstance(fault, MemoryError):
            say("error: out of memory: use fewer --workers, a smaller --shard-rows, or a larger --patch.")
        else:
            first_line = str(fault).partition("\n")[0] or "no message"
            say(f"error: {type(fault).__name__}: {first_line} (--debug tells more).")
        raise typer.Exit(1) from None


class StderrProgress:
    """A progress bar on stderr for work that takes longer than a second; nothing where stderr is no terminal."""

    def __init__(self) -> None:
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._stage: tuple[str, int | None] = ("", None)
        self._done = 0
        self._since = time.monotonic()
        self._begun: list[tuple[str, float]] = []
        self._shown = sys.stderr.isatty() and os.environ.get("RANK", "0") == "0"  # of the ranks of torchrun one draws

    def stage(self, name: str, total: int | None = None) -> None:
        """A new stage begins."""
        self._begun.append((name, time.monotonic()))
        self._stage, self._done = (name, total), 0
        if self._bar is not None:
            self._show_stage()
        elif self._shown and total is None:
            self._maybe_start()

    def advance(self, steps: int) -> None:
        """Steps of the stage are done."""
        self._done += steps
        if self._bar is None:
            self._maybe_start()
        elif self._task is not None:
            self._bar.update(self._task, completed=self._done)

    def note(self, text: str) -> None:
        """A line on stderr, above the bar."""
        if self._bar is None:
            say(f"note: {text}")
        else:
            self._bar.console.print(f"note: {text}", markup=False, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        """Take the bar away; called before anything is reported."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        self._shown = False

    def stage_seconds(self) -> dict[str, float]:
        """Wall seconds of each stage so far; stages of the same name are added up."""
        found: dict[str, float] = {}
        ends = [*(since for _, since in self._begun[1:]), time.monotonic()]
        for (name, since), end in zip(self._begun, ends, strict=True):
            found[name] = round(found.get(name, 0.0) + end - since, 3)
        return found

    def _maybe_start(self) -> None:
        if not self._shown or time.monotonic() - self._since < _QUIET_SECONDS:
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            *self._counts(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._bar.start()
        self._show_stage()

    def _counts(self) -> list[ProgressColumn]:
        """The columns that say how many steps are done."""
        from rich.progress import MofNCompleteColumn

        return [MofNCompleteColumn()]

    def _show_stage(self) -> None:
        assert self._bar is not None
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(self._stage[0], total=self._stage[1], completed=self._done)

    def __enter__(self) -> StderrProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class BytesProgress(StderrProgress):
    """One whose steps are bytes."""

    def _counts(self) -> list[ProgressColumn]:
        from rich.progress import DownloadColumn, TransferSpeedColumn

        return [DownloadColumn(), TransferSpeedColumn()]


def run_app(app: Callable[[], Any]) -> None:
    """Run a Typer app; `--debug` may stand anywhere on the command line, and any name be printed on any terminal."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if "--debug" in sys.argv[1:]:
        sys.argv = [sys.argv[0], "--debug", *(word for word in sys.argv[1:] if word != "--debug")]
    app()
