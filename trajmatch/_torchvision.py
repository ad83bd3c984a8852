"""Import torchvision, even if the installed torch is for the CPU only.

PyPI has torchvision only for torch with CUDA. With a CPU-only torch, the compiled part of
torchvision does not load, and the import fails because two operators are undefined. trajmatch does
not use these operators, so this module defines their schemas without an implementation and repeats
the import.
"""

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
    # Remove the submodules of the failed import: a second import would reuse them half initialised.
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    _library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module("torchvision")


def _load() -> ModuleType:
    try:
        return _import()
    except Exception as error:
        # torchvision 0.(N + 15) belongs to torch 2.N. Builds for variants of torch, such as +cpu or
        # +cu130, are on PyTorch's own index, which has one address per variant.
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
