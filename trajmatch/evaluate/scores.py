"""Mean and standard deviation of the test accuracy over several networks; robust scores.

The robust scores of DD-Ranking do not credit the distillation with gains from soft labels or
augmentation (Li et al., *DD-Ranking: Rethinking the Evaluation of Dataset Distillation*,
arXiv:2505.13300). The two terms of a score have the weight 0.5 each, as on the leaderboard of
DD-Ranking.
"""

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
from trajmatch.training import Outcome, train_networks


@dataclass(frozen=True)
class Score:
    """Test accuracies (percent) or, for targets, test errors of the networks trained on one set.

    Attributes:
        accuracies: Accuracy of each network; for targets its mean squared error.
        protocol: Protocol of the training, from :meth:`trajmatch.evaluate.Protocol.describe`.
        diverged: Number of diverged networks, whose accuracy is 0; None if unknown.
        max_accuracies: Highest test accuracy of each network, if the protocol tests during
            training. It is too optimistic, because it is chosen on the test set.
        measure: ``"errors"`` for targets, else ``"accuracies"``.
    """

    accuracies: tuple[float, ...]
    protocol: dict[str, Any]
    diverged: int | None = None
    max_accuracies: tuple[float, ...] | None = None
    measure: Literal["accuracies", "errors"] = "accuracies"

    @classmethod
    def of_outcomes(
        cls, outcomes: Sequence[Outcome], protocol: dict[str, Any], answers: Tensor | None = None
    ) -> "Score":
        """Return the score of the networks' last tests; ``answers`` are test labels or targets."""
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

        If there are ``max_accuracies``, the entry ``test_max`` has their ``mean``, ``std`` and
        ``accuracies``, and a sentence ``chosen`` about how the maximum was chosen.
        """
        each = {self.measure: [*self.accuracies], "seeds": self.seeds, "diverged": self.diverged}
        numbers: dict[str, Any] = {"mean": self.mean, "std": self.std, **each}
        if self.max_accuracies is not None:
            best = Score(self.max_accuracies, self.protocol).as_dict()
            chosen = "maximum over each network's tests, chosen on the test set: biased upwards"
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
    """Train ``seeds`` fresh networks on one set of images and test each of them.

    Images ``[n, C, H, W]`` and test images are float32, normalised with the same statistics. Labels
    are as for :func:`trajmatch.evaluate.train_fresh`; test labels are class indices ``[N]``, int64,
    or targets ``[N, D]``, float32. ``network_spec`` is as for :func:`trajmatch.networks.build`.
    ``protocol`` includes the step size. The seed of network ``k`` depends only on ``seed`` and
    ``k``.
    """
    tests = test_images, test_labels
    sets = [(images, labels, derive_seed(seed, "evaluate", network)) for network in range(seeds)]
    outcomes = [*train_networks(sets, network_spec, protocol, tests, device)]
    protocol_used = {**protocol.describe(), "network": network_spec}
    return Score.of_outcomes(outcomes, protocol_used, test_labels)


def sampling_error(accuracy: float, test_images: int) -> float:
    """Return the binomial standard error (percentage points) of an accuracy (percent)."""
    # At 0 and 100 % the formula would give an error of 0. Use the error at half an image instead.
    half = 50 / test_images
    accuracy = min(max(accuracy, half), 100 - half)
    return math.sqrt(accuracy * (100 - accuracy) / test_images)


def difference_error(test_images: int, *scores: Mapping[str, Any]) -> float:
    """Return the standard error (percentage points) of the difference of two mean accuracies.

    Each score has ``mean``, ``std`` (population) and ``seeds``, as from :meth:`Score.as_dict`. The
    error combines the number of test images and the spread of the networks.
    """
    # This takes the two accuracies as independent. The error from the test images is smaller,
    # because both are measured on the same ones.
    parts = [sampling_error(each["mean"], test_images) for each in scores]
    # A population std over sqrt(n - 1) estimates the error of the mean of n networks.
    parts += [each["std"] / math.sqrt(max(1, each["seeds"] - 1)) for each in scores]
    return math.hypot(*parts)


def robust_score(first: float, second: float) -> float:
    """Compute a robust score, from 0 to 1 (best), from two accuracy differences.

    The score is ``(e^a - e^-1) / (e - e^-1)``, where ``a`` is the mean difference as a fraction;
    the arguments are in percentage points. ``first`` is the improvement over random images.
    For the label-robust score, ``second`` is the accuracy with distilled images and hard labels,
    minus the accuracy with the whole real set. For the augmentation-robust score, it is the
    improvement over random images if all networks are trained without augmentation.
    """
    mean = (first + second) / 200
    return (math.exp(mean) - math.exp(-1)) / (math.e - math.exp(-1))


def robust_scores(
    found: Mapping[str, Score], soft: bool, whole_real: float | None = None
) -> dict[str, Any] | None:
    """Compute the two robust scores, and the differences of accuracies that they are made of.

    ``found`` maps names of training sets to scores. ``whole_real`` is the test accuracy (percent)
    after training on the whole real set; None takes it from ``found``. Each entry of the result has
    ``mean`` and population ``std`` over the networks; differences are in percentage points. Returns
    None if a set has no trained network yet.
    """
    of = {name: score.accuracies for name, score in found.items()}
    if whole_real is not None:
        of["whole_real"] = (whole_real,) * len(of["distilled"])
    # Random images get labels of the kind that the distilled set has.
    hard, random = ("distilled_hard", "random_real_soft") if soft else ("distilled", "random_real")
    names = ("whole_real", hard, "distilled", random, "distilled_plain", "random_real_plain")
    if not of.keys() >= {*names}:
        return None
    columns: defaultdict[str, list[float]] = defaultdict(list)
    # Not strict: in an unfinished evaluation some sets have more networks than others.
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
