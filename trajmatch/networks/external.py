"""Networks from torchvision and from user functions."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from trajmatch.errors import closest
from trajmatch.importing import blamed, described, import_object
from trajmatch.networks.layers import ImageClassifier

TORCHVISION = "torchvision"


class External(ImageClassifier):
    """Network from torchvision or a user function, with the interface of the other networks.

    Args:
        name: ``torchvision:NAME``, a classification model without trained weights; its first
            convolution is adapted to ``in_channels``. Or ``package.module:function``, called with
            the other three arguments by name; parameters that it freezes (``requires_grad=False``)
            keep their values.
        in_channels: Channels of the images.
        num_classes: Number of logits.
        image_size: Side of the square images in pixels.

    Attributes:
        switched_off: Layers switched off by :meth:`switch_off_randomness`.

    Raises:
        ValueError: There is no such model, module or function, or it returns no usable network.
    """

    def __init__(self, name: str, in_channels: int, num_classes: int, image_size: int) -> None:
        super().__init__(in_channels, num_classes, image_size)
        self.name, self.num_classes = name, num_classes
        self.module = self._make()
        self.switched_off: tuple[str, ...] = ()

    def switch_off_randomness(self) -> None:
        """Switch off dropout and stochastic depth of a torchvision model."""
        # A user's function must leave out randomness itself: check_student raises an error.
        if is_user_function(self.name):
            return
        from trajmatch._torchvision import torchvision

        kinds, switched_off = (_DropoutNd, torchvision.ops.StochasticDepth), []
        for name, module in self.module.named_modules():
            if isinstance(module, kinds) and module.p > 0:
                module.p = 0.0
                switched_off.append(f"{name} ({type(module).__name__})")
        self.switched_off = tuple(switched_off)

    def spec(self) -> dict[str, Any]:
        """Return the ``spec`` from which :func:`trajmatch.networks.build` makes this network."""
        return {**super().spec(), "name": self.name}

    def reset_parameters(self) -> None:
        """Draw all parameters, also frozen ones, as the constructor of the network does."""
        self.module.load_state_dict(self._make().state_dict())

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits; raise ValueError if they are not a tensor ``[B, num_classes]``."""
        logits = self.module(images)
        wanted = (len(images), self.num_classes)
        if not isinstance(logits, Tensor) or logits.shape != wanted:
            came = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"{self.name}: expected logits of shape {list(wanted)}, but got {came}"
            )
        return logits

    def _make(self) -> nn.Module:
        origin, _, attribute = self.name.partition(":")
        sizes = self._arguments
        if origin == TORCHVISION:
            return _torchvision_model(attribute, sizes["in_channels"], sizes["num_classes"])
        return _made_by_function(origin, attribute, sizes)


def is_external(name: object) -> bool:
    """Return True if a spec's name belongs to :class:`External`."""
    return isinstance(name, str) and ":" in name


def is_user_function(name: object) -> bool:
    """Return True if building the network calls a user's function."""
    return is_external(name) and not str(name).startswith(f"{TORCHVISION}:")


def _torchvision_model(name: str, in_channels: int, num_classes: int) -> nn.Module:
    from trajmatch._torchvision import torchvision

    models = torchvision.models
    known = models.list_models(module=models)
    if name not in known:
        raise ValueError(
            f"expected torchvision:NAME to name a classification model of torchvision "
            f"{torchvision.__version__}, but got {name!r}{closest(name, known)}"
        )
    model: nn.Module = models.get_model(name, weights=None, num_classes=num_classes)
    if in_channels != 3:
        first = next(each for each in model.modules() if isinstance(each, nn.Conv2d))
        # Only the shape of the new weight matters here; reset_parameters draws the values.
        first.in_channels = in_channels
        first.weight = nn.Parameter(first.weight[:, :1].repeat(1, in_channels, 1, 1))
        first.reset_parameters()
    return model


def _made_by_function(module: str, function: str, sizes: dict[str, Any]) -> nn.Module:
    name = f"{module}:{function}"
    make = import_object(name)
    if not callable(make):
        raise ValueError(f"expected {name} to be a function, but got {described(make)}")
    with blamed(f"the function {name}, called with in_channels, num_classes and image_size,"):
        model = make(**sizes)
    parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
    if not any(each.is_floating_point() for each in parameters):
        raise ValueError(
            f"expected the function {name} to return a torch.nn.Module with parameters, but got "
            f"{described(model)}"
        )
    if not any(each.requires_grad for each in parameters):
        raise ValueError(
            f"expected the network of {name} to have a parameter to train, but all of them are "
            "frozen (requires_grad=False)"
        )
    if other := {each.dtype for each in parameters} - {torch.float32}:
        raise ValueError(
            f"expected the parameters of {name} to be float32, but got "
            f"{str(min(other, key=str)).removeprefix('torch.')}; return the network with .float()"
        )
    if any(each.device != torch.device("cpu") for each in parameters):
        raise ValueError(f"expected the network of {name} to be on the CPU when it is made")
    return model
