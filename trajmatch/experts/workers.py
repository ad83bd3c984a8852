"""Training of given experts of a store, in this process or in child processes."""

import math
import subprocess
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import torch

from trajmatch import interruption
from trajmatch.children import Emit, Job, children
from trajmatch.data import Dataset, load_dataset
from trajmatch.errors import UserError
from trajmatch.experts.checkpoint import Checkpoints
from trajmatch.experts.config import ExpertConfig, Schedule
from trajmatch.experts.epoch import Curriculum
from trajmatch.experts.scores import read_scores
from trajmatch.experts.store import Store
from trajmatch.experts.trajectory import OnEpoch, Trajectory, train_lockstep
from trajmatch.memory import keep_freed_memory, one_thread
from trajmatch.out_of_memory import in_groups


def work(
    config: ExpertConfig,
    store: Store,
    training: Dataset,
    experts: Sequence[int],
    on_epoch: OnEpoch,
    at_once: int = 1,
    curriculum: Curriculum | None = None,
) -> None:
    """Train experts in lockstep groups of at most ``at_once``; write each group when it is done.

    Experts resume from their checkpoints. Raises UserError if an expert diverged. A stop writes
    checkpoints and raises Interrupted.
    """
    # A signal waits until the training loop can write a checkpoint.
    with one_thread(), interruption.held():

        def train(group: Sequence[int]) -> list[Trajectory]:
            # Each group has its own Checkpoints, so that their time counts from its start.
            checkpoints = Checkpoints(store, config.checkpoint_seconds)
            options = config.device, on_epoch, checkpoints, config.test_every, curriculum
            return train_lockstep(store.manifest, training, group, *options)

        device = torch.device(config.device)
        # These Checkpoints only read progress.
        for there in _by_progress(Checkpoints(store, math.inf), experts):
            for group, trained in in_groups(train, there, at_once, device, "experts"):
                for expert, trajectory in zip(group, trained, strict=True):
                    # In this order, a kill between the two lines loses nothing.
                    store.write_expert(expert, *trajectory)
                    store.checkpoint_path(expert).unlink(missing_ok=True)


def _by_progress(checkpoints: Checkpoints, experts: Sequence[int]) -> Iterator[Sequence[int]]:
    """Yield the experts with equal progress, the most advanced first."""
    # Equal progress, because the experts of a group take every step together.
    places = {expert: checkpoints.place(expert) for expert in experts}
    for place in sorted({*places.values()}, reverse=True):
        yield [expert for expert in experts if places[expert] == place]


def work_together(
    config: ExpertConfig, experts: Sequence[int], workers: int, on_epoch: OnEpoch
) -> None:
    """Train experts on the CPU in child processes; each process writes its finished experts.

    Raises UserError if an expert diverged or a child process was killed, e.g. for lack of memory.
    Raises RuntimeError if a child process failed otherwise. The other processes are stopped.
    """
    # Jobs are sent as JSON, so paths become strings.
    paths = {"out": str(config.out), "scores": config.scores and str(config.scores)}
    settings = {**asdict(config), **paths}
    jobs = [{"config": settings, "experts": experts[first::workers]} for first in range(workers)]
    try:
        with children(work_on, jobs, {"OMP_NUM_THREADS": "1"}) as events:
            for event in events:
                on_epoch(event["expert"], event["numbers"])
    except subprocess.CalledProcessError as failure:
        # A negative status is minus the number of the signal that killed the process.
        if failure.returncode > 0:
            raise RuntimeError(
                f"a process that trains experts failed with exit status {failure.returncode}"
            ) from failure
        raise UserError(
            f"a process that trains experts was killed by signal {-failure.returncode}; if memory "
            "is short, choose a smaller --workers or --batch-size, and continue with --resume"
        ) from failure


def work_on(job: Job, emit: Emit) -> None:
    """Train the experts of a job, in a child process of :func:`work_together`; SIGTERM stops it."""
    keep_freed_memory()
    with interruption.signals():
        config = ExpertConfig(**job["config"])
        store = Store.open(config.out, complete=False)
        with warnings.catch_warnings(action="ignore"):  # the parent process has shown them
            dataset = load_dataset(store.manifest["data"])
        training, _, _ = store.training_set(dataset)

        def on_epoch(expert: int, numbers: dict[str, float]) -> None:
            emit({"expert": expert, "numbers": numbers})

        curriculum = curriculum_of(config, dataset, training)
        work(config, store, training, job["experts"], on_epoch, curriculum=curriculum)


def curriculum_of(config: ExpertConfig, dataset: Dataset, training: Dataset) -> Curriculum | None:
    """Return a configuration's curriculum, or None if every epoch trains on all images."""
    if config.scores is None:
        return None
    scores = read_scores(config.scores, dataset, (config.holdout, config.seed), config.data)
    return Curriculum(Schedule.parse(config.curriculum, config.drop_easy), training, scores)
