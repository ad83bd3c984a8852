"""Mean and standard deviation of the test accuracy over several networks; robust scores.

The robust scores of DD-Ranking do not credit soft labels or augmentation to the distillation
(Li et al., *DD-Ranking: Rethinking the Evaluation of Dataset Distillation*, arXiv:2505.13300). Both
weights are 0.5, as on its leaderboard.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from trajmatch.protocol import Protocol
from trajmatch.random import derive_seed
from trajmatch.training import Outcome, train_fresh


@dataclass(frozen=True)
class Score:
    """Test accuracies in percent of networks trained on one set, or their test errors.

    Attributes:
        accuracies: One per network; for targets the mean squared errors.
        protocol: How they were trained; see :meth:`trajmatch.evaluate.Protocol.describe`.
        diverged: Number of diverged networks, which count as getting no image right; None: unknown.
        max_accuracies: Highest test accuracy of each network, if the protocol tests during
            training. Not an honest estimate: it is chosen on the test set.
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
        """Return the score of the last tests; ``answers`` are the test labels or targets."""
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
        """Population standard deviation over the networks, as in the papers' code."""
        return statistics.pstdev(self.accuracies)

    @property
    def seeds(self) -> int:
        """Number of networks."""
        return len(self.accuracies)

    def as_dict(self) -> dict[str, Any]:
        """Return ``mean``, ``std``, ``accuracies`` (or ``errors``), ``seeds`` and ``diverged``.

        If there are maxima, also return ``test_max``: their mean, standard deviation and values,
        and how they were ``chosen``.
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

    Images ``[n, C, H, W]`` and test images are float32, normalised by the same statistics. Labels
    are as for :func:`trajmatch.evaluate.train_fresh`; test labels are class indices ``[N]``, int64,
    or targets ``[N, D]``, float32. ``network_spec`` is as for :func:`trajmatch.networks.build`.
    ``protocol`` includes the step size. Network ``k`` depends on ``seed`` and ``k`` only.
    """
    tests = test_images, test_labels
    outcomes = [
        train_fresh(images, labels, network_spec, protocol, *tests, each, device)
        for each in (derive_seed(seed, "evaluate", network) for network in range(seeds))
    ]
    protocol_used = {**protocol.describe(), "network": network_spec}
    return Score.of_outcomes(outcomes, protocol_used, test_labels)


def sampling_error(accuracy: float, test_images: int) -> float:
    """Return the binomial standard error (percentage points) of an accuracy (percent)."""
    half = 50 / test_images  # at 0 and 100 %: the error of half an image, instead of 0
    accuracy = min(max(accuracy, half), 100 - half)
    return math.sqrt(accuracy * (100 - accuracy) / test_images)


def difference_error(first: float, second: float, test_images: int) -> float:
    """Return the standard error of the difference of two accuracies on one test set, in points."""
    # Taken as independent; the common images make the true error smaller.
    return math.hypot(sampling_error(first, test_images), sampling_error(second, test_images))


def robust_score(first: float, second: float) -> float:
    """Return the robust score, 0 to 1 (higher is better), of two accuracy differences in percent.

    ``(e^a - e^-1) / (e - e^-1)`` with ``a`` the mean of the two as a fraction. The two are the
    improvement over random images and, for the label-robust score, minus the hard label recovery;
    for the augmentation-robust score, the improvement without augmentation.
    """
    mean = (first + second) / 200
    return (math.exp(mean) - math.exp(-1)) / (math.e - math.exp(-1))


def robust_scores(
    found: Mapping[str, Score], soft: bool, whole_real: float | None = None
) -> dict[str, Any] | None:
    """Compute both scores for each network, from the scores by training set.

    ``whole_real`` is the accuracy with the whole real set, in percent; if None, it is taken from
    ``found``. Returns the differences (in points) and scores by name, each with ``mean`` and
    population ``std`` over the networks; None if a set has no network yet.
    """
    of = {name: score.accuracies for name, score in found.items()}
    if whole_real is not None:
        of["whole_real"] = (whole_real,) * len(of["distilled"])
    hard, random = ("distilled_hard", "random_real_soft") if soft else ("distilled", "random_real")
    names = ("whole_real", hard, "distilled", random, "distilled_plain", "random_real_plain")
    if not of.keys() >= {*names}:
        return None
    columns: defaultdict[str, list[float]] = defaultdict(list)
    for network in zip(*map(of.__getitem__, names), strict=False):
        whole, by_hard, own, by_random, plain, random_plain = network
        recovery, improvement, without = whole - by_hard, own - by_random, plain - random_plain
        columns["hard_label_recovery"].append(recovery)
        columns["improvement_over_random"].append(improvement)
        columns["improvement_without_augmentation"].append(without)
        columns["label_robust_score"].append(robust_score(improvement, -recovery))
        columns["augmentation_robust_score"].append(robust_score(improvement, without))
    return {
        name: {"mean": statistics.fmean(each), "std": statistics.pstdev(each)}
        for name, each in columns.items()
    }
