"""Data, experts and network of a run, opened and checked before anything long starts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from trajmatch import artifact, networks
from trajmatch.artifact import Artifact
from trajmatch.data import Dataset
from trajmatch.data.dsa import DSA
from trajmatch.device import usable_device
from trajmatch.distill.config import DistillConfig
from trajmatch.errors import UserError, as_user_error
from trajmatch.experts.store import Store
from trajmatch.images import Parametrisation, find_parametrisation
from trajmatch.importing import blamed
from trajmatch.protocol import PROTOCOLS

#: Step size of the student at first where nothing else is said (MTT: lr_teacher).
DEFAULT_LR_INIT = 0.01


@dataclass(frozen=True)
class Setup:
    """All that an objective may be made of; nothing of it changes during the run.

    Attributes:
        config: The configuration, with the default window filled in.
        store: The experts.
        dataset: The whole data set.
        training: The part of it that experts and initialisation may see.
        held_out: Images ``[N, C, H, W]``, uint8, and labels ``[N]``, int64, that neither sees;
            empty for a store without holdout.
        model: The network of experts and students.
        dsa: Augmentation of the student's batches.
        parametrisation: Parametrisation of the images.
        images_per_class: Images of each class that the budget, ``--ipc``, pays for.
        source: The earlier result to start from, if any.
        lr_init: Step size at the beginning.
        device: Device to compute on.
    """

    config: DistillConfig
    store: Store
    dataset: Dataset
    training: Dataset
    held_out: tuple[Tensor, Tensor]
    model: nn.Module
    dsa: DSA
    parametrisation: Parametrisation
    images_per_class: int
    source: Artifact | None
    lr_init: float
    device: torch.device

    @property
    def shape(self) -> torch.Size:
        """Shape of an image, ``[C, H, W]``."""
        return self.dataset.train_images.shape[1:]


def open_setup(config: DistillConfig) -> Setup:
    """Open store, data and earlier result, and check that they fit together.

    Raises:
        UserError: Something is missing or does not fit; the message names it.
    """
    device = torch.device(usable_device(config.device))
    store = Store.open(config.experts)
    window_end = config.window_end(store.manifest["snapshots"])
    config = replace(config, max_start_epoch=window_end)
    if config.select == "holdout" and store.manifest["holdout"]["fraction"] == 0:
        raise UserError(
            f"--select holdout needs images that no expert saw, but {config.experts} was made "
            "without; train experts with --holdout, e.g. --holdout 0.1"
        )
    dsa = DSA(store.manifest["recipe"]["dsa"] if config.dsa is None else config.dsa)
    source = None if config.init_from is None else artifact.load(config.init_from)
    dataset, address = store.load_data(config.data)
    training, *held_out = store.training_set(dataset, address)
    parametrisation = find_parametrisation(config.images)
    shape = dataset.train_images.shape[1:]
    with blamed(f"images_per_class of --images {config.images}"):
        images_per_class = parametrisation.images_per_class(config.ipc, shape)
    images = images_per_class * len(dataset.class_names)
    lr_init = config.lr_init
    if lr_init is None:
        lr_init = DEFAULT_LR_INIT if source is None else source.lr
    return Setup(
        config=config,
        store=store,
        dataset=dataset.preprocessed_as(store.manifest["preprocessing"], store.zca),
        training=training,
        held_out=(held_out[0], held_out[1]),
        model=_network(store, config, images).to(device),
        dsa=dsa,
        parametrisation=parametrisation,
        images_per_class=images_per_class,
        source=source,
        lr_init=lr_init,
        device=device,
    )


def _network(store: Store, config: DistillConfig, images: int) -> nn.Module:
    """Build the experts' network, which must fit the snapshots and train on the batches."""
    spec = store.manifest["network"]
    with as_user_error(f"the network of {store.path} cannot be used: "):
        model = networks.build_student(spec)
        networks.check_student(model)
    with as_user_error():
        networks.check_batches(model, images, config.batch_syn, "--batch-syn")
        if config.eval_every:
            size = PROTOCOLS[config.eval_protocol].batch_size
            networks.check_batches(model, images, size, "the batch size of --eval-protocol,")
    count = networks.num_parameters(model)
    kept = len(store.snapshot(0, config.min_start_epoch))
    if count != kept:
        raise UserError(
            f"{store.path} says that its experts are {spec}, which has {count} parameters, but "
            f"its snapshots have {kept}; make the store again"
        )
    return model
