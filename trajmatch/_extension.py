"""Load the compiled extension, or raise an error that says how to build it.

Import this module before using ``torch.ops.trajmatch``. There is no slower Python fallback, because
users would report its timings as the package's. A build without CUDA kernels warns if torch sees a
GPU, and its operators raise ``NotImplementedError`` on CUDA tensors.
"""

import json
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

# Importing torch loads the shared libraries that the extension links to.
import torch

__all__ = ["_C", "Fault", "build_info", "compile_again", "missing_kernels"]

# The shared library contains this marker, followed by build facts in JSON (csrc/bindings.cpp).
_FACTS = rb"trajmatch-build-facts(\{[^\0]*)\0"


def _facts_in(library: Path) -> dict[str, Any]:
    """Read the build facts from the library file without loading it."""
    found = re.search(_FACTS, library.read_bytes())
    return json.loads(found[1]) if found else {}


def compile_again(build: dict[str, Any], setting: str = "") -> str:
    """Return the command that compiles the package for this machine, for a message.

    ``build`` has the facts of the installed build. ``setting`` is an environment variable followed
    by a space, e.g. ``"TORCH_CUDA_ARCH_LIST=8.0 "``.
    """
    # Without --no-cache-dir, pip may reuse an older wheel; without --no-deps, it reinstalls torch.
    pip = f"{sys.executable} -m pip install --no-cache-dir --force-reinstall --no-deps"
    # Users of a wheel have no source folder, so pip downloads the source.
    if build.get("wheel"):
        return f"`{setting}{pip} --no-binary trajmatch trajmatch`"
    return f"`{setting}{pip} .` in the source folder of trajmatch"


def _explain(error: ImportError) -> str:
    """Return the message for a failed import, with the versions involved and the build command."""
    folder = Path(__file__).parent
    # There is one library per Python version that the package was built for.
    built = [facts for path in sorted(folder.glob("_C.*so")) if (facts := _facts_in(path))]
    if built:
        was = " and ".join(f"torch {facts['torch']}, {facts['python']}" for facts in built)
        state = f"was built for {was}"
    else:
        state = f"has not been built (there is none in {folder})"
    return (
        f"the compiled part of trajmatch {state}; running now: torch {torch.__version__}, "
        f"{sys.implementation.cache_tag}. Build it for the running versions: "
        f"{compile_again(built[0] if built else {})} (the cause: {error})"
    )


try:
    from trajmatch import _C
except ImportError as error:
    raise ImportError(_explain(error), name="trajmatch._C") from error


class Fault(NamedTuple):
    """Reason why something cannot be used (``why``) and the remedy (``mend``)."""

    why: str
    mend: str

    def __str__(self) -> str:
        return f"{self.why}. {self.mend}"


def build_info() -> dict[str, Any]:
    """Return the build facts of the compiled extension.

    Keys: ``torch`` (release compiled against), ``torch_interface`` (oldest release it runs with),
    ``python``, ``compiler``, ``openmp`` (bool), ``cuda`` (release or None), ``architectures`` (list
    of str), ``left_out`` (parts not built: dicts with ``what``, ``why`` and ``mend``) and ``wheel``
    (True if the build is a wheel for distribution).
    """
    return _C.build_info()


def missing_kernels() -> Fault | None:
    """Return the reason why the build has no CUDA kernels; None if it has them."""
    (part,) = [p for p in build_info()["left_out"] if p["what"] == "CUDA kernels"] or [None]
    if part is None:
        return None
    return Fault(
        f"this build of trajmatch has no CUDA kernels, because {part['why']}", part["mend"]
    )


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise NotImplementedError(str(missing_kernels()))


def _refuse_cuda_tensors() -> torch.library.Library:
    """Make every operator raise on CUDA tensors for as long as the returned library exists."""
    # PyTorch's own error for a missing kernel does not say how to build the kernels.
    library = torch.library.Library("trajmatch", "IMPL", "CUDA")
    for name in torch._C._dispatch_get_all_op_names():
        if name.startswith("trajmatch::"):
            library.impl(name.removeprefix("trajmatch::"), _refuse)
    return library


def _warn_of_idle_gpu() -> None:
    """Warn of an unused GPU, once per machine: on local rank 0 and not in child processes."""
    # Child processes inherit the variable.
    first = os.environ.get("LOCAL_RANK", "0") == "0" and "TRAJMATCH_WARNED" not in os.environ
    if first and torch.cuda.device_count() > 0:
        os.environ["TRAJMATCH_WARNED"] = "1"
        warnings.warn(f"torch sees a GPU, but {missing_kernels()}", stacklevel=2)


if torch.version.cuda is not None and missing_kernels() is not None:
    _library = _refuse_cuda_tensors()
    _warn_of_idle_gpu()
