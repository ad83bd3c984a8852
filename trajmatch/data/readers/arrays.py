"""Data sets from arrays: an ``.npz`` file or a user's function."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trajmatch.data.address import Address, Source
from trajmatch.data.dataset import Dataset, check_labels
from trajmatch.data.options import ArrayOptions
from trajmatch.data.parts import find_parts, say_left_out, split_parts
from trajmatch.errors import UserError
from trajmatch.importing import blamed, described, import_object
from trajmatch.schema import setting

#: The two naming schemes for the arrays.
KEYS = (
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),
)
CLASS_NAMES = "class_names"

#: Names of images and labels of part NAME, in order of preference.
_PATTERNS = (("x_NAME", "y_NAME"), ("X_NAME", "y_NAME"), ("NAME_images", "NAME_labels"))
#: Address ``package.module:function``.
FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_Array = np.ndarray[Any, np.dtype[Any]]


def read(address: Address, options: ArrayOptions) -> Dataset:
    """Load an ``.npz`` file; the data set is named after the file. Pickles are never read.

    Images are uint8, ``[N, S, S]``, ``[N, S, S, C]`` or ``[N, C, S, S]``; the two equal axes are
    height and width. Labels are integers, ``[N]`` or ``[N, 1]``. Without ``class_names``, the
    classes are called ``0``, ``1``, ... Part ``NAME`` consists of ``x_NAME`` and ``y_NAME``, or of
    ``NAME_images`` and ``NAME_labels``; ``?targets=T`` adds ``NAME_T``, floating point, ``[N, D]``.
    Raises UserError if the file is damaged or its arrays cannot be used.
    """
    path = address.place
    with path.open("rb") as file:
        try:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise UserError(f"{path} holds a single array; save several with numpy.savez")
            # Arrays are read on access. A header that claims a huge array only reserves memory:
            # pages are not touched before data arrives.
            return from_arrays(str(path), path.stem, archive, options)
        except (UserError, OSError):
            raise
        except Exception as error:  # from NumPy, zipfile or zlib
            raise UserError(
                f"{path} is damaged or not an .npz file ({error}); save plain arrays of numbers, "
                "not Python objects, with numpy.savez"
            ) from error


def call(address: Address, options: ArrayOptions) -> Dataset:
    """Call ``package.module:function`` without arguments and make a data set of its result.

    The function returns a :class:`~trajmatch.data.Dataset`; a mapping of arrays as in an ``.npz``
    file; or a tuple ``x_train, y_train, x_test, y_test[, class_names]``. Arrays are NumPy arrays or
    tensors. Raises UserError if the import or the call fails, or the result cannot be used.
    """
    what = address.base
    function = import_object(what)
    if not callable(function):
        raise UserError(f"{what} should be a function, but is {described(function)}")
    with blamed(what):
        made = function()
    if isinstance(made, Dataset):
        for option in ("train", "test", "targets"):
            if given := getattr(options, option):
                raise UserError(
                    f"{what} returned a trajmatch.data.Dataset, which has the parts and targets "
                    f"that it was made with; leave out ?{option}={given}"
                )
        return made.of_classes(options.classes)
    # A tuple has the arrays in the order of KEYS[0]; class_names may be missing, hence not strict.
    if isinstance(made, tuple | list) and len(made) in (4, 5):
        made = dict(zip((*KEYS[0], CLASS_NAMES), made, strict=False))
    if not isinstance(made, Mapping):
        raise UserError(
            f"{what} should return a trajmatch.data.Dataset, a mapping of arrays "
            f"({', '.join(KEYS[0])}) or a tuple of them, but returned {described(made)}"
        )
    arrays = {
        str(key): np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
        for key, value in made.items()
    }
    return from_arrays(what, address.path, arrays, options)


def from_arrays(
    what: str, name: str, arrays: Mapping[str, _Array], options: ArrayOptions
) -> Dataset:
    """Make a data set from arrays named and shaped as in :func:`read`; ignore other arrays."""
    chosen, left_out = _choose(what, list(arrays), options)
    parts = [
        _Part(
            _images(f"{what}: {images}", np.asarray(arrays[images])),
            found := _labels(f"{what}: {labels}", np.asarray(arrays[labels])),
            None if options.targets is None else _targets(what, targets, arrays, len(found)),
        )
        for images, labels, targets in chosen
    ]
    say_left_out(what, left_out, options)
    names = _class_names(what, arrays, parts[0].labels)
    if len(parts) == 1:
        # The split indexes ``names`` by label, so check the labels before it.
        check_labels(f"{what}: {chosen[0][1]}", parts[0].labels, len(parts[0].images), names)
        split = split_parts(what, parts[0].labels, names, options.fraction)
        parts = [parts[0].of(rows) for rows in split]
    train, test = parts
    dataset = Dataset(
        name, *train[:2], *test[:2], tuple(names), train_targets=train[2], test_targets=test[2]
    )
    return dataset.of_classes(options.classes)


class _Part(NamedTuple):
    """Training or test part: images, labels and optional targets."""

    images: Tensor
    labels: Tensor
    targets: Tensor | None

    def of(self, rows: Tensor) -> "_Part":
        return _Part(*(None if each is None else each[rows] for each in self))  # type: ignore[arg-type]


def _choose(
    what: str, names: Sequence[str], options: ArrayOptions
) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Return the array names (images, labels, targets) of each part, and the parts left out."""
    found = {}
    for images, labels in reversed(_PATTERNS):  # the preferred pattern overwrites the others
        prefix, suffix = images.split("NAME")
        for name in names:
            part = name.removeprefix(prefix).removesuffix(suffix)
            pair = (images.replace("NAME", part), labels.replace("NAME", part))
            if part and pair[0] == name and pair[1] in names:
                found[part] = pair
    train, test = find_parts(what, list(found), options)
    if train is None or (test is None and options.fraction is None):
        raise UserError(
            f"{what} should hold the arrays {' or '.join(', '.join(keys) for keys in KEYS)}, "
            f"but holds {', '.join(sorted(names)) or 'nothing'}; save them under those names, or "
            "choose parts with ?train=NAME&test=NAME (x_NAME and y_NAME, or NAME_images and "
            "NAME_labels)"
        )
    chosen = [part for part in (train, test) if part is not None]
    read = [(*found[part], f"{part}_{options.targets}") for part in chosen]
    return read, [part for part in found if part not in chosen]


