"""Pictures inside of the page, of so many images as a page can carry."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from trajmatch import pictures
from trajmatch.artifact import Artifact
from trajmatch.report.html import Html, element, table
from trajmatch.snapshots import Snapshots

#: Bytes of pixels in each of the two tables of pictures: PNG and base64 leave them about as large.
_BYTES = 2**21
#: Images on the page are about so many pixels high.
_HEIGHT = 64
_PAPER = 255


def over_iterations(snapshots: Snapshots, class_names: Sequence[str]) -> Html:
    """One image of each class, in a row over the iterations.

    Args:
        snapshots: One or more.
        class_names: Name of each class.

    Returns:
        A table.
    """
    columns = [pictures.to_pixels(images.float(), "sigma") for images in snapshots.images]
    first = [(snapshots.labels == k).nonzero().flatten()[:1] for k in range(len(class_names))]
    there = [(k, int(number)) for k, numbers in enumerate(first) for number in numbers]
    room = _BYTES // (len(columns) * columns[0][0].numel())
    shown = there[: max(1, room)]
    rows = [
        [
            class_names[k],
            *(
                _image(column[number], f"{class_names[k]} after {iteration} iterations")
                for iteration, column in zip(snapshots.iterations, columns, strict=True)
            ),
        ]
        for k, number in shown
    ]
    part = "" if len(shown) == len(there) else f", for the first {len(shown)} classes"
    caption = f"One image of each class after so many outer iterations{part}"
    return table(["class", *map(str, snapshots.iterations)], rows, caption)


def of_classes(distilled: Artifact) -> Html:
    """The distilled images, one row per class.

    Args:
        distilled: The distilled set.

    Returns:
        A table.
    """
    undone = distilled.preprocessing.invert(distilled.images)
    pixels, labels = pictures.to_pixels(undone, "sigma"), distilled.hard_labels
    members = [pixels[labels == k] for k in range(distilled.num_classes)]
    largest = max(map(len, members))
    room = _BYTES // pixels[0].numel()
    per_class = max(1, min(largest, room // distilled.num_classes))
    shown = members[: max(1, room // per_class)]
    rows = [
        [name, _image(_side_by_side(images[:per_class]), f"distilled images of {name}")]
        for name, images in zip(distilled.class_names, shown, strict=False)
        if len(images)
    ]
    parts = [
        *([f"the first {per_class} of each class"] if per_class < largest else []),
        *([f"the first {len(shown)} classes"] if len(shown) < len(members) else []),
    ]
    caption = "The distilled images" + (f": {', '.join(parts)}" if parts else "")
    return table(["class", "images"], rows, caption)


def _side_by_side(images: Tensor) -> Tensor:
    """``[n, C, H, W]`` as one picture, with a column of paper between two. ``[C, H, n(W+1)-1]``."""
    return torch.cat([*pad(images, (0, 1), value=_PAPER)], dim=2)[:, :, :-1]


def _image(pixels: Tensor, description: str) -> Html:
    height, width = pixels.shape[1:]
    scale = max(1, round(_HEIGHT / height))
    content = base64.b64encode(pictures.png(pixels)).decode("ascii")
    return element(
        "img",
        src=f"data:image/png;base64,{content}",
        alt=description,
        width=width * scale,
        height=height * scale,
    )
