"""Training of BAViT, from rows to a run folder; the loop reads from top to bottom.

The bits of every weight on a CPU follow from data, settings, number of threads and versions: neither stopping and
resuming, nor the number of workers, nor whether anybody watches, changes them.
"""

from __future__ import annotations

from typing import Any

from bavit.background.interruption import Interrupted, Interruption
from bavit.background.settings import Settings
from bavit.background.training_run import Task, TrainingRun
from bavit.device import make_fabric
from tokenlabels.errors import ParameterError
from tokenlabels.progress import Progress
from tokenlabels.stats_shards import IGNORE


def train(task: Task, settings: Settings, given: dict[str, Any], progress: Progress) -> dict[str, float]:
    """Train a model, and leave it in a run folder.

    Args:
        task: data and folder.
        settings: how.
        given: the settings a person gave, kept for `--resume`.
        progress: told about every picture and epoch.

    Returns:
        The figures of the last epoch.

    Raises:
        ParameterError: data and settings that contradict each other.
        TokenLabelsError: no usable pictures, checkpoint or weights; `DivergedError` where the loss is not finite.
        OutputError: the folder cannot be used.
        Interrupted: SIGINT or SIGTERM came; the state is saved.
    """
    _check(task, settings)
    fabric = make_fabric(task.device, settings.precision)
    if settings.batch_size % fabric.world_size:
        raise ParameterError(f"--batch-size {settings.batch_size} is not divided by {fabric.world_size} ranks.")
    fabric.launch()
    run = TrainingRun(task, settings, given, fabric, progress)
    with Interruption() as wish:
        for epoch in range(run.state.epoch, settings.epochs):
            run.begin(epoch)
            for batch in run.loader:
                run.step(batch)
                if run.wished(wish.number):
                    run.pause()
                    raise Interrupted(run.stopped_by, run.where())
            run.end()
    return run.state.history[-1]


def _check(task: Task, settings: Settings) -> None:
    for rows, what in ((task.train, "train on"), (task.val, "validate on")):
        if not len(rows):
            splits = ", ".join(dict.fromkeys(group.split for group in rows.groups))
            raise ParameterError(f"{rows.folder} holds no rows to {what} (split {splits}): name another split.")
        if (rows.labels == IGNORE).all():
            raise ParameterError(f"{rows.folder}: every patch to {what} is ignored (255): name another split.")
    if task.train.grid != task.val.grid:
        raise ParameterError(
            f"{task.train.folder} has the grid {task.train.header.grid}, {task.val.folder} has "
            f"{task.val.header.grid}: train and validate on one grid, --grid names it."
        )
    if settings.optimization.soft_targets and task.train.scores is None:
        raise ParameterError("--soft-targets learns scores, but they were not read.")
