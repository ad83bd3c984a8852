"""Memory that the unrolled loop asks the system for: nothing of it by the step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

# Stands before the C library's functions, and counts their calls.
COUNTER = """
#include <errno.h>
#include <stddef.h>

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

static long calls;
static void count(void) { __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED); }
long allocations(void) { return __atomic_load_n(&calls, __ATOMIC_RELAXED); }

void *malloc(size_t size) { count(); return __libc_malloc(size); }
void *calloc(size_t n, size_t size) { count(); return __libc_calloc(n, size); }
void *realloc(void *old, size_t size) { count(); return __libc_realloc(old, size); }
void *memalign(size_t line, size_t size) { count(); return __libc_memalign(line, size); }
void *aligned_alloc(size_t line, size_t size) { count(); return __libc_memalign(line, size); }
int posix_memalign(void **out, size_t line, size_t size) {
  count();
  *out = __libc_memalign(line, size);
  return *out ? 0 : ENOMEM;
}
"""

# Prints the calls of an outer iteration's forward and backward pass, for each kind of loop and each
# number of steps.
LOOPS = """
import ctypes, json, sys
import torch
from trajmatch import networks, ops  # ops: registers the operators
from trajmatch.data import DSA

allocations = ctypes.CDLL(sys.argv[1]).allocations
allocations.restype = ctypes.c_long
torch.manual_seed(0)
hard, soft = torch.arange(20) % 10, torch.randn(20, 10, requires_grad=True)
same, mixed = [10], [8, 8, 4]  # images of a step, in turn

def calls(steps, labels, turn, optimiser, tape_bytes, augmented):
    model = networks.ConvNet(3, 10, 16, width=16)
    theta = networks.flat_parameters(model)
    images = torch.randn(20, 3, 16, 16, requires_grad=True)
    lr = torch.tensor(0.01, requires_grad=True)
    sizes = [turn[i % len(turn)] for i in range(steps)]
    batches = torch.cat([torch.arange(size) for size in sizes])
    drawn = None
    if augmented:
        drawn = DSA().replay(seed=0).dsa_parameters(0, len(batches), 16, 16)
    # The operator itself: what ops.unroll does before, like drawing the augmentation, is no loop.
    operator = torch.ops.trajmatch.student_unroll
    state = theta.new_zeros(2 if isinstance(optimiser, ops.Adam) else 0, len(theta))
    before = allocations()
    end, *_ = operator(
        theta, images, labels, lr, state, batches, sizes, [steps],
        networks.engine_description(model), optimiser.numbers(), 0, 0, 1.0, True, tape_bytes, drawn,
    )
    between = allocations()
    end.sum().backward()
    return between - before, allocations() - between

plain = ops.SGD()
kinds = {
    "hard labels": (hard, same, plain, 0, False),
    "soft labels": (soft, same, plain, 0, False),
    "two sizes of batches": (hard, mixed, plain, 0, False),
    "momentum": (hard, same, ops.SGD(0.5), 0, False),
    "Adam": (hard, same, ops.Adam(), 0, False),
    "tape": (hard, same, plain, 1 << 30, False),
    "augmentation": (hard, same, plain, 0, True),
}
result = {}
for kind, arguments in kinds.items():
    for _ in range(2):  # the first time also fills what is kept from call to call
        result[kind] = [calls(n, *arguments) for n in (6, 66)]
print(json.dumps(result))
"""


def test_a_step_allocates_nothing(tmp_path: Path) -> None:
    (tmp_path / "counter.c").write_text(COUNTER)
    counter = tmp_path / "counter.so"
    build = ["g++", "-x", "c", str(tmp_path / "counter.c"), "-shared", "-fPIC", "-o", str(counter)]
    subprocess.run(build, check=True)
    result = subprocess.run(
        [sys.executable, "-c", LOOPS, str(counter)],
        env={**os.environ, "LD_PRELOAD": str(counter)},
        capture_output=True,
        text=True,
        check=True,
    )
    for kind, (short, long) in json.loads(result.stdout).items():
        for name, few, many in zip(("forward", "backward"), short, long, strict=True):
            # 60 more steps; a few calls stand for what the interpreter does meanwhile.
            assert many - few < 10, f"{kind}, {name}: {few} calls for 6 steps, {many} for 66"
