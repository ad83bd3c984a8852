"""Problem of a run: its setup and objective, checked before anything slow starts."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from trajmatch import artifact
from trajmatch.artifact import Artifact
from trajmatch.distill import initialise
from trajmatch.distill import parameters as outer
from trajmatch.distill.config import DistillConfig, DistillSettings
from trajmatch.distill.initialise import free_rows, initial_parameters
from trajmatch.distill.objectives import Objective
from trajmatch.distill.objectives.chosen_window import train_and_test
from trajmatch.distill.objectives.match_trajectory import MatchTrajectory
from trajmatch.distill.parameters import LABELS, STEP_SIZE, SyntheticSet, learned, of_images
from trajmatch.distill.setup import Setup, open_setup
from trajmatch.distill.state import State
from trajmatch.experts.config import NetworkSettings
from trajmatch.experts.final import FinalExperts, soft_labels
from trajmatch.experts.scores import Scores, path_beside, read_scores
from trajmatch.images import find_parametrisation, is_built_in
from trajmatch.images.parametrisation import Parametrisation, Tensors, joined
from trajmatch.importing import blamed, expect_kind, named
from trajmatch.random import generator
from trajmatch.schema import settings_of

#: Built-in objectives.
OBJECTIVES: dict[str, Callable[[Setup], Objective]] = {
    "match-trajectory": MatchTrajectory.of,
    "train-and-test": train_and_test,
}

#: Settings added after release 0.1, with the values that 0.1 implied. The identity leaves out a
#: setting with this value, so that a run of 0.1 keeps its identity.
SINCE_0_1 = (
    ("objective", "match-trajectory"),
    ("images", "pixels"),
    ("loss", "cross_entropy"),
    ("freeze", 0),
    ("optimiser_img", "sgd"),
    ("clip_img", None),
    ("mask_gradient", None),
    ("mask_threshold", None),
    ("mask_every", 100),
    ("init_beta", None),
)


@dataclass(frozen=True)
class Problem(Setup):
    """Setup of a run together with its objective; constant during the run."""

    objective: Objective

    @property
    def identity(self) -> dict[str, Any]:
        """Settings that determine the result; to resume, all but ``iterations`` must be equal."""
        # Defaults are resolved, so that an explicit default compares equal.
        own = resolved(self.config, self.objective, self.parametrisation)
        settings = {**settings_of(self.config, DistillSettings), **own}
        for name in self.config.foreign:
            del settings[name]
        identity = {
            "recipe": self.config.recipe,
            **{k: v for k, v in settings.items() if (k, v) not in SINCE_0_1},
            "dsa": self.dsa.spec,
            "lr_init": self.lr_init,
            "seed": self.config.seed,
        }
        if self.experts is None:
            identity["data"] = self.dataset.fingerprint
        else:
            manifest = self.experts.manifest
            identity["store"] = self.experts.fingerprint
            for name in settings_of(self.config, NetworkSettings):  # the store decides these
                del identity[name]
            identity["experts"] = {
                **manifest["recipe"],
                "num_experts": self.experts.num_experts,
                "seed": manifest["seed"],
                "holdout": manifest["holdout"],
            }
        # --init matters only if the earlier result has fewer images than the run.
        if self.source is not None:
            grows = len(self.source.images) < self.images_per_class * self.dataset.num_classes
            more = f" and {self.config.init}" if grows else ""
            identity["init"] = f"file {self.source.fingerprint}{more}"
        if self.config.init == "difficulty":
            identity["scores"] = self.scores.fingerprint
        return identity

    @cached_property
    def optimisers(self) -> tuple[outer.Optimiser, outer.Optimiser]:
        """Optimisers of the images' parameters and of the step size."""
        return optimisers(self.config, self.objective, self.parametrisation)

    @cached_property
    def scores(self) -> Scores:
        """Difficulty of the training images, from ``--scores`` or a file next to the store."""
        given, store = self.config.scores, self.store_for("--init difficulty")
        held_out = store.manifest["holdout"]["fraction"], store.manifest["holdout"]["seed"]
        # The file next to the store must come from its experts; one given by --scores need not.
        path, of = (given, None) if given else (path_beside(store.path), store)
        return read_scores(path, self.dataset, held_out, self.config.data, of)

    def initial_set(self) -> SyntheticSet:
        """Return the initial synthetic set; errors as in :meth:`initial_values`."""
        return self.render(self.initial_values())

    def initial_values(self) -> dict[str, Tensor]:
        """Return the initial outer parameters by name.

        UserError is raised if there are too few images, or if the parametrisation fails.
        """
        first, source = self._first_images(), self.source
        earlier = None
        if source is not None and self._goes_on(source):
            earlier = self.parametrisation.restored(source.parameters, self.shape)
        parameters, images = initial_parameters(self, first.images.to(self.device), earlier)
        # Soft labels are logits of the rendered images, which the students will see.
        labels = first.labels
        if self.config.labels == "soft" and not labels.is_floating_point():
            labels = self._soft_labels(images.cpu(), labels)
        step_size = torch.tensor(self.lr_init, dtype=torch.float64)
        return {**parameters, STEP_SIZE: step_size, LABELS: labels}

    def _goes_on(self, source: Artifact) -> bool:
        """Return True if the run reuses an earlier result's parameters, not just its images."""
        spec = source.parametrisation
        if spec is None or not source.preprocessing.same_as(self.training.preprocessing):
            return False
        if not is_built_in(spec):
            return spec == self.config.images
        return find_parametrisation(spec) == self.parametrisation  # compares settings, not spelling

    def _first_images(self) -> SyntheticSet:
        """Return the initial images with labels, from ``--init-from`` and ``--init``."""
        config, source, count = self.config, self.source, self.images_per_class
        if source is None:
            return self._chosen_images(count)
        path, dataset = str(config.init_from), self.training
        first = initialise.from_artifact(source, path, dataset, count)
        there = len(first.images) // dataset.num_classes
        if there == count:
            return first
        # The earlier result has fewer images per class than asked for: add others.
        more = self._chosen_images(count - there, there)
        # A set has one kind of labels, so images added to a file with soft labels get soft labels.
        if first.labels.is_floating_point() and not more.labels.is_floating_point():
            more = SyntheticSet(more.images, self._soft_labels(more.images, more.labels))
        pairs = zip(first, more, strict=True)
        return SyntheticSet(*(joined(one, two, dataset.num_classes) for one, two in pairs))

    def _chosen_images(self, count: int, *there: int) -> SyntheticSet:
        """Choose ``count`` images per class by ``--init``.

        ``there``, if given, is the number of images per class that ``--init-from`` already gave.
        """
        config, dataset = self.config, self.training
        # `there` selects another random stream, because with the same seed, the earlier run's
        # stream would choose the same images again.
        draw = generator(config.seed, "distill", "initialise", *there)
        if config.init == "noise":
            return initialise.from_noise(dataset, count, draw)
        if config.init == "real":
            return initialise.from_real(dataset, count, draw)
        if config.init == "difficulty":
            beta = config.init_beta or 0.0
            return initialise.from_difficulty(dataset, count, self.scores.values, beta)
        experts = self._experts(f"--init {config.init}")
        if config.init == "correct":
            return initialise.from_correct(dataset, count, experts, draw)
        return initialise.from_representatives(dataset, count, experts, draw, config.init_clusters)

    def _soft_labels(self, images: Tensor, classes: Tensor) -> Tensor:
        experts = self._experts("--labels soft")
        if self.config.label_experts == "first":
            return experts.logits(0, images)
        return soft_labels(images, classes, experts)

    def _experts(self, flag: str) -> FinalExperts:
        return FinalExperts(self.store_for(flag), self.model, flag)

    def initial_state(self) -> State:
        """Return the state before the first iteration; errors as in :meth:`initial_values`."""
        state = self.state({**self.initial_values(), **self.objective.memory()})
        if self.config.ema:
            moving = learned(state.parameters)
            state.average = {name: moving[name].value.clone() for name in of_images(moving)}
        return state

    def state(self, values: Tensors) -> State:
        """Return a state before the first iteration, with the given outer parameters."""
        # A fixed order, in which gradients are returned and ranks exchange tensors.
        names = [*sorted(of_images(values)), STEP_SIZE, LABELS]
        names += sorted(values.keys() - {*names})  # memory and mask of the objective
        return State(
            parameters={name: self._parameter(name, values[name]) for name in names},
            draws=self.objective.draws(),
        )

    def _parameter(self, name: str, value: Tensor) -> outer.OuterParameter:
        """Return an outer parameter with its configured optimiser."""
        config = self.config
        if name == STEP_SIZE:
            return outer.OuterParameter.new(value.cpu(), self.optimisers[1])
        value = value.to(self.device)
        # Constants: labels of --labels hard, and what belongs to the objective (memory, mask).
        given = config.labels == "hard" if name == LABELS else not of_images({name: value})
        if given or not value.is_floating_point():
            return outer.OuterParameter.new(value)
        if name == LABELS:
            rule = outer.SGD(lr=config.lr_label, momentum=config.momentum_label, flag="--lr-label")
            return outer.OuterParameter.new(value, rule)
        free = None
        if config.freeze:
            free = free_rows(config.images, value, self.dataset.num_classes, config.freeze)
        return outer.OuterParameter.new(value, self.optimisers[0], free)

    def render(self, values: Tensors) -> SyntheticSet:
        """Render the synthetic set from outer parameters, without gradients."""
        with torch.no_grad():
            return self.synthetic_set(values)

    def artifact(self, state: State) -> Artifact:
        """Return the result of a finished run: the synthetic set that ``--select`` asks for."""
        recipe = self.identity
        seed = recipe.pop("seed")
        values = state.best_values if state.best is not None else state.result
        own = {name: values[name].cpu() for name in of_images(values)}
        parameters = self.parametrisation.stored(own)
        with torch.no_grad():  # on the CPU, where loading the file renders them again
            images = self.parametrisation.render(parameters, self.shape)
        labels, pixels = values[LABELS].cpu(), self.config.images == "pixels"
        # A reader of the file may lack a user's own parametrisation, so keep the images as well.
        rendered = pixels or self.config.keep_rendered or not is_built_in(self.config.images)
        soft: Literal["logit", "target"] = "target" if self.dataset.loss == "mse" else "logit"
        return Artifact(
            images=images,
            labels=labels,
            label_kind=soft if labels.is_floating_point() else "index",
            lr=values[STEP_SIZE].item(),
            mean=self.training.mean,
            std=self.training.std,
            zca=self.training.zca,
            dsa=self.dsa.spec,
            network=dict(self.network),
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
            parameters={} if pixels else parameters,
            keeps_rendered=rendered,
        )


