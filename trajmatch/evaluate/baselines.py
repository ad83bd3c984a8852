"""Sets to compare a distilled one with: real images, drawn, chosen, or all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
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


class TrainingSets:
    """The sets that networks are trained on: a distilled one, and real ones beside it.

    All are preprocessed as the distilled set is. Real ones have as many images of each class as the
    distilled one stores the values of (its ``ipc``).

    Args:
        distilled: The distilled set.
        dataset: The data set that it was distilled from.
        seed: Seed of the random real images.
        k_center_store: Store of experts whose logits are the features of k-center and of
            herding; None takes those of ``experts`` or else the preprocessed pixels.
        device: Where experts compute.
        experts: Store of experts that make soft labels; None: there are none.
    """

    def __init__(
        self,
        distilled: Artifact,
        dataset: Dataset,
        seed: int,
        k_center_store: Path | None = None,
        device: str = "cpu",
        experts: Path | None = None,
    ) -> None:
        """Read nothing yet; see the class."""
        self._distilled, self._dataset, self._seed = distilled, dataset, seed
        self._store, self._experts, self._device = k_center_store, experts, device
        self._by_features: dict[str, Tensor] = {}

    def of(self, name: str, network: int) -> tuple[Tensor, Tensor]:
        """Return a set by its name in :data:`trajmatch.evaluate.sets.SETS`.

        Args:
            name: The name.
            network: Number of the network in its evaluation. Random real images are another draw
                for each; all others are the same every time.

        Returns:
            Images ``[n, C, H, W]``, float32, and labels ``[n]``, int64, or ``[n, K]``, float32
            (soft ones, or targets).

        Raises:
            UserError: A store cannot be used, or is of another data set.
        """
        distilled, kind = self._distilled, SETS[name]
        if kind.images == "distilled":
            labels = distilled.hard_labels if kind.labels == "hard" else distilled.labels
            return distilled.images, labels
        chosen = self._chosen(kind.images, network)
        images, labels = self._dataset.train_images[chosen], self._dataset.train_answers[chosen]
        if self.is_soft(name):
            seen, experts = self._teachers
            labels = soft_labels(seen.normalise(images), labels, experts)
        return distilled.preprocessing.apply(images), labels

    def is_soft(self, name: str) -> bool:
        """True for a set with soft labels."""
        own = self._distilled.label_kind == "logit"
        return own if SETS[name].labels == "own" else SETS[name].labels == "soft"

    def asks_experts(self, name: str) -> bool:
        """True for a set that the store of ``experts`` decides, beside all else."""
        images = SETS[name].images
        by_features = images in ("k_center", "herding") and self._store is None
        return images != "distilled" and (
            self.is_soft(name) or (by_features and self._experts is not None)
        )

    def size(self, name: str) -> dict[str, Any]:
        """Return what has to be stored of a set, as JSON can hold it.

        Returns:
            ``images``, their number; ``labels``, ``"hard"``, ``"soft"`` or ``"target"``;
            ``stored_values`` and ``stored_bytes`` of images and labels, for real images as float32.
        """
        images, labels = self.of(name, 0)
        kept, kind = self._distilled, self._distilled.label_kind
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
        """Return the numbers of training images."""
        labels, count = self._dataset.train_labels, self._distilled.ipc
        if images == "whole":
            return slice(None)
        if images == "random":
            draw = generator(self._seed, "evaluate", network, "random real")
            return random_subset(labels, count, draw)
        if images not in self._by_features:
            choose = k_center if images == "k_center" else herding
            self._by_features[images] = choose(self._features, labels, count)
        return self._by_features[images]

    @cached_property
    def _features(self) -> Tensor:
        images = self._dataset.train_images
        if self._store is None and self._experts is None:
            return self._distilled.preprocessing.apply(images).flatten(1)
        seen, experts = self._teachers if self._store is None else self._open(self._store)
        return experts.logits(0, seen.normalise(images))

    @cached_property
    def _teachers(self) -> tuple[Dataset, FinalExperts]:
        assert self._experts is not None
        return self._open(self._experts)

    def _open(self, path: Path) -> tuple[Dataset, FinalExperts]:
        """Return the data set as the experts of a store saw it, and these experts."""
        store = Store.open(path)
        seen, _, _ = store.training_set(self._dataset)
        model = networks.build(store.manifest["network"]).to(self._device)
        return seen, FinalExperts(
            store, model, "--experts" if path == self._experts else "--k-center-store"
        )


def random_subset(labels: Tensor, images_per_class: int, draw: torch.Generator) -> Tensor:
    """Draw the same number of images from every class, without repetition.

    Args:
        labels: Class indices ``[N]``, int64.
        images_per_class: How many of each; all of a class that has fewer.
        draw: Where the choice is drawn from.

    Returns:
        Indices into ``labels``, class by class. At most ``[K * images_per_class]``, int64.
    """
    shuffled = torch.randperm(len(labels), generator=draw)
    classes = torch.unique(labels).tolist()
    return torch.cat([shuffled[labels[shuffled] == k][:images_per_class] for k in classes])


def k_center(features: Tensor, labels: Tensor, images_per_class: int) -> Tensor:
    """Choose the same number of images from every class by greedy k-center.

    In each class the image nearest to the mean is taken first, then again and again the one that
    is farthest from those taken (Gonzalez 1985): no image is then more than twice as far from the
    nearest of them as with the best choice. Distances are Euclidean; of equals the first is taken.

    Args:
        features: Coordinates for the distances, one row for each image. ``[N, F]``, floating
            point.
        labels: Class indices ``[N]``, int64.
        images_per_class: How many of each; all of a class that has fewer.

    Returns:
        Indices into ``labels``, class by class, in the order of their choice. At most
        ``[K * images_per_class]``, int64.
    """
    return _of_each_class(_farthest_points, features, labels, images_per_class)


def herding(features: Tensor, labels: Tensor, images_per_class: int) -> Tensor:
    """Choose the same number of images from every class so that their mean is that of the class.

    In each class the image is taken, again and again, that brings the mean of those taken nearest
    to the mean of all (Chen, Welling and Smola 2010; without repetition, as in iCaRL, Rebuffi et
    al. 2017). Distances are Euclidean; of equals the first is taken.

    Args:
        features: Coordinates for the distances, one row for each image. ``[N, F]``, floating
            point.
        labels: Class indices ``[N]``, int64.
        images_per_class: How many of each; all of a class that has fewer.

    Returns:
        Indices into ``labels``, class by class, in the order of their choice. At most
        ``[K * images_per_class]``, int64.
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
    """Return the squared distance of every row from one; exactly 0 between equals. ``[n]``."""
    return (points - centre).square_().sum(dim=1)
