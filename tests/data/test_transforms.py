"""The six groups of DSA against values worked out by hand and a reference, pixel by pixel."""

import math

import pytest
import torch

from trajmatch.data import transforms

SHAPES = [(2, 3, 6, 6), (3, 1, 5, 5), (2, 3, 7, 4), (1, 2, 1, 3)]


def numbers(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)


def picture(*rows):
    """One image of one channel, [1, 1, H, W]."""
    return torch.tensor(rows, dtype=torch.float64)[None, None]


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(3)


def by_pixel(images, value):
    """A tensor whose element (b, c, y, x) is value(image b, c, y, x)."""
    result = torch.empty_like(images)
    for b, image in enumerate(images):
        for c, y, x in torch.cartesian_prod(*map(torch.arange, image.shape)).tolist():
            result[b, c, y, x] = value(b, image, c, y, x)
    return result


def pixel_or_zero(image, c, y, x):
    _, height, width = image.shape
    return float(image[c, y, x]) if 0 <= y < height and 0 <= x < width else 0.0


def bilinear(image, c, u, v):
    """The image at u (right) and v (down), both -1 at the first pixel and 1 at the last."""
    _, height, width = image.shape
    x, y = (u + 1) / 2 * (width - 1), (v + 1) / 2 * (height - 1)
    left, top = math.floor(x), math.floor(y)
    return sum(
        (1 - abs(x - column)) * (1 - abs(y - row)) * pixel_or_zero(image, c, row, column)
        for row in (top, top + 1)
        for column in (left, left + 1)
    )


def coordinate(index, length):
    return 2 * index / (length - 1) - 1 if length > 1 else -1.0


# By hand


def test_color_of_one_pixel_by_hand():
    # brightness: 2, 3, 7 (mean 4); saturation 0.5: 3, 3.5, 5.5 (mean 4); contrast 2: 2, 3, 7
    pixel = numbers(1, 2, 6).view(1, 3, 1, 1)
    result = transforms.color(pixel, numbers(1), numbers(0.5), numbers(2))
    torch.testing.assert_close(result, numbers(2, 3, 7).view(1, 3, 1, 1))


def test_crop_by_hand():
    image = picture([1, 2, 3], [4, 5, 6], [7, 8, 9])
    moved = transforms.crop(image, torch.tensor([1]), torch.tensor([-1]), largest=1)
    assert torch.equal(moved, picture([0, 4, 5], [0, 7, 8], [0, 0, 0]))


@pytest.mark.parametrize(
    ("center_y", "center_x", "size", "expected"),
    [
        (1, 1, (2, 2), ([0, 0, 1], [0, 0, 1], [1, 1, 1])),
        (0, 3, (2, 2), ([1, 1, 0], [1, 1, 1], [1, 1, 1])),
        (2, 0, (1, 3), ([1, 1, 1], [1, 1, 1], [0, 0, 1])),
    ],
)
def test_cutout_by_hand(center_y, center_x, size, expected):
    ones = torch.ones(1, 1, 3, 3, dtype=torch.float64)
    cut = transforms.cutout(ones, torch.tensor([center_y]), torch.tensor([center_x]), size)
    assert torch.equal(cut, picture(*expected))


def test_flip_by_hand():
    image = picture([1, 2, 3], [4, 5, 6]).repeat(2, 1, 1, 1)
    flipped = transforms.flip(image, torch.tensor([True, False]))
    assert torch.equal(flipped, torch.cat([picture([3, 2, 1], [6, 5, 4]), image[1:]]))


def test_scale_by_hand():
    image = picture([1, 2, 3], [4, 5, 6], [7, 8, 9])
    shrunk = transforms.scale(image, numbers(2), numbers(1))
    torch.testing.assert_close(shrunk, picture([0, 2, 0], [0, 5, 0], [0, 8, 0]))
    enlarged = transforms.scale(image, numbers(1), numbers(0.5))
    torch.testing.assert_close(enlarged, picture([2.5, 3.5, 4.5], [4, 5, 6], [5.5, 6.5, 7.5]))


