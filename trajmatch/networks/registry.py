"""Networks from the names that users write, and from the specs that files record."""

import importlib.util
from typing import Any

import torch

from trajmatch.errors import closest
from trajmatch.importing import search_current_folder
from trajmatch.memory import check_memory
from trajmatch.networks.convnet import ConvNet, default_depth
from trajmatch.networks.differentiable import check_runs_on
from trajmatch.networks.external import TORCHVISION, External, is_external
from trajmatch.networks.layers import ImageClassifier
from trajmatch.networks.resnet import ResNet18, ResNet18_AP
from trajmatch.networks.sequential import MLP, VGG11, AlexNet, LeNet

_NETWORKS: dict[str, type[ImageClassifier]] = {
    each.__name__: each for each in (ConvNet, AlexNet, VGG11, ResNet18, ResNet18_AP, LeNet, MLP)
}
#: Names as users write them; case, hyphens and underscores are ignored.
_DEPTHS = {"convnetd3": 3, "convnetd4": 4, "convnetd5": 5}
_BY_TEXT = {name.lower().replace("_", ""): name for name in _NETWORKS}
NAMES = ("convnet", *_DEPTHS, "alexnet", "vgg11", "resnet18", "resnet18_ap", "lenet", "mlp")


def build(spec: dict[str, Any]) -> ImageClassifier:
    """Build the network of a ``spec()``, with PyTorch's default initialisation.

    For ``package.module:function`` this imports the module and calls the function. ValueError is
    raised if the name is unknown, an argument is missing, unknown or out of range, or the network
    does not fit into memory.
    """
    arguments = dict(spec)
    name = arguments.pop("name", None)
    if not is_external(name) and not (isinstance(name, str) and name in _NETWORKS):
        raise ValueError(
            f"build: expected the network's name to be one of {', '.join(_NETWORKS)}, "
            f"torchvision:NAME or package.module:function, but got {name!r}"
        )
    try:
        if is_external(name):
            return External(name, **arguments)
        # First on the meta device, because a network may be too large to allocate.
        _on_meta(name, arguments)
        return _NETWORKS[name](**arguments)
    except TypeError as error:
        raise ValueError(
            f"build: expected the arguments of {name}, but got {arguments} ({error})"
        ) from error


def build_student(spec: dict[str, Any]) -> ImageClassifier:
    """Build the network of a ``spec()`` for experts and students.

    Dropout and stochastic depth of a torchvision model are switched off, so that its steps are not
    random; :func:`check_student` warns about this.
    """
    model = build(spec)
    if isinstance(model, External):
        model.switch_off_randomness()
    return model


def _on_meta(name: str, arguments: dict[str, Any]) -> ImageClassifier:
    """Build a network on the meta device; raise ValueError if it is too large for memory."""
    what = f"the parameters of {name} with {arguments}"
    advice = "use a smaller width or depth"
    try:
        if any(isinstance(each, int) and each >= 2**63 for each in arguments.values()):
            raise OverflowError
        with torch.device("meta"):
            model = _NETWORKS[name](**arguments)
    except (RuntimeError, OverflowError) as error:
        # The number of bytes exceeds 64 bits.
        raise ValueError(f"{what} exceed 64-bit sizes; {advice}") from error
    check_memory(what, sum(each.nbytes for each in model.parameters()), advice)
    return model


def specify(text: str, in_channels: int, num_classes: int, image_size: int) -> dict[str, Any]:
    """Return the spec of the network that a user names, with every argument written out.

    ``text`` is ``NAME`` or ``NAME:OPTIONS``, such as ``alexnet``, ``convnet:width=32,depth=2`` or
    ``vgg11:group,width=16``. Options are ``key=value``, joined by commas; a bare word is the norm.
    The depth of ``convnet`` follows from the image size, unless it is given as in ``convnetd4``.
    Only :func:`build` looks up ``torchvision:NAME`` and ``package.module:function``. ValueError is
    raised if the name or an option is unknown or does not fit the images.
    """
    sizes = {"in_channels": in_channels, "num_classes": num_classes, "image_size": image_size}
    head, colon, options = text.partition(":")
    key = head.lower().replace("-", "").replace("_", "")
    if key not in _DEPTHS and key not in _BY_TEXT:
        _check_external(text)
        return {**sizes, "name": text}
    arguments = _parse_options(text, options) if colon else {}
    name = "ConvNet" if key in _DEPTHS else _BY_TEXT[key]
    if key in _DEPTHS:
        if arguments.setdefault("depth", _DEPTHS[key]) != _DEPTHS[key]:
            raise ValueError(f"{text}: the depth is given twice; write convnet:depth=...")
    elif name == "ConvNet":
        arguments.setdefault("depth", default_depth(image_size))
    try:
        return _on_meta(name, sizes | arguments).spec()
    except TypeError as error:
        given = ", ".join(arguments)
        raise ValueError(f"{text}: {name} does not accept all of these options: {given}") from error


def check_runs(spec: dict[str, Any]) -> None:
    """Raise ValueError unless the network of a spec can be built and runs on its images."""
    # The package's own networks are checked when they are specified.
    if is_external(spec["name"]):
        model = build(spec)
        check_runs_on(model, model.image_shape)


def _parse_options(text: str, options: str) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for option in options.split(","):
        key, equals, value = option.strip().partition("=")
        if not equals:
            key, value = "norm", key
        if not key or not value or key in arguments:
            raise ValueError(
                f"expected the options of {text} to be at most one norm and key=value pairs "
                f"without repeats, joined by commas, but got {option!r}"
            )
        arguments[key] = int(value) if value.isdecimal() else value
    return arguments


def _check_external(text: str) -> None:
    """Raise ValueError unless the text can be the name of an external network."""
    origin, _, attribute = text.partition(":")
    if attribute and origin == TORCHVISION:
        return
    package, reason = origin.partition(".")[0], ""
    if attribute.isidentifier() and package.isidentifier():
        # Find the package without importing it: importing would run the user's code.
        search_current_folder()
        if importlib.util.find_spec(package) is not None:
            return
        reason = f"; there is no package {package!r} to import"
    hint = closest(origin.lower(), NAMES) or reason
    raise ValueError(
        f"expected the network to be one of {', '.join(NAMES)} (optionally with :NORM,key=value), "
        f"torchvision:NAME or package.module:function, but got {text!r}{hint}"
    )
