"""Sets to compare a distilled one with: real images, drawn, chosen, or all of them."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from trajmatch import networks
from trajmatch.artifact import Artifact
from trajmatch.data import Dataset
from trajmatch.experts.final import FinalExperts
from trajmatch.experts.store import Store
from trajmatch.random import generator


class TrainingSets:
    """The sets that networks are trained on: a distilled one, and real ones beside it.

    All are preprocessed as the distilled set is. Each method gives images ``[n, C, H, W]``,
    float32, and labels ``[n]`` or ``[n, K]`` for network 0, 1, ... of an evaluation.

    Args:
        distilled: The distilled set.
        dataset: The data set that it was distilled from.
        seed: Seed of the random real images.
        k_center_store: Store of experts whose logits are the features of :meth:`k_center`; None
            takes the preprocessed pixels.
        device: Where that expert computes.
    """

    def __init__(
        self,
        distilled: Artifact,
        dataset: Dataset,
        seed: int,
        k_center_store: Path | None = None,
        device: str = "cpu",
    ) -> None:
        """Read nothing yet; see the class."""
        self._distilled, self._dataset, self._seed = distilled, dataset, seed
        self._store, self._device = k_center_store, device

    def distilled(self, network: int) -> tuple[Tensor, Tensor]:
        """The distilled set, the same for every network."""
        return self._distilled.images, self._distilled.labels

    def random_real(self, network: int) -> tuple[Tensor, Tensor]:
        """As many real images of each class, another draw for every network."""
        draw = generator(self._seed, "evaluate", network, "random real")
        return self._real(random_subset(self._dataset.train_labels, self._distilled.ipc, draw))

    def k_center(self, network: int) -> tuple[Tensor, Tensor]:
        """As many real images of each class, chosen by :func:`k_center`; the same every time.

        Raises:
            UserError: The store cannot be used, or is of another data set.
        """
        return self._centers

    def whole_real(self, network: int) -> tuple[Tensor, Tensor]:
        """The whole training set."""
        return self._whole, self._dataset.train_labels

    @cached_property
    def _centers(self) -> tuple[Tensor, Tensor]:
        labels = self._dataset.train_labels
        return self._real(k_center(self._features(), labels, self._distilled.ipc))

    @cached_property
    def _whole(self) -> Tensor:
        return self._distilled.preprocessing.apply(self._dataset.train_images)

    def _real(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        images = self._distilled.preprocessing.apply(self._dataset.train_images[chosen])
        return images, self._dataset.train_labels[chosen]

    def _features(self) -> Tensor:
        if self._store is None:
            return self._distilled.preprocessing.apply(self._dataset.train_images).flatten(1)
        store = Store.open(self._store)
        seen, _, _ = store.training_set(self._dataset)
        model = networks.build(store.manifest["network"]).to(self._device)
        expert = FinalExperts(store, model, "--k-center-store")
        return expert.logits(0, seen.normalise(self._dataset.train_images))


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
    classes = [(labels == k).nonzero().squeeze(1) for k in torch.unique(labels).tolist()]
    return torch.cat([each[_farthest_points(features[each], images_per_class)] for each in classes])


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
