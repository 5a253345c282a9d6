"""What every training run is made with: how weights are found, and the choices that no model is needed for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, TypeVar, get_args

from tokenlabels.errors import ParameterError

Precision: TypeAlias = Literal["auto", "32", "bf16", "fp16"]
OnError: TypeAlias = Literal["raise", "skip"]
Schedule: TypeAlias = Literal["cosine", "poly", "step"]
W = TypeVar("W", bound=str)


@dataclass(frozen=True, slots=True)
class Optimization:
    """How weights are found.

    Attributes:
        optimizer: `muon` (matrices of the blocks, AdamW for the rest), `adamw` or `adam`.
        lr: learning rate; with `muon` that of AdamW.
        weight_decay: decoupled from the gradient, but of `adam`, which has none; not on biases, norms and positions.
        schedule: `cosine` after a warm-up to 0, `poly` likewise, nearly in a straight line, or `step`: a tenth after
            every third of the epochs.
        warmup: share of all steps.
        clip: largest norm of the gradient, 0: any.
        ema: decay of the moving average of weights that is evaluated and stored, 0: the weights themselves.
    """

    optimizer: Literal["muon", "adamw", "adam"]
    lr: float
    weight_decay: float
    schedule: Schedule
    warmup: float
    clip: float
    ema: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """What a run knows of its settings.

    Attributes:
        epochs: how many.
        batch_size: pictures of a step, over all ranks.
        optimization: the recipe with a person's changes.
        seed: of everything random.
        precision: of the model's arithmetic; `auto`: bf16 where the hardware has it.
        compile: through `torch.compile`.
        on_error: what to do about a picture that cannot be read: `raise` or `skip`.
    """

    epochs: int
    batch_size: int
    optimization: Optimization
    seed: int = 0
    precision: Precision = "auto"
    compile: bool = False
    on_error: OnError = "raise"

    @property
    def sources(self) -> tuple[str, ...]:
        """What training starts from or learns from: folders, files, and other names."""
        return ()

    def check(self) -> None:
        """Refuse what no run can be made with.

        Raises:
            ParameterError: a value out of range.
        """
        used = self.optimization
        check_ranges(
            ("--epochs", self.epochs, 1, 1_000_000),
            ("--batch-size", self.batch_size, 1, 1_000_000),
            ("--seed", self.seed, 0, 2**32 - 1),
            ("--lr", used.lr, 0, 10),
            ("--weight-decay", used.weight_decay, 0, 10),
            ("--clip", used.clip, 0, float("inf")),
            ("--ema", used.ema, 0, 0.999999),
        )
        check_word("--precision", self.precision, get_args(Precision))
        check_word("--on-error", self.on_error, get_args(OnError))

    def as_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return asdict(self)


def check_ranges(*options: tuple[str, float, float, float]) -> None:
    """Refuse a value out of range.

    Args:
        options: name, value, least and greatest value of each.

    Raises:
        ParameterError: says which.
    """
    for name, value, low, high in options:
        if not low <= value <= high:
            raise ParameterError(f"{name} {value:g} is out of range: it is {low:g} to {high:g}.")


def check_word(option: str, word: str, words: Iterable[W]) -> W:
    """The word, if it is one that an option takes.

    Raises:
        ParameterError: says which it takes.
    """
    for known in words:
        if known == word:
            return known
    raise ParameterError(f"unknown {option} {word!r}: use one of {', '.join(words)}.")


def given_only(**values: Any) -> dict[str, Any]:
    """Those of a person's choices that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def taken(chosen: dict[str, Any], *names: str) -> dict[str, Any]:
    """Some of a person's choices that are not None; they are then gone from the others."""
    return given_only(**{name: chosen.pop(name) for name in names if name in chosen})
