"""Training of some experts of a store: in this process, or in several that share the store."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from trajmatch import interruption
from trajmatch.children import Emit, Failed, Job, children
from trajmatch.data import Dataset, load_dataset
from trajmatch.errors import UserError
from trajmatch.experts.checkpoint import Checkpoints
from trajmatch.experts.config import ExpertConfig
from trajmatch.experts.curriculum import Schedule
from trajmatch.experts.epoch import Curriculum
from trajmatch.experts.scores import read_scores
from trajmatch.experts.store import Store
from trajmatch.experts.trajectory import OnEpoch, train_lockstep
from trajmatch.memory import keep_freed_memory, one_thread


def work(
    config: ExpertConfig,
    store: Store,
    training: Dataset,
    experts: Sequence[int],
    on_epoch: OnEpoch,
    at_once: int = 1,
    curriculum: Curriculum | None = None,
) -> None:
    """Train experts, one group after another, and write each when its group is finished.

    An expert with a checkpoint goes on from there.

    Args:
        config: Has the device, and how often experts are kept and tested.
        store: The store of the experts.
        training: Images that they see.
        experts: Their numbers.
        on_epoch: Called for each expert after every epoch.
        at_once: Experts of a group at most, which are trained in lockstep.
        curriculum: Images that each epoch sees; None: all of them.

    Raises:
        UserError: An expert diverged, or a file cannot be read or written.
        Interrupted: The run was stopped from outside, after writing a checkpoint.
    """
    with one_thread(), interruption.held():
        for group in _groups(Checkpoints(store, math.inf), experts, at_once):
            checkpoints = Checkpoints(store, config.checkpoint_seconds)
            trained = train_lockstep(
                store.manifest,
                training,
                group,
                config.device,
                on_epoch,
                checkpoints,
                config.test_every,
                curriculum,
            )
            for expert, trajectory in zip(group, trained, strict=True):
                store.write_expert(expert, *trajectory)
                store.checkpoint_path(expert).unlink(missing_ok=True)


def _groups(
    checkpoints: Checkpoints, experts: Sequence[int], at_once: int
) -> Iterator[Sequence[int]]:
    """Group experts that are at the same place, not too many together; the furthest first."""
    places = {expert: checkpoints.place(expert) for expert in experts}
    for place in sorted({*places.values()}, reverse=True):
        there = [expert for expert in experts if places[expert] == place]
        for first in range(0, len(there), at_once):
            yield there[first : first + at_once]


def work_together(
    config: ExpertConfig, experts: Sequence[int], workers: int, on_epoch: OnEpoch
) -> None:
    """Train experts on the CPU in child processes; each writes the experts that it has finished.

    Args:
        config: Names the store; the rest is as for :func:`work`.
        experts: Numbers of the experts.
        workers: Number of processes.
        on_epoch: Called for each expert after every epoch.

    Raises:
        UserError: An expert diverged, a file cannot be read or written, or a worker was killed,
            as happens when memory is short. The other workers are stopped.
        Interrupted: The run was stopped from outside. The workers have written checkpoints.
        RuntimeError: A worker failed; its own message is on the standard error stream.
    """
    paths = {"out": str(config.out), "scores": config.scores and str(config.scores)}
    settings = {**asdict(config), **paths}
    jobs = [{"config": settings, "experts": experts[first::workers]} for first in range(workers)]
    try:
        with children(work_on, jobs, {"OMP_NUM_THREADS": "1"}) as events:
            for event in events:
                on_epoch(event["expert"], event["numbers"])
    except Failed as failure:
        if failure.status > 0:
            raise RuntimeError(
                f"a process that trains experts failed with exit status {failure.status}"
            ) from failure
        raise UserError(
            f"a process that trains experts was killed by signal {-failure.status}; if memory is "
            "short, choose a smaller --workers or --batch-size, and go on with --resume"
        ) from failure


def work_on(job: Job, emit: Emit) -> None:
    """Train experts as a child process of :func:`work_together`, until SIGTERM at the latest."""
    keep_freed_memory()
    with interruption.signals():
        config = ExpertConfig(**job["config"])
        store = Store.open(config.out, complete=False)
        with warnings.catch_warnings(action="ignore"):  # the parent has shown them
            dataset = load_dataset(store.manifest["data"])
        training, _, _ = store.training_set(dataset)

        def on_epoch(expert: int, numbers: dict[str, float]) -> None:
            emit({"expert": expert, "numbers": numbers})

        curriculum = curriculum_of(config, dataset, training)
        work(config, store, training, job["experts"], on_epoch, curriculum=curriculum)


def curriculum_of(config: ExpertConfig, dataset: Dataset, training: Dataset) -> Curriculum | None:
    """Return the images that each epoch sees, by ``config.scores``; None: all of them.

    Args:
        config: The settings.
        dataset: The whole data set.
        training: The part of it that the experts see.

    Raises:
        UserError: The scores cannot be used, or an epoch would see no image of a class.
    """
    if config.scores is None:
        return None
    held_out = config.holdout, config.seed
    scores = read_scores(config.scores, dataset, held_out, config.data)
    schedule = Schedule.parse(config.curriculum, config.drop_easy)
    return Curriculum(schedule, training, scores)
