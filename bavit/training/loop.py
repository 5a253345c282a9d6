"""The loop of training, from a learner to a run folder; it reads from top to bottom.

The bits of every weight on a CPU follow from data, settings, number of threads and versions: neither stopping and
resuming, nor the number of workers, nor whether anybody watches, changes them.
"""

from __future__ import annotations

from typing import Any

from bavit.device import make_fabric
from bavit.training.interruption import Interrupted, Interruption
from bavit.training.learner import Learner
from bavit.training.run import TrainingRun
from tokenlabels.errors import ParameterError
from tokenlabels.progress import Progress


def fit(learner: Learner[Any], given: dict[str, Any], progress: Progress) -> dict[str, float]:
    """Train a model, and leave it in a run folder.

    Args:
        learner: what is learned, from which data, and how.
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
    settings = learner.settings
    fabric = make_fabric(learner.task.device, settings.precision)
    if settings.batch_size % fabric.world_size:
        raise ParameterError(f"--batch-size {settings.batch_size} is not divided by {fabric.world_size} ranks.")
    fabric.launch()
    run = TrainingRun(learner, given, fabric, progress)
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
