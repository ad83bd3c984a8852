"""Data set addresses ``scheme:path?options``, and the type of their readers."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from trajmatch.data.dataset import Dataset


class Address(NamedTuple):
    """Parsed address: scheme (``npz``, ``torchvision:NAME``), path (may be empty), options."""

    scheme: str
    path: str = ""
    options: str = ""

    @classmethod
    def parse(cls, uri: str) -> "Address":
        """Parse an address."""
        base, _, options = uri.partition("?")
        scheme, _, path = base.partition(":")
        if scheme == "torchvision":
            name, _, path = path.partition(":")
            scheme = f"{scheme}:{name}"
        return cls(scheme, path, options)

    def __str__(self) -> str:
        return "?".join(filter(None, (self.base, self.options)))

    @property
    def base(self) -> str:
        """Address without its options."""
        return ":".join(filter(None, (self.scheme, self.path)))

    @property
    def source(self) -> str:
        """Scheme without the torchvision class: ``torchvision`` for ``torchvision:STL10``."""
        return self.scheme.partition(":")[0]

    @property
    def place(self) -> Path:
        """Path in the file system, with ``~`` expanded."""
        return Path(os.path.expanduser(self.path))


class Source(NamedTuple):
    """Reader of one kind of address.

    Attributes:
        path: Placeholder for the path in messages, e.g. ``FILE``; empty if no path is taken.
        load: Function that loads the set. The type hint of its argument ``options`` is the class of
            options that the source takes.
        found_in: Function that returns True if the folder of an address holds the files of a known
            set. None for sources that are not known sets.
    """

    path: str
    load: Callable[[Address, Any], Dataset]
    found_in: Callable[[Address], bool] | None = None
