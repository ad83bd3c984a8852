"""The sizes at which the outer iteration is measured."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from dataclasses import dataclass, replace
from itertools import product


@dataclass(frozen=True)
class Size:
    """An outer iteration: the student's ConvNet, and how long it trains on how many images.

    Attributes:
        width: Channels of the ConvNet.
        batch: Synthetic images of a student step.
        steps: Student steps ``N``.
        depth: Blocks of the ConvNet.
        image_size: Side of the images in pixels; they have three channels.
        num_classes: Number of logits.
    """

    width: int
    batch: int
    steps: int
    depth: int = 3
    image_size: int = 32
    num_classes: int = 10

    @property
    def key(self) -> str:
        """``"width,batch,N"``, the name of the size in records."""
        return f"{self.width},{self.batch},{self.steps}"

    @property
    def shape(self) -> str:
        """``"width,batch"``: sizes with the same shape differ in the number of steps only."""
        return f"{self.width},{self.batch}"

    def with_steps(self, steps: int) -> Size:
        """The same shape with another number of steps."""
        return replace(self, steps=steps)


#: A small student, a wider batch, and the papers' width.
HEADLINE = (Size(32, 10, 20), Size(32, 50, 10), Size(128, 50, 6))

#: All widths, batches and steps of the record, from the least work to the most.
GRID = tuple(
    sorted(
        (Size(*numbers) for numbers in product((32, 64, 128), (10, 50, 100, 500), (10, 30, 80))),
        key=lambda size: (size.width**2 * size.batch, size.steps),
    )
)

#: For smoke tests: every variant runs in milliseconds.
TINY = Size(4, 3, 2, depth=1, image_size=8)


def parse_size(text: str) -> Size:
    """Size from ``"width,batch,N"``, as the type of an argument."""
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*){2}", text):
        raise ArgumentTypeError(f"should be width,batch,N such as 32,10,20, but is {text!r}")
    return Size(*map(int, text.split(",")))
