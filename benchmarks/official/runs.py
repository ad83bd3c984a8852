"""Runs of a published program, each in a process of its own."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bench.process import in_process
from torch import Tensor

from official import stand_ins
from official.recorder import Recorder
from trajmatch.children import Emit, Job
from trajmatch.errors import UserError
from trajmatch.experts import Store


@dataclass(frozen=True)
class Program:
    """A published program.

    Attributes:
        name: Method.
        script: Path of its script below the checkout.
        utils: Module with ``DiffAugment`` and ``evaluate_synset``.
        batch_train: Batch size of its evaluation.
        soft: It learns target logits.
        arguments: Function of the common settings and a folder for files; returns ``sys.argv``.
    """

    name: str
    script: str
    utils: str
    batch_train: int
    soft: bool
    arguments: Callable[[Mapping[str, Any], Path], list[str]]


def _mtt_arguments(settings: Mapping[str, Any], folder: Path) -> list[str]:
    return [f"--{name}={value}" for name, value in settings.items()]


def _datm_arguments(settings: Mapping[str, Any], folder: Path) -> list[str]:
    given = {
        "subset": "imagenette",
        "eval_mode": "S",
        "batch_real": 256,
        "batch_train": 128,
        "pix_init": "samples_predicted_correctly",
        "dsa": True,
        "dsa_strategy": "color_crop_cutout_flip_scale_rotate",
        "min_start_epoch": 0,
        "zca": False,
        "load_all": False,
        "no_aug": False,
        "max_files": None,
        "max_experts": None,
        "force_save": False,
        "lr_y": 2.0,
        "Momentum_y": 0.9,
        "project": "none",
        "threshold": 1.0,
        "Sequential_Generation": False,
        "skip_first_eva": False,
        "parall_eva": True,  # False asks for a GPU
        "device": [0],
        "Initialize_Label_With_Another_Model": False,
        "Label_Model_Timestamp": -1,
        **settings,
    }
    path = folder / "datm.yaml"
    path.write_text(json.dumps(given), encoding="utf-8")
    return [f"--cfg={path}"]


PROGRAMS = (
    Program("DATM", "distill/DATM.py", "utils.utils_baseline", 128, True, _datm_arguments),
    Program("MTT", "distill.py", "utils", 256, False, _mtt_arguments),
)


def program_of(checkout: Path) -> Program:
    """Return the program that a checkout holds.

    Raises:
        UserError: It holds none.
    """
    for program in PROGRAMS:
        if (checkout / program.script).is_file() and (checkout / "reparam_module.py").is_file():
            return program
    wanted = " or ".join(f"{each.script} ({each.name})" for each in PROGRAMS)
    raise UserError(f"{checkout} should be a checkout with {wanted} and reparam_module.py")


def run_program(
    checkout: Path, settings: Mapping[str, Any], folder: Path, **job: Any
) -> dict[str, Any]:
    """Run a published program and return its records: those of a Recorder, and ``outer``.

    Args:
        checkout: Where it is.
        settings: Its settings.
        folder: Where it works; it writes files there.
        job: ``experts`` (a store), ``data``, ``tested`` (number of test images), ``dtype`` and
            ``details`` as of :class:`official.recorder.Recorder`.
    """
    arguments = program_of(checkout).arguments(settings, folder)
    return _called(_distilling, checkout, folder, {"arguments": arguments, **job})


def evaluate_by_program(
    checkout: Path, distilled: Mapping[str, Tensor], folder: Path, **job: Any
) -> list[float]:
    """Return the accuracies (percent) of a set by a published program's own evaluation.

    Args:
        checkout: Where the program is.
        distilled: ``images``, ``labels`` and ``step_size``.
        folder: Where it works.
        job: As for :func:`run_program`, and ``model``, ``networks`` and ``epochs``.
    """
    torch.save(dict(distilled), folder / "set.pt")
    records = _called(_evaluating, checkout, folder, {"details": False, **job})
    return [each["accuracy"] for each in records["evaluations"]]


def _called(
    function: Callable[[Job, Emit], None], checkout: Path, folder: Path, job: Job
) -> dict[str, Any]:
    places = {"checkout": str(checkout.resolve()), "folder": str(folder.resolve())}
    for _ in in_process(function, {**job, **places}):
        pass
    records: dict[str, Any] = torch.load(folder / "records.pt", weights_only=True)
    return records


def _prepared(job: Job) -> tuple[Program, Recorder, Any]:
    """Install stand-ins and recorder in this process; return the program's utilities too."""
    checkout = Path(job["checkout"])
    program, recorder = program_of(checkout), Recorder(job["details"])
    store = Store.open(job["experts"])
    dataset = store.training_set(store.load_data(job["data"])[0])[0]
    stand_ins.install(recorder.on_log, dataset, job["tested"])
    stand_ins.compute_in(getattr(torch, job["dtype"]))
    sys.path[:0] = [str((checkout / program.script).parent), str(checkout)]
    utils = importlib.import_module(program.utils)
    recorder.install(utils, importlib.import_module("reparam_module"))
    os.chdir(job["folder"])
    return program, recorder, utils


def _written(recorder: Recorder) -> None:
    outer = {name: each.detach().clone() for name, each in recorder.outer.items()}
    records = {"matches": recorder.matches, "evaluations": recorder.evaluations, "outer": outer}
    torch.save(records, "records.pt")


def _distilling(job: Job, emit: Emit) -> None:
    program, recorder, _ = _prepared(job)
    script = str(Path(job["checkout"]) / program.script)
    sys.argv = [script, *job["arguments"]]
    with _to_log():
        runpy.run_path(script, run_name="__main__")
    _written(recorder)


def _evaluating(job: Job, emit: Emit) -> None:
    program, recorder, utils = _prepared(job)
    distilled = torch.load("set.pt")
    arguments = types.SimpleNamespace(
        dataset="CIFAR10",
        device="cuda" if torch.cuda.is_available() else "cpu",
        zca=False,
        dsa=True,
        dsa_strategy="color_crop_cutout_flip_scale_rotate",
        dsa_param=utils.ParamDiffAug(),
        dc_aug_param=None,
        lr_net=float(distilled["step_size"]),
        epoch_eval_train=job["epochs"],
        batch_train=program.batch_train,
        parall_eva=True,
    )
    loss = {"train_criterion": _soft_cross_entropy} if program.soft else {}
    with _to_log():
        channels, size, classes, *_, loader, _, _, _ = utils.get_dataset(
            "CIFAR10", ".", args=arguments
        )
        for number in range(job["networks"]):
            net = utils.get_network(job["model"], channels, classes, size)
            at = (number, net, distilled["images"], distilled["labels"], loader, arguments)
            utils.evaluate_synset(*at, **loss)
    _written(recorder)


@contextlib.contextmanager
def _to_log() -> Iterator[None]:
    """Write what the program prints to a file beside its records."""
    with (
        open("program.log", "a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        yield


def _soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits, targets.softmax(1))
