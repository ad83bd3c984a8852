"""Everything a run works on, opened and checked before anything long starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from trajmatch import artifact, networks
from trajmatch.artifact import Artifact
from trajmatch.data import Dataset, load_dataset
from trajmatch.data.dsa import DSA
from trajmatch.data.sources import moved_uri
from trajmatch.device import usable_device
from trajmatch.distill import initialise
from trajmatch.distill.config import DistillConfig, DistillSettings
from trajmatch.distill.images import (
    Parametrisation,
    find_parametrisation,
    initial_parameters,
    render,
)
from trajmatch.distill.labels import soft_labels
from trajmatch.distill.objectives.match_trajectory import MatchTrajectory, segments_of
from trajmatch.distill.parameters import (
    LABELS,
    SGD,
    STEP_SIZE,
    OuterParameter,
    SyntheticSet,
    of_images,
)
from trajmatch.distill.state import State
from trajmatch.errors import UserError, as_user_error
from trajmatch.experts.final import FinalExperts
from trajmatch.experts.store import Store
from trajmatch.protocol import PROTOCOLS
from trajmatch.random import generator
from trajmatch.schema import settings_of

#: Step size of the student at first where nothing else is said (MTT: lr_teacher).
DEFAULT_LR_INIT = 0.01


@dataclass(frozen=True)
class Problem:
    """All that a run works on; nothing of it changes during the run.

    Attributes:
        config: The configuration, with the default window filled in.
        store: The experts.
        dataset: The whole data set.
        training: The part of it that experts and initialisation may see.
        held_out: Images ``[N, C, H, W]``, uint8, and labels ``[N]``, int64, that neither sees;
            empty for a store without holdout.
        model: The network of experts and students.
        dsa: Augmentation of the student's batches.
        parametrisation: How images come of the outer parameters.
        objective: What the synthetic set is learned for.
        source: The earlier result to start from, if any.
        lr_init: Step size at the beginning.
        device: Where to compute.
    """

    config: DistillConfig
    store: Store
    dataset: Dataset
    training: Dataset
    held_out: tuple[Tensor, Tensor]
    model: nn.Module
    dsa: DSA
    parametrisation: Parametrisation
    objective: MatchTrajectory
    source: Artifact | None
    lr_init: float
    device: torch.device

    @property
    def identity(self) -> dict[str, Any]:
        """Settings that decide the result: runs with the same identity write the same bytes."""
        settings = settings_of(self.config, DistillSettings)
        if settings["images"] == "pixels":  # as it always was
            del settings["images"]
        identity = {
            "recipe": self.config.recipe,
            **settings,
            "dsa": self.dsa.spec,
            "lr_init": self.lr_init,
            "seed": self.config.seed,
            "store": self.store.fingerprint,
            "experts": {
                **self.store.manifest["recipe"],
                "num_experts": self.store.num_experts,
                "seed": self.store.manifest["seed"],
                "holdout": self.store.manifest["holdout"],
            },
        }
        if self.source is not None:
            identity["init"] = f"file {self.source.fingerprint}"
        return identity

    def initial_set(self) -> SyntheticSet:
        """Return the synthetic images that the run begins with.

        Raises:
            UserError: The data or the earlier result cannot give as many as are asked for.
        """
        config = self.config
        draw = generator(config.seed, "distill", "initialise")
        if self.source is not None:
            assert config.init_from is not None
            first = initialise.from_artifact(
                self.source, config.init_from, self.training, config.ipc
            )
        elif config.init == "noise":
            first = initialise.from_noise(self.training, config.ipc, draw)
        elif config.init == "correct":
            experts = self._final_experts("--init correct")
            first = initialise.from_correct(self.training, config.ipc, experts, draw)
        elif config.init == "representative":
            experts = self._final_experts("--init representative")
            first = initialise.from_representatives(
                self.training, config.ipc, experts, draw, config.init_clusters
            )
        else:
            first = initialise.from_real(self.training, config.ipc, draw)
        if config.labels == "hard" or first.labels.is_floating_point():
            return first
        experts = self._final_experts("--labels soft")
        if config.label_experts == "first":
            return SyntheticSet(first.images, experts.logits(0, first.images))
        return SyntheticSet(first.images, soft_labels(first.images, first.labels, experts))

    def _final_experts(self, purpose: str) -> FinalExperts:
        return FinalExperts(self.store, self.model, purpose)

    def initial_state(self) -> State:
        """Return the state before the first iteration.

        Raises:
            UserError: See :meth:`initial_set`; or the parametrisation fails.
        """
        first = self.initial_set()
        images = initial_parameters(self.parametrisation, self.config.images, first.images)
        step_size = torch.tensor(self.lr_init, dtype=torch.float64)
        state = self.state({**images, STEP_SIZE: step_size, LABELS: first.labels})
        if self.config.ema:
            values = {name: state.parameters[name].value for name in of_images(images)}
            state.average = {
                name: value.clone() for name, value in values.items() if value.is_floating_point()
            }
        return state

    def state(self, values: Mapping[str, Tensor]) -> State:
        """Return the state before the first iteration with given outer parameters."""
        names = [*sorted(of_images(values)), STEP_SIZE, LABELS]
        return State(
            parameters={name: self._parameter(name, values[name]) for name in names},
            draws=self.objective.draws(),
        )

    def _parameter(self, name: str, value: Tensor) -> OuterParameter:
        """Return an outer parameter with the optimiser that the configuration gives it."""
        config = self.config
        if name == STEP_SIZE:
            exponential = config.lr_param == "exp"
            rule = SGD(config.lr_lr, config.momentum_lr, "--lr-lr", True, exponential)
            return OuterParameter.new(value.cpu(), rule)
        given = name == LABELS and config.labels == "hard"  # soft ones too, with --init-from
        if given or not value.is_floating_point():
            return OuterParameter.new(value.to(self.device))
        if name == LABELS:
            rule = SGD(config.lr_label, config.momentum_label, "--lr-label")
        else:
            rule = SGD(config.lr_img, config.momentum_img, "--lr-img")
        return OuterParameter.new(value.to(self.device), rule)

    def render(self, values: Mapping[str, Tensor]) -> SyntheticSet:
        """Return the synthetic set of some outer parameters, detached."""
        with torch.no_grad():
            return render(self.parametrisation, values)

    def artifact(self, state: State) -> Artifact:
        """Return the result of a run: the best iterate if one was chosen, or else the last.

        Args:
            state: The state after the last iteration.
        """
        recipe = self.identity
        seed = recipe.pop("seed")
        values = state.best_values if state.best is not None else state.result
        images, labels = (each.cpu() for each in self.render(values))
        pixels = self.config.images == "pixels"
        return Artifact(
            images=images,
            labels=labels,
            label_kind="logit" if labels.is_floating_point() else "index",
            lr=values[STEP_SIZE].item(),
            mean=self.training.mean,
            std=self.training.std,
            zca=self.training.zca,
            dsa=self.dsa.spec,
            network=dict(self.store.manifest["network"]),
            class_names=self.dataset.class_names,
            dataset_name=self.dataset.name,
            dataset_fingerprint=self.dataset.fingerprint,
            ipc=self.config.ipc,
            recipe=recipe,
            seed=seed,
            versions=artifact.current_versions(),
            scores=tuple(state.scores),
            selection=self.config.select,
            parametrisation=None if pixels else self.config.images,
            parameters={} if pixels else {each: values[each].cpu() for each in of_images(values)},
        )


def prepare(config: DistillConfig) -> Problem:
    """Open store, data and earlier result, and checks that they fit together.

    Args:
        config: What is asked for.

    Returns:
        What the run works on.

    Raises:
        UserError: Something is missing or does not fit; the message names it.
    """
    device = torch.device(usable_device(config.device))
    store = Store.open(config.experts)
    course = store.manifest["snapshots"]
    config = replace(config, max_start_epoch=config.window_end(course))
    window, loss = segments_of(config, course)
    last = window.maximum - 1 + config.expert_epochs
    flags = f"--max-start-epoch {window.maximum} with --expert-epochs {config.expert_epochs}"
    store.check_trained(last, flags)
    parametrisation = find_parametrisation(config.images)
    if config.select == "holdout" and store.manifest["holdout"]["fraction"] == 0:
        raise UserError(
            f"--select holdout needs images that no expert saw, but {config.experts} was made "
            "without; train experts with --holdout, e.g. --holdout 0.1"
        )
    dsa = DSA(store.manifest["recipe"]["dsa"] if config.dsa is None else config.dsa)
    source = None if config.init_from is None else artifact.load(config.init_from)
    address = config.data or moved_uri(store.manifest["data"], store.path)
    try:
        dataset = load_dataset(address)
    except UserError as error:
        if config.data:
            raise
        raise UserError(
            f"the experts of {store.path} were trained on {address}: {error}; if it is elsewhere "
            "now, say where with --data"
        ) from error
    training, *held_out = store.training_set(dataset, address)
    lr_init = config.lr_init
    if lr_init is None:
        lr_init = DEFAULT_LR_INIT if source is None else source.lr
    model = _network(store, config, len(dataset.class_names)).to(device)
    return Problem(
        config=config,
        store=store,
        dataset=dataset.preprocessed_as(store.manifest["preprocessing"], store.zca),
        training=training,
        held_out=(held_out[0], held_out[1]),
        model=model,
        dsa=dsa,
        parametrisation=parametrisation,
        objective=MatchTrajectory(config, model, store, window, loss, dsa, parametrisation, device),
        source=source,
        lr_init=lr_init,
        device=device,
    )


def _network(store: Store, config: DistillConfig, num_classes: int) -> nn.Module:
    """Build the experts' network, which must fit the snapshots and train on the batches."""
    spec, images = store.manifest["network"], config.ipc * num_classes
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
