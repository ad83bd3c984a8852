"""Trajectory-matching dataset distillation with exact unrolled gradients.

Public names are imported at first use, because importing torch is slow. Importing this package
only checks the release of torch: it raises ImportError if torch is missing or too old.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from runpy import run_path
from typing import Any

__version__ = "0.2.0"

OLDEST_TORCH = (2, 11)  # the extension uses the stable interface of this release


def _check_torch() -> None:
    """Raise ImportError if torch is missing or older than :data:`OLDEST_TORCH`."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        found = f"{sys.prefix} has none"
    else:
        folder = Path(spec.origin).parent
        # Run this one file of torch, which is fast, instead of importing torch.
        release = run_path(str(folder / "version.py"))["__version__"]
        if tuple(map(int, release.split(".")[:2])) >= OLDEST_TORCH:
            return
        found = f"{folder} is torch {release}"
    oldest = ".".join(map(str, OLDEST_TORCH))
    raise ImportError(
        f"trajmatch needs torch {oldest} or later, but {found}. Install one: "
        f"`{sys.executable} -m pip install 'torch>={oldest}'`",
        name="torch",
    )


_check_torch()

_MODULES = (
    *("artifact", "data", "distill", "errors", "evaluate"),
    *("experts", "networks", "ops", "reference"),
)
_NAMES = {"load": "zoo", "UserError": "errors"}  # public name: the module that defines it
__all__ = ["__version__", *_NAMES, *_MODULES]


def __getattr__(name: str) -> Any:
    # Python calls this for a name that the module does not have yet (PEP 562).
    if name not in (*_NAMES, *_MODULES):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_NAMES.get(name, name)}")
    return getattr(module, name) if name in _NAMES else module


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
