"""Every operator on the device against the CPU build and against float64.

The exact result is that of :mod:`trajmatch.reference` in float64. An error is the largest of
``|result - exact| / |exact|`` over the results of a case; eager PyTorch's own error on the device
stands beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from bench.operators import Case, Operators, cases
from torch import Tensor

from gpu_stages.measure import changed
from gpu_stages.settings import Record, Settings
from trajmatch import networks, ops, reference

FLOAT64_BOUND = 1e-9
#: Of operators that are one pass: what tests of float32 allow, or twice eager PyTorch's error.
FLOAT32_BOUND = 1e-4
#: Of a network in float32. An input of a ReLU near zero falls on the other side in one of two
#: correct computations, which was seen to move a gradient by up to 5e-3; a wrong kernel, by 1.
NETWORK_BOUND = 2e-2
#: The same with TF32 convolutions, whose rounding moves gradients by 3e-2.
TF32_BOUND = 1e-1

#: Width, depth, image size and batch of the networks.
NETWORKS = [(32, 3, 32, 10), (128, 3, 32, 10)]
SMALLEST = [(4, 2, 8, 3)]


def run(settings: Settings, record: Record) -> None:
    """Run all cases, in float64 and float32; an error beyond its bound is a fault."""
    for case in cases(settings.quick, SMALLEST if settings.quick else NETWORKS):
        entry = compare(case, settings.device)
        record.put(case.name, entry)
        for name, bound in entry["bounds"].items():
            error = entry["errors"][name]
            if not error <= bound:  # NaN is a fault as well
                record.fault(f"{case.name}, {name}: relative error {error:.1e}, above {bound:.0e}")
        if not entry["equal_bits"] and not has_network(case):
            record.fault(f"{case.name}: two runs on {settings.device} gave different bits")


def compare(case: Case, device: str) -> dict[str, Any]:
    """Measure the errors of a case.

    Returns:
        ``errors`` by dtype and by what was run, ``bounds`` of those that are judged, and
        ``equal_bits``, true if two float32 runs on the device gave the same. (Gradients of the
        library's convolutions need not.)
    """

    def on(operators: Operators, device: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        return [each.detach().cpu().double() for each in case.on(operators, device, dtype)()]

    exact = on(reference, "cpu", torch.float64)
    with tf32(False):
        float32, again = (on(ops, device) for _ in range(2))
        errors = {
            "float64": worst(on(ops, device, torch.float64), exact),
            "float32": worst(float32, exact),
            "float32 of the CPU build": worst(on(ops, "cpu"), exact),
            "float32 of eager PyTorch": worst(on(reference, device), exact),
        }
    bound = NETWORK_BOUND if has_network(case) else FLOAT32_BOUND
    bounds = {
        "float64": FLOAT64_BOUND,
        "float32": max(bound, 2 * errors["float32 of eager PyTorch"]),
    }
    if device == "cuda" and has_network(case):
        with tf32(True):
            errors["TF32"] = worst(on(ops, device), exact)
            errors["TF32 of eager PyTorch"] = worst(on(reference, device), exact)
        bounds["TF32"] = TF32_BOUND
    equal = all(torch.equal(one, two) for one, two in zip(float32, again, strict=True))
    return {"errors": errors, "bounds": bounds, "equal_bits": equal}


def has_network(case: Case) -> bool:
    """True unless the case is an operator alone."""
    return networks.num_parameters(case.model) > 0


def worst(results: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """Return the largest relative error; NaN where a result is, 0 where both are zero."""
    errors = [
        (result - wanted).norm() / wanted.norm().clamp(min=1e-300)
        for result, wanted in zip(results, exact, strict=True)
    ]
    return float(torch.stack(errors).max())


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Set whether convolutions and products on a GPU may round their operands to TF32."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    with changed(cudnn, allow_tf32=allowed), changed(matmul, allow_tf32=allowed):
        yield
