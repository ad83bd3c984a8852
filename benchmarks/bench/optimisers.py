"""The outer iteration with every optimiser of the student: ours, and the graph of all steps."""

from __future__ import annotations

from functools import partial

from bench.variants import VARIANTS, Variant
from trajmatch import ops

#: Optimisers of the student beside plain SGD, by name.
OPTIMISERS: dict[str, ops.SGD | ops.Adam] = {
    "momentum": ops.SGD(momentum=0.9),
    "nesterov": ops.SGD(momentum=0.9, nesterov=True, weight_decay=5e-4),
    "adam": ops.Adam(),
    "adamw": ops.Adam(weight_decay=1e-2, decoupled=True),
}


def _with_each(variant: Variant) -> dict[str, Variant]:
    others = {name: partial(variant, optimiser=each) for name, each in OPTIMISERS.items()}
    return {"sgd": variant, **others}


#: Ours, and the graph of all steps, by optimiser.
OURS = _with_each(VARIANTS["trajmatch"])
GRAPHS = _with_each(VARIANTS["eager_unroll_nchw"])

#: Ours with other optimisers than plain SGD, by the names that they have in records.
WITH_OPTIMISER = {f"trajmatch_{name}": OURS[name] for name in OPTIMISERS}
