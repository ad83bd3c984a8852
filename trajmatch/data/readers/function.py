"""A user's own data set from a function: ``package.module:function``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from trajmatch.data.address import Address, Source
from trajmatch.data.dataset import Dataset
from trajmatch.data.options import Options
from trajmatch.data.readers import npz
from trajmatch.errors import UserError
from trajmatch.importing import blamed, described, import_object

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_function(address: Address) -> bool:
    """True if an address has the form ``package.module:function``."""
    return _NAME.fullmatch(address.base) is not None


def load(address: Address, options: Options) -> Dataset:
    """Call the function, without arguments, and make a data set of what it returns.

    Args:
        address: ``package.module:function``; the module is looked for where Python looks, and then
            in the current folder.
        options: All count.

    Returns:
        The data set: the :class:`~trajmatch.data.Dataset` that the function returns, or one of its
        arrays, named after the function. The arrays are a mapping as in an ``.npz`` file
        (``x_train``, ``y_train``, ``x_test``, ``y_test``, perhaps ``class_names``), or a tuple of
        four or five in that order; NumPy arrays or tensors.

    Raises:
        UserError: There is no such module or function, it fails, or what it returns cannot be used.
    """
    what = address.base
    function = import_object(what)
    if not callable(function):
        raise UserError(f"{what} should be a function, but is {described(function)}")
    with blamed(what):
        made = function()
    if isinstance(made, Dataset):
        return made.of_classes(options.classes)
    if isinstance(made, tuple | list) and len(made) in (4, 5):
        made = dict(zip((*npz.KEYS[0], npz.CLASS_NAMES), made, strict=False))
    if not isinstance(made, Mapping):
        raise UserError(
            f"{what} should return a trajmatch.data.Dataset, a mapping of arrays "
            f"({', '.join(npz.KEYS[0])}) or a tuple of them, but returned {described(made)}"
        )
    arrays = {str(key): _array(value) for key, value in made.items()}
    return npz.from_arrays(what, address.path, arrays).of_classes(options.classes)


def _array(value: Any) -> np.ndarray[Any, np.dtype[Any]]:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


#: The name stands for that of any module.
SOURCES = {"package.module": Source("function", load)}
