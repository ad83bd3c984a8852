"""The extension module and the dependencies; all other metadata is in pyproject.toml."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "_build"))

import python_release  # noqa: F401  stops where Python is too old
from cuda_toolkit import for_others, local_version
from extension import CSRC, SOURCES, BuildExtension
from setuptools import Extension, setup
from torch_release import NEWEST_TESTED_MINOR, find_torch, torch_requirements

torch = find_torch()

DEPENDENCIES = [
    *torch_requirements(None if for_others() else torch.minor if torch else NEWEST_TESTED_MINOR),
    "numpy>=1.26",
    "safetensors>=0.4.3",
    "jinja2>=3.1",
    "msgspec>=0.19",
    "rich>=13",
    "pillow>=10",
    "matplotlib>=3.8",
    "scikit-learn>=1.4",
    "scipy>=1.11",
]

setup(
    install_requires=DEPENDENCIES,
    ext_modules=[
        Extension(
            "trajmatch._C", [str(CSRC / path) for group in SOURCES.values() for path in group]
        )
    ],
    cmdclass={"build_ext": BuildExtension},
    options={
        "egg_info": {"tag_build": local_version(torch and torch.cuda) if for_others() else ""}
    },
)
