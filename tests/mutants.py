"""Files that are almost sound, for readers that must survive them."""

from __future__ import annotations

import random
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def archive(path: Path, content: bytes, storages: int = 1, **how: Any) -> None:
    """A file as ``torch.save`` makes it, with this pickle and storages of 48 bytes that differ."""
    with zipfile.ZipFile(path, "w", **how) as file:
        file.writestr("file/data.pkl", content)
        file.writestr("file/byteorder", "little")
        file.writestr("file/version", "3\n")
        for number in range(storages):
            file.writestr(f"file/data/{number}", bytes([number]) * 48)


def pickle_in(path: Path) -> bytes:
    """The pickle of a file that ``torch.save`` wrote."""
    with zipfile.ZipFile(path) as file:
        return file.read(next(name for name in file.namelist() if name.endswith("data.pkl")))


def mutations(content: bytes, count: int) -> Iterator[bytes]:
    """Files that differ from a sound one in bytes, length, or a piece that is moved."""
    draw = random.Random(0)
    for _ in range(count):
        changed = bytearray(content)
        kind = draw.randrange(4)
        first, second = sorted(draw.randrange(len(changed)) for _ in range(2))
        if kind == 0:
            for _ in range(draw.randrange(1, 9)):
                changed[draw.randrange(len(changed))] = draw.randrange(256)
        elif kind == 1:
            del changed[first:second]
        elif kind == 2:
            changed[first:first] = changed[first : min(second, first + 500)]
        else:
            changed[first : first + 8] = draw.choice((b"\xff" * 8, bytes(8), b"\x7f" + bytes(7)))
        yield bytes(changed)
