"""Matching terms of your own: other ways to compare a student with an expert.

    python examples/own_term.py

The matching loss is a sum of terms. `Direction` compares the directions in which student and expert
moved, but not the distances. `Settled` compares only some parameters, and remembers which ones from
one iteration to the next. With this file in the current folder, a command takes them by name:

    trajmatch distill --experts STORE --out FILE --terms final own_term:Direction

The example trains experts, distils with MTT's term and with these, and trains three networks on
each result. It prints:

    final: 69.5 +- 1.5 % of the test images
    final + own_term:Direction: 70.0 +- 1.1 % of the test images
    own_term:Settled:limit=1e-6: 68.7 +- 1.1 % of the test images
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from trajmatch.distill import DistillConfig, distill
from trajmatch.distill.terms import Course, Waypoint
from trajmatch.evaluate import EvalConfig, evaluate_artifact
from trajmatch.experts import ExpertConfig, train_experts


class Direction:
    """1 - cosine of the angle between the moves of student and expert from their common start."""

    def waypoints(self, steps: int, epochs: int) -> list[Waypoint]:
        """Return the points to compare: here only the end, after the last step and epoch."""
        return [Waypoint(steps, epochs)]

    def loss(self, course: Course) -> Tensor:
        """Return the term, differentiable in the student's parameters."""
        student = course.student[course.steps] - course.start
        expert = course.expert[course.epochs] - course.start
        return 1 - torch.cosine_similarity(student, expert, dim=0)


class Settled:
    """Distance over the parameters that have ever been close to the expert's (HoP-TM, MICCAI 2025).

    A parameter is settled from the first iteration in which its squared error is below the limit.
    The limit starts at `limit` and rises every 500 iterations.
    """

    def __init__(self, limit: float = 5e-9) -> None:
        self.limit = limit

    def waypoints(self, steps: int, epochs: int) -> list[Waypoint]:
        """Return the points to compare."""
        return [Waypoint(steps, epochs)]

    def memory(self, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
        """Return the initial memory, in which no parameter is settled."""
        parameters = sum(shape.numel() for shape in shapes.values())
        return {"settled": torch.zeros(parameters, dtype=torch.bool)}

    def remember(self, course: Course) -> dict[str, Tensor]:
        """Return the memory after this iteration."""
        error = (course.student[course.steps] - course.expert[course.epochs]).square()
        limit = self.limit * 1.5 ** (course.iteration // 500)
        return {"settled": course.memory["settled"] | (error < limit)}

    def loss(self, course: Course) -> Tensor:
        """Return the relative squared distance at the end over the settled parameters."""
        return course.distance(course.end, weights=self.remember(course)["settled"])


def main(argv: Sequence[str] | None = None) -> None:
    """Compare MTT's term with the terms above."""
    parser = argparse.ArgumentParser(description="Matching terms of your own.")
    parser.add_argument("--data", help="data set (default: the shipped images)")
    for name, default in (
        *(("--experts", 3), ("--epochs", 6), ("--width", 16)),
        *(("--iterations", 200), ("--test-epochs", 1000)),
    ):
        parser.add_argument(name, type=int, default=default, help=f"default: {default}")
    asked = parser.parse_args(argv)

    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder, "experts")
        experts = {"num_experts": asked.experts, "epochs": asked.epochs, "width": asked.width}
        train_experts(ExpertConfig(out=store, data=asked.data, **experts))
        for terms in (
            ("final",),
            ("final", "own_term:Direction"),
            ("own_term:Settled:limit=1e-6",),
        ):
            file = Path(folder, f"{'+'.join(terms)}.safetensors")
            settings = {"iterations": asked.iterations, "lr_img": 300.0, "lr_init": 0.02}
            distill(DistillConfig(experts=store, out=file, terms=terms, **settings))
            test = EvalConfig(file=file, seeds=3, epochs=asked.test_epochs, random_baseline=False)
            score = evaluate_artifact(test)["distilled"]
            names = " + ".join(terms)
            print(f"{names}: {score['mean']:.1f} +- {score['std']:.1f} % of the test images")


if __name__ == "__main__":
    main()
