"""The compiled part of the package, or an error that says what to do when it does not load.

Import this module before using ``torch.ops.trajmatch``. There is no slower path to fall back to:
a package that silently became slow would be reported as slow.

Without CUDA kernels in the build, a warning says so where torch sees a GPU, and every operator on a
CUDA tensor raises ``NotImplementedError`` with what mends it.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

# With torch, the libraries that the extension refers to are loaded.
import torch

__all__ = ["REINSTALL", "_C", "Fault", "build_info", "missing_kernels"]

# Without --no-cache-dir pip may take an earlier wheel, and without --no-deps it reinstalls torch.
REINSTALL = f"{sys.executable} -m pip install --no-cache-dir --force-reinstall --no-deps ."

# The build writes its facts as JSON behind this word (csrc/bindings.cpp).
_MARKER = b"trajmatch-build-facts"


def _facts_in(library: Path) -> dict[str, Any]:
    """Read the facts of a build out of the file, without loading it."""
    content = library.read_bytes()
    start = content.find(_MARKER + b"{")
    if start < 0:
        return {}
    text = content[start + len(_MARKER) : content.index(b"\0", start)]
    facts: dict[str, Any] = json.loads(text)
    return facts


def _explain(error: ImportError) -> str:
    """Say what was built, what runs now, and the command that puts it right."""
    folder = Path(__file__).parent
    built = [facts for path in sorted(folder.glob("_C.*so")) if (facts := _facts_in(path))]
    if built:
        was = " and ".join(f"torch {facts['torch']}, {facts['python']}" for facts in built)
        state = f"was built for {was}"
    else:
        state = f"has not been built (there is none in {folder})"
    return (
        f"the compiled part of trajmatch {state}; running now: torch {torch.__version__}, "
        f"{sys.implementation.cache_tag}. Build it for these, in the source folder of trajmatch: "
        f"`{REINSTALL}` (the cause: {error})"
    )


try:
    from trajmatch import _C
except ImportError as error:
    raise ImportError(_explain(error), name="trajmatch._C") from error


class Fault(NamedTuple):
    """A reason why something cannot be used, and what mends it."""

    why: str
    mend: str

    def __str__(self) -> str:
        return f"{self.why}. {self.mend}"


def build_info() -> dict[str, Any]:
    """Return the facts of the build of the compiled part, with what was left out.

    Returns:
        ``torch`` (the release it was compiled against), ``torch_interface`` (the oldest it runs
        with), ``python``, ``compiler``, ``openmp`` (bool), ``cuda`` (release or None),
        ``architectures`` (list of str) and ``left_out`` (list of dicts ``what``, ``why``,
        ``mend``).
    """
    return _C.build_info()


def missing_kernels() -> Fault | None:
    """Return the reason why the build has no CUDA kernels; None where it has them."""
    (part,) = [p for p in build_info()["left_out"] if p["what"] == "CUDA kernels"] or [None]
    if part is None:
        return None
    return Fault(
        f"this build of trajmatch has no CUDA kernels, because {part['why']}", part["mend"]
    )


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise NotImplementedError(str(missing_kernels()))


def _refuse_cuda_tensors() -> torch.library.Library:
    """Register an error for every operator on CUDA tensors; it lasts as long as the result."""
    library = torch.library.Library("trajmatch", "IMPL", "CUDA")
    for name in torch._C._dispatch_get_all_op_names():
        if name.startswith("trajmatch::"):
            library.impl(name.removeprefix("trajmatch::"), _refuse)
    return library


def _warn_of_idle_gpu() -> None:
    """Warn of a GPU that stays idle; not in each process of torchrun, nor in programs started."""
    first = os.environ.get("LOCAL_RANK", "0") == "0" and "TRAJMATCH_WARNED" not in os.environ
    if first and torch.cuda.device_count() > 0:
        os.environ["TRAJMATCH_WARNED"] = "1"
        warnings.warn(f"torch sees a GPU, but {missing_kernels()}", stacklevel=2)


if torch.version.cuda is not None and missing_kernels() is not None:
    _library = _refuse_cuda_tensors()
    _warn_of_idle_gpu()
