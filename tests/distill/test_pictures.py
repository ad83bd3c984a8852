import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trajmatch import pictures
from trajmatch.errors import UserError

NAMES = ("first class", "second", "empty")
LABELS = torch.tensor([0, 1, 0])


def opened(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "PNG"
        return np.array(image)


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_has_a_row_for_each_class(channels) -> None:
    images = torch.rand(3, channels, 5, 5, generator=torch.Generator().manual_seed(0))
    picture = opened(pictures.grid(images, LABELS, NAMES, pictures.Look(clip="unit", scale=4)))
    assert picture.shape[0] == 4 + 3 * (5 * 4 + 4)
    assert picture.shape[2:] == (() if channels == 1 else (3,))
    right = picture[:, -2 * 24 :]  # two columns of 20 pixels and a gap
    expected = pictures.to_pixels(images, "unit")

    def tile(row: int, column: int) -> torch.Tensor:
        part = torch.from_numpy(right[4 + row * 24 :, column * 24 :][:20, :20][::4, ::4].copy())
        return part[None] if channels == 1 else part.permute(2, 0, 1)

    assert torch.equal(tile(0, 0), expected[0])
    assert torch.equal(tile(0, 1), expected[2])
    assert torch.equal(tile(1, 0), expected[1])
    assert (tile(1, 1) == 255).all() and (tile(2, 0) == 255).all()
    assert (picture[:, :-48] < 255).any()  # the names


def test_enlarged_by_nearest_neighbour() -> None:
    image = torch.tensor([[[[0.0, 1.0], [1.0, 0.0]]]])
    picture = opened(
        pictures.grid(image, torch.tensor([0]), ("x",), pictures.Look(clip="unit", scale=3))
    )
    tile = picture[24:30, 12:18]  # below the name of the class
    assert np.array_equal(tile, np.kron([[0, 255], [255, 0]], np.ones((3, 3))))


def test_small_images_are_enlarged_unasked() -> None:
    image = torch.rand(1, 1, 28, 28)
    picture = opened(pictures.grid(image, torch.tensor([0]), ("x",)))
    assert picture.shape[0] == 28 * 4 + 8 + 20


def test_classes_of_one_image_are_side_by_side() -> None:
    images = torch.rand(3, 1, 40, 40)  # wider than the names
    look = pictures.Look(clip="unit", scale=4)
    picture = opened(pictures.grid(images, torch.tensor([2, 0, 1]), ("a", "b", "c"), look))
    assert picture.shape == (4 + 20 + 164, 12 + 3 * 164)
    expected = pictures.to_pixels(images, "unit")[:, 0]
    for column, index in enumerate((1, 2, 0)):
        tile = picture[24:, 12 + column * 164 :][:160, :160][::4, ::4]
        assert torch.equal(torch.from_numpy(tile.copy()), expected[index])
    many = pictures.grid(torch.rand(11, 1, 4, 4), torch.arange(11), [*"abcdefghijk"], look)
    assert opened(many).shape[0] == 4 + 11 * (16 + 4)


def test_only_so_many_of_each_class() -> None:
    images, labels = torch.rand(6, 1, 4, 4), torch.tensor([0, 0, 0, 1, 1, 1])
    wide, narrow = (
        opened(pictures.grid(images, labels, ("a", "b"), pictures.Look(scale=2, per_class=count)))
        for count in (None, 2)
    )
    assert wide.shape[1] - narrow.shape[1] == 8 + 4


def test_unit_clips() -> None:
    values = torch.tensor([-2.0, 0.0, 0.4, 0.6, 1.0, 3.0]).view(1, 1, 1, 6)
    assert pictures.to_pixels(values, "unit").flatten().tolist() == [0, 0, 102, 153, 255, 255]


def test_sigma_shows_a_band_around_the_mean() -> None:
    values = torch.randn(1, 1, 100, 100, generator=torch.Generator().manual_seed(0))
    values[0, 0, 0, 0] = 1000.0
    shown = pictures.to_pixels(values, "sigma")
    middle, spread = values.mean(), values.std(correction=0)
    low, high = values.min(), middle + 2.5 * spread
    expected = ((values.clamp(low, high) - low) / (high - low) * 255).round()
    assert (shown - expected).abs().max() <= 1
    assert shown.min() == 0 and shown[0, 0, 0, 0] == 255


def test_a_set_of_one_grey_is_grey() -> None:
    assert (pictures.to_pixels(torch.ones(2, 1, 3, 3), "sigma") == 128).all()


def test_png_keeps_every_value(tmp_path: Path) -> None:
    image = torch.randint(0, 256, (3, 6, 7), dtype=torch.uint8)
    assert np.array_equal(opened(pictures.png(image)), image.permute(1, 2, 0).numpy())


def test_other_numbers_of_channels_are_refused() -> None:
    with pytest.raises(UserError, match="these images have 5"):
        pictures.png(torch.zeros(5, 4, 4, dtype=torch.uint8))
