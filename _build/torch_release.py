"""The torch that the extension is compiled against, found without importing it."""

from __future__ import annotations

import runpy
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

OLDEST_MINOR = 11  # the extension uses the stable interface of torch 2.11
NEWEST_TESTED_MINOR = 13


@dataclass(frozen=True)
class TorchRelease:
    """An installed torch."""

    version: str  # with the local part, e.g. "2.13.0+cpu"
    minor: int  # the M of 2.M
    cuda: str | None  # the CUDA release it was built with, e.g. "13.0"
    root: Path  # the package's folder


def find_torch() -> TorchRelease | None:
    """The torch on the search path, or None.

    Raises:
        SystemExit: There is one, but it is older than 2.11 or not a torch 2.
    """
    spec = find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return None
    root = Path(spec.submodule_search_locations[0])
    facts = runpy.run_path(str(root / "version.py"))
    version: str = facts["__version__"]
    major, minor = map(int, version.split(".")[:2])
    if major != 2 or minor < OLDEST_MINOR:
        raise SystemExit(
            f"trajmatch needs torch 2.{OLDEST_MINOR} or later of the 2.x series, but {root} is "
            f"torch {version}. Install another first: pip install torch==2.{NEWEST_TESTED_MINOR}.0"
        )
    return TorchRelease(version, minor, facts["cuda"], root)


def torch_requirements(torch_minor: int | None) -> list[str]:
    """Return the requirements of torch and torchvision for a package built with torch 2.M.

    Args:
        torch_minor: The M of the torch that the package is installed beside. The upper end for
            torch follows from torchvision, which pins one torch; without it, pip would first
            download the newest torch to find that out. None for a wheel, which is installed beside
            any torch from 2.11 on. It leaves torchvision to the extra of that name: beside a torch
            without torchvision, pip would take the newest torchvision and replace the torch.
    """
    if torch_minor is None:
        return [f"torch>=2.{OLDEST_MINOR},<3"]
    newest = f"torch>=2.{OLDEST_MINOR},<2.{torch_minor + 1}"
    return [torchvision_requirement(torch_minor), newest]


def torchvision_requirement(torch_minor: int) -> str:
    """The releases of torchvision that belong to torch 2.``torch_minor``.

    Each torchvision pins one torch exactly: a requirement without a release would let pip replace
    the torch that is there by the newest. The two have moved together, 15 apart, since torch 2.0.
    """
    return f"torchvision==0.{torch_minor + 15}.*"
