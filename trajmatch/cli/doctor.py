"""`trajmatch doctor`: reports on the installation or, with ``--network``, on a network."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

from trajmatch import __version__
from trajmatch.cli.arguments import parse
from trajmatch.cli.output import aligned, json_alone, print_json
from trajmatch.errors import as_user_error
from trajmatch.schema import PositiveInt, Settings

PACKAGES = ("torch", "torchvision", "numpy", "safetensors")
DISPATCH_KEYS = ("CPU", "CUDA", "Meta", "Autograd")  # Meta: shapes only, for torch.compile


@dataclass(frozen=True)
class DoctorConfig(Settings):
    """Report the installation and the build, and test the operators (a few seconds)."""

    json: bool = False
    """Print JSON instead of a text."""
    network: str | None = None
    """Examine this network instead: how each layer runs, and if the network can be a student."""
    data: str | None = None
    """Take image size, channels and classes from this data set."""
    image_size: PositiveInt = 32
    """Side of the network's images in pixels."""
    channels: PositiveInt = 3
    """Channels of the network's images."""
    classes: PositiveInt = 10
    """Classes of the network."""


def run(argv: Sequence[str]) -> int:
    """Run the command; return 1 if the self-test fails or the network cannot be distilled."""
    config = parse(DoctorConfig, argv, "trajmatch doctor")
    with json_alone(config.json):
        if config.network is None:
            report, text = examine(), as_text
        else:
            report, text = examine_network(config), network_as_text
    if config.json:
        print_json(report, sort_keys=False)
    else:
        print(text(report))
    return 0 if report["passed"] else 1


def examine() -> dict[str, Any]:
    """Run the self-test and return a report on this installation, as JSON values.

    Keys: ``versions``, ``devices``, ``faults`` (the reason for each unusable GPU), ``build`` (see
    :func:`trajmatch._extension.build_info`), ``operators`` (see :func:`operators`), ``self_test``
    (see :func:`trajmatch.cli.selftest.run_cases`) and ``passed``.
    """
    import torch

    from trajmatch._extension import build_info
    from trajmatch.cli.selftest import run_cases
    from trajmatch.device import cuda_fault

    gpus = {f"cuda:{i}": cuda_fault(i) for i in range(torch.cuda.device_count())}
    usable = [name for name, fault in gpus.items() if fault is None]
    # Test one GPU only, so that the self-test takes a few seconds.
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
        "self_test": outcomes,
        "passed": all(outcome["passed"] for outcome in outcomes),
    }


def _version(package: str) -> str:
    """Return the installed release of a package, or ``not installed``."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def operators() -> dict[str, list[str]]:
    """Return the dispatch keys for which each registered operator has a kernel."""
    import torch

    import trajmatch.ops  # noqa: F401 (registers them)
    from trajmatch._extension import missing_kernels

    # A build without CUDA kernels registers functions for CUDA that only raise an error.
    keys = [key for key in DISPATCH_KEYS if key != "CUDA" or missing_kernels() is None]
    namespace = "trajmatch::"
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith(namespace)]
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return {
        name.removeprefix(namespace): [key for key in keys if has_kernel(name, key)]
        for name in sorted(names)
    }


def as_text(report: dict[str, Any]) -> str:
    """Return the report of :func:`examine` as text."""
    build = report["build"]
    cuda = f"{build['cuda']} for {', '.join(build['architectures'])}" if build["cuda"] else "no"
    left_out = (
        f"  left out: {part['what']}, because {part['why']}.\n    {part['mend']}."
        for part in build["left_out"]
    )
    operators = [("operator", *DISPATCH_KEYS)]
    for name, keys in report["operators"].items():
        operators.append((name, *("x" if key in keys else "-" for key in DISPATCH_KEYS)))
    self_test = [("self-test", "device", "relative error in float64", "")]
    for each in report["self_test"]:
        failed = "" if each["passed"] else "FAILED"
        self_test.append((each["case"], each["device"], f"{each['error']:.1e}", failed))
    verdict = "All is well."
    if report["faults"]:
        verdict = "All tests passed, but a GPU cannot be used (see above)."
    return "\n".join(
        [
            ", ".join(f"{name} {version}" for name, version in report["versions"].items()),
            f"devices: {', '.join(report['devices'])}",
            *(f"  {name} cannot be used: {fault}" for name, fault in report["faults"].items()),
            "",
            f"compiled with {build['compiler']}",
            f"  against torch {build['torch']}; runs with {build['torch_interface']} and later",
            f"  OpenMP: {'yes' if build['openmp'] else 'no'}; CUDA: {cuda}",
            *left_out,
            f"\n{aligned(*operators)}\n\n{aligned(*self_test)}\n",
            verdict if report["passed"] else "The self-test FAILED: do not trust results.",
        ]
    )


def examine_network(config: DoctorConfig) -> dict[str, Any]:
    """Check a network as a student and return a report, as JSON values.

    Keys: ``network`` (the spec), ``parameters``, ``runs_by`` (see
    :func:`trajmatch.ops.engine_for`), ``layers`` and ``passed``. A layer has ``name``, ``type``,
    ``parameters``, ``runs`` (``"engine"``, ``"autograd"`` or ``"not twice differentiable"``) and
    ``obstacle`` (the reason, or None). Raises UserError if the network does not exist, does not run
    on images of this size, or draws random numbers.
    """
    from trajmatch import networks, ops
    from trajmatch.data import load_dataset

    channels, classes, size = config.channels, config.classes, config.image_size
    if config.data is not None:
        given = load_dataset(config.data)
        channels, classes, size = given.channels, given.num_classes, given.image_size
    with as_user_error(f"--network {config.network}: "):
        spec = networks.specify(config.network or "", channels, classes, size)
        model = networks.build_student(spec)
        layers = networks.examine(model, (channels, size, size))
    engine = ops.engine_for(model)
    return {
        "network": spec,
        "parameters": networks.num_parameters(model),
        "runs_by": engine,
        "layers": [
            {**asdict(each), "runs": "not twice differentiable" if each.obstacle else engine}
            for each in layers
        ],
        "passed": all(layer.obstacle is None for layer in layers),
    }


def network_as_text(report: dict[str, Any]) -> str:
    """Return the report of :func:`examine_network` as text."""
    spec = report["network"]
    options = ", ".join(f"{name} {value}" for name, value in spec.items() if name != "name")
    rows = [("layer", "type", "parameters", "runs by")]
    for layer in report["layers"]:
        why = f": {layer['obstacle']}" if layer["obstacle"] else ""
        size = f"{layer['parameters']:10,}"
        rows.append((layer["name"] or "(all)", layer["type"], size, layer["runs"] + why))
    verdict = (
        "It can be used as expert, student and evaluation network; its steps are run by: "
        f"{report['runs_by']}."
        if report["passed"]
        else "It can be an evaluation network, but not an expert or student: replace the layers "
        "that are not twice differentiable."
    )
    head = f"{spec['name']}: {options}; {report['parameters']:,} parameters"
    return f"{head}\n\n{aligned(*rows)}\n\n{verdict}"
