"""The scale that all methods share, and the settings that each paper adds to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

#: Outer iterations that the published decays and growths belong to.
_FTD_ITERATIONS, _DATM_ITERATIONS = 5000, 10000


@dataclass(frozen=True)
class Scale:
    """Settings that are the same for all methods.

    Attributes:
        experts: Fields of :class:`trajmatch.experts.ExpertConfig` for every kind of experts. A
            ``holdout`` leaves a class-balanced part of the training images for all methods; without
            it they see all.
        distill: Fields of :class:`trajmatch.distill.DistillConfig` for every method, by images per
            class; ``max_start_epoch`` is that of the published small windows.
        iterations: Outer iterations.
        seeds: Runs of every method, by images per class or the same for all; each has first
            images, batches and augmentation of its own.
        networks: Networks that are trained on the result of each run.
        eval_epochs: Epochs of each of them.
        real_lr: Step size of networks that are trained on real images, which learn none.
        checkpoint_every: Outer iterations after which the time is looked at.
    """

    experts: Mapping[str, Any]
    distill: Mapping[int, Mapping[str, Any]]
    iterations: int
    seeds: int | Mapping[int, int]
    networks: int
    eval_epochs: int
    real_lr: float
    checkpoint_every: int

    def seeds_at(self, ipc: int) -> int:
        """Return the number of runs at a number of images per class."""
        return self.seeds if isinstance(self.seeds, int) else self.seeds[ipc]


#: For CIFAR-10 on two cores; benchmarks/compare_methods.py has the arithmetic. What is smaller than
#: published: width 32 (128); 10 experts of 10 epochs (100 of 50 or 100), so that ten images per
#: class have start epochs 0 to 7 (0 to 19); 2,000 outer iterations (5,000 or 10,000) of 20 or 40
#: student steps (30 to 80).
CIFAR10 = Scale(
    experts={"width": 32, "num_experts": 10, "epochs": 10},
    distill={
        1: {
            "student_steps": 40,
            "max_start_epoch": 2,
            "lr_img": 100.0,
            "lr_lr": 1e-5,
            "lr_init": 0.01,
        },
        10: {
            "student_steps": 20,
            "batch_syn": 50,
            "max_start_epoch": 8,
            "lr_img": 100.0,
            "lr_lr": 1e-5,
            "lr_init": 0.01,
        },
    },
    iterations=2000,
    seeds=3,
    networks=3,
    eval_epochs=1000,
    real_lr=0.01,
    checkpoint_every=100,
)

#: The same with one run of every method at ten images per class, for the methods of the field.
CIFAR10_FIELD = replace(CIFAR10, seeds={1: 3, 10: 1})

#: ``CIFAR10`` with one run of each method, for methods that get the same time (half an hour on two
#: cores).
CIFAR10_EQUAL_TIME = replace(CIFAR10, seeds=1)

#: Kinds of experts, each made once: what differs from MTT's plain SGD.
EXPERTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "flat": {"rho": 0.01, "alpha": 0.3},
    "smooth": {
        "lr": 0.003,
        "momentum": 0.9,
        "weight_decay": 1e-3,
        "lr_decay": 0.6,
        "loss_scale": "rising",
        "penalty": 2.0,
    },
    # PAD's schedule of 100 epochs in ten: all images from epoch 2 on, the easiest left out from 5
    "curriculum": {
        "rho": 0.01,
        "alpha": 0.3,
        "curriculum": "0.75,2",
        "drop_easy": "4:0.1,6:0.2",
    },
}

#: Random and chosen real images of the same number.
REAL = ("random real", "k-center")
#: The same with soft labels: the mean logits of the plain experts that are right.
REAL_SOFT = tuple(f"{name}, soft" for name in REAL)


@dataclass(frozen=True)
class Method:
    """A method of trajectory matching.

    Attributes:
        experts: The kind of experts that it follows; None: it follows none, and takes no setting of
            the scale.
        fields: What it adds to a scale for so many images per class: fields of
            :class:`trajmatch.distill.DistillConfig`.
    """

    experts: str | None
    fields: Callable[[Scale, int], dict[str, Any]]


def _mtt(scale: Scale, ipc: int) -> dict[str, Any]:
    return {}


def _ftd(scale: Scale, ipc: int) -> dict[str, Any]:
    """The average of the images has the same share of the run: ``beta^iterations`` is as published.

    beta is 0.999, the paper's own default. The 0.9999 of its table for one image per class would
    leave 61 % of the weight on the real images that a run begins with.
    """
    return {"ema": 0.999 ** (_FTD_ITERATIONS / scale.iterations)}


def _ast(scale: Scale, ipc: int) -> dict[str, Any]:
    """Momentum lengthens the student's steps; its step size is as much smaller to begin with.

    A step size that is smaller by ``gain`` has a gradient that is larger by it, so that
    ``lr_lr / gain^2`` changes it at the same relative pace.
    """
    common, momentum = scale.distill[ipc], 0.9
    gain = heavy_ball_gain(common["student_steps"], momentum)
    return {
        "student_momentum": momentum,
        "lr_init": common["lr_init"] / gain,
        "lr_lr": common["lr_lr"] / gain**2,
        "init": "representative",
        "perturb": 1.0,
        "terms": ("final", "intermediate"),
        "balance": True,
    }


def _datm(scale: Scale, ipc: int) -> dict[str, Any]:
    """Windows as published: twice MTT's for one image per class, and growing from half for more."""
    common = scale.distill[ipc]
    single = ipc == 1
    window = (
        {"max_start_epoch": 2 * common["max_start_epoch"]}
        if single
        else {
            "first_max_start_epoch": common["max_start_epoch"] // 2,
            "growth_iterations": scale.iterations * 1000 // _DATM_ITERATIONS,
        }
    )
    return {
        **window,
        "init": "correct",
        "labels": "soft",
        "lr_label": 5.0 if single else 2.0,
        "momentum_label": 0.9,
        "skip_above": 1.1 if single else 1.0,
    }


