"""Training steps of experts: SGD or Adam, GSAM and gradient penalty, eager or as a CUDA graph."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from trajmatch import networks, ops, recording
from trajmatch.data import Dataset
from trajmatch.data.preprocessing import Normalise
from trajmatch.networks.engine import ways_to_measure
from trajmatch.networks.flat import decayed

# A step, with its optimiser, works on tensors only, so that a CUDA graph can record it. Optimiser,
# GSAM and penalty take the parameters [P] of an expert or, with the same launches, [K, P] of K
# experts.

#: State of an optimiser: tensors by name.
Memory = dict[str, Tensor]

#: Added to norms in denominators, as in the authors' code.
_TINY = 1e-12


@dataclass(frozen=True)
class Sgd:
    """SGD with momentum ``mu``: ``b <- mu b + g``, ``theta <- theta - lr b``."""

    momentum: float = 0.0

    def memory(self, theta: Tensor) -> Memory:
        """Return the initial momentum buffer ``b``, which is zero: the first step is plain SGD."""
        return {"momentum": torch.zeros_like(theta)}

    def __call__(self, theta: Tensor, grad: Tensor, lr: Tensor, memory: Memory) -> None:
        """Update ``theta`` and ``memory`` in place.

        ``grad`` has the shape of ``theta``; ``lr`` is ``[K]``.
        """
        buffer = memory["momentum"]
        torch.add(grad, buffer, alpha=self.momentum, out=buffer)
        theta.addcmul_(lr.unsqueeze(-1), buffer, value=-1)


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba, 2015), with the defaults of ``torch.optim.Adam``."""

    def memory(self, theta: Tensor) -> Memory:
        """Return the initial state: means of the gradient and its square, and the step count."""
        zeros, taken = torch.zeros_like, theta.new_zeros(theta.shape[:-1])
        return {"momentum": zeros(theta), "squares": zeros(theta), "taken": taken}

    def __call__(self, theta: Tensor, grad: Tensor, lr: Tensor, memory: Memory) -> None:
        """Update ``theta`` and ``memory`` in place, as :class:`Sgd` does."""
        first, second, eps = 0.9, 0.999, 1e-8
        taken, mean, squares = memory["taken"][..., None], memory["momentum"], memory["squares"]
        # The step count is a tensor: a CUDA graph would replay a Python number unchanged.
        taken.add_(1)
        mean.lerp_(grad, 1 - first)
        squares.mul_(second).addcmul_(grad, grad, value=1 - second)
        # The divisors correct the bias of means that start at 0 (section 3 of the paper).
        root = (squares / (1 - second**taken)).sqrt_().add_(eps)
        theta.sub_(lr.unsqueeze(-1) / (1 - first**taken) * mean / root)


@dataclass(frozen=True)
class Gsam:
    """GSAM: surrogate-gap minimisation with adaptive perturbation (FTD, section 3.3).

    ``g`` is the gradient at ``theta``, and ``g'`` is the gradient of the same batch at the nearby
    point ``theta + rho theta^2 g / | |theta| g |``. The expert steps along ``g' - alpha v``, where
    ``v`` is the component of ``g`` orthogonal to ``g'``.
    """

    rho: float
    alpha: float

    def nearby(self, theta: Tensor, grad: Tensor) -> Tensor:
        """Return the nearby point at which to take ``g'``."""
        scale = self.rho / (_norm(theta.abs() * grad) + _TINY)
        return theta + scale * theta.square() * grad

    def direction(self, grad: Tensor, there: Tensor) -> Tensor:
        """Return ``g' - alpha v`` from ``g`` and ``g'``."""
        length = _norm(there)
        # cos(g, g') |g|: length of the component of g along g'.
        along = (grad * there).sum(-1, keepdim=True) / (length + _TINY)
        orthogonal = grad - along / (length + _TINY) * there
        return there - self.alpha * orthogonal


def _norm(vectors: Tensor) -> Tensor:
    """Return the norm of each expert's vector: ``[K, 1]`` for ``[K, P]``."""
    return vectors.norm(dim=-1, keepdim=True)


