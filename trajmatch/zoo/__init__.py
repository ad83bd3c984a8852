"""Zoo: distilled sets that are part of the package.

Each set is a file in this folder, and ``index.json`` has the facts that are not in the file. The
file of a whitened set lacks the whitening matrix, which is far larger than the set (19 MB for
CIFAR-10). At the first use, the matrix is computed from the user's copy of the training images and
compared with a sketch of the original. Then the complete file is kept in a cache.
"""

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from trajmatch import artifact, files
from trajmatch.artifact import Artifact
from trajmatch.data.zca import ZCA, fit
from trajmatch.errors import UserError, as_user_error, closest
from trajmatch.schema import convert

#: Environment variable with the cache folder; the default is ``trajmatch`` in the user's cache.
CACHE_VARIABLE = "TRAJMATCH_CACHE"

FOLDER = Path(__file__).parent
INDEX = "index.json"

#: Tensor in the file of a whitened set: :func:`_sketch` of the whitening matrix.
_SKETCH = "zca_sketch"
# Largest relative difference between the sketches. For Fashion-MNIST, SciPy's LAPACK differs from
# PyTorch's by 3e-11, and an eps of 0.11 instead of 0.1 makes 5e-2.
_TOLERANCE = 1e-4


class Entry(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Entry of a set in the index.

    Attributes:
        sha256: SHA-256 of the file.
        commit: Commit of trajmatch that made the set.
        command: Command that made it.
        experts: The experts that were matched.
        licence: Terms of the images that the set was distilled from.
    """

    sha256: str
    commit: str
    command: str
    experts: str
    licence: str


def index() -> dict[str, Entry]:
    """Return the entry of each set, by name."""
    return convert(files.read_json(FOLDER / INDEX), dict[str, Entry], str(FOLDER / INDEX))


def find(name: str) -> tuple[Path, Entry]:
    """Return the file of a set, which is checked against the index, and its entry.

    Raises:
        UserError: There is no such set, or its file is damaged.
    """
    entries = index()
    if name not in entries:
        raise UserError(
            f"the zoo has no set {name!r}{closest(name, entries)}; `trajmatch zoo` lists its sets"
        )
    path = FOLDER / f"{name}.safetensors"
    with as_user_error(f"cannot read {path}: ", OSError):
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != entries[name].sha256:
        raise UserError(
            f"{path} is damaged: its SHA-256 is not that of the index; install trajmatch again"
        )
    return path, entries[name]


def describe(name: str) -> dict[str, Any]:
    """Return the entry of a set and the description in its file, as JSON values."""
    path, entry = find(name)
    kept, _, described = _read(path)
    facts = {"images": len(kept.images), "labels": kept.labels_are}
    facts |= {"stored_values": kept.stored_values, "stored_bytes": kept.stored_bytes}
    return {"name": name, **msgspec.to_builtins(entry), **facts, **described}


def load(file: files.PathLike, data: str | None = None) -> Artifact:
    """Read a distilled set from a file or, if ``file`` is ``"zoo:NAME"``, from the zoo.

    Args:
        file: A file that `trajmatch distill` wrote, or ``"zoo:"`` and the name of a set.
        data: Address of the data set from which a whitened set of the zoo was distilled. Needed
            only at its first use, and not if ``TRAJMATCH_DATA`` names a folder with the data set.

    Returns:
        The set, whose tensors are on the CPU.

    Raises:
        UserError: The file is missing or damaged, the zoo has no such set, or the data set is
            missing or another one.
    """
    given = os.fspath(file)
    if not given.startswith(files.ZOO):
        return artifact.load(file)
    path, entry = find(given.removeprefix(files.ZOO))
    kept, sketch, description = _read(path)
    if sketch is None:
        return kept
    cached = cache_folder() / f"{path.stem}-{entry.sha256[:16]}.safetensors"
    if not cached.exists():
        with as_user_error(advice=f" (the environment variable {CACHE_VARIABLE})"):
            files.check_writable(cached.parent)
        training = artifact.source_dataset(kept, given, data)
        zca = fit(training.train_images, description["zca"]["eps"])
        _check(zca, sketch, f"the whitening of {given}, computed from {training.name},")
        artifact.save(cached, replace(kept, zca=zca))
    with as_user_error(advice="; delete this file, and it is made again"):
        whole = artifact.load(cached)
        _check(whole.zca, sketch, f"the whitening in {cached}")
    return replace(kept, zca=whole.zca)


def _check(zca: ZCA | None, sketch: Tensor, what: str) -> None:
    """Raise UserError, which begins with ``what``, unless a whitening is like the original."""
    difference = float("inf")
    if zca is not None:
        difference = ((_sketch(zca) - sketch).abs().max() / sketch.abs().max()).item()
    if not difference <= _TOLERANCE:
        raise UserError(
            f"{what} is not the one with which the set was distilled: the relative difference is "
            f"{difference:.2g}, and rounding is accepted up to {_TOLERANCE:g}"
        )


def _read(path: Path) -> tuple[Artifact, Tensor | None, dict[str, Any]]:
    """Return the set (without whitening), the sketch of its whitening, and the description."""
    tensors, description = files.load_tensors(path)
    # The fingerprint of the set is not the SHA-256 of its file.
    description["fingerprint"] = description.pop("sha256")
    rest = {key: value for key, value in description.items() if key != "zca"}
    return artifact.assemble(path, tensors, rest), tensors.get(_SKETCH), description


def pack(path: files.PathLike, distilled: Artifact) -> None:
    """Write a set as a file of the zoo: without viewable copy and whitening matrix."""
    tensors, description = artifact.content(distilled)
    if (zca := distilled.zca) is not None:
        for name in zca.tensors():
            del tensors[name]
        tensors[_SKETCH] = _sketch(zca)
    files.save_tensors(path, tensors, description)


def _sketch(zca: ZCA) -> Tensor:
    """Return the products of the first 64 rows of the whitening matrix with a fixed vector."""
    vector = torch.arange(len(zca.matrix), dtype=torch.float64).cos()
    return zca.matrix[:64].double() @ vector


def cache_folder() -> Path:
    """Return the folder of the completed files."""
    given = os.environ.get(CACHE_VARIABLE)
    user = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    with as_user_error(f"{CACHE_VARIABLE} should name a folder: ", RuntimeError):
        return Path(given or Path(user, "trajmatch"), "zoo").expanduser()