def _parametrised(images: str, lr_img: float) -> Callable[[Scale, int], dict[str, Any]]:
    """MTT on a parametrised set: 50 images in a student step at most, as MTT has for 10 per class.

    The learning rate is the best of two or three for one image per class, by one network after 200
    to 300 iterations.
    """

    def fields(scale: Scale, ipc: int) -> dict[str, Any]:
        return {"images": images, "lr_img": lr_img, "batch_syn": 50}

    return fields


def _att(scale: Scale, ipc: int) -> dict[str, Any]:
    return {"terms": ("automatic",)}


def _pad(scale: Scale, ipc: int) -> dict[str, Any]:
    """DATM on experts of a curriculum; the deep half of the parameters, but for one image (PAD)."""
    return {**_datm(scale, ipc), **({} if ipc == 1 else {"terms": ("deep:0.5",)})}


def _edf(scale: Scale, ipc: int) -> dict[str, Any]:
    """DATM with a mask of the gradient, and for more than one image without a quarter of entries.

    The settings are those published for ImageNette.
    """
    mask = {"mask_gradient": 1.0, "mask_every": 50 if ipc == 1 else 100}
    return {**_datm(scale, ipc), **mask, **({} if ipc == 1 else {"terms": ("dropout:0.25",)})}


def _long_mtt(scale: Scale, ipc: int) -> dict[str, Any]:
    return {"iterations": {1: 22500, 10: 9000}[ipc]}


def _train_and_test(scale: Scale, ipc: int) -> dict[str, Any]:
    """RaT-BPTT, with windows of 40 steps after 0 to 60 steps and 1,000 real images a batch.

    The published settings are windows of 60 of 200 steps, and 5,000 images. The student trains as
    the networks of the evaluation do, by SGD with momentum, and the step size is fixed (as in the
    paper).
    """
    return {
        "objective": "train-and-test",
        "width": scale.experts["width"],
        "iterations": {1: 10000, 10: 3000}[ipc],
        "window": 40,
        "steps_before": "0:60",
        "real_batch": 1000,
        "batch_syn": 50,
        "student_momentum": 0.9,
        "lr_img": 0.005,
        "lr_init": 0.01,
        "lr_lr": 0.0,
    }


#: The four papers' methods.
PAPERS = {
    "MTT": Method("plain", _mtt),
    "FTD": Method("flat", _ftd),
    "AST": Method("smooth", _ast),
    "DATM": Method("flat", _datm),
}

#: What came after them, and MTT and DATM to compare with.
FIELD = {
    "MTT": PAPERS["MTT"],
    "MTT, flip": Method("plain", _parametrised("flip", 100.0)),
    "MTT, upsample": Method("plain", _parametrised("upsample:factor=2", 500.0)),
    "MTT, frequency": Method("plain", _parametrised("frequency:coefficients=64", 1000.0)),
    "MTT, implicit": Method("plain", _parametrised("implicit:width=6", 3e-4)),
    "MTT, palette": Method("plain", _parametrised("palette:colours=16", 100.0)),
    "ATT": Method("plain", _att),
    "DATM": PAPERS["DATM"],
    "PAD": Method("curriculum", _pad),
    "EDF": Method("flat", _edf),
}

#: An objective without experts, and MTT for the same time.
EQUAL_TIME = {
    "MTT, long": Method("plain", _long_mtt),
    "train-and-test": Method(None, _train_and_test),
}
METHODS = {**PAPERS, **FIELD, **EQUAL_TIME}


def experts_of(methods: Mapping[str, Method]) -> dict[str, dict[str, Any]]:
    """Return the kinds of experts that methods follow; plain ones, always, choose real images."""
    kinds = {"plain", *(method.experts for method in methods.values())}
    return {kind: fields for kind, fields in EXPERTS.items() if kind in kinds}


def distill_fields(method: str, scale: Scale, ipc: int) -> dict[str, Any]:
    """Return all fields that decide a method's result, but for seed and places."""
    chosen = METHODS[method]
    if chosen.experts is None:
        return {"ipc": ipc, **chosen.fields(scale, ipc)}
    return {
        "ipc": ipc,
        "iterations": scale.iterations,
        "expert_epochs": 2,
        **scale.distill[ipc],
        **chosen.fields(scale, ipc),
    }


def heavy_ball_gain(steps: int, momentum: float) -> float:
    """Return how much further equal gradients move SGD with momentum than without.

    After ``N`` steps ``sum_i (1 - mu^(i+1)) / (1 - mu) / N``, for ``i`` from 0 to ``N - 1``.
    """
    return sum((1 - momentum ** (i + 1)) / (1 - momentum) for i in range(steps)) / steps
