"""The state of an unfinished run in one file, so that it goes on as if it had not stopped."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trajmatch import files
from trajmatch.distill.initialise import SyntheticSet
from trajmatch.distill.schedule import ExpertOrder
from trajmatch.distill.state import USUAL, Iterate, State, Streams
from trajmatch.distill.step_size import StepSize
from trajmatch.errors import UserError

FORMAT = "trajmatch distillation checkpoint"
FORMAT_VERSION = 3

#: Tensors of the state that not every run has.
_OPTIONAL = ("label_buffer", "average")
_STREAMS = ("experts", "start_epochs", "batches")


def save(path: Path, state: State, identity: dict[str, Any]) -> None:
    """Writes a checkpoint in place of the last one, whole or not at all.

    Args:
        path: The file.
        state: The state between two iterations.
        identity: What the run is (:attr:`trajmatch.distill.problem.Problem.identity`).

    Raises:
        UserError: The file cannot be written.
    """
    tensors = {
        "images": state.synthetic.images,
        "labels": state.synthetic.labels,
        "buffer": state.buffer,
        "order": state.order.order,
    }
    for name in _OPTIONAL:
        if (tensor := getattr(state, name)) is not None:
            tensors[name] = tensor
    for name in _STREAMS:
        tensors[f"stream.{name}"] = getattr(state.streams, name).get_state()
    best = None
    if state.best is not None:
        tensors["best.images"] = state.best.images
        tensors["best.labels"] = state.best.labels
        best = {
            "step_size": state.best.step_size,
            "iteration": state.best.iteration,
            "accuracy": state.best.accuracy,
        }
    description = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "identity": identity,
        "step_size": [state.step_size.value, state.step_size.buffer],
        "lr_init": state.lr_init,
        "experts": [state.order.count, state.order.used],
        "iteration": state.iteration,
        "applied": state.applied,
        "refusals": state.refusals,
        "skips": state.skips,
        "gradient_norms": state.gradient_norms,
        "best": best,
        "scores": state.scores,
    }
    files.save_tensors(path, tensors, description)


def load(path: Path, identity: dict[str, Any], device: str | torch.device) -> State:
    """Reads a checkpoint of the same run.

    Args:
        path: The file.
        identity: What the run is; the number of iterations alone may differ.
        device: Where the images shall be.

    Returns:
        The state.

    Raises:
        UserError: The file is damaged, not a checkpoint, or of a run with other settings.
    """
    tensors, description = files.load_tensors(path)
    if (description.get("format"), description.get("format_version")) != (FORMAT, FORMAT_VERSION):
        raise UserError(
            f"{path} is not a checkpoint that this version reads; remove it, or choose "
            "another --out"
        )
    found = description.get("identity")
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged (it is of no run); remove it to start afresh")
    check_same_run(path, found, identity, ignore=("iterations",))
    try:
        return _state(tensors, description, device)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is damaged ({error}); remove it to start afresh") from error


def check_same_run(
    path: Path, found: dict[str, Any], wanted: dict[str, Any], ignore: tuple[str, ...] = ()
) -> None:
    """Makes sure that a file belongs to the run that is asked for.

    Args:
        path: The file.
        found: Settings that it was made with.
        wanted: Settings that are asked for.
        ignore: Settings that may differ.

    Raises:
        UserError: A setting differs; the first is named.
    """
    for name in sorted(found.keys() | wanted.keys()):
        if name not in ignore and found.get(name) != wanted.get(name):
            raise UserError(
                f"--resume: {path} was made with {name} = {found.get(name)}, but "
                f"{name} = {wanted.get(name)} is asked for; repeat the settings it was made with, "
                "or choose another --out"
            )


def _state(
    tensors: dict[str, Tensor], description: dict[str, Any], device: str | torch.device
) -> State:
    streams = Streams.of_seed(0)
    for name in _STREAMS:
        getattr(streams, name).set_state(tensors[f"stream.{name}"])
    count, used = map(_count, description["experts"])
    eta, velocity = map(float, description["step_size"])
    best, scores = description["best"], description["scores"]
    if not (isinstance(scores, list) and all(isinstance(score, dict) for score in scores)):
        raise TypeError("its scores are no list of objects")
    return State(
        synthetic=SyntheticSet(tensors["images"].to(device), tensors["labels"].to(device)),
        buffer=tensors["buffer"].to(device),
        step_size=StepSize(eta, velocity),
        lr_init=float(description["lr_init"]),
        streams=streams,
        order=ExpertOrder(count, tensors["order"], used),
        iteration=_count(description["iteration"]),
        applied=_count(description["applied"]),
        refusals=_count(description["refusals"]),
        skips=_count(description["skips"]),
        gradient_norms=_norms(description["gradient_norms"]),
        best=None
        if best is None
        else Iterate(
            images=tensors["best.images"].to(device),
            labels=tensors["best.labels"].to(device),
            **best,
        ),
        **{name: tensors[name].to(device) for name in _OPTIONAL if name in tensors},
        scores=scores,
    )


def _norms(values: Any) -> list[float]:
    if not (isinstance(values, list) and len(values) <= USUAL):
        raise TypeError("its norms of gradients are no list of so many")
    norms = [float(value) for value in values]
    if not all(0 <= norm < math.inf for norm in norms):
        raise ValueError("a norm of a gradient is negative or not finite")
    return norms


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"{value!r:.100} is in the place of a count")
    return value
