"""What a run must be told of what is learned: data, model, loss and figures. Everything else is the run's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

from torch import Tensor, nn
from torch.utils.data import Dataset

from bavit.rows import Rows
from bavit.training.run_folder import check_sources, data_digest
from bavit.training.settings import RunSettings
from tokenlabels.errors import ParameterError

if TYPE_CHECKING:
    from bavit.training.run import TrainingRun
    from tokenlabels.storage import Location


@dataclass(frozen=True, slots=True)
class Task:
    """What is trained on, and where it goes.

    Attributes:
        train: rows to train on.
        val: rows to validate on.
        images: folder of the pictures of `train`, or None where they are embedded.
        val_images: of `val`.
        out: folder of the run.
        workers: processes that decode pictures.
        device: `auto`, `cpu`, `cuda` or `mps`.
        resume: go on with the run that is there.
        overwrite: delete it.
        tensorboard: write events for TensorBoard, too.
    """

    train: Rows
    val: Rows
    images: Location | None
    val_images: Location | None
    out: Path
    workers: int = 1
    device: str = "auto"
    resume: bool = False
    overwrite: bool = False
    tensorboard: bool = False


class PictureBatch(Protocol):
    """Several pictures with what is to be learned of them; those that cannot be read count for nothing.

    Attributes:
        rows: int64 (B,), row numbers.
        faults: row -> what is wrong with its picture, for those that cannot be read.
    """

    @property
    def rows(self) -> Tensor: ...

    @property
    def faults(self) -> Mapping[int, str]: ...

    def to(self, device: Any) -> Self:
        """The same on a device."""
        ...


B = TypeVar("B", bound=PictureBatch)


class Learner(ABC, Generic[B]):
    """One kind of model, and how it is learned.

    Attributes:
        task: data and folder.
        settings: how.
        command: of bavit that trains it.
        counts: how many numbers `loss` returns beside the loss and its weight.
        lr_factors: of the learning rate, by how the names of parameters begin.
        collate: makes a batch of samples; a plain function, for worker processes are handed it.

    Raises:
        ParameterError: there are no rows, or the run would replace what it starts from.
    """

    command: str
    counts: int
    lr_factors: Mapping[str, float]
    collate: Callable[[Sequence[Any]], B]

    def __init__(self, task: Task, settings: RunSettings) -> None:
        self.task, self.settings, self.lr_factors = task, settings, {}
        for rows, what in ((task.train, "train on"), (task.val, "validate on")):
            if not len(rows):
                splits = ", ".join(dict.fromkeys(group.split for group in rows.groups))
                raise ParameterError(f"{rows.folder} holds no rows to {what} (split {splits}): name another split.")
        if not task.resume:
            check_sources(task.out, settings.sources)

    def digest(self) -> str:
        """Hex digest of what is trained and validated on."""
        return data_digest([self.task.train, self.task.val])

    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to be resumed, beside the data; JSON values."""
        return self.settings.as_json()

    @abstractmethod
    def data(self) -> tuple[Dataset[Any], Dataset[Any]]:
        """Pictures to train on, changed at random, and to validate on; keys are (epoch, row)."""

    @abstractmethod
    def new_model(self) -> nn.Module:
        """A model of the right shape, that `save_pretrained` stores."""

    @abstractmethod
    def initialize(self, model: nn.Module) -> None:
        """Where its training starts."""

    def answering(self, model: nn.Module) -> nn.Module:
        """The module that `loss` is given, which has the parameters of the model and no others."""
        return model

    @abstractmethod
    def loss(self, model: nn.Module, batch: B, done: float) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
        """What a batch on the device of the model costs.

        Args:
            model: see `answering`.
            batch: on its device.
            done: share of all steps that are done, 0..1.

        Returns:
            The sum of losses, the sum of their weights, and `counts` numbers that are added up over an epoch: scalars.
        """

    def trained(self, counts: Sequence[float]) -> dict[str, float]:  # noqa: ARG002  most have none
        """Figures of an epoch, from the numbers added up."""
        return {}

    @abstractmethod
    def validated(self, model: nn.Module, run: TrainingRun) -> dict[str, float]:
        """Figures of a model in evaluation mode on `run.val_batches()`; without gradients, under autocast."""

    @abstractmethod
    def described(self, place: str) -> Sequence[str]:
        """What a person is told before training; `place` names device, precision and ranks."""

    @abstractmethod
    def told(self, record: Mapping[str, float]) -> str:
        """What a person is told of an epoch."""

    @abstractmethod
    def draw(self, history: Sequence[Mapping[str, float]], path: Path) -> None:
        """Draw the figures of all epochs."""
