"""ConvNet of the trajectory-matching papers, in all variants of their architecture searches."""

import math

from torch import nn

from trajmatch.networks import layers
from trajmatch.networks.layers import ImageClassifier

#: Largest depth, far above that of any experiment.
MOST_BLOCKS = 100


def default_depth(image_size: int) -> int:
    """Return the papers' depth, which leaves about 4x4 pixels: 3 for 32 pixels, 5 for 128."""
    return max(1, round(math.log2(image_size)) - 2)


class ConvNet(ImageClassifier):
    """``depth`` blocks of 3x3 convolution, norm, activation and 2x2 pooling, then a linear layer.

    Instance norm is ``GroupNorm(C, C)`` with affine parameters, group norm has 4 groups, layer norm
    runs over ``(C, H, W)``. The first convolution pads 28-pixel images to 32 (MTT,
    ``networks.py``). ``parameters()`` lists the blocks in order: weight and bias of the
    convolution, then of the norm if there is one. Weight and bias of the linear layer come last.

    Args:
        in_channels: Channels of the images.
        num_classes: Number of logits.
        image_size: Side of the square images in pixels.
        width: Channels of every block.
        depth: Number of blocks.
        norm: ``"instance"``, ``"group"``, ``"layer"``, ``"batch"`` or ``"none"``.
        activation: ``"relu"``, ``"leaky_relu"`` (slope 0.01), ``"sigmoid"`` or ``"none"``.
        pooling: ``"average"``, ``"max"`` or ``"none"``.

    Raises:
        ValueError: A size is out of range, a choice is unknown, group norm's 4 groups do not divide
            the width, or the images are too small for the pooling.
        TypeError: A size is not a whole number.

    Shape:
        input ``[B, in_channels, image_size, image_size]``, output ``[B, num_classes]``.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        image_size: int,
        width: int = 128,
        depth: int = 3,
        norm: str = "instance",
        activation: str = "relu",
        pooling: str = "average",
    ) -> None:
        shape = in_channels, num_classes, image_size
        super().__init__(
            *shape, width=width, depth=depth, norm=norm, activation=activation, pooling=pooling
        )
        # Checked first, because a huge depth would make 2**depth and the list of blocks huge.
        if depth > MOST_BLOCKS:
            raise ValueError(self._message("depth", f"at most {MOST_BLOCKS}", depth))
        # Side of the activations; every pooling halves it.
        size = image_size + 2 * layers.growth(image_size)
        if pooling != "none" and size < 2**depth:
            wanted = f"at least {2**depth} for {depth} poolings by 2"
            message = self._message("image_size", wanted, image_size)
            raise ValueError(f"{message}; use a smaller depth or pooling='none'")
        self.in_channels, self.num_classes, self.image_size = in_channels, num_classes, image_size
        self.width, self.depth = width, depth

        blocks: list[nn.Module] = []
        channels, padding = in_channels, 1 + layers.growth(image_size)
        for _ in range(depth):
            blocks.append(nn.Conv2d(channels, width, kernel_size=3, padding=padding))
            blocks.extend(layers.norm_layers(norm, width, size))
            if activation != "none":
                blocks.append(layers.ACTIVATION_LAYERS[activation]())
            if pooling != "none":
                blocks.append(layers.POOLING_LAYERS[pooling](2))
                size //= 2
            channels, padding = width, 1
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Linear(width * size**2, num_classes)
