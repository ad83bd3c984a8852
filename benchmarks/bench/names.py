"""The names that variants have in records."""

from __future__ import annotations

#: Ours: without and with a tape of activations.
OURS = ("trajmatch", "trajmatch_tape")

#: Each baseline, and its variants, of which the faster one counts.
BASELINES = {
    "eager_unroll": ("eager_unroll_nchw", "eager_unroll_nhwc"),
    "func_adjoint": ("func_adjoint",),
    "compiled_adjoint": ("compiled_adjoint",),
}
