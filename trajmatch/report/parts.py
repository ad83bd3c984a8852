"""Tables and pictures for the page template."""

import base64
from collections.abc import Sequence
from typing import NamedTuple


class Picture(NamedTuple):
    """An image in the page; width and height in CSS pixels."""

    source: str  # data URL
    text: str  # alternative text
    width: int
    height: int


class Table(NamedTuple):
    """A table; the first cell of each row is the row's heading."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str | Picture]]


def data_url(kind: str, content: bytes) -> str:
    """Return a data URL with the content and MIME type (``kind``) of a file."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
