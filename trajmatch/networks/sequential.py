"""AlexNet, VGG11, LeNet and MLP, in the papers' variants for small images."""

from torch import Tensor, nn

from trajmatch.networks import layers
from trajmatch.networks.layers import ImageClassifier


class AlexNet(ImageClassifier):
    """Five convolutions (128-192-256-192-192 channels), three max-poolings, one linear layer.

    The first two convolutions are 5x5, the others 3x3; there is no norm. 28-pixel images are padded
    to 32. For images of 64 pixels or more, the first convolution has stride 2 (PAD). Other
    arguments, errors and shapes are as for :class:`ConvNet`.

    Args:
        width: Channels of the first convolution, even; the others are in proportion.
    """

    def __init__(
        self, in_channels: int, num_classes: int, image_size: int, width: int = 128
    ) -> None:
        super().__init__(in_channels, num_classes, image_size, width=width)
        if width % 2:
            raise ValueError(self._message("width", "even", width))
        padding, stride = 2 + layers.growth(image_size), layers.first_stride(image_size)
        # Three poolings by 2 follow; the other convolutions keep the size.
        size = layers.convolved(image_size, 5, padding, stride) // 8
        self._check_size_left(size)
        second, third = width * 3 // 2, width * 2
        self.features = nn.Sequential(
            *layers.convolution(in_channels, width, 5, padding, stride, pools=True),
            *layers.convolution(width, second, 5, 2, pools=True),
            *layers.convolution(second, third, 3, 1),
            *layers.convolution(third, second, 3, 1),
            *layers.convolution(second, second, 3, 1, pools=True),
        )
        self.classifier = nn.Linear(second * size**2, num_classes)


#: Channels of the convolutions in multiples of the width; a 2x2 max-pooling follows each group.
_GROUPS = ((1,), (2,), (4, 4), (8, 8), (8, 8))


class VGG11(ImageClassifier):
    """Eight 3x3 convolutions with norm and ReLU, max-pooling after five of them, one linear layer.

    28-pixel images are padded to 32. For images of 64 pixels or more, there is one more pooling at
    the end (PAD). Other arguments, errors and shapes are as for :class:`ConvNet`.

    Args:
        width: Channels of the first convolution; the others have up to 8 times as many.
        norm: As for :class:`ConvNet`.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        image_size: int,
        width: int = 64,
        norm: str = "instance",
    ) -> None:
        super().__init__(in_channels, num_classes, image_size, width=width, norm=norm)
        size = image_size + 2 * layers.growth(image_size)
        blocks: list[nn.Module] = []
        channels, padding = in_channels, 1 + layers.growth(image_size)
        # For large images, an empty group adds one more pooling.
        for group in (*_GROUPS, ()) if image_size >= layers.LARGE_IMAGE else _GROUPS:
            for multiple in group:
                blocks.append(nn.Conv2d(channels, width * multiple, 3, padding=padding))
                blocks.extend(layers.norm_layers(norm, width * multiple, size))
                blocks.append(nn.ReLU())
                channels, padding = width * multiple, 1
            blocks.append(nn.MaxPool2d(2))
            size //= 2
        self._check_size_left(size)
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Linear(channels * size**2, num_classes)


class LeNet(ImageClassifier):
    """Two 5x5 convolutions (6, 16 channels) with max-pooling, then three linear layers.

    The hidden linear layers have 120 and 84 units; there is no norm. 28-pixel images are padded to
    32. For images of 64 pixels or more, the first convolution has stride 2 (PAD). Arguments, errors
    and shapes are as for :class:`ConvNet`.
    """

    def __init__(self, in_channels: int, num_classes: int, image_size: int) -> None:
        super().__init__(in_channels, num_classes, image_size)
        padding, stride = layers.growth(image_size), layers.first_stride(image_size)
        size = layers.convolved(layers.convolved(image_size, 5, padding, stride) // 2, 5, 0) // 2
        self._check_size_left(size)
        self.features = nn.Sequential(
            *layers.convolution(in_channels, 6, 5, padding, stride, pools=True),
            *layers.convolution(6, 16, 5, 0, pools=True),
        )
        self.classifier = nn.Sequential(
            nn.Linear(16 * size**2, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, num_classes),
        )


class MLP(ImageClassifier):
    """Two hidden linear layers of ``width`` units with ReLU, then a linear layer.

    For images of 64 pixels or more, there is only one hidden layer (PAD). Other arguments, errors
    and shapes are as for :class:`ConvNet`.
    """

    def __init__(
        self, in_channels: int, num_classes: int, image_size: int, width: int = 128
    ) -> None:
        super().__init__(in_channels, num_classes, image_size, width=width)
        hidden = [] if image_size >= layers.LARGE_IMAGE else [nn.Linear(width, width), nn.ReLU()]
        self.layers = nn.Sequential(
            nn.Linear(in_channels * image_size**2, width),
            nn.ReLU(),
            *hidden,
            nn.Linear(width, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``[B, num_classes]`` of images."""
        return self.layers(images.flatten(1))
