"""Tables and pictures, as the page's template takes them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import NamedTuple


class Picture(NamedTuple):
    """An image inside the page.

    Attributes:
        source: Its content as a URL.
        text: Its text for readers who do not see it.
        width: In pixels of the page.
        height: In pixels of the page.
    """

    source: str
    text: str
    width: int
    height: int


class Table(NamedTuple):
    """A table.

    Attributes:
        caption: Text above it.
        heads: Heads of the columns.
        rows: Cells of each row, the first is the row's head.
    """

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str | Picture]]


def data_url(kind: str, content: bytes) -> str:
    """Return a URL that holds the content of a file of that MIME type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
