"""Import of torchvision, even next to a CPU-only torch.

The registry has torchvision only for torch with CUDA. Next to a CPU-only torch its compiled part
does not load, and its Python code then fails on two operators that nobody defined. They are not
used here, so their schemas are defined without an implementation and the import is repeated.
"""

from __future__ import annotations

import importlib
import re
import sys
from types import ModuleType

import torch

from trajmatch.errors import UserError

_library: torch.library.Library | None = None  # keeps the schemas alive


def _import() -> ModuleType:
    global _library
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # submodules from the failed import
    _library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module("torchvision")


def _load() -> ModuleType:
    try:
        return _import()
    except Exception as error:
        release, _, variant = torch.__version__.partition("+")
        minor = int(release.split(".")[1])
        published = re.fullmatch(r"cpu|cu\d+|rocm[\d.]+", variant)
        index = f" --index-url https://download.pytorch.org/whl/{variant}" if published else ""
        raise UserError(
            f"torchvision cannot be imported: {type(error).__name__}: {error}. Install the one "
            f"that belongs to torch {torch.__version__}: `{sys.executable} -m pip install "
            f"--force-reinstall --no-deps 'torchvision==0.{minor + 15}.*'{index}`"
        ) from error


torchvision = _load()