def optimisers(
    settings: DistillSettings, objective: Objective | type[Objective], own: Parametrisation
) -> tuple[outer.Optimiser, outer.Optimiser]:
    """Return the optimisers of the images' parameters and of the step size."""
    step_size = outer.SGD(
        lr=objective.lr_lr if settings.lr_lr is None else settings.lr_lr,
        momentum=settings.momentum_lr,
        flag="--lr-lr",
        positive=True,
        multiplicative=settings.lr_param == "exp",
    )
    # First the setting decides, then the objective, then the parametrisation.
    name = settings.optimiser_img or objective.optimiser or own.optimiser
    lr = settings.lr_img
    # The parametrisation's learning rate is meant for its own optimiser only.
    if lr is None:
        lr = own.lr if name == own.optimiser else {"sgd": 100.0, "adam": 0.001}[name]
    clip = objective.clip if settings.clip_img is None else settings.clip_img
    if name == "adam":
        return outer.Adam(lr=lr, flag="--lr-img", clip=clip), step_size
    momentum = settings.momentum_img
    return outer.SGD(lr=lr, momentum=momentum, flag="--lr-img", clip=clip), step_size


def resolved(
    settings: DistillSettings, objective: Objective | type[Objective], own: Parametrisation
) -> dict[str, Any]:
    """Return the settings of the optimisers, with the defaults of a run filled in."""
    images, step_size = optimisers(settings, objective, own)
    name = type(images).__name__.lower()
    rule = {"optimiser_img": name, "lr_img": images.lr, "clip_img": images.clip}
    return {**rule, "lr_lr": step_size.lr}


def prepare(config: DistillConfig) -> Problem:
    """Open and check everything that a run needs; UserError if something is missing or unusable."""
    setup, name = open_setup(config), config.objective
    kind = named("--objective", "objective", name, OBJECTIVES)
    with blamed(f"--objective {name}"):
        objective: Objective = kind(setup)
    expect_kind(f"--objective {name}", objective, Objective)
    return Problem(**vars(setup), objective=objective)
