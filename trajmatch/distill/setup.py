"""Data, experts and network of a run, opened and checked before anything slow starts."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from trajmatch import artifact, networks
from trajmatch.artifact import Artifact
from trajmatch.data import Dataset, load_dataset, zca
from trajmatch.data.dsa import DSA
from trajmatch.device import usable_device
from trajmatch.distill.config import DistillConfig, DistillSettings
from trajmatch.distill.parameters import LABELS, SyntheticSet
from trajmatch.errors import UserError, as_user_error
from trajmatch.experts.store import Store
from trajmatch.experts.train import network_spec
from trajmatch.images import Parametrisation, find_parametrisation
from trajmatch.images.parametrisation import Tensors
from trajmatch.importing import blamed
from trajmatch.networks.differentiable import treats_images_alone
from trajmatch.protocol import MTT_DSA, PROTOCOLS


def default_lr_init(settings: DistillSettings) -> float:
    """Return the student's default initial step size: 0.01 for SGD (MTT), 0.001 for Adam."""
    return 0.001 if settings.student_optimiser == "adam" else 0.01


@dataclass(frozen=True)
class Setup:
    """Everything that an objective is built from; constant during the run.

    Attributes:
        config: Configuration, with default start epochs and loss filled in.
        experts: Expert store, or None for a run without experts.
        network: Spec of the network (:func:`trajmatch.networks.build`).
        dataset: The whole data set.
        training: Data set without the held-out images, as seen by experts, objective and
            initialisation.
        held_out: Held-out images ``[N, C, H, W]``, uint8, with labels ``[N]``, int64, or targets.
            N is 0 without ``--holdout``.
        model: Network of experts and students.
        dsa: Augmentation of the student's batches.
        parametrisation: Parametrisation of the images.
        images_per_class: Number of images per class that the budget ``--ipc`` allows.
        source: Earlier result to start from (``--init-from``), or None.
        lr_init: Initial step size.
        device: Device to compute on.
    """

    config: DistillConfig
    experts: Store | None
    network: dict[str, Any]
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

    @property
    def store(self) -> Store:
        """Expert store, for an objective that needs it; UserError if the run has none."""
        return self.store_for(f"--objective {self.config.objective}")

    def store_for(self, purpose: str) -> Store:
        """Return the expert store; if there is none, UserError names the flag ``purpose``."""
        if self.experts is None:
            raise UserError(f"{purpose} needs --experts, a store that `trajmatch expert` makes")
        return self.experts

    def pinned(self, tensor: Tensor) -> Tensor:
        """Return a host tensor in pinned memory, which a GPU copies without blocking the host."""
        return tensor.pin_memory() if self.device.type == "cuda" else tensor

    def synthetic_set(self, parameters: Tensors) -> SyntheticSet:
        """Render the synthetic set from outer parameters, differentiably."""
        images = self.parametrisation.render(parameters, self.shape)
        return SyntheticSet(images, parameters[LABELS])

    @property
    def treats_images_alone(self) -> bool:
        """True if an image's logits do not depend on the other images of its batch."""
        images = self.training.normalise(self.training.train_images[:4]).to(self.device)
        theta = networks.flat_parameters(self.model).to(images)
        return treats_images_alone(self.model, theta, images)


def open_setup(config: DistillConfig) -> Setup:
    """Open store, data and earlier result; raise UserError if any is missing or does not fit."""
    device = torch.device(usable_device(config.device))
    store = None if config.experts is None else Store.open(config.experts)
    # The default end of the start epochs depends on the epochs that the store keeps.
    if store is not None and config.objective != "train-and-test":
        window_end = config.window_end(store.manifest["snapshots"])
        config = replace(config, max_start_epoch=window_end)
    # With experts, the images held out are those that the experts did not see.
    holdout = config.holdout if store is None else store.manifest["holdout"]["fraction"]
    if config.select == "holdout" and holdout == 0:
        what = "this run" if store is None else f"the store {config.experts}"
        raise UserError(
            f"--select holdout needs held-out images, but {what} holds out none; add "
            "--holdout, e.g. --holdout 0.1, to this run or to the training of its experts"
        )
    expert_dsa = MTT_DSA if store is None else store.manifest["recipe"]["dsa"]
    dsa = DSA(expert_dsa if config.dsa is None else config.dsa)
    source = None if config.init_from is None else artifact.load(config.init_from)
    if store is None:
        dataset = load_dataset(config.data)
        training, *held_out = dataset.without_holdout(config.holdout, config.seed)
        training = training.whitened(zca.fit(training.train_images) if config.zca else None)
    else:
        dataset, address = store.load_data(config.data)
        training, *held_out = store.training_set(dataset, address)
    config = _with_loss(config, dataset)
    with as_user_error():
        network = network_spec(config, dataset) if store is None else store.manifest["network"]
    parametrisation = find_parametrisation(config.images)
    shape = dataset.train_images.shape[1:]
    # The parametrisation may be the user's: check its answer.
    with blamed(f"images_per_class of --images {config.images}"):
        images_per_class = parametrisation.images_per_class(config.ipc, shape)
    if not (isinstance(images_per_class, int) and images_per_class > 0):
        raise UserError(
            f"--images {config.images}: images_per_class should return a whole number of at least "
            f"1, but returned {images_per_class!r}; take a larger --ipc"
        )
    images = images_per_class * len(dataset.class_names)
    # An earlier result continues with its own step size.
    lr_init = default_lr_init(config) if source is None else source.lr
    return Setup(
        config=config,
        experts=store,
        network=network,
        # All images get the preprocessing of the training part.
        dataset=dataset.preprocessed_as(training.preprocessing.spec(), training.zca),
        training=training,
        held_out=(held_out[0], held_out[1]),
        model=_model(network, store, config, images).to(device),
        dsa=dsa,
        parametrisation=parametrisation,
        images_per_class=images_per_class,
        source=source,
        lr_init=config.lr_init or lr_init,
        device=device,
    )


def _with_loss(config: DistillConfig, dataset: Dataset) -> DistillConfig:
    """Fill in the loss of the data set; UserError if it contradicts the settings."""
    dataset.check_loss(config.loss)
    for name, value, advice in (
        ("labels", "soft", "--labels hard keeps the targets of the initial images"),
        ("init", "noise", "take real images, whose targets are known"),
        ("init", "correct", "take --init real or representative"),
    ):
        if dataset.loss == "mse" and getattr(config, name) == value:
            raise UserError(
                f"--{name} {value} is for networks that classify, but with --loss mse they regress "
                f"target vectors; {advice}"
            )
    return replace(config, loss=dataset.loss)


def _model(
    spec: dict[str, Any], store: Store | None, config: DistillConfig, images: int
) -> nn.Module:
    """Build the network; raise UserError if it does not fit the snapshots or the batch sizes."""
    named = f"--network {config.network}" if store is None else f"the network of {store.path}"
    with as_user_error(f"{named} cannot be used: "):
        model = networks.build_student(spec)
        networks.check_student(model)
    # A last batch of one image may be too small for batch norm.
    with as_user_error():
        networks.check_batches(model, images, config.batch_syn, "--batch-syn")
        if config.eval_every:
            size = PROTOCOLS[config.eval_protocol].batch_size
            networks.check_batches(model, images, size, "the batch size of --eval-protocol,")
    if store is None:
        return model
    count = networks.num_parameters(model)
    kept = len(store.snapshot(0, config.min_start_epoch))
    if count != kept:
        raise UserError(
            f"{store.path} says that its experts are {spec}, which has {count} parameters, but "
            f"its snapshots have {kept}; make the store again"
        )
    return model
