"""Speed-up of matches, experts and networks of an evaluation that run side by side."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from bench.agreement import ALL_STEPS, agreement, relative
from bench.expert import TOLERANCE
from bench.problem import make_problem
from bench.sizes import Size
from bench.variants import VARIANTS
from torch import Tensor

from gpu_stages.measure import measure
from gpu_stages.replays import record_for, replayed
from gpu_stages.settings import Record, Settings
from trajmatch import networks, random
from trajmatch.data import ChannelNormalisation
from trajmatch.experts.step import Batch, ExpertState, ExpertStep, steps_for
from trajmatch.protocol import Protocol
from trajmatch.training import train_networks

COUNTS = (1, 4)
#: Outer iterations, from one that leaves most of an H200 idle to one that fills it.
SIZES = [Size(32, 10, 20), Size(64, 10, 20), Size(128, 10, 20), Size(128, 100, 20)]
#: Experts' networks, with their batch in the place of the students', and steps in a call.
EXPERTS = [Size(32, 256, 32), Size(64, 256, 32), Size(128, 256, 32)]
#: Networks of an evaluation: ``batch`` is the number of images in the set, ``steps`` the number of
#: epochs.
NETWORKS = [Size(32, 10, 20), Size(128, 10, 20), Size(128, 100, 20)]
SMALLEST = [Size(4, 3, 3, depth=2, image_size=8)]


def run(settings: Settings, record: Record) -> None:
    """Time matches, experts and networks of an evaluation; record a fault if results differ."""
    table: dict[str, Any] = {}
    for size in SMALLEST if settings.quick else SIZES:
        name = f"matches, {size.key}"
        problem = make_problem(size, settings.device)
        alone = VARIANTS["trajmatch"](problem)
        for count in COUNTS:
            matches = replayed(problem, record_for(settings), count)
            _put(table, name, count, matches, settings, record)
            found = {f"match {number}": each for number, each in enumerate(matches())}
            agreed = agreement({"alone": alone, **found}, "alone", ALL_STEPS[settings.device])
            if not agreed["agree"]:
                record.fault(f"{name}, {count} at once: {agreed['differences']}")
    for size in [Size(4, 3, 4, depth=2, image_size=8)] if settings.quick else EXPERTS:
        # Two calls take all steps: the first one is not recorded, the second one is a replay.
        for steps, count in itertools.product((1, size.steps // 2), COUNTS):
            name = f"experts, {size.key}, graphs of {steps}"
            train = partial(experts, size, count, settings, steps)
            _put(table, name, count, train(replay=True), settings, record)
            ends = (train(replay=replay)() for replay in (True, False))
            off = max(relative(*pair) for pair in zip(*ends, strict=True))
            if not off <= TOLERANCE[settings.device]:
                record.fault(f"{name}, {count} at once: parameters are off by {off:.1e}")
    for size in SMALLEST if settings.quick else NETWORKS:
        name, (alone,) = f"networks, {size.key}", evaluated(size, 1, settings)()
        for count in COUNTS:
            train = evaluated(size, count, settings)
            _put(table, name, count, train, settings, record)
            off = abs(train()[0] - alone) / alone
            if not off <= TOLERANCE[settings.device]:
                first = f"the error of the first network is off by {off:.1e}"
                record.fault(f"{name}, {count} at once: {first}")


def experts(
    size: Size, count: int, settings: Settings, at_once: int, replay: bool
) -> Callable[[], list[Tensor]]:
    """Steps of experts on random images, from where the last call ended.

    Args:
        size: Their network, batch and steps.
        count: Experts.
        settings: Where they train.
        at_once: Steps that one CUDA graph takes.
        replay: Whether their steps are recorded, or called one after another.

    Returns:
        Takes the steps and gives the parameters of each.
    """
    draw, device = random.generator(0, "gpu_check", "lockstep"), settings.device
    side = size.image_size
    model = networks.ConvNet(3, size.num_classes, side, width=size.width, depth=size.depth)
    model.to(device)
    pixels = torch.randint(0, 256, (size.batch, 3, side, side), generator=draw, dtype=torch.uint8)
    step = ExpertStep(
        model,
        pixels.to(device),
        (torch.arange(size.batch) % size.num_classes).to(device),
        ChannelNormalisation((0.5,) * 3, (0.25,) * 3, device).apply,
    )
    state = ExpertState.begin(model, step.optimiser, [draw] * count)
    orders = [torch.randperm(size.batch, generator=draw) for _ in range(at_once * count)]
    batch = Batch(
        torch.stack(orders).unflatten(0, (at_once, count)).to(device),
        torch.empty(at_once, count, size.batch, 0, dtype=torch.float64, device=device),
        torch.full((at_once, count), 0.01, device=device),
        torch.ones(at_once, count, device=device),
    )
    where = torch.device(device if replay else "cpu")
    take = steps_for(step, state, where, record_for(settings) if replay else None)

    def loop() -> list[Tensor]:
        with torch.no_grad():
            for _ in range(size.steps // at_once):
                take(batch)
        return [*state.theta.clone()]

    return loop


def evaluated(size: Size, count: int, settings: Settings) -> Callable[[], list[float]]:
    """Return a function that trains networks of an evaluation on random images and targets.

    Args:
        size: Their network; ``batch`` is the number of images, ``steps`` the number of epochs.
        count: Networks.
        settings: Where they train.

    Returns:
        Function that trains them and returns the mean squared error of each on its training images.
    """
    draw, side = random.generator(0, "gpu_check", "networks"), size.image_size
    images = torch.randn(size.batch, 3, side, side, generator=draw)
    targets = torch.randn(size.batch, size.num_classes, generator=draw)
    network = networks.ConvNet(3, size.num_classes, side, width=size.width, depth=size.depth)
    protocol, tests = Protocol(epochs=size.steps), (images, targets)
    sets = [(images, targets, seed) for seed in range(count)]

    def train() -> list[float]:
        trained = train_networks(sets, network.spec(), protocol, tests, settings.device)
        return [outcome.accuracy for outcome in trained]

    return train


def _put(
    table: dict[str, Any],
    name: str,
    count: int,
    function: Callable[[], Any],
    settings: Settings,
    record: Record,
) -> None:
    times = measure(function, settings.device, 2 if settings.quick else 7, 2, longest=1.0)
    row = table.setdefault(name, {})
    row[str(count)] = {**times, "seconds_each": times["median"] / count}
    if "1" in row:
        row["ratio"] = row["1"]["seconds_each"] / row[str(count)]["seconds_each"]
    record.put("table", table)
    print(f"{name}, {count} at once: {1000 * times['median'] / count:.2f} ms each", flush=True)
