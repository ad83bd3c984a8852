"""Addresses of data sets, ``scheme:path?options``, and the readers of their schemes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from trajmatch.data.dataset import Dataset


class Address(NamedTuple):
    """An address, taken apart; its text is ``str(address)``.

    Attributes:
        scheme: Name of the source; ``torchvision:NAME`` includes the name of a class.
        path: What stands behind it: a place or a name; empty if there is none.
        options: What stands behind the ``?``.
    """

    scheme: str
    path: str = ""
    options: str = ""

    @classmethod
    def parse(cls, uri: str) -> Address:
        """Take an address apart."""
        base, _, options = uri.partition("?")
        scheme, _, path = base.partition(":")
        if scheme == "torchvision":
            name, _, path = path.partition(":")
            scheme = f"{scheme}:{name}"
        return cls(scheme, path, options)

    def __str__(self) -> str:
        """Return the address as it is written."""
        return "?".join(filter(None, (self.base, self.options)))

    @property
    def base(self) -> str:
        """The address without options."""
        return ":".join(filter(None, (self.scheme, self.path)))

    @property
    def source(self) -> str:
        """Name of the source, without the class of torchvision."""
        return self.scheme.partition(":")[0]

    @property
    def place(self) -> Path:
        """The path as a place in the file system."""
        return Path(os.path.expanduser(self.path))


class Source(NamedTuple):
    """Reader of one kind of address.

    Attributes:
        path: Name of what stands behind the scheme, for messages; empty for nothing.
        load: Reads the data set; the annotation of its second argument says which options it takes.
        found_in: True if a folder (the path of the address) holds the set. Given for sets with a
            fixed name, which can be looked for; a user's own set is named after its path.
    """

    path: str
    load: Callable[[Address, Any], Dataset]
    found_in: Callable[[Address], bool] | None = None
