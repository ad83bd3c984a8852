"""Steps of expert training, ours beside the plain PyTorch loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench.agreement import relative
from bench.program import Row, compared
from trajmatch import networks
from trajmatch.data import Dataset
from trajmatch.data.dsa import DSA
from trajmatch.experts.config import TrainingSettings
from trajmatch.experts.trajectory import train_lockstep
from trajmatch.random import generator
from trajmatch.schema import settings_of

#: What experts are trained with: as in MTT, FTD and AST.
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gsam": {"rho": 0.01, "alpha": 0.3},
    "penalty": {"penalty": 2.0},
}

#: Largest relative difference of the parameters that both reach, in float32 after a few steps.
TOLERANCE = {"cpu": 1e-3, "cuda": 5e-2}


def measure_expert(
    width: int,
    batch: int = 256,
    steps: int = 4,
    *,
    dsa: str = "none",
    kind: str = "plain",
    device: str = "cpu",
    rounds: int = 5,
    threads: int | None = None,
    image_size: int = 32,
    depth: int = 3,
) -> Row:
    """Time an epoch of an expert's training beside the same epoch in eager PyTorch.

    Both normalise, augment and train on the same images in the same order from the same
    initialisation; the eager loop runs in both memory layouts.

    Args:
        width: Channels of the ConvNet.
        batch: Images of a step.
        steps: Steps of the epoch.
        dsa: Augmentation, or ``"none"``.
        kind: One of :data:`KINDS`.
        device: Where to train.
        rounds: Timed rounds of each.
        threads: Threads on the CPU; None leaves them as they are.
        image_size: Side of the images in pixels.
        depth: Blocks of the ConvNet.

    Returns:
        :func:`bench.program.compared` of a step by ``trajmatch``, ``eager_nchw`` and
        ``eager_nhwc``, with the arguments, ``ratio`` of the faster eager layout over ours, and
        ``differences`` of the parameters reached.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        recipe = TrainingSettings(
            epochs=1, batch_size=batch, momentum=0.9, weight_decay=5e-4, dsa=dsa, **KINDS[kind]
        )
        manifest = {
            "network": networks.ConvNet(3, 10, image_size, width=width, depth=depth).spec(),
            "recipe": settings_of(recipe, TrainingSettings),
            "seed": 0,
            "snapshots": [1],
        }
        images = _images(batch * steps, image_size)
        functions: dict[str, Callable[[], Tensor]] = {
            "trajmatch": lambda: train_lockstep(manifest, images, [0], device)[0].snapshots[-1],
            "eager_nchw": lambda: eager_epoch(manifest, images, device, torch.contiguous_format),
            "eager_nhwc": lambda: eager_epoch(manifest, images, device, torch.channels_last),
        }
        reached = {name: function() for name, function in functions.items()}
        differences = {name: relative(reached["trajmatch"], end) for name, end in reached.items()}
        augmented = "no augmentation" if dsa == "none" else "DSA"
        row = compared(
            f"expert step, {kind}, width {width}, batch {batch}, {augmented}, "
            f"{threads or before} threads",
            functions,
            rounds,
            device,
            steps,
            width=width,
            batch=batch,
            dsa=dsa,
            kind=kind,
            threads=threads or before,
            differences=differences,
            agree=max(differences.values()) <= TOLERANCE[torch.device(device).type],
        )
    finally:
        torch.set_num_threads(before)
    return {**row, "ratio": min(row["ratios"].values())}


def eager_epoch(
    manifest: dict[str, Any], images: Dataset, device: str, layout: torch.memory_format
) -> Tensor:
    """The loop that everybody writes: a module, autograd and ``torch.optim.SGD``.

    Args:
        manifest: ``network``, ``recipe`` and ``seed`` as in the manifest of a store.
        images: What to train on.
        device: Where to train.
        layout: Memory format of images and weights.

    Returns:
        The parameters after an epoch. ``[P]``, on the CPU.
    """
    recipe, seed = manifest["recipe"], manifest["seed"]
    model = networks.build(manifest["network"])
    networks.initialise(model, generator(seed, "expert", 0, "initialisation"))
    model = _to(model, device, layout)
    augmentation, dsa = generator(seed, "expert", 0, "dsa"), DSA(recipe["dsa"])
    pixels, labels = images.train_images.to(device), images.train_labels.to(device)
    optimiser = torch.optim.SGD(
        model.parameters(),
        lr=recipe["lr"],
        momentum=recipe["momentum"],
        weight_decay=recipe["weight_decay"],
    )
    order = torch.randperm(len(labels), generator=generator(seed, "expert", 0, "order"))
    parameters = list(model.parameters())

    def gradients(shown: Tensor, plain: Tensor, target: Tensor) -> list[Tensor]:
        loss = cross_entropy(model(shown), target)
        if recipe["penalty"]:
            plain = plain.detach().requires_grad_()
            (slope,) = torch.autograd.grad(model(plain).sum(), plain, create_graph=True)
            loss = loss + recipe["penalty"] * (slope.norm(dim=1) - 1).square().mean()
        return list(torch.autograd.grad(loss, parameters))

    for batch in torch.split(order.to(device), recipe["batch_size"]):
        plain = images.normalise(pixels[batch]).contiguous(memory_format=layout)
        shown = dsa(plain, augmentation).contiguous(memory_format=layout)
        grads = gradients(shown, plain, labels[batch])
        if recipe["rho"]:
            again = partial(gradients, shown, plain, labels[batch])
            grads = _flattened(parameters, grads, recipe, again)
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad
        optimiser.step()
    return networks.flat_parameters(model).cpu()


def _flattened(
    parameters: list[nn.Parameter],
    grads: list[Tensor],
    recipe: dict[str, Any],
    gradients: Callable[[], list[Tensor]],
) -> list[Tensor]:
    """GSAM parameter by parameter, as optimisers in PyTorch have it (FTD, section 3.3)."""

    def inner(left: list[Tensor], right: list[Tensor]) -> Tensor:
        return torch.stack([(a * b).sum() for a, b in zip(left, right, strict=True)]).sum()

    with torch.no_grad():
        scaled = [parameter.abs() * grad for parameter, grad in zip(parameters, grads, strict=True)]
        factor = recipe["rho"] / (inner(scaled, scaled).sqrt() + 1e-12)
        moves = [
            factor * parameter.square() * grad
            for parameter, grad in zip(parameters, grads, strict=True)
        ]
        for parameter, move in zip(parameters, moves, strict=True):
            parameter.add_(move)
    there = gradients()
    with torch.no_grad():
        for parameter, move in zip(parameters, moves, strict=True):
            parameter.sub_(move)
        share = inner(grads, there) / (inner(there, there) + 1e-12)
        return [
            new - recipe["alpha"] * (old - share * new)
            for old, new in zip(grads, there, strict=True)
        ]


def _to(model: nn.Module, device: str, layout: torch.memory_format) -> nn.Module:
    # torch's own annotations know only some of the overloads of Module.to
    moved: nn.Module = model.to(device=device, memory_format=layout)  # type: ignore[call-overload]
    return moved


def _images(count: int, side: int) -> Dataset:
    """Random pixels of ten classes; a test set as small as it can be, since it is not timed."""
    draws = generator(0, "bench", "expert")
    pixels = torch.randint(0, 256, (count + 10, 3, side, side), generator=draws, dtype=torch.uint8)
    labels = torch.arange(count + 10) % 10
    return Dataset(
        name="random",
        train_images=pixels[:count],
        train_labels=labels[:count],
        test_images=pixels[count:],
        test_labels=labels[count:] - labels[count:].min(),
        class_names=tuple(map(str, range(10))),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )
