"""Logits of fully trained experts for real images: the basis of chosen images and soft labels."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from trajmatch.experts.store import Store
from trajmatch.inference import all_logits


class FinalExperts:
    """The experts of a store after their last epoch.

    Args:
        store: The experts.
        model: Their network, on the device to compute on; left as it is.
        purpose: The flag that needs them, for messages.

    Raises:
        UserError: The experts are not trained up to their last epoch.
    """

    def __init__(self, store: Store, model: nn.Module, purpose: str) -> None:
        """Make sure that the last epoch was reached; see the class."""
        self._epoch = store.course  # every store keeps it
        store.check_trained(self._epoch, purpose)
        self._store, self._model = store, copy.deepcopy(model)
        #: Number of experts.
        self.count = store.num_experts

    def logits(self, expert: int, images: Tensor) -> Tensor:
        """Return the logits of one expert for images that are not augmented.

        Args:
            expert: Its number.
            images: As the network sees them (normalised). ``[n, C, H, W]``, float32.

        Returns:
            ``[n, K]``, float32, on the CPU.
        """
        return torch.cat([*all_logits(self.network(expert), images)]).float().cpu()

    def network(self, expert: int) -> nn.Module:
        """Return the network of one expert, by its number, in evaluation mode."""
        self._store.load_into(self._model, expert, self._epoch)
        return self._model.eval()


def soft_labels(images: Tensor, classes: Tensor, experts: FinalExperts) -> Tensor:
    """Return the mean logits of those experts that classify an image correctly (DATM).

    An image that no expert is right about gets the mean over all of them.

    Args:
        images: As the experts see them (normalised). ``[n, C, H, W]``, float32.
        classes: The class of each image. ``[n]``, int64.
        experts: Who is asked.

    Returns:
        Target logits ``[n, K]``, float32, on the CPU. Their softmax are the labels.
    """
    classes = classes.cpu()
    of_right = of_all = torch.zeros(())
    times_right = torch.zeros(len(classes))
    for expert in range(experts.count):
        logits = experts.logits(expert, images)
        right = (logits.argmax(dim=1) == classes).float()
        of_right = of_right + right[:, None] * logits
        of_all = of_all + logits
        times_right += right
    mean_right = of_right / times_right.clamp(min=1)[:, None]
    return torch.where(times_right[:, None] > 0, mean_right, of_all / experts.count)
