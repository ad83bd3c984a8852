"""Stand-ins for what the published programs import, and the numbers that they compute with.

The programs are from 2022 and 2023. They need packages that a benchmark should not ask for (wandb
sends data, kornia whitens, yacs reads settings), a function that SciPy has dropped, and a GPU for
copies that have no effect.
"""

from __future__ import annotations

import importlib.util
import io
import json
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trajmatch._torchvision import torchvision
from trajmatch.data import Dataset
from trajmatch.errors import UserError


def install(on_log: Callable[[Mapping[str, Any]], None], dataset: Dataset, tested: int) -> None:
    """Put the stand-ins in place for the rest of this process.

    Args:
        on_log: Called with everything that the program logs to wandb.
        dataset: What the program reads as CIFAR-10, preprocessed as for the experts.
        tested: Number of test images that the program sees.
    """
    if importlib.util.find_spec("tqdm") is None:
        raise UserError("the published programs need tqdm; install it: pip install tqdm")
    _install_wandb(on_log)
    _module("kornia")
    _module("scipy.ndimage.interpolation", rotate=None)
    _module("yacs")
    _module("yacs.config", CfgNode=_Settings)
    _install_cifar10(dataset, tested)
    if not torch.cuda.is_available():
        # The programs copy images to the GPU and back before they save them.
        Tensor.cuda = lambda self, *_, **__: self
    read = torch.load
    # A buffer has float32; students start from it in the type that everything else has.
    torch.load = lambda *args, **options: _converted(read(*args, **options))


def compute_in(dtype: torch.dtype) -> None:
    """Let the program compute in a type, although it asks for ``torch.float`` in places."""
    # PyTorch makes its table of types when it first reads a file, and should make it of its own.
    torch.save(torch.zeros(1), buffer := io.BytesIO())
    torch.load(io.BytesIO(buffer.getvalue()))
    torch.set_default_dtype(dtype)
    torch.float = dtype
    Tensor.float = lambda self: self.to(dtype)


def _install_wandb(on_log: Callable[[Mapping[str, Any]], None]) -> None:
    def init(config: Any, **_: Any) -> None:
        # Programs read their arguments back from here.
        wandb.config = types.SimpleNamespace(_items=dict(vars(config)))

    def ignored(*_: Any, **__: Any) -> None:
        return None

    wandb = _module(
        "wandb",
        init=init,
        log=lambda values, step=None: on_log(values),
        finish=ignored,
        Image=ignored,
        Histogram=ignored,
        run=types.SimpleNamespace(name="beside-trajmatch"),
    )


def _install_cifar10(dataset: Dataset, tested: int) -> None:
    class CIFAR10(torch.utils.data.Dataset[tuple[Tensor, int]]):
        """The data set with the interface of torchvision's; ``transform`` is not applied."""

        def __init__(self, root: str, train: bool, **_: Any) -> None:
            name, count = ("train", None) if train else ("test", tested)
            images = getattr(dataset, f"{name}_images")[:count]
            self.images = dataset.normalise(images).to(torch.get_default_dtype())
            self.targets = getattr(dataset, f"{name}_labels")[:count].tolist()
            self.classes = list(dataset.class_names)

        def __len__(self) -> int:
            return len(self.targets)

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return self.images[index], self.targets[index]

    torchvision.datasets.CIFAR10 = CIFAR10


class _Settings(dict[str, Any]):
    """Settings of DATM's program, by attribute; its files are YAML, of which JSON is a part."""

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__

    def merge_from_file(self, path: str) -> None:
        self.update(json.loads(Path(path).read_text(encoding="utf-8")))


def _module(name: str, **attributes: Any) -> Any:
    module = types.ModuleType(name)
    vars(module).update(attributes)
    sys.modules[name] = module
    return module


def _converted(content: Any) -> Any:
    """Return tensors in nested lists in the default type."""
    if isinstance(content, Tensor):
        return content.to(torch.get_default_dtype())
    return [_converted(each) for each in content] if isinstance(content, list) else content
