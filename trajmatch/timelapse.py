"""Pictures of how images came about: an animation over the iterations, or one beside the other."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import ImageOps
from torch import Tensor

from trajmatch.pictures import Clip, encode, table, to_pixels
from trajmatch.snapshots import Snapshots

#: The last frame of an animation stays for so many times as long as another.
_LAST_FRAMES = 4


def animation(
    snapshots: Snapshots,
    class_names: Sequence[str],
    *,
    clip: Clip = "sigma",
    scale: int | None = None,
    per_class: int | None = None,
    frame_seconds: float = 0.5,
) -> bytes:
    """An animated GIF with a frame for each snapshot: one row per class, the iteration above.

    Args:
        snapshots: One or more.
        class_names: Name of each class.
        clip: What of the pixel values is shown, of each snapshot by itself; see
            :func:`trajmatch.pictures.grid`.
        scale: Enlargement. Default: so that images are 96 pixels wide.
        per_class: Images to show of each class. Default: all that there are.
        frame_seconds: How long a frame stays; the last stays four times as long.

    Returns:
        The content of the file. It repeats without end.
    """
    frames = [
        table(
            [[*pixels[snapshots.labels == k][:per_class]] for k in range(len(class_names))],
            class_names,
            title=f"iteration {iteration}",
            scale=scale,
        )
        for iteration, pixels in zip(snapshots.iterations, _pixels(snapshots, clip), strict=True)
    ]
    width = max(frame.width for frame in frames)  # a long title can make one wider
    frames = [
        ImageOps.expand(frame, border=(0, 0, width - frame.width, 0), fill="white")
        for frame in frames
    ]
    milliseconds = round(1000 * frame_seconds)
    buffer = io.BytesIO()
    frames[0].save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=frames[1:],
        duration=[milliseconds] * (len(frames) - 1) + [_LAST_FRAMES * milliseconds],
        loop=0,
    )
    return buffer.getvalue()


def strip(
    snapshots: Snapshots,
    class_names: Sequence[str],
    *,
    clip: Clip = "sigma",
    scale: int | None = None,
    per_class: int | None = None,
) -> bytes:
    """A PNG with a column for each snapshot and a row for each image.

    Args:
        snapshots: One or more.
        class_names: Name of each class.
        clip: See :func:`animation`.
        scale: See :func:`animation`.
        per_class: Images to show of each class. Default: 1.

    Returns:
        The content of the file.
    """
    columns = _pixels(snapshots, clip)
    chosen = [
        int(number)
        for k in range(len(class_names))
        for number in (snapshots.labels == k).nonzero().flatten()[: per_class or 1]
    ]
    return encode(
        table(
            [[column[number] for column in columns] for number in chosen],
            [class_names[int(snapshots.labels[number])] for number in chosen],
            heads=[*map(str, snapshots.iterations)],
            scale=scale,
        )
    )


def _pixels(snapshots: Snapshots, clip: Clip) -> list[Tensor]:
    """Return the pixels to show of each snapshot. ``[n, 1 or 3, H, W]`` each, uint8."""
    return [to_pixels(images.float(), clip) for images in snapshots.images]
