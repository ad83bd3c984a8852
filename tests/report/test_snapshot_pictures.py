"""Animations and strips of the images over the iterations."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from trajmatch import pictures, snapshots
from trajmatch.snapshots import Snapshots

NAMES = ("first", "se\ncond", "empty")


def taken(channels: int = 1, count: int = 3) -> Snapshots:
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(count, 4, channels, 5, 6, generator=draw).half()
    return Snapshots((0, 40, 1000)[:count], images, torch.tensor([0, 0, 1, 1]), {})


def frames_of(content: bytes) -> list[tuple[np.ndarray, int]]:
    """Pixels and milliseconds of each frame."""
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "GIF" and image.info["loop"] == 0
        frames = []
        for number in range(image.n_frames):
            image.seek(number)
            frames.append((np.array(image.convert("RGB")), image.info["duration"]))
    return frames


def opened(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "PNG"
        return np.array(image)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_animation_has_a_frame_for_each_snapshot(channels) -> None:
    content = snapshots.animation(
        taken(channels), NAMES, pictures.Look(scale=8, clip="unit"), frame_seconds=0.2
    )
    frames = frames_of(content)
    assert [duration for _, duration in frames] == [200, 200, 800]
    for number, (frame, _) in enumerate(frames):
        expected = pictures.to_pixels(taken(channels).images[number].float(), "unit")[0]
        tile = frame[24 : 24 + 40, -2 * 52 : -2 * 52 + 48][4::8, 4::8].astype(int)
        shown = torch.from_numpy(tile).permute(2, 0, 1)
        limit = 0 if channels == 1 else 40  # a GIF has 256 colours, and each of these is another
        assert (shown - expected.int()).abs().max() <= limit
    heights = {frame.shape for frame, _ in frames}
    assert heights == {(24 + 3 * 44, frames[0][0].shape[1], 3)}


def test_an_animation_of_one_snapshot_and_of_one_image_of_each_class() -> None:
    (frame, _), wide = (
        frames_of(snapshots.animation(taken(count=1), NAMES, pictures.Look(scale=8, per_class=1)))[
            0
        ],
        frames_of(snapshots.animation(taken(count=1), NAMES, pictures.Look(scale=8)))[0][0],
    )
    assert frame.shape[1] < wide.shape[1]


def test_a_strip_has_a_column_for_each_snapshot_and_a_row_for_each_image() -> None:
    shown = taken()
    one = opened(snapshots.strip(shown, NAMES, pictures.Look(scale=8, clip="unit")))
    two = opened(snapshots.strip(shown, NAMES, pictures.Look(scale=8, clip="unit", per_class=2)))
    assert one.shape[0] == 24 + 2 * 44 and two.shape[0] == 24 + 4 * 44
    for column in range(3):
        expected = pictures.to_pixels(shown.images[column].float(), "unit")
        left = column * 52 - 3 * 52
        for row in range(4):
            tile = two[24 + row * 44 :, left:][:40, :48][4::8, 4::8]
            assert np.array_equal(tile, expected[row, 0].numpy())
        assert np.array_equal(one[24:64, left:][:, :48], two[24:64, left:][:, :48])


def test_frames_are_of_one_size_where_a_title_is_wider_than_the_images() -> None:
    frames = frames_of(
        snapshots.animation(taken(), ("a", "b", "c"), pictures.Look(scale=1, per_class=1))
    )
    assert len({frame.shape for frame, _ in frames}) == 1
    assert frames[0][0].shape[1] > 60


def test_each_snapshot_is_scaled_by_itself() -> None:
    shown = taken()
    loud = replace(shown, images=torch.cat([shown.images[:2], 100 * shown.images[2:]]))
    one, two = (snapshots.strip(each, NAMES, pictures.Look(scale=2)) for each in (shown, loud))
    assert np.abs(opened(one).astype(int) - opened(two)).max() <= 1


def test_equal_snapshots_equal_bytes() -> None:
    for draw in (snapshots.animation, snapshots.strip):
        assert draw(taken(3), NAMES) == draw(taken(3), NAMES)


def test_a_long_name_is_cut() -> None:
    picture = snapshots.strip(taken(count=1), ("x" * 5000, "y", "z"))
    assert opened(picture).shape[1] < 1000