@dataclass(frozen=True)
class GradientPenalty:
    """AST's gradient penalty ``weight * mean (|G| - 1)^2`` with ``G = d(sum of all logits) / dx``.

    ``x`` is the batch without augmentation. The norm ``|G|`` is over the channels of each pixel
    (``"pixel"``, as in the authors' code) or over each image (``"image"``, the usual choice).
    """

    weight: float
    norm: Literal["pixel", "image"] = "pixel"

    def gradient(self, model: nn.Module, theta: Tensor, images: Tensor) -> Tensor:
        """Return the gradient of the penalty with respect to ``theta [P]``.

        For ``K`` experts, ``theta`` is ``[K, P]`` and ``images`` are ``[K, B, C, H, W]``.
        """
        # With P = d penalty / d G held constant, d penalty / d theta = d sum(P G) / d theta.
        # sum(P G) is the derivative of the logit sum when the images move along P. Exchanging the
        # two derivatives gives one JVP: the change of the logit sum's theta-gradient when the
        # images move along P.
        slope = ops.image_gradient(model, theta, images, None, loss="sum_logits")
        pull = self._pull(slope)
        jvp = ops.gradient_jvp(model, theta, images, None, image_tangent=pull, loss="sum_logits")
        return jvp.grad_theta

    def _pull(self, slope: Tensor) -> Tensor:
        """Return ``d penalty / d G``, in the shape of ``G``, ``[B, C, H, W]`` of each expert."""
        over = (-3,) if self.norm == "pixel" else (-3, -2, -1)
        norms = torch.linalg.vector_norm(slope, dim=over, keepdim=True)
        # The norm has no derivative at G = 0; use 0 there instead of 0 / 0.
        unit = torch.where(norms > 0, slope / norms, torch.zeros_like(slope))
        return 2 * self.weight / math.prod(norms.shape[-4:]) * (norms - 1) * unit


@dataclass(frozen=True)
class ExpertState:
    """State of an expert in training: parameters ``[P]``, optimiser state, buffers ``[Q]``.

    For ``K`` experts, each tensor is ``[K, ...]``. ``state[k]`` and ``state[i:j]`` are views: the
    states of some of the experts, in the same memory.
    """

    theta: Tensor
    memory: Memory
    statistics: Tensor

    @classmethod
    def begin(
        cls, model: nn.Module, optimiser: Sgd | Adam, draws: Iterable[torch.Generator]
    ) -> "ExpertState":
        """Return the state of experts before the first step, each initialised by a generator."""
        starts = []
        for draw in draws:
            networks.initialise(model, draw)
            starts.append((networks.flat_parameters(model), networks.flat_buffers(model)))
        theta, statistics = map(torch.stack, zip(*starts, strict=True))
        return cls(theta, optimiser.memory(theta), statistics.to(theta.device))

    def __getitem__(self, index: int | slice) -> "ExpertState":
        memory = {name: each[index] for name, each in self.memory.items()}
        return ExpertState(self.theta[index], memory, self.statistics[index])

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name, for checkpoints."""
        return {"theta": self.theta, **self.memory, "statistics": self.statistics}

    def restart_optimiser(self) -> None:
        """Set the optimiser's state to zero."""
        for memory in self.memory.values():
            memory.zero_()


class Batch(NamedTuple):
    """Inputs of one step of ``K`` experts, on the device of the images.

    ``indices [K, B]``, int64, choose the images. ``dsa [K, B, 5]``, float64, are their parameters
    for :func:`trajmatch.ops.dsa`; ``[K, B, 0]`` without augmentation. ``lr`` and ``loss_scale``,
    the factor of the loss (AST: ``c_e``), are ``[K]``, float32. A batch for ``S`` steps has the
    same tensors with a leading dimension ``S``.
    """

    indices: Tensor
    dsa: Tensor
    lr: Tensor
    loss_scale: Tensor


