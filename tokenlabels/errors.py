"""Faults a person can mend: one class per kind, each worded as one sentence that says what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenlabels.storage import Location


class TokenLabelsError(Exception):
    """The data or the environment is at fault; the message is one clear sentence. Exit code 1."""


class AnnotationFileError(TokenLabelsError):
    """An annotation file as a whole cannot be read.

    Attributes:
        path: the file.
        problem: what is wrong with it and what to do, without the path.
    """

    def __init__(self, path: Location, problem: str) -> None:
        self.path = path
        self.problem = problem
        super().__init__(f"{path}: {problem}")

    def __reduce__(self) -> tuple[type, tuple[Location, str]]:
        return type(self), (self.path, self.problem)


class ParameterError(TokenLabelsError):
    """Parameters that contradict each other or the data, such as an image size the patch does not divide."""


class FindingsError(TokenLabelsError):
    """Error-level findings under `--on-error raise`; raised before anything is written."""


class OutputError(TokenLabelsError):
    """The output folder cannot be written, belongs to something else, or is being written by another build."""


class BuildMismatchError(OutputError):
    """The folder holds a build made with other parameters or other source files.

    Attributes:
        differences: parameter name -> (value in the folder, value asked for).
    """

    def __init__(self, out: Location, differences: dict[str, tuple[object, object]]) -> None:
        self.differences = differences
        named = "; ".join(f"{name} was {old!r}, now {new!r}" for name, (old, new) in sorted(differences.items()))
        super().__init__(f"{out} holds a build with other parameters ({named}): use another --out, or --overwrite.")


class NotABuildError(TokenLabelsError):
    """A folder that is no finished build, or whose manifest or shards are damaged."""


class SchedulerError(TokenLabelsError):
    """A Dask scheduler that cannot be reached, or whose workers cannot run tasks."""


class WorkerDiedError(TokenLabelsError):
    """A worker process ended without answering (killed, out of memory, crashed)."""


class DownloadError(TokenLabelsError):
    """A file cannot be fetched, is not what it should be, or cannot be unpacked."""
