"""Facts that the papers' files lack: data set, network, preprocessing and augmentation."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from trajmatch import networks
from trajmatch.data import DSA, ChannelNormalisation, Dataset, load_dataset, zca
from trajmatch.data.known_sets import published_statistics
from trajmatch.errors import UserError, as_user_error
from trajmatch.exchange.config import ConvertConfig
from trajmatch.experts.config import ExpertSettings
from trajmatch.experts.train import network_spec, recipe_of
from trajmatch.recipes import find_recipe


class Origin(NamedTuple):
    """Data set, network, augmentation and recipe with which converted files were made."""

    # With the preprocessing of the images that the network was trained on.
    dataset: Dataset
    # Spec of the network, for networks.build().
    network: dict[str, Any]
    dsa: str
    # Expert settings of --recipe; empty if no recipe is given.
    recipe: dict[str, Any]


def find_origin(config: ConvertConfig, lacking: Sequence[str] = ()) -> Origin:
    """Combine flags and recipe into the origin; raise UserError if a flag is missing or invalid.

    ``lacking`` lists flags that the caller found missing, so that one message names all of them.
    """
    # Flags take precedence over the recipe.
    expert, kind, dsa = None, config.preprocessing, config.dsa
    if config.recipe is not None:
        expert = ExpertSettings(**find_recipe(config.recipe).expert)
        dsa = expert.dsa if dsa is None else dsa
        if kind is None and config.mean is None:
            kind = "zca" if expert.zca else "mtt"
    given = {
        "--network (e.g. convnet)": config.network or expert,
        "--preprocessing (zca, mtt or data; or --mean and --std)": kind or config.mean,
        "--dsa (the augmentation, e.g. color_crop_cutout_flip_scale_rotate)": dsa,
    }
    in_recipes = [flag for flag, value in given.items() if value is None]
    data = ["--data (the data set, e.g. cifar10:ROOT)"] if config.data is None else []
    missing = [*data, *in_recipes, *lacking]
    # The type checker needs the first two conditions, although ``missing`` covers them.
    if config.data is None or dsa is None or missing:
        advice = "; --recipe (e.g. mtt/cifar10/ipc10) replaces --network, --preprocessing and --dsa"
        wanted = ", ".join(missing) + (advice if in_recipes else "")
        raise UserError(f"{config.source} lacks information; also give {wanted}")
    dataset = load_dataset(config.data)
    with as_user_error():
        if config.network is None and expert is not None:
            network = network_spec(expert, dataset)
        else:
            sizes = (dataset.channels, dataset.num_outputs, dataset.image_size)
            network = networks.specify(str(config.network), *sizes)
    return Origin(
        dataset=preprocessed(dataset, kind, config),
        network=network,
        dsa=DSA(dsa).spec,
        recipe={} if expert is None else recipe_of(expert),
    )


def preprocessed(dataset: Dataset, kind: str | None, config: ConvertConfig) -> Dataset:
    """Return the data set with the preprocessing ``kind``; None takes ``--mean`` and ``--std``."""
    if kind == "zca":
        return dataset.whitened(zca.fit(dataset.train_images))
    # For ``mtt``, a set with published statistics already has the constants of MTT's code.
    if kind == "data" or (kind == "mtt" and dataset.published_statistics):
        return dataset
    if config.mean is not None and config.std is not None:
        mean, std = config.mean, config.std
        if not len(mean) == len(std) == dataset.channels:
            raise UserError(
                f"--mean and --std should be {dataset.channels} numbers, one for each channel of "
                f"{dataset.name}, but are {len(mean)} and {len(std)}"
            )
    else:
        instead = "give --mean and --std, one number for each channel, or --preprocessing data"
        mean, std = published_statistics(dataset.name, dataset.channels, instead)
    return dataset.preprocessed_as(ChannelNormalisation(mean, std).spec(), None)
