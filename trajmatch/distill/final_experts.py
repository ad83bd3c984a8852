"""What trained experts say of real images: the basis of chosen images and of soft labels."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from trajmatch.errors import UserError
from trajmatch.evaluate.forward import logits
from trajmatch.experts.store import Store

# Images at a time; as for accuracy, few where activations should stay in a CPU's cache.
_BATCH_CPU = 32
_BATCH_GPU = 512


class FinalExperts:
    """The experts of a store after their last epoch.

    Args:
        store: The experts.
        model: Their network, on the device to compute on; left as it is.
        purpose: The flag that needs them, for messages.

    Raises:
        UserError: The store does not keep the last epoch.
    """

    def __init__(self, store: Store, model: nn.Module, purpose: str) -> None:
        """Makes sure that the last epoch is there; see the class."""
        self._epoch = int(store.manifest["recipe"]["epochs"])
        if self._epoch not in store.snapshots_kept:
            raise UserError(
                f"{purpose} asks what the experts say after their last epoch, {self._epoch}, which "
                f"{store.path} does not keep; train experts that keep it (--keep)"
            )
        self._store = store
        self._model = copy.deepcopy(model).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._loaded: int | None = None

    @property
    def count(self) -> int:
        """Number of experts."""
        return self._store.num_experts

    def logits(self, expert: int, images: Tensor) -> Tensor:
        """The logits of one expert for images that are not augmented.

        Args:
            expert: Its number.
            images: As the network sees them (normalised). ``[n, C, H, W]``, float32.

        Returns:
            ``[n, K]``, float32, on the CPU.
        """
        if self._loaded != expert:
            self._store.load_into(self._model, expert, self._epoch)
            self._loaded = expert
        device = next(self._model.parameters()).device
        size = _BATCH_CPU if device.type == "cpu" else _BATCH_GPU
        with torch.no_grad():
            parts = [
                logits(self._model, batch.to(device, memory_format=torch.channels_last))
                for batch in torch.split(images, size)
            ]
        return torch.cat(parts).float().cpu()
