"""A pytest plugin that puts the emulated ``trajmatch._C`` in the place of the installed one.

``TRAJMATCH_EMULATED_MODULE`` names its file. Built by ``tests/test_cuda_host.py``.
"""

from __future__ import annotations

import importlib.util
import os
import sys

# The module holds no CPU loops, only calls of them that are never reached: bind what is called.
sys.setdlopenflags(os.RTLD_LAZY)

import torch  # noqa: E402, F401  the libraries that the module refers to

_spec = importlib.util.spec_from_file_location(
    "trajmatch._C", os.environ["TRAJMATCH_EMULATED_MODULE"]
)
assert _spec is not None and _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
assert _module.build_info() == {"emulated": True}
sys.modules["trajmatch._C"] = _module