def _images(what: str, array: _Array) -> Tensor:
    shape = list(array.shape)
    if array.dtype != np.uint8:
        raise UserError(
            f"{what} should be uint8, 0 to 255, but is {array.dtype}; convert it; "
            "multiply numbers from 0 to 1 by 255 and round"
        )
    if array.size == 0:
        raise UserError(f"{what} holds no images (shape {shape})")
    # Grey images [N, S, S]; Dataset checks that they are square.
    if array.ndim == 3:
        return torch.from_numpy(np.ascontiguousarray(array[:, None]))
    square = [axis for axis in (1, 2) if array.ndim == 4 and shape[axis] == shape[axis + 1]]
    if len(square) != 1:
        raise UserError(
            f"{what} should hold square images, [N, S, S], [N, S, S, C] or [N, C, S, S] with C "
            f"other than S, but has shape {shape}; crop or resize them"
        )
    # Two equal adjacent axes are height and width; the remaining one is the channel axis.
    order = (0, 3, 1, 2) if square == [1] else (0, 1, 2, 3)
    return torch.from_numpy(np.ascontiguousarray(array.transpose(order)))


def _labels(what: str, array: _Array) -> Tensor:
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise UserError(
            f"{what} should hold whole numbers, [N], one class index per image, but has shape "
            f"{list(array.shape)} and dtype {array.dtype}; .argmax(axis=1) converts one-hot labels"
        )
    return torch.from_numpy(array.astype(np.int64))


def _targets(what: str, name: str, arrays: Mapping[str, _Array], count: int) -> Tensor:
    if name not in arrays:
        raise UserError(
            f"{what} has no array {name} (given by ?targets=); its arrays are {', '.join(arrays)}"
        )
    array = np.asarray(arrays[name])
    if array.ndim != 2 or len(array) != count or not np.issubdtype(array.dtype, np.floating):
        raise UserError(
            f"{what}: {name} should hold one vector of floating-point numbers per image, "
            f"[{count}, D], but has shape {list(array.shape)} and dtype {array.dtype}"
        )
    return torch.from_numpy(array.astype(np.float32))


def _class_names(what: str, arrays: Mapping[str, _Array], labels: Tensor) -> list[str]:
    if CLASS_NAMES in arrays:
        return setting(arrays[CLASS_NAMES].tolist(), tuple[str, ...], f"{what}: {CLASS_NAMES}")
    # Every class needs a training image, so there are as many classes as distinct labels.
    return [str(label) for label in range(len(labels.unique()))]


#: The key ``package.module`` stands for any module.
SOURCES = {"npz": Source("FILE", read), "package.module": Source("function", call)}
