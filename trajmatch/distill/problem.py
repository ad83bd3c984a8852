"""Everything a run works on, opened and checked before anything long starts."""

from __future__ import annotations

from collections.abc import Callable, Collection
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
from trajmatch.distill.config import DistillConfig
from trajmatch.distill.initialise import SyntheticSet
from trajmatch.distill.labels import soft_labels
from trajmatch.distill.matching import MatchingLoss, Segment
from trajmatch.distill.perturbation import perturbed
from trajmatch.distill.schedule import ExpertOrder, StartEpochWindow
from trajmatch.distill.state import State, Streams
from trajmatch.distill.step_size import StepSize
from trajmatch.distill.terms import find_term
from trajmatch.errors import UserError
from trajmatch.experts.final import FinalExperts
from trajmatch.experts.store import Store
from trajmatch.protocol import named
from trajmatch.random import derive_seed, generator

#: Step size of the student at first where nothing else is said (MTT: lr_teacher).
DEFAULT_LR_INIT = 0.01


@dataclass(frozen=True)
class Problem:
    """What a run works on; nothing of it changes during the run.

    Attributes:
        config: The configuration, with the default window filled in.
        store: The experts.
        dataset: The whole data set.
        training: The part of it that experts and initialisation may see.
        held_out: Images ``[N, C, H, W]``, uint8, and labels ``[N]``, int64, that neither sees;
            empty for a store without holdout.
        model: The network of experts and students.
        window: Start epochs.
        loss: What is made of where the students go.
        dsa: Augmentation of the student's batches.
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
    window: StartEpochWindow
    loss: MatchingLoss
    dsa: DSA
    source: Artifact | None
    lr_init: float
    device: torch.device

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the result: two runs with the same identity write the same bytes."""
        identity = {
            **self.config.settings(),
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
        """The synthetic images that the run begins with.

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
        """The state before the first iteration.

        Raises:
            UserError: See :meth:`initial_set`.
        """
        first = self.initial_set()
        synthetic = SyntheticSet(first.images.to(self.device), first.labels.to(self.device))
        return State(
            synthetic=synthetic,
            buffer=torch.zeros_like(synthetic.images),
            step_size=StepSize(self.lr_init),
            lr_init=self.lr_init,
            streams=Streams.of_seed(self.config.seed),
            order=ExpertOrder(self.store.num_experts),
            label_buffer=torch.zeros_like(synthetic.labels)
            if self.config.labels == "soft"
            else None,
            average=synthetic.images.clone() if self.config.ema else None,
        )

    def segment(self, expert: int, start_epoch: int, iteration: int, match: int = 0) -> Segment:
        """A piece of an expert's trajectory; only the snapshots that the loss looks at are read.

        Args:
            expert: Number of the expert.
            start_epoch: Where it starts.
            iteration: Outer iteration, which decides the perturbation of the start.
            match: Which match of it.
        """
        start = self.store.snapshot(expert, start_epoch)
        if self.config.perturb:
            draw = generator(
                self.config.seed, "distill", "perturbation", *_match_names(iteration, match)
            )
            start = perturbed(self.model, start, self.config.perturb, draw)
        return Segment(
            start=start.to(self.device),
            target=self._after(expert, start_epoch, self.config.expert_epochs),
            between={
                epochs: self._after(expert, start_epoch, epochs)
                for epochs in self.loss.between(self.config.student_steps)
            },
        )

    def _after(self, expert: int, start_epoch: int, epochs: int) -> Tensor:
        return self.store.snapshot(expert, start_epoch + epochs).to(self.device)

    def augmentation(
        self, iteration: int, match: int = 0
    ) -> Callable[[Tensor, int], Tensor] | None:
        """The augmentation of one match of an outer iteration, the same at every call."""
        if self.dsa.spec == "none":
            return None
        names = _match_names(iteration, match)
        return self.dsa.replay(derive_seed(self.config.seed, "distill", "dsa", *names))

    def artifact(self, state: State) -> Artifact:
        """The result of a run: the best iterate where one was chosen, or else the last.

        Args:
            state: The state after the last iteration.

        Returns:
            What the run writes.
        """
        recipe = self.identity
        seed = recipe.pop("seed")
        result, lr = state.result, state.step_size.value
        if state.best is not None:
            result, lr = SyntheticSet(state.best.images, state.best.labels), state.best.step_size
        images, labels = result.images, result.labels.cpu()
        return Artifact(
            images=images.cpu(),
            labels=labels,
            label_kind="logit" if labels.is_floating_point() else "index",
            lr=lr,
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
        )


def prepare(config: DistillConfig) -> Problem:
    """Opens store, data and earlier result, and checks that they fit together.

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
    return Problem(
        config=config,
        store=store,
        dataset=dataset.preprocessed_as(store.manifest["preprocessing"], store.zca),
        training=training,
        held_out=(held_out[0], held_out[1]),
        model=_network(store, config, len(dataset.class_names)).to(device),
        window=window,
        loss=loss,
        dsa=dsa,
        source=source,
        lr_init=lr_init,
        device=device,
    )


def segments_of(
    config: DistillConfig, snapshots_kept: Collection[int]
) -> tuple[StartEpochWindow, MatchingLoss]:
    """Make out which segments are drawn, and how they are compared.

    Args:
        config: What is asked for.
        snapshots_kept: Epochs of which there are the experts' parameters, or will be.

    Raises:
        UserError: A segment would need another epoch, or there is no such term.
    """
    window = StartEpochWindow(
        config.min_start_epoch,
        config.window_end(snapshots_kept),
        config.first_max_start_epoch,
        config.growth_iterations,
    )
    terms = tuple(map(find_term, config.terms))
    loss = MatchingLoss(terms, config.expert_epochs, tuple(config.terms))
    between = loss.between(config.student_steps)
    window.check(snapshots_kept, config.expert_epochs, between)
    return window, loss


def _match_names(iteration: int, match: int) -> tuple[int, ...]:
    """What a match's random streams are named after.

    The first match is named by its iteration alone, so that it is the same for any number of
    matches.
    """
    return (iteration, match) if match else (iteration,)


def _network(store: Store, config: DistillConfig, num_classes: int) -> nn.Module:
    """Build the experts' network, which must fit the snapshots and train on the batches."""
    spec, images = store.manifest["network"], config.ipc * num_classes
    try:
        model = networks.build_student(spec)
        networks.check_student(model)
    except ValueError as error:
        raise UserError(f"the network of {store.path} cannot be used: {error}") from error
    try:
        networks.check_batches(model, images, config.batch_syn, "--batch-syn")
        if config.eval_every:
            size = named(config.eval_protocol).batch_size
            networks.check_batches(model, images, size, "the batch size of --eval-protocol,")
    except ValueError as error:
        raise UserError(str(error)) from error
    count = networks.num_parameters(model)
    kept = len(store.snapshot(0, config.min_start_epoch))
    if count != kept:
        raise UserError(
            f"{store.path} says that its experts are {spec}, which has {count} parameters, but "
            f"its snapshots have {kept}; make the store again"
        )
    return model