def test_a_quarter_turn_is_anticlockwise():
    image = picture([1, 2, 3], [4, 5, 6], [7, 8, 9])
    turned = transforms.rotate(image, numbers(math.pi / 2))
    torch.testing.assert_close(turned, picture([3, 6, 9], [2, 5, 8], [1, 4, 7]))


# Against the reference


@pytest.mark.parametrize("shape", SHAPES)
def test_color_is_brightness_then_saturation_then_contrast(shape, generator):
    images = torch.randn(shape, dtype=torch.float64, generator=generator)
    brightness, saturation, contrast = torch.rand(
        3, shape[0], dtype=torch.float64, generator=generator
    )

    def brighter(b, image, c, y, x):
        return image[c, y, x] + brightness[b]

    def saturated(b, image, c, y, x):
        grey = sum(image[:, y, x]) / shape[1]
        return (image[c, y, x] - grey) * saturation[b] + grey

    def contrasted(b, image, c, y, x):
        return (image[c, y, x] - image.mean()) * contrast[b] + image.mean()

    expected = by_pixel(by_pixel(by_pixel(images, brighter), saturated), contrasted)
    torch.testing.assert_close(
        transforms.color(images, brightness, saturation, contrast), expected, rtol=0, atol=1e-14
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_crop_moves_the_window(shape, generator):
    images = torch.randn(shape, dtype=torch.float64, generator=generator)
    shift_y, shift_x = torch.randint(-2, 3, (2, shape[0]), generator=generator)
    expected = by_pixel(
        images,
        lambda b, image, c, y, x: pixel_or_zero(image, c, y + int(shift_y[b]), x + int(shift_x[b])),
    )
    assert torch.equal(transforms.crop(images, shift_y, shift_x, largest=2), expected)


@pytest.mark.parametrize("size", [(2, 2), (3, 3), (1, 4)])
@pytest.mark.parametrize("shape", SHAPES)
def test_cutout_clears_a_rectangle(shape, size, generator):
    images = torch.randn(shape, dtype=torch.float64, generator=generator)
    center_y = torch.randint(0, shape[2] + 1, shape[:1], generator=generator)
    center_x = torch.randint(0, shape[3] + 1, shape[:1], generator=generator)

    def cut(b, image, c, y, x):
        top, left = int(center_y[b]) - size[0] // 2, int(center_x[b]) - size[1] // 2
        inside = y in range(top, top + size[0]) and x in range(left, left + size[1])
        return 0.0 if inside else image[c, y, x]

    assert torch.equal(transforms.cutout(images, center_y, center_x, size), by_pixel(images, cut))


@pytest.mark.parametrize("shape", SHAPES)
def test_flip_exchanges_left_and_right(shape, generator):
    images = torch.randn(shape, dtype=torch.float64, generator=generator)
    flipped = torch.arange(shape[0]) % 2 == 0
    expected = by_pixel(
        images,
        lambda b, image, c, y, x: image[c, y, shape[3] - 1 - x if flipped[b] else x],
    )
    assert torch.equal(transforms.flip(images, flipped), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_scale_samples_the_scaled_coordinates(shape, generator):
    images = torch.randn(shape, dtype=torch.float64, generator=generator)
    scale_x, scale_y = 0.7 + 0.6 * torch.rand(2, shape[0], dtype=torch.float64, generator=generator)
    expected = by_pixel(
        images,
        lambda b, image, c, y, x: bilinear(
            image,
            c,
            float(scale_x[b]) * coordinate(x, shape[3]),
            float(scale_y[b]) * coordinate(y, shape[2]),
        ),
    )
    torch.testing.assert_close(
        transforms.scale(images, scale_x, scale_y), expected, rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_rotate_samples_the_turned_coordinates(shape, generator):
    images = torch.randn(shape, dtype=torch.float64, generator=generator)
    angle = torch.rand(shape[0], dtype=torch.float64, generator=generator) - 0.5

    def turned(b, image, c, y, x):
        u, v = coordinate(x, shape[3]), coordinate(y, shape[2])
        sine, cosine = math.sin(angle[b]), math.cos(angle[b])
        return bilinear(image, c, cosine * u - sine * v, sine * u + cosine * v)

    torch.testing.assert_close(
        transforms.rotate(images, angle), by_pixel(images, turned), rtol=0, atol=1e-13
    )
