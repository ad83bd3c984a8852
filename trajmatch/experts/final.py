"""Logits of fully trained experts, to select real images and to compute soft labels."""

import copy

import torch
from torch import Tensor, nn

from trajmatch.experts.store import Store
from trajmatch.inference import all_logits


class FinalExperts:
    """Fully trained experts of a store, run in a copy of ``model`` on its device.

    Raises UserError if they are not trained to their last epoch. Its message begins with
    ``purpose``, the flag that needs them.
    """

    def __init__(self, store: Store, model: nn.Module, purpose: str) -> None:
        self._epoch = store.course  # every store has this snapshot
        store.check_trained(self._epoch, purpose)
        self._store, self._model = store, copy.deepcopy(model)
        #: Number of experts.
        self.count = store.num_experts

    def logits(self, expert: int, images: Tensor) -> Tensor:
        """Return one expert's logits ``[n, K]``, float32, on the CPU, for normalised images."""
        return torch.cat([*all_logits(self.network(expert), images)]).float().cpu()

    def network(self, expert: int) -> nn.Module:
        """Return one expert's network in evaluation mode; the next call overwrites the network."""
        self._store.load_into(self._model, expert, self._epoch)
        return self._model.eval()


def soft_labels(images: Tensor, classes: Tensor, experts: FinalExperts) -> Tensor:
    """Return the mean logits ``[n, K]`` of the experts that classify an image correctly (DATM).

    If no expert does, the mean is over all experts. ``images`` are normalised; ``classes [n]``,
    int64, are the true ones. The result is float32, on the CPU; its softmax is the soft label.
    """
    classes = classes.cpu()
    # Running sums, because the logits of all experts at once may not fit in memory. They start as
    # scalars, since K is not known yet, and become [n, K] in the first addition.
    of_right = of_all = torch.zeros(())
    times_right = torch.zeros(len(classes))
    for expert in range(experts.count):
        logits = experts.logits(expert, images)
        right = (logits.argmax(dim=1) == classes).float()
        of_right = of_right + right[:, None] * logits
        of_all = of_all + logits
        times_right += right
    # clamp prevents 0 / 0 for an image that no expert classifies correctly.
    mean_right = of_right / times_right.clamp(min=1)[:, None]
    return torch.where(times_right[:, None] > 0, mean_right, of_all / experts.count)
