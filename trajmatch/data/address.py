"""Data set addresses, ``scheme:path?options``, and the readers of the schemes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from trajmatch.data.dataset import Dataset


class Address(NamedTuple):
    """Parsed address, e.g. scheme ``npz``, path ``FILE`` and options ``classes=0,1``.

    The scheme of torchvision includes the class: ``torchvision:NAME``. The path may be empty.
    """

    scheme: str
    path: str = ""
    options: str = ""

    @classmethod
    def parse(cls, uri: str) -> Address:
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
        """Name of the source, without the torchvision class."""
        return self.scheme.partition(":")[0]

    @property
    def place(self) -> Path:
        """Path in the file system, with ``~`` expanded."""
        return Path(os.path.expanduser(self.path))


class Source(NamedTuple):
    """Reader of one kind of address.

    Attributes:
        path: Placeholder for the path in messages, e.g. ``FILE``; empty if the source takes no
            path.
        load: Loads the data set. The annotation of its second argument is the class of its options.
        found_in: Returns True if a folder holds the set. Only for sets with a fixed name.
    """

    path: str
    load: Callable[[Address, Any], Dataset]
    found_in: Callable[[Address], bool] | None = None
