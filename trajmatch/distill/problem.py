"""Everything a run works on, opened and checked before anything long starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trajmatch import artifact
from trajmatch.artifact import Artifact
from trajmatch.distill import initialise
from trajmatch.distill.config import DistillConfig, DistillSettings
from trajmatch.distill.images import initial_parameters, render
from trajmatch.distill.labels import soft_labels
from trajmatch.distill.objectives import Objective
from trajmatch.distill.objectives.match_trajectory import MatchTrajectory
from trajmatch.distill.parameters import (
    LABELS,
    SGD,
    STEP_SIZE,
    OuterParameter,
    SyntheticSet,
    learned,
    of_images,
)
from trajmatch.distill.setup import Setup, open_setup
from trajmatch.distill.state import State
from trajmatch.errors import UserError
from trajmatch.experts.final import FinalExperts
from trajmatch.importing import blamed, described, named
from trajmatch.random import generator
from trajmatch.schema import settings_of

#: The objectives that have a name.
OBJECTIVES: dict[str, Callable[[Setup], Objective]] = {"match-trajectory": MatchTrajectory.of}

#: Settings that 0.1 did not have, and their values of then; its runs are known without them.
_SINCE_0_1 = (("objective", "match-trajectory"), ("images", "pixels"))


@dataclass(frozen=True)
class Problem(Setup):
    """All that a run works on; nothing of it changes during the run.

    Attributes:
        objective: The objective of the run.
    """

    objective: Objective

    @property
    def identity(self) -> dict[str, Any]:
        """Settings that decide the result: runs with the same identity write the same bytes."""
        settings = settings_of(self.config, DistillSettings)
        identity = {
            "recipe": self.config.recipe,
            **{k: v for k, v in settings.items() if (k, v) not in _SINCE_0_1},
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
        dataset, ipc = self.training, config.ipc

        def experts_for(flag: str) -> FinalExperts:
            return FinalExperts(self.store, self.model, flag)

        if self.source is not None:
            first = initialise.from_artifact(self.source, str(config.init_from), dataset, ipc)
        elif config.init == "noise":
            first = initialise.from_noise(dataset, ipc, draw)
        elif config.init == "correct":
            first = initialise.from_correct(dataset, ipc, experts_for("--init correct"), draw)
        elif config.init == "representative":
            experts = experts_for("--init representative")
            clusters = config.init_clusters
            first = initialise.from_representatives(dataset, ipc, experts, draw, clusters)
        else:
            first = initialise.from_real(dataset, ipc, draw)
        if config.labels == "hard" or first.labels.is_floating_point():
            return first
        experts = experts_for("--labels soft")
        if config.label_experts == "first":
            return SyntheticSet(first.images, experts.logits(0, first.images))
        return SyntheticSet(first.images, soft_labels(first.images, first.labels, experts))

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
            state.average = {
                name: each.value.clone()
                for name, each in learned(state.parameters).items()
                if name in images
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
    """Open and check all that a run works on.

    Raises:
        UserError: Something is missing or does not fit; the message names it.
    """
    setup = open_setup(config)
    return Problem(**vars(setup), objective=_objective(setup))


def _objective(setup: Setup) -> Objective:
    """Make the objective of a run.

    Raises:
        UserError: There is none of that name, or it fails.
    """
    name = setup.config.objective
    kind = named("--objective", "objective", name, OBJECTIVES)
    with blamed(f"--objective {name}"):
        made = kind(setup)
    if not isinstance(made, Objective):
        raise UserError(
            f"--objective {name} should be a subclass of trajmatch.distill.objectives.Objective, "
            f"but made {described(made)}"
        )
    return made
