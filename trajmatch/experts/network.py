"""The network that an expert configuration asks for."""

from __future__ import annotations

from typing import Any

from trajmatch import networks
from trajmatch.data import Dataset
from trajmatch.experts.config import ConvNetSettings, ExpertSettings
from trajmatch.schema import settings_of


def network_spec(config: ExpertSettings, dataset: Dataset) -> dict[str, Any]:
    """Return the spec of the experts' network, for :func:`trajmatch.networks.build`.

    Args:
        config: ``network`` is ``"convnet"``, described by the fields of the ConvNet, or another
            text for :func:`trajmatch.networks.specify`, which has all options in it.
        dataset: The data set that the network classifies.

    Returns:
        The spec, checked: such a network can be built, and be a student.

    Raises:
        ValueError: There is no such network for these images, it is not twice differentiable, or
            fields of the ConvNet are given for another network.
    """
    sizes = (dataset.channels, dataset.num_classes, dataset.image_size)
    chosen, defaults = settings_of(config, ConvNetSettings), ConvNetSettings()
    if config.network == "convnet":
        return networks.ConvNet(*sizes, **chosen).spec()
    for name, value in chosen.items():
        if value != getattr(defaults, name):
            raise ValueError(
                f"--{name} {value} describes --network convnet, but --network is "
                f"{config.network}; others take options behind the name, as in vgg11:batch,width=32"
            )
    spec = networks.specify(config.network, *sizes)
    if networks.is_external(spec["name"]):
        networks.check_student(networks.build_student(spec))
    return spec