@dataclass(frozen=True)
class ExpertStep:
    """Training step of several experts on real images: normalise, augment, differentiate, update.

    On the engine the experts share the launches of its CUDA kernels; with batch norms they run one
    after another. ``images [n, C, H, W]`` are uint8, or float32 if whitened. ``labels`` are classes
    ``[n]``, int64, or targets ``[n, D]``, float32. A step ignores the parameters of ``model`` and
    overwrites its buffers. ``penalty`` is AST's gradient penalty; ``gsam`` flattens the trajectory
    as in FTD. ``weight_decay`` is added to the gradient where the mask ``trainable [P]`` is 1; None
    is 1 everywhere.
    """

    model: nn.Module
    images: Tensor
    labels: Tensor
    normalise: Normalise
    optimiser: Sgd | Adam = field(default_factory=Sgd)
    penalty: GradientPenalty | None = None
    gsam: Gsam | None = None
    loss: str = "cross_entropy"
    weight_decay: float = 0.0
    trainable: Tensor | None = None

    def __call__(self, state: ExpertState, batch: Batch) -> Tensor:
        """Take a step: change ``state`` in place and return the losses before the change, [K]."""
        theta, has_statistics = state.theta, state.statistics.numel() > 0
        if has_statistics and len(theta) > 1:
            # The model holds the running statistics of one expert.
            alone = [slice(k, k + 1) for k in range(len(theta))]
            steps = [self(state[own], Batch(*(each[own] for each in batch))) for own in alone]
            return torch.cat(steps)
        experts = batch.indices.shape[:2]
        plain = self.normalise(self.images[batch.indices.flatten()])
        rows = batch.dsa.flatten(0, 1)
        augmented = ops.dsa(plain, rows) if rows.shape[1] > 0 else plain
        plain, shown = plain.unflatten(0, experts), augmented.unflatten(0, experts)
        labels = self.labels[batch.indices]
        # The state owns the running statistics: checkpoints and recording restore only the state.
        if has_statistics:
            networks.load_flat_buffers(self.model, state.statistics[0])

        def gradients(theta: Tensor, counts: bool = False) -> tuple[Tensor, Tensor]:
            if has_statistics:
                at = (self.model, theta[0], shown[0], labels[0], self.loss)
                losses, grads = (each[None] for each in ops.gradient(*at, update_buffers=counts))
            else:
                losses, grads = ops.gradient(self.model, theta, shown, labels, self.loss)
            grads = grads * batch.loss_scale[:, None]
            # The penalty is not multiplied by loss_scale, and its images are not augmented.
            if self.penalty is not None:
                grads = grads + self.penalty.gradient(self.model, theta, plain)
            return losses, grads

        # Only the first gradient updates the running statistics; GSAM's second one does not.
        losses, grads = gradients(theta, counts=True)
        if self.gsam is not None:
            _, there = gradients(self.gsam.nearby(theta, grads))
            grads = self.gsam.direction(grads, there)
        if self.weight_decay:
            grads = decayed(grads, theta, self.weight_decay, self.trainable)
        self.optimiser(theta, grads, batch.lr, state.memory)
        if has_statistics:
            state.statistics[0].copy_(networks.flat_buffers(self.model))
        return losses


def step_of(
    model: nn.Module, training: Dataset, recipe: dict[str, Any], device: str | torch.device
) -> ExpertStep:
    """Build the training step that a store's ``recipe`` describes."""
    optimiser = Adam() if recipe["optimiser"] == "adam" else Sgd(recipe["momentum"])
    weight, rho = recipe["penalty"], recipe["rho"]
    penalty = GradientPenalty(weight, recipe["penalty_norm"]) if weight else None
    gsam = Gsam(rho, recipe["alpha"]) if rho else None
    # Images are kept on the device as uint8 and normalised per batch. Whitened images are float32.
    images, normalise = training.preprocessing.staged(training.train_images.to(device))
    labels, loss = training.train_answers.to(device), training.loss
    decay = recipe["weight_decay"], networks.trainable(model)
    return ExpertStep(model, images, labels, normalise, optimiser, penalty, gsam, loss, *decay)


#: Function that takes ``S`` steps with every expert. It gets their :class:`Batch`, and returns the
#: sum of all images' losses, each before the change of its step: ``[K]``, float64.
TakeSteps = Callable[[Batch], Tensor]


def steps_at_once(device: torch.device) -> int:
    """Return the number of steps to take in one call: 16 on a CUDA device, as one graph, else 1."""
    return 16 if device.type == "cuda" else 1


def steps_for(
    step: ExpertStep,
    state: ExpertState,
    device: torch.device,
    record: recording.Record | None = None,
) -> TakeSteps:
    """Return a function that takes steps with every expert and changes ``state`` in place.

    On a CUDA device it records the steps as a CUDA graph and replays it; elsewhere it runs them
    eagerly. If ``record`` is given, that function records the steps instead, on any device.
    """

    def function(tensors: recording.Inputs) -> recording.Outputs:
        batches = map(Batch, *(each.unbind() for each in tensors))
        losses = [step(state, batch) * batch.indices.shape[1] for batch in batches]
        return (torch.stack(losses).sum(0, dtype=torch.float64),)

    if device.type == "cuda":
        record = record or partial(recording.cuda_graph, device=device)
    if record is None:
        return lambda batch: function(batch)[0]
    # Three recordings: several steps, one step, and the last of an epoch, which may be smaller.
    # Recording runs real steps; the state is restored afterwards.
    ways = partial(ways_to_measure, step.model, device)
    replayed = recording.Replayed(
        "the experts' steps run", lower="--workers", keep=3, record=record, ways=ways
    )
    return lambda batch: replayed(None, batch, function, [*state.tensors().values()])[0]
