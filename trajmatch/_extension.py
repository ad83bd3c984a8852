"""Loads the compiled part of the package and, when that fails, says what to do.

Import this module before using ``torch.ops.trajmatch``. There is no slower path to fall back to:
a package that silently became slow would be reported as slow.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

# With torch, the libraries that the extension refers to are loaded.
import torch

__all__ = ["_C", "build_info"]

# The build writes its facts as JSON behind this word (csrc/bindings.cpp).
_MARKER = b"trajmatch-build-facts"


def _facts_in(library: Path) -> dict[str, Any]:
    """Reads the facts of a build out of the file, without loading it."""
    content = library.read_bytes()
    start = content.find(_MARKER + b"{")
    if start < 0:
        return {}
    text = content[start + len(_MARKER) : content.index(b"\0", start)]
    facts: dict[str, Any] = json.loads(text)
    return facts


def _explain(error: ImportError) -> str:
    """What was built, what runs now, and the command that puts it right."""
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
        f"{sys.executable} -m pip install --force-reinstall --no-deps . (the cause: {error})"
    )


try:
    from trajmatch import _C
except ImportError as error:
    raise ImportError(_explain(error), name="trajmatch._C") from error


def build_info() -> dict[str, Any]:
    """What the compiled part was built with, and what was left out.

    Returns:
        ``torch`` (the release it was compiled against), ``torch_interface`` (the oldest it runs
        with), ``python``, ``compiler``, ``openmp`` (bool), ``cuda`` (release or None),
        ``architectures`` (list of str) and ``left_out`` (list of dicts ``what``, ``why``,
        ``mend``).
    """
    return _C.build_info()
