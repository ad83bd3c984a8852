"""Training of a group of experts in lockstep, with a snapshot after every kept epoch."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trajmatch import networks
from trajmatch.data import Dataset
from trajmatch.errors import UserError
from trajmatch.experts.checkpoint import Checkpoints, Place, Recorder, Training, measure_of
from trajmatch.experts.epoch import Curriculum, decay_epoch, drawn_epochs
from trajmatch.experts.step import ExpertState, step_of, steps_at_once, steps_for
from trajmatch.inference import measured
from trajmatch.random import generator


class Trajectory(NamedTuple):
    """Result of training an expert, to pass to ``store.write_expert(expert, *trajectory)``."""

    snapshots: Tensor  # [S, P], float32, one row per kept epoch
    metrics: dict[str, Any]
    buffers: Tensor  # [S, Q]
    state: dict[str, Tensor] | None  # None at the end of the course


#: Callback after each epoch of an expert: takes the expert's number, and results by name. These are
#: the mean training ``loss`` and, if the epoch was tested, ``accuracy`` (percent) or, for targets,
#: ``error`` (mean squared).
OnEpoch = Callable[[int, dict[str, float]], None]

#: Tests during training use at least this many test images (or all), but less than twice as many.
_TESTED = 2000

#: With an automatic test interval, experts train on at least this many images per tested image.
_TRAINED_PER_TESTED = 5

#: An expert has diverged if its mean training loss reaches this many times the loss of guessing.
_ABSURD = 1000


def train_lockstep(
    manifest: dict[str, Any],
    training: Dataset,
    experts: Sequence[int],
    device: str | torch.device = "cpu",
    on_epoch: OnEpoch = lambda expert, numbers: None,
    checkpoints: Checkpoints | None = None,
    test_every: int = 0,
    curriculum: Curriculum | None = None,
) -> list[Trajectory]:
    """Train experts in lockstep and return the trajectory of each.

    A trajectory depends only on the manifest, the images and the expert's number, because each
    expert has its own random generators. The last bits also depend on the number of threads on a
    CPU, so the caller should keep that number constant, and on the size of the group on a GPU. All
    experts must have the same progress in ``checkpoints``. If ``checkpoints`` is None, training
    cannot be interrupted or resumed. ``test_every`` is the number of epochs between tests; 0
    chooses it automatically.

    Raises:
        UserError: An expert diverged, or a checkpoint cannot be read or written.
        Interrupted: The run was interrupted; checkpoints have been written.
    """
    recipe, seed = manifest["recipe"], manifest["seed"]
    # The schedules span the whole course, even if training stops earlier (--until-epoch).
    course = recipe["epochs"]
    last = manifest.get("trained_epochs", course)
    kept = [epoch for epoch in manifest["snapshots"] if epoch <= last]
    model = networks.build_student(manifest["network"]).to(device)
    step = step_of(model, training, recipe, device)
    starts = [generator(seed, "expert", expert, "initialisation") for expert in experts]
    states = ExpertState.begin(model, step.optimiser, starts)
    totals = torch.zeros(len(experts), dtype=torch.float64, device=device)
    measure = measure_of(training.loss)
    # Each state is a view of `states`, and each total a view of `totals`, so the steps below update
    # every Training.
    group = [
        Training(expert, states[k], Recorder(states[k], kept, measure), totals[k])
        for k, expert in enumerate(experts)
    ]
    begun = Place(0, 0)
    if checkpoints is not None:
        # All experts of a group have the same progress.
        (begun,) = {checkpoints.place(expert) for expert in experts}
        for each in group:
            checkpoints.restore(each)
    take_steps, at_once = steps_for(step, states, totals.device), steps_at_once(totals.device)
    test, guess = _Test(model, training, device), guessing(training)
    test_every = test_every or test.interval
    draws = drawn_epochs(recipe, seed, experts, training.train_images.shape, curriculum)
    for _ in range(begun.epoch + 1):  # also advances the generators past finished epochs
        drawn = next(draws)
    with torch.no_grad():
        for epoch in range(begun.epoch + 1, last + 1):
            count = drawn.indices.shape[1]
            first = begun.step if epoch == begun.epoch + 1 else 0
            for taken, batch in drawn.to(device).batches(recipe["batch_size"], at_once, first):
                if checkpoints:
                    checkpoints.visit(Place(epoch - 1, taken), group)
                # The sum stays on the device: reading it would make every step wait for the GPU.
                totals += take_steps(batch)
            if epoch < last:
                drawn = next(draws)  # on the CPU, while a GPU still works on the steps
            for (expert, state, recorder, _), total in zip(group, totals.tolist(), strict=True):
                # The learning rate drops after this epoch, and the optimiser restarts.
                if epoch - 1 == decay_epoch(course) and recipe["lr_decay"] != 1:
                    state.restart_optimiser()
                loss = total / count
                _check_loss(expert, epoch, loss, state.theta, recipe["lr"], guess)
                numbers = {"loss": loss}
                if epoch % test_every == 0 or epoch == course:
                    numbers[measure] = test.measured(state, test.stride)
                recorder.record(epoch, state, loss, numbers.get(measure))
                on_epoch(expert, numbers)
            totals.zero_()
    trajectories = []
    for _, state, recorder, _ in group:
        # Final test on all test images, unless the last epoch's test has used them all already.
        tested = recorder.health[measure][-1] if test.stride == 1 else None
        if tested is None:
            tested = test.measured(state)
        metrics: dict[str, Any] = {**recorder.health, f"test_{measure}": tested}
        if measure == "error":
            metrics["guessing"] = guess
        # An unfinished course continues from the training state.
        goes_on = state.tensors() if last < course else None
        trajectories.append(Trajectory(recorder.snapshots, metrics, recorder.buffers, goes_on))
    return trajectories


class _Test:
    """Tester of experts on the test images, with its own copy of the network."""

    def __init__(self, model: nn.Module, training: Dataset, device: str | torch.device) -> None:
        self._model, self._labels = copy.deepcopy(model), training.test_answers
        images = training.test_images.to(device)
        self._images, self._normalise = training.preprocessing.staged(images)
        # Tests during training use every stride-th image.
        self.stride = max(1, len(self._labels) // _TESTED)
        tested, trained = len(self._labels[:: self.stride]), len(training.train_labels)
        # The smallest interval at which tests use at most a fifth as many images as training.
        self.interval = max(1, -(-tested * _TRAINED_PER_TESTED // trained))

    def measured(self, state: ExpertState, stride: int = 1) -> float:
        """Return an expert's accuracy (percent) or error on every ``stride``-th test image."""
        networks.load_flat_parameters(self._model, state.theta)
        networks.load_flat_buffers(self._model, state.statistics)
        images, labels = self._images[::stride], self._labels[::stride]
        return measured(self._model, images, labels, normalise=self._normalise)


def guessing(training: Dataset) -> float:
    """Return the loss of predicting equal class probabilities or, for targets, the mean target."""
    if training.train_targets is None:
        # At least 2 classes: with one the loss is 0, and every expert would count as diverged.
        return math.log(max(2, training.num_classes))
    return training.train_targets.double().var(dim=0, unbiased=False).mean().item()


def _check_loss(
    expert: int, epoch: int, loss: float, theta: Tensor, lr: float, guessing: float
) -> None:
    """Raise UserError if the loss or the parameters are NaN, infinite or absurdly large."""
    # `not (... < ...)` is also true for a NaN loss.
    if not (theta.isfinite().all() and loss < _ABSURD * guessing):
        raise UserError(
            f"expert {expert} diverged in epoch {epoch}: the mean training loss is {loss:.4g} "
            f"(guessing gives {guessing:.3g}), or its parameters are no longer finite; choose a "
            f"smaller --lr (it is {lr:g})"
        )
