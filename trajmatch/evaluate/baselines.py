"""Sets of real images to compare a distilled set with: random, chosen or all images."""

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
    """Sets that networks are trained on: the distilled set and real sets, preprocessed alike.

    Real sets have ``distilled.ipc`` images per class, except for the whole set. ``seed`` decides
    the random images. Soft labels come from the expert store ``experts``. The features of k-center
    and herding are logits of an expert in ``k_center_store``, by default in ``experts``; if neither
    store is given, they are the preprocessed pixels. Experts run on ``device``.
    """

    distilled: Artifact
    dataset: Dataset
    seed: int
    k_center_store: Path | None = None
    device: str = "cpu"
    experts: Path | None = None
    _by_features: dict[str, Tensor] = field(default_factory=dict, init=False)

    def of(self, name: str, network: int) -> tuple[Tensor, Tensor]:
        """Return images and labels of a set in :data:`trajmatch.evaluate.sets.SETS`.

        Random images depend on ``network``, the network's number. Images are ``[n, C, H, W]``,
        float32; labels are ``[n]``, int64; soft labels and targets are ``[n, K]``, float32.
        """
        distilled, kind = self.distilled, SETS[name]
        if kind.images == "distilled":
            labels = distilled.hard_labels if kind.labels == "hard" else distilled.labels
            return distilled.images, labels
        chosen = self._chosen(kind.images, network)
        images, labels = self.dataset.train_images[chosen], self.dataset.train_answers[chosen]
        if self.is_soft(name):
            # The experts need the preprocessing that they were trained with. The networks get the
            # preprocessing of the distilled set.
            seen, experts = self._teachers
            labels = soft_labels(seen.normalise(images), labels, experts)
        return distilled.preprocessing.apply(images), labels

    def is_soft(self, name: str) -> bool:
        """Return True for a set with soft labels."""
        own = self.distilled.label_kind == "logit"
        return own if SETS[name].labels == "own" else SETS[name].labels == "soft"

    def asks_experts(self, name: str) -> bool:
        """Return True for a real set that depends on the store ``experts``."""
        images = SETS[name].images
        by_features = images in ("k_center", "herding") and self.k_center_store is None
        return images != "distilled" and (
            self.is_soft(name) or (by_features and self.experts is not None)
        )

    def size(self, name: str) -> dict[str, Any]:
        """Return the size of a set: ``images``, ``labels``, ``stored_values``, ``stored_bytes``."""
        images, labels = self.of(name, 0)
        # An Artifact counts values and bytes, so put the set's images and labels into a copy.
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
        """Return the indices of a set's training images."""
        labels, count = self.dataset.train_labels, self.distilled.ipc
        if images == "whole":
            return slice(None)
        if images == "random":
            draw = generator(self.seed, "evaluate", network, "random real")
            return random_subset(labels, count, draw)
        # Cached, because k-center and herding choose the same images for every network.
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
    """Draw ``images_per_class`` images of every class, or all images of a class with fewer.

    Returns indices into ``labels [N]``, without repetition, class by class, int64.
    """
    # Take the first images of each class in one random order of all images.
    shuffled = torch.randperm(len(labels), generator=draw)
    classes = torch.unique(labels).tolist()
    return torch.cat([shuffled[labels[shuffled] == k][:images_per_class] for k in classes])


def k_center(features: Tensor, labels: Tensor, images_per_class: int) -> Tensor:
    """Choose ``images_per_class`` images of every class by greedy k-center (Gonzalez 1985).

    In each class, the image nearest to the mean comes first; then repeatedly the image farthest
    from all chosen ones. The largest distance between an image and its nearest chosen image is at
    most twice the optimum. Distances are Euclidean between rows of ``features [N, F]``; ties go to
    the first image. Returns indices into ``labels [N]``, int64, class by class in order of choice.
    A class with fewer than ``images_per_class`` images is taken whole.
    """
    return _of_each_class(_farthest_points, features, labels, images_per_class)


def herding(features: Tensor, labels: Tensor, images_per_class: int) -> Tensor:
    """Choose ``images_per_class`` images of every class by herding (Chen, Welling, Smola 2010).

    In each class, repeatedly choose the image that brings the mean of the chosen images nearest to
    the class mean, without repetition, as in iCaRL (Rebuffi et al. 2017). Distances, arguments and
    result are as in :func:`k_center`.
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
        # |total + x - size mean|^2 for each image x: size^2 times the squared distance between the
        # new mean and the class mean, so the image with the smallest value is taken.
        distances = _squared_distances(points, size * mean - total)
        distances[taken] = torch.inf
        taken.append(int(distances.argmin()))
        total = total + points[taken[-1]]
    return torch.tensor(taken)


def _farthest_points(points: Tensor, count: int) -> Tensor:
    taken = [int(_squared_distances(points, points.mean(dim=0)).argmin())]
    # Squared distance of each image from its nearest taken image. A taken image gets -1, below
    # every distance, so that it is not taken twice.
    nearest = _squared_distances(points, points[taken[0]])
    nearest[taken[0]] = -1.0
    while len(taken) < min(count, len(points)):
        taken.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, _squared_distances(points, points[taken[-1]]))
        nearest[taken[-1]] = -1.0
    return torch.tensor(taken)


def _squared_distances(points: Tensor, centre: Tensor) -> Tensor:
    # Do not expand this to |x|^2 - 2 x c + |c|^2: after rounding, the distance of equal points
    # would not be exactly 0.
    return (points - centre).square_().sum(dim=1)
