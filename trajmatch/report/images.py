"""Tables of images for the report, limited in size."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from trajmatch import pictures
from trajmatch.artifact import Artifact
from trajmatch.report.parts import Picture, Table, data_url
from trajmatch.snapshots import Snapshots

#: Maximum bytes of pixels per table. The size on the page is similar: PNG shrinks, base64 grows.
_BYTES = 2**21
#: Images on the page are about this many pixels high.
_HEIGHT = 64


def over_iterations(snapshots: Snapshots, class_names: Sequence[str]) -> Table:
    """Return a table of one image of each class (rows) over the iterations (columns)."""
    columns = snapshots.pixels("sigma")
    there = [k for k in range(len(class_names)) if (snapshots.labels == k).any()]
    # Limit the number of classes, because every class has an image of each iteration.
    shown = there[: max(1, _BYTES // (len(columns) * columns[0][0].numel()))]
    rows: list[list[str | Picture]] = []
    for k in shown:
        name, number = class_names[k], int((snapshots.labels == k).nonzero()[0])
        rows.append([name])
        for iteration, column in zip(snapshots.iterations, columns, strict=True):
            rows[-1].append(_picture(column[number], f"{name} after {iteration} iterations"))
    part = "" if len(shown) == len(there) else f", for the first {len(shown)} classes"
    caption = f"One image of each class after the given number of outer iterations{part}"
    return Table(caption, ["class", *map(str, snapshots.iterations)], rows)


def of_classes(distilled: Artifact) -> Table:
    """Return a table of the distilled images, one row per class."""
    pixels = pictures.to_pixels(distilled.preprocessing.invert(distilled.images), "sigma")
    members = [pixels[distilled.hard_labels == k] for k in range(distilled.num_classes)]
    largest = max(map(len, members))
    # Limit the images per class first, then the number of classes.
    room = _BYTES // pixels[0].numel()
    per_class = max(1, min(largest, room // distilled.num_classes))
    shown = members[: max(1, room // per_class)]
    rows: list[list[str | Picture]] = []
    for name, images in zip(distilled.class_names, shown, strict=False):
        if len(images):
            # One picture for the row: images side by side, a white pixel column between them.
            joined = torch.cat([*pad(images[:per_class], (0, 1), value=255)], dim=2)[:, :, :-1]
            rows.append([name, _picture(joined, f"distilled images of {name}")])
    parts = [f"the first {per_class} of each class"] if per_class < largest else []
    parts += [f"the first {len(shown)} classes"] if len(shown) < len(members) else []
    caption = ": ".join(filter(None, ["The distilled images", ", ".join(parts)]))
    return Table(caption, ["class", "images"], rows)


def _picture(pixels: Tensor, text: str) -> Picture:
    height, width = pixels.shape[1:]
    # The browser enlarges the image by a whole factor, so that all pixels stay equally large.
    scale = max(1, round(_HEIGHT / height))
    source = data_url("image/png", pictures.png(pixels))
    return Picture(source, text, width * scale, height * scale)
