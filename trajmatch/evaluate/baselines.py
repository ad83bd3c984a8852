"""Sets of real images to compare with: random ones, chosen ones, or all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trajmatch import networks
from trajmatch.artifact import Artifact
from trajmatch.data import Dataset
from trajmatch.evaluate.sets import SETS
from trajmatch.experts.final import FinalExperts, soft_labels
from trajmatch.experts.store import Store
from trajmatch.random import generator


@dataclass(frozen=True, eq=False)
class TrainingSets:
    """Sets that networks are trained on: the distilled one and real ones, preprocessed alike.

    Real sets, except the whole one, have as many images per class as the distilled set stores
    (its ``ipc``). ``seed`` is the seed of the random images. Experts run on ``device``, and those
    in the store ``experts`` make the soft labels. K-center and herding use the logits of
    ``k_center_store`` as features, by default those of ``experts``, or else the preprocessed
    pixels.
    """

    distilled: Artifact
    dataset: Dataset
    seed: int
    k_center_store: Path | None = None
    device: str = "cpu"
    experts: Path | None = None
    _by_features: dict[str, Tensor] = field(default_factory=dict, init=False)

    def of(self, name: str, network: int) -> tuple[Tensor, Tensor]:
        """Return a set of :data:`trajmatch.evaluate.sets.SETS` for one network, by its name.

        Each ``network`` (its number) has its own random images; other sets are the same for all.
        Images are ``[n, C, H, W]``, float32; labels ``[n]``, int64; soft labels and targets
        ``[n, K]``, float32.
        """
        distilled, kind = self.distilled, SETS[name]
        if kind.images == "distilled":
            labels = distilled.hard_labels if kind.labels == "hard" else distilled.labels
            return distilled.images, labels
        chosen = self._chosen(kind.images, network)
        images, labels = self.dataset.train_images[chosen], self.dataset.train_answers[chosen]
        if self.is_soft(name):
            seen, experts = self._teachers
            labels = soft_labels(seen.normalise(images), labels, experts)
        return distilled.preprocessing.apply(images), labels

    def is_soft(self, name: str) -> bool:
        """True for a set with soft labels."""
        own = self.distilled.label_kind == "logit"
        return own if SETS[name].labels == "own" else SETS[name].labels == "soft"

    def asks_experts(self, name: str) -> bool:
        """True for a real set that depends on the store of ``experts``."""
        images = SETS[name].images
        by_features = images in ("k_center", "herding") and self.k_center_store is None
        return images != "distilled" and (
            self.is_soft(name) or (by_features and self.experts is not None)
        )

    def size(self, name: str) -> dict[str, Any]:
        """Return ``images``, ``labels``, ``stored_values``, ``stored_bytes`` of a set as JSON."""
        images, labels = self.of(name, 0)
        kept, kind = self.distilled, self.distilled.label_kind
        if kind != "target":
            kind = "logit" if self.is_soft(name) else "index"
        real: dict[str, Any] = {} if images is kept.images else {"images": images, "parameters": {}}
        kept = replace(kept, labels=labels, label_kind=kind, **real)
        return {
            "images": len(labels),
            "labels": kept.labels_are,
            "stored_values": kept.stored_values,
            "stored_bytes": kept.stored_bytes,
        }

    def _chosen(self, images: str, network: int) -> Tensor | slice:
        """Return the indices of the training images of a set."""
        labels, count = self.dataset.train_labels, self.distilled.ipc
        if images == "whole":
            return slice(None)
        if images == "random":
            draw = generator(self.seed, "evaluate", network, "random real")
            return random_subset(labels, count, draw)
        if images not in self._by_features:
            choose = k_center if images == "k_center" else herding
            self._by_features[images] = choose(self._features, labels, count)
        return self._by_features[images]

    @cached_property
    def _features(self) -> Tensor:
        images, store = self.dataset.train_images, self.k_center_store or self.experts
        if store is None:
            return self.distilled.preprocessing.apply(images).flatten(1)
        seen, experts = self._teachers if store == self.experts else self._open(store)
        return experts.logits(0, seen.normalise(images))

    @cached_property
    def _teachers(self) -> tuple[Dataset, FinalExperts]:
        assert self.experts is not None
        return self._open(self.experts)

    def _open(self, path: Path) -> tuple[Dataset, FinalExperts]:
        """Return the data set as the experts of a store saw it, and these experts."""
        store = Store.open(path)
        seen, _, _ = store.training_set(self.dataset)
        model = networks.build(store.manifest["network"]).to(self.device)
        flag = "--experts" if path == self.experts else "--k-center-store"
        return seen, FinalExperts(store, model, flag)


def random_subset(labels: Tensor, images_per_class: int, draw: torch.Generator) -> Tensor:
    """Draw ``images_per_class`` images of every class without repetition, or all of a smaller one.

    Returns indices into ``labels [N]``, class by class, int64.
    """
    shuffled = torch.randperm(len(labels), generator=draw)
    classes = torch.unique(labels).tolist()
    return torch.cat([shuffled[labels[shuffled] == k][:images_per_class] for k in classes])


def k_center(features: Tensor, labels: Tensor, images_per_class: int) -> Tensor:
    """Choose the same number of images from every class by greedy k-center (Gonzalez 1985).

    In each class the image nearest to the mean comes first, then always the one farthest from
    those taken. The largest distance of an image from the nearest one taken is then at most twice
    that of the best choice. Distances are Euclidean between rows of ``features [N, F]``; ties go
    to the first image. Returns indices into ``labels [N]``, int64, class by class in order of
    choice. All images of a class are taken if it has fewer.
    """
    return _of_each_class(_farthest_points, features, labels, images_per_class)


def herding(features: Tensor, labels: Tensor, images_per_class: int) -> Tensor:
    """Choose the same number of images from every class so that their mean is that of the class.

    In each class always takes the image that brings the mean of those taken nearest to the class
    mean (Chen, Welling and Smola 2010; without repetition, as in iCaRL, Rebuffi et al. 2017).
    Distances, arguments and result are as in :func:`k_center`.
    """
    return _of_each_class(_nearest_to_mean, features, labels, images_per_class)


def _of_each_class(
    choose: Callable[[Tensor, int], Tensor], features: Tensor, labels: Tensor, count: int
) -> Tensor:
    classes = [(labels == k).nonzero().squeeze(1) for k in torch.unique(labels).tolist()]
    return torch.cat([each[choose(features[each], count)] for each in classes])


def _nearest_to_mean(points: Tensor, count: int) -> Tensor:
    mean, total = points.mean(dim=0), torch.zeros_like(points[0])
    taken: list[int] = []
    for size in range(1, min(count, len(points)) + 1):
        # Distance of the new mean from the class mean, times size.
        distances = _squared_distances(points, size * mean - total)
        distances[taken] = torch.inf
        taken.append(int(distances.argmin()))
        total = total + points[taken[-1]]
    return torch.tensor(taken)


def _farthest_points(points: Tensor, count: int) -> Tensor:
    taken = [int(_squared_distances(points, points.mean(dim=0)).argmin())]
    nearest = _squared_distances(points, points[taken[0]])
    nearest[taken[0]] = -1.0  # below every distance, so that no image is taken twice
    while len(taken) < min(count, len(points)):
        taken.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, _squared_distances(points, points[taken[-1]]))
        nearest[taken[-1]] = -1.0
    return torch.tensor(taken)


def _squared_distances(points: Tensor, centre: Tensor) -> Tensor:
    return (points - centre).square_().sum(dim=1)  # exactly 0 between equals
