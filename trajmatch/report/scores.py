"""Accuracies that evaluations found, of distilled images and of what they are compared with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trajmatch import files
from trajmatch.errors import UserError

#: What networks are trained on, in the order of tables.
TRAINED_ON = {
    "random_real": "random real images",
    "k_center": "real images by k-center",
    "whole_real": "all real images",
    "distilled": "distilled images",
}
#: No evaluation is as large.
_LARGEST_FILE = 2**24


@dataclass(frozen=True)
class Score:
    """Test accuracy of networks of one kind that were trained on one kind of images.

    Attributes:
        network: Their architecture.
        trained_on: A key of :data:`TRAINED_ON`.
        mean: Mean over them, in percent.
        std: Standard deviation over them.
        seeds: How many they are.
        diverged: How many of them diverged; None: unknown.
        protocol: How they were trained, in words.
    """

    network: str
    trained_on: str
    mean: float
    std: float
    seeds: int
    diverged: int | None
    protocol: str

    @property
    def shown(self) -> str:
        """The accuracy as it stands in a table."""
        return f"{self.mean:.1f} ± {self.std:.1f}"


def of_summary(path: Path, network: str) -> list[Score]:
    """The scores of `trajmatch run`.

    Args:
        path: Its ``summary.json``.
        network: The architecture that it evaluated.

    Raises:
        UserError: The file cannot be read or is something else.
    """
    return _scores(path, _read(path), network)


def of_evaluation(path: Path) -> list[Score]:
    """The scores of `trajmatch eval --json`, of every network that it trained.

    Args:
        path: What it printed.

    Raises:
        UserError: The file cannot be read or is something else.
    """
    networks = _read(path).get("networks")
    if not isinstance(networks, list) or not networks:
        raise _foreign(path, "it has no list of networks")
    found = []
    for each in networks:
        if not isinstance(each, dict) or not isinstance(each.get("network"), str):
            raise _foreign(path, "a network has no name")
        found += _scores(path, each, each["network"])
    return found


def stage_seconds(path: Path) -> dict[str, float]:
    """What each stage of `trajmatch run` took.

    Args:
        path: Its ``summary.json``.

    Raises:
        UserError: The file cannot be read or is something else.
    """
    stages = _read(path).get("stage_seconds")
    if not isinstance(stages, dict) or not all(map(_is_number, stages.values())):
        raise _foreign(path, "it does not say what the stages took")
    return {str(name): float(seconds) for name, seconds in stages.items()}


def about(path: Path) -> dict[str, Any]:
    """Read the facts that `trajmatch run` or `trajmatch eval --json` gives besides the scores.

    Args:
        path: The ``summary.json`` of a run, or what an evaluation printed.

    Returns:
        ``training_images``, ``test_images``, ``expert_accuracies`` and ``command``, as far as they
        are there.

    Raises:
        UserError: The file cannot be read, or one of them is something else.
    """
    content = _read(path)
    sizes = content["dataset"] if isinstance(content.get("dataset"), dict) else content
    found: dict[str, Any] = {}
    for name in ("training_images", "test_images"):
        if name in sizes:
            if not (_is_count(sizes[name]) and sizes[name] > 0):
                raise _foreign(path, f"its {name} are no number")
            found[name] = sizes[name]
    experts = content.get("experts")
    if isinstance(experts, dict):
        accuracies = experts.get("accuracies")
        if not (isinstance(accuracies, list) and all(map(_is_number, accuracies))):
            raise _foreign(path, "the accuracies of its experts are no numbers")
        found["expert_accuracies"] = accuracies
    if isinstance(content.get("command"), str):
        found["command"] = content["command"]
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise _foreign(path, f"it is larger than {_LARGEST_FILE} bytes")
        return files.read_json(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except RecursionError as error:
        raise _foreign(path, "it is nested too deeply") from error


def _scores(path: Path, numbers: dict[str, Any], network: str) -> list[Score]:
    protocol = _in_words(numbers.get("protocol"))
    found = []
    for key in TRAINED_ON:
        score = numbers.get(key)
        if score is None:
            continue
        if not (
            isinstance(score, dict)
            and _is_number(score.get("mean"))
            and _is_number(score.get("std"))
            and _is_count(score.get("seeds"))
            and (score.get("diverged") is None or _is_count(score["diverged"]))
        ):
            raise _foreign(path, f"the score of {key} has no mean, std and seeds")
        found.append(
            Score(
                network,
                key,
                score["mean"],
                score["std"],
                score["seeds"],
                score.get("diverged"),
                protocol,
            )
        )
    if not found:
        raise _foreign(path, "it has no score")
    return found


def _in_words(protocol: Any) -> str:
    """E.g. ``mtt, 1000 epochs``; empty where it is not said."""
    if not isinstance(protocol, dict):
        return ""
    words = [str(protocol["name"])] if "name" in protocol else []
    for key, unit in (("steps", "steps"), ("num_epochs", "epochs")):
        if _is_count(protocol.get(key)):
            return ", ".join([*words, f"{protocol[key]} {unit}"])
    return ", ".join(words)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _foreign(path: Path, why: str) -> UserError:
    return UserError(
        f"{path} is not what `trajmatch run` or `trajmatch eval --json` writes: {why}; give such a "
        "file, or leave it out"
    )
