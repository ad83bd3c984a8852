"""ResNet18 for small images, and its variant with average pooling instead of strides."""

from torch import Tensor, nn

from trajmatch.networks.layers import ImageClassifier, convolved, first_stride, growth, norm_layers

_STAGES = 4
_BLOCKS_PER_STAGE = 2


class ResNet18(ImageClassifier):
    """3x3 convolution, four stages of two residual blocks, global average pooling, linear layer.

    28-pixel images are padded to 32. For images of 64 pixels or more, the first convolution has
    stride 2 (PAD). Convolutions have a bias only if no norm follows. Other arguments, errors and
    shapes are as for :class:`ConvNet`.

    Args:
        width: Channels of the first stage; each further stage has twice as many.
        norm: As for :class:`ConvNet`.
    """

    #: True to halve images by average pooling, without global pooling at the end.
    average_pooling = False

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        image_size: int,
        width: int = 64,
        norm: str = "instance",
    ) -> None:
        super().__init__(in_channels, num_classes, image_size, width=width, norm=norm)
        padding, stride = 1 + growth(image_size), first_stride(image_size)
        size = convolved(image_size, 3, padding, stride)
        self._check_size_left(size // 2 ** (_STAGES - 1))
        self.first = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, stride, padding, bias=norm == "none"),
            *norm_layers(norm, width, size),
            nn.ReLU(),
        )
        blocks, channels = [], width
        for stage in range(_STAGES):
            out = width * 2**stage
            for index in range(_BLOCKS_PER_STAGE):
                # The first block of each later stage halves the side and doubles the channels.
                halve = stage > 0 and index == 0
                block = ResidualBlock(channels, out, size, norm, halve, self.average_pooling)
                blocks.append(block)
                channels, size = out, block.size
        self.blocks = nn.Sequential(*blocks)
        # Without global pooling, the classifier gets every pixel.
        whole = self.average_pooling
        self.pooling = nn.Sequential(*([] if whole else [nn.AvgPool2d(size)]), nn.Flatten())
        self.classifier = nn.Linear(channels * size**2 if whole else channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``[B, num_classes]`` of images."""
        return self.classifier(self.pooling(self.blocks(self.first(images))))


class ResNet18_AP(ResNet18):
    """ResNet18 that halves images by 2x2 average pooling and has no global pooling at the end."""

    average_pooling = True


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which has a 1x1 convolution if shapes change."""

    def __init__(
        self, in_channels: int, channels: int, size: int, norm: str, halve: bool, average: bool
    ) -> None:
        super().__init__()
        # size is the side of the input. A stride halves it, or a pooling if ``average`` is set.
        stride = 2 if halve and not average else 1
        pools = halve and average
        halving: list[nn.Module] = [nn.AvgPool2d(2)] if pools else []
        bias = norm == "none"
        convolution_size = convolved(size, 3, 1, stride)
        #: Side of the output in pixels.
        self.size = convolution_size // 2 if pools else convolution_size
        self.residual = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, stride, 1, bias=bias),
            *norm_layers(norm, channels, convolution_size),
            nn.ReLU(),
            *halving,
            nn.Conv2d(channels, channels, 3, 1, 1, bias=bias),
            *norm_layers(norm, channels, self.size),
        )
        # An empty Sequential is the identity.
        self.shortcut = nn.Sequential()
        if halve or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=bias),
                *halving,
                *norm_layers(norm, channels, self.size),
            )
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return activations ``[B, channels, self.size, self.size]``."""
        return self.activation(self.residual(x) + self.shortcut(x))
