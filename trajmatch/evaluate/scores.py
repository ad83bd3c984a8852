"""Mean and deviation of the test accuracy over several networks."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from trajmatch.protocol import Protocol
from trajmatch.random import derive_seed
from trajmatch.training import Outcome, train_fresh


@dataclass(frozen=True)
class Score:
    """Test accuracy of networks that were trained on a set, in percent, or their test error.

    Attributes:
        accuracies: One for each network; for targets the mean squared errors.
        protocol: How they were trained; see :meth:`trajmatch.evaluate.Protocol.describe`.
        diverged: Number of networks that diverged; they count as getting no image right. None:
            unknown.
        max_accuracies: The highest test of each network, where the protocol tests on the way: an
            estimate that is not honest, for it is chosen on the test set.
        measure: ``"errors"`` for targets.
    """

    accuracies: tuple[float, ...]
    protocol: dict[str, Any]
    diverged: int | None = None
    max_accuracies: tuple[float, ...] | None = None
    measure: Literal["accuracies", "errors"] = "accuracies"

    @classmethod
    def of_outcomes(
        cls, outcomes: Sequence[Outcome], protocol: dict[str, Any], answers: Tensor | None = None
    ) -> Score:
        """Return the score of trained networks: that of their last tests.

        Args:
            outcomes: Of each network.
            protocol: How they were trained.
            answers: Labels or targets of the test images; None: labels.
        """
        errors = answers is not None and answers.is_floating_point()
        maxima = tuple(each.max_accuracy for each in outcomes if each.max_accuracy is not None)
        return cls(
            accuracies=tuple(each.accuracy for each in outcomes),
            protocol=protocol,
            diverged=sum(each.diverged for each in outcomes),
            max_accuracies=maxima or None,
            measure="errors" if errors else "accuracies",
        )

    @property
    def mean(self) -> float:
        """Mean over the networks."""
        return statistics.fmean(self.accuracies)

    @property
    def std(self) -> float:
        """Standard deviation of the population (divided by the number, as in the papers' code)."""
        return statistics.pstdev(self.accuracies)

    @property
    def seeds(self) -> int:
        """Number of networks."""
        return len(self.accuracies)

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers, as JSON can hold them.

        Returns:
            ``mean``, ``std``, ``accuracies`` (for targets ``errors``), ``seeds`` and ``diverged``;
            with the maxima over the
            tests also ``test_max``: their ``mean``, ``std`` and ``accuracies``, and ``chosen``, how
            they came about.
        """
        each = {self.measure: [*self.accuracies], "seeds": self.seeds, "diverged": self.diverged}
        numbers: dict[str, Any] = {"mean": self.mean, "std": self.std, **each}
        if self.max_accuracies is not None:
            best = Score(self.max_accuracies, self.protocol).as_dict()
            chosen = "the highest test of each network, on the test set: not an estimate"
            kept = {name: best[name] for name in ("mean", "std", "accuracies")}
            numbers["test_max"] = {**kept, "chosen": chosen}
        return numbers


def evaluate_set(
    images: Tensor,
    labels: Tensor,
    network_spec: dict[str, Any],
    protocol: Protocol,
    test_images: Tensor,
    test_labels: Tensor,
    seeds: int = 5,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Score:
    """Train several fresh networks on one set of images and test each.

    Args:
        images: As the networks see them (normalised). ``[n, C, H, W]``, float32.
        labels: As for :func:`trajmatch.training.train_fresh`.
        network_spec: The network, as :func:`trajmatch.networks.build` takes it.
        protocol: How to train, with the step size; that of a distilled set is learned.
        test_images: Normalised by the same statistics. ``[N, C, H, W]``, float32.
        test_labels: Class indices ``[N]``, int64, or target outputs ``[N, D]``, float32.
        seeds: Number of networks.
        seed: Seed of the evaluation; network ``k`` depends on it and on ``k`` only.
        device: Where to train.

    Returns:
        The score.

    Raises:
        ValueError: Images, labels and network do not fit each other.
    """
    tests = test_images, test_labels
    outcomes = [
        train_fresh(images, labels, network_spec, protocol, *tests, each, device)
        for each in (derive_seed(seed, "evaluate", network) for network in range(seeds))
    ]
    protocol_used = {**protocol.describe(), "network": network_spec}
    return Score.of_outcomes(outcomes, protocol_used, test_labels)


def sampling_error(accuracy: float, test_images: int) -> float:
    """Return the standard error of an accuracy that the number of test images implies.

    Args:
        accuracy: In percent.
        test_images: How many images it was measured on.

    Returns:
        The binomial standard error in points, whatever the number of networks. At 0 and 100 %,
        where it would be 0, that of half an image right or wrong.
    """
    half = 50 / test_images
    accuracy = min(max(accuracy, half), 100 - half)
    return math.sqrt(accuracy * (100 - accuracy) / test_images)


def difference_error(first: float, second: float, test_images: int) -> float:
    """Return the standard error of the difference of two accuracies on one test set, in points.

    Both are taken to be independent. That they are of the same images makes the true error smaller.
    """
    return math.hypot(sampling_error(first, test_images), sampling_error(second, test_images))
