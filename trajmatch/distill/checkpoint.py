"""Checkpoint of an unfinished run: one file, from which it resumes as if never interrupted."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor

from trajmatch import files
from trajmatch.distill.parameters import learned, values
from trajmatch.distill.problem import Problem
from trajmatch.distill.state import Progress, State
from trajmatch.errors import UserError, as_user_error
from trajmatch.images.parametrisation import Tensors
from trajmatch.schema import convert, settings_of

FORMAT = "trajmatch distillation checkpoint"


class Description(msgspec.Struct, tag_field="format", tag=FORMAT):
    """Metadata of a checkpoint; version 3, of release 0.1, has no entry ``progress``."""

    identity: dict[str, Any]  # Problem.identity
    progress: Any = None
    format_version: Literal[3, 4] = 4


def save(path: Path, state: State, identity: dict[str, Any]) -> None:
    """Atomically write the state after a whole outer iteration, with ``Problem.identity``."""
    moving = learned(state.parameters)
    # Tensors are named by their part of the state: value.images, velocity.images, draws.experts.
    files.save_tensors(
        path,
        {
            **_named("value", values(state.parameters)),
            **{f"{k}.{name}": m for name, each in moving.items() for k, m in each.moments.items()},
            **_named("average", state.average),
            **_named("best", state.best_values),
            **_named("draws", state.random_state),
        },
        msgspec.to_builtins(Description(identity, settings_of(state, Progress))),
    )


def load(path: Path, problem: Problem) -> State:
    """Return the saved state; UserError if the file is damaged or its run had other settings."""
    tensors, metadata = files.load_tensors(path)
    place = f"{path} is damaged or not a checkpoint that this version reads"
    found = convert(metadata, Description, place, "; remove it, or choose another --out")
    # A resumed run may be longer than first planned.
    check_same_run(path, found.identity, problem.identity, ignore=("iterations",))
    kinds = (KeyError, ValueError, RuntimeError)
    with as_user_error(f"{path} is damaged (", *kinds, advice="); remove it to start again"):
        if found.format_version == 3:
            tensors, found.progress = _of_0_1(tensors, metadata)
        progress = msgspec.convert(found.progress, Progress)
        # The new state has the optimisers with their initial moments, whose names, dtypes and
        # devices the stored moments must follow.
        state = problem.state(_under("value", tensors, problem.device))
        for name, parameter in learned(state.parameters).items():
            moments = {
                moment: tensors[f"{moment}.{name}"].to(first)
                for moment, first in parameter.moments.items()
            }
            state.parameters[name] = replace(parameter, moments=moments)
        state.average = _under("average", tensors, problem.device)
        problem.render(state.result)  # fails if a parameter is missing
        # The objective's memory comes from the file, so check its shapes against the settings.
        for name, first in problem.objective.memory().items():
            if state.parameters[name].value.shape != first.shape:
                raise ValueError(f"its {name} should be of shape {list(first.shape)}")
        state.best_values = _under("best", tensors, problem.device)
        # States of CPU generators stay on the CPU.
        state.draws.load_state_dict(_under("draws", tensors, "cpu"))
    return replace(state, **vars(progress))


def check_same_run(
    path: Path, found: dict[str, Any], wanted: dict[str, Any], ignore: tuple[str, ...] = ()
) -> None:
    """Raise UserError if a setting in ``found`` (the file) differs from ``wanted`` (this run)."""
    for name in sorted(found.keys() | wanted.keys()):
        if name not in ignore and found.get(name) != wanted.get(name):
            raise UserError(
                f"--resume: {path} was made with {name} = {found.get(name)}, but this run has "
                f"{name} = {wanted.get(name)}; repeat the settings it was made with, or choose "
                "another --out"
            )


def _of_0_1(
    tensors: Tensors, description: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Convert a checkpoint of release 0.1 (format version 3) to the current format."""
    names = {
        "images": "value.images",
        "labels": "value.labels",
        "buffer": "velocity.images",
        "label_buffer": "velocity.labels",
        "average": "average.images",
    }
    found = {names.get(k, k.replace("stream.", "draws.")): each for k, each in tensors.items()}
    # 0.1 stored the order of all experts and the position reached in it.
    found["draws.experts_left"] = found.pop("order")[description["experts"][1] :]
    # Step size and velocity were numbers of the metadata; now they are tensors like the others.
    numbers = dict(zip(("value", "velocity"), description["step_size"], strict=True))
    progress = {each.name: description[each.name] for each in fields(Progress)}
    if progress["best"] is not None:
        numbers["best"] = progress["best"]["step_size"]
    for name, number in numbers.items():
        found[f"{name}.step_size"] = torch.tensor(number, dtype=torch.float64)
    return found, progress


def _named(prefix: str, tensors: Tensors) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def _under(prefix: str, tensors: Tensors, device: str | torch.device) -> dict[str, Tensor]:
    return {name: each.to(device) for name, each in files.under(f"{prefix}.", tensors).items()}
