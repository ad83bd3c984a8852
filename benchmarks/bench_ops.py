"""Each fused operator with its derivatives, beside eager and compiled PyTorch.

    pytest benchmarks/bench_ops.py --benchmark-json record.json
    pytest benchmarks/bench_ops.py --benchmark-disable   # compares results at the smallest sizes

The three compute the same; pytest-benchmark has a group for each case. The compiled one is the
reference's formula with its derivatives by ``torch.func``, since a second derivative through
autograd does not compile.
"""

from __future__ import annotations

from typing import Any

import bench  # noqa: F401  before torch, which reads its settings of OpenMP
import pytest
import torch
from bench.agreement import relative
from bench.operators import Call, Case, cases
from bench.variants import quiet

from trajmatch import ops, reference

#: Largest relative difference of a result; an input of a ReLU may fall on the other side of zero.
TOLERANCE = 1e-2
#: Width, depth, image size and batch of the network.
NETWORK, SMALLEST = (32, 3, 32, 50), (4, 1, 8, 2)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    tiny = metafunc.config.getoption("benchmark_disable")
    pairs = [
        pytest.param(case, name, id=f"{case.name}, {name}")
        for case in cases(tiny, [SMALLEST if tiny else NETWORK])
        for name in ("trajmatch", "eager", "compiled")
        # these branch on values, or loop
        if name != "compiled" or not case.name.startswith(("dsa", "unroll"))
    ]
    metafunc.parametrize(("case", "implementation"), pairs)


def test_operator(case: Case, implementation: str, benchmark: Any) -> None:
    call: Call
    if implementation == "compiled":
        torch.compiler.reset()
        call = case.compiled(DEVICE, "eager" if benchmark.disabled else "inductor")
    else:
        module = ops if implementation == "trajmatch" else reference
        call = case.on(module, DEVICE, torch.float32)

    def timed() -> Any:
        results = call()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return results

    benchmark.group = case.name
    with quiet():
        results = benchmark(timed)
    wanted = case.on(reference, DEVICE, torch.float32)()[-len(results) :]
    # all as one vector: some second derivatives are zero
    found, exact = (torch.cat([each.flatten() for each in own]) for own in (results, wanted))
    assert relative(found, exact) <= TOLERANCE
