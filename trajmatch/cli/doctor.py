"""``trajmatch doctor``: what is installed, what was built, what runs where; a self-test.

With ``--network`` it looks at a network instead.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

from trajmatch import __version__
from trajmatch.cli.arguments import parse
from trajmatch.cli.doctor_network import examine_network, network_as_text
from trajmatch.cli.output import json_alone, print_json
from trajmatch.errors import UserError

PACKAGES = ("torch", "torchvision", "numpy", "safetensors")
DISPATCH_KEYS = ("CPU", "CUDA", "Meta", "Autograd")  # Meta: shapes only, for torch.compile


@dataclass(frozen=True)
class DoctorConfig:
    """Say what is installed and what was built, and test the operators for a few seconds."""

    json: bool = False
    """Print JSON instead of a text."""
    network: str | None = None
    """Look at this network instead: what runs each layer, and whether it can be a student."""
    data: str | None = None
    """Data set that the network is for, in place of the three sizes below."""
    image_size: int = 32
    """Side of the network's images in pixels."""
    channels: int = 3
    """Channels of the network's images."""
    classes: int = 10
    """Classes of the network."""

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            UserError: A size is not positive.
        """
        for field in ("image_size", "channels", "classes"):
            value = getattr(self, field)
            if value < 1:
                flag = "--" + field.replace("_", "-")
                raise UserError(f"{flag} should be at least 1, but is {value}")


def run(argv: Sequence[str]) -> int:
    """Runs the command; the status is 1 when the self-test or the network fails."""
    config = parse(DoctorConfig, argv, "trajmatch doctor")
    with json_alone(config.json):
        if config.network is None:
            report, text = examine(), as_text
        else:
            report, text = examine_network(config.network, *_sizes(config)), network_as_text
    if config.json:
        print_json(report, sort_keys=False)
    else:
        print(text(report))
    return 0 if report["passed"] else 1


def examine() -> dict[str, Any]:
    """Looks at this installation.

    Returns:
        What JSON can hold: ``versions``, ``devices``, ``faults`` (name of a GPU to the reason why
        it cannot be used), ``build`` (see :func:`trajmatch._extension.build_info`), ``operators``
        (name to dispatch keys with a kernel), ``self_test`` (a list of outcomes) and ``passed``.
    """
    import torch

    from trajmatch._extension import build_info
    from trajmatch.cli.selftest import run_cases
    from trajmatch.device import cuda_fault

    gpus = {f"cuda:{i}": cuda_fault(i) for i in range(torch.cuda.device_count())}
    usable = [name for name, fault in gpus.items() if fault is None]
    outcomes = run_cases(["cpu", *usable[:1]])
    return {
        "versions": {
            "trajmatch": __version__,
            "python": sys.version.split()[0],
            **{name: _version(name) for name in PACKAGES},
        },
        "devices": [
            f"CPU with {torch.get_num_threads()} threads",
            *(f"{name} ({torch.cuda.get_device_name(name)})" for name in usable),
        ],
        "faults": {name: str(fault) for name, fault in gpus.items() if fault is not None},
        "build": build_info(),
        "operators": operators(),
        "self_test": [asdict(outcome) | {"passed": outcome.passed} for outcome in outcomes],
        "passed": all(outcome.passed for outcome in outcomes),
    }


def operators() -> dict[str, list[str]]:
    """The registered operators, each with the dispatch keys that it has a kernel for."""
    import torch

    import trajmatch.ops  # noqa: F401 (registers them)
    from trajmatch._extension import missing_kernels

    # without CUDA kernels, what is registered for CUDA says so
    keys = [key for key in DISPATCH_KEYS if key != "CUDA" or missing_kernels() is None]
    namespace = "trajmatch::"
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith(namespace)]
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return {
        name.removeprefix(namespace): [key for key in keys if has_kernel(name, key)]
        for name in sorted(names)
    }


def as_text(report: dict[str, Any]) -> str:
    """The report for a reader."""
    build = report["build"]
    cuda = f"{build['cuda']} for {', '.join(build['architectures'])}" if build["cuda"] else "no"
    lines = [
        ", ".join(f"{name} {version}" for name, version in report["versions"].items()),
        f"devices: {', '.join(report['devices'])}",
        *(f"  {name} cannot be used: {fault}" for name, fault in report["faults"].items()),
        "",
        f"compiled with {build['compiler']}",
        f"  against torch {build['torch']}; runs with torch {build['torch_interface']} and later",
        f"  OpenMP: {'yes' if build['openmp'] else 'no'}; CUDA: {cuda}",
    ]
    for part in build["left_out"]:
        lines += [f"  left out: {part['what']}, because {part['why']}.", f"    {part['mend']}."]
    verdict = "All is well" + (", but for the GPU: see above." if report["faults"] else ".")
    return "\n".join(
        [
            *lines,
            "",
            *_operator_table(report["operators"]),
            "",
            *_self_test_table(report["self_test"]),
            "",
            verdict if report["passed"] else "The self-test FAILED: do not trust results.",
        ]
    )


def _operator_table(operators: dict[str, list[str]]) -> list[str]:
    width = max(map(len, operators), default=0)
    rows = [f"{'operator':{width}}  " + "  ".join(DISPATCH_KEYS)]
    for name, keys in operators.items():
        marks = ["x" if key in keys else "-" for key in DISPATCH_KEYS]
        columns = [f"{m:{len(key)}}" for m, key in zip(marks, DISPATCH_KEYS, strict=True)]
        rows.append(f"{name:{width}}  " + "  ".join(columns).rstrip())
    return rows


def _self_test_table(outcomes: list[dict[str, Any]]) -> list[str]:
    width = max(len(outcome["case"]) for outcome in outcomes)
    rows = [f"{'self-test':{width}}  device  relative error in float64"]
    for outcome in outcomes:
        verdict = "" if outcome["passed"] else "  FAILED"
        rows.append(
            f"{outcome['case']:{width}}  {outcome['device']:6}  {outcome['error']:.1e}{verdict}"
        )
    return rows


def _sizes(config: DoctorConfig) -> tuple[int, int, int]:
    """Channels, classes and image size that a network is to have."""
    if config.data is None:
        return config.channels, config.classes, config.image_size
    from trajmatch.data import load_dataset

    dataset = load_dataset(config.data)
    return dataset.channels, dataset.num_classes, dataset.image_size


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
