"""One SIREN per image (DDiF, ICLR 2025): colour as a function of the pixel position."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from trajmatch.images.parametrisation import Tensors, WithSettings, in_batches, paid_for
from trajmatch.random import generator
from trajmatch.schema import Count, Positive, PositiveInt


@dataclass(frozen=True)
class Implicit(WithSettings):
    """SIREN network per image that maps row and column, in [-1, 1], to the channels.

    Hidden layers compute ``sin(w0 (x W + b))``; the last layer has no sine. Adam first fits each
    network to its initial image (learning rate 5e-4, mean squared error).

    Attributes:
        width: Units per hidden layer.
        layers: Number of hidden layers.
        w0: Frequency factor of hidden layers after the first.
        first_w0: Frequency factor of the first layer.
        steps: Adam steps of the first fit.
    """

    width: PositiveInt = 6
    layers: PositiveInt = 2
    w0: Positive = 10
    first_w0: Positive = 30
    steps: Count = 5000

    optimiser = "adam"
    lr = 1e-4

    def images_per_class(self, ipc: int, shape: torch.Size) -> int:
        """Return the number of images whose networks fit the budget."""
        values = sum((inputs + 1) * outputs for inputs, outputs in pairwise(self._sizes(shape)))
        return paid_for(ipc, f"implicit:width={self.width},layers={self.layers}", values, shape)

    def initial(self, images: Tensor, classes: int) -> Tensors:
        """Fit one network to each image."""
        draw = generator(0, "images", "implicit")
        parameters = {}
        for layer, (inputs, outputs) in enumerate(pairwise(self._sizes(images.shape[1:]))):
            # SIREN's initialisation: uniform in +-bound, here for the biases as well.
            bound = math.sqrt(6 / inputs) / self.w0 if layer else 1 / inputs
            for name, rows in ((f"weight_{layer}", inputs), (f"bias_{layer}", 1)):
                drawn = torch.rand(len(images), rows, outputs, generator=draw)
                value = (bound * (2 * drawn - 1)).to(images)
                parameters[name] = value.requires_grad_()
        adam = torch.optim.Adam(parameters.values(), lr=5e-4)
        with torch.enable_grad():
            for _ in range(self.steps):
                adam.zero_grad()
                errors = (self.render(parameters, images.shape[1:]) - images).square()
                # The sum of the losses gives each network the gradient of its own loss.
                errors.mean((1, 2, 3)).sum().backward()
                adam.step()
        return {name: value.detach() for name, value in parameters.items()}

    def render(self, parameters: Tensors, shape: torch.Size) -> Tensor:
        """Evaluate the networks at the pixel positions."""
        layers = self.layers + 1
        names = [f"{kind}_{layer}" for layer in range(layers) for kind in ("weight", "bias")]
        tensors = [parameters[name] for name in names]
        factors = [self.first_w0, *[self.w0] * (self.layers - 1)]

        def networks(*tensors: Tensor) -> Tensor:
            # Inputs of a layer, for all networks: [n, H * W, units].
            values = _places(shape, tensors[0]).expand(len(tensors[0]), -1, -1)
            for layer in range(layers):
                values = torch.baddbmm(tensors[2 * layer + 1], values, tensors[2 * layer])
                if layer < self.layers:
                    values = torch.sin(factors[layer] * values)
            return values.mT.unflatten(2, shape[1:])

        # The backward pass keeps two values per unit and pixel: before and after the sine.
        return in_batches(networks, tensors, 2 * layers * self.width * shape[1:].numel())

    def _sizes(self, shape: torch.Size) -> list[int]:
        return [2, *[self.width] * self.layers, shape[0]]


def _places(shape: torch.Size, like: Tensor) -> Tensor:
    """Return row and column of each pixel, in [-1, 1]. ``[H * W, 2]``."""
    sides = [
        torch.linspace(-1, 1, side, dtype=like.dtype, device=like.device) for side in shape[1:]
    ]
    return torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1).flatten(0, 1)
