"""DSA by explicit parameters: by hand, pixel by pixel, against PyTorch's, and its transpose."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from trajmatch import ops, reference
from trajmatch.ops import dsa_parameters

SHAPES = [(2, 3, 6, 6), (3, 1, 5, 5), (2, 3, 7, 4), (1, 2, 1, 3), (2, 5, 3, 1)]
FORMATS = [torch.contiguous_format, torch.channels_last]


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def picture(*rows: list[float]) -> Tensor:
    """One image of one channel, [1, 1, H, W]."""
    return torch.tensor(rows, dtype=torch.float64)[None, None]


@pytest.fixture(params=[ops, reference], ids=["ops", "reference"])
def transform(request: pytest.FixtureRequest) -> Callable[[Tensor, Tensor], Tensor]:
    """Both implementations: the reference is tested too."""
    module: ModuleType = request.param
    return module.dsa


# By hand


def test_color_of_one_pixel_by_hand(transform: Callable[..., Tensor]) -> None:
    # brightness: 2, 3, 7 (mean 4); saturation 0.5: 3, 3.5, 5.5 (mean 4); contrast 2: 2, 3, 7
    pixel = numbers(1, 2, 6).view(1, 3, 1, 1)
    result = transform(pixel, dsa_parameters.color(numbers(1), numbers(0.5), numbers(2)))
    torch.testing.assert_close(result, numbers(2, 3, 7).view(1, 3, 1, 1))


def test_crop_by_hand(transform: Callable[..., Tensor]) -> None:
    image = picture([1, 2, 3], [4, 5, 6], [7, 8, 9])
    moved = transform(image, dsa_parameters.crop(numbers(1), numbers(-1)))
    assert torch.equal(moved, picture([0, 4, 5], [0, 7, 8], [0, 0, 0]))
    gone = transform(image, dsa_parameters.crop(numbers(0), numbers(4)))
    assert torch.equal(gone, torch.zeros_like(image))


@pytest.mark.parametrize(
    ("top", "left", "size", "expected"),
    [
        (0, 0, (2, 2), ([0, 0, 1], [0, 0, 1], [1, 1, 1])),
        (-1, 2, (2, 2), ([1, 1, 0], [1, 1, 1], [1, 1, 1])),
        (2, -1, (1, 3), ([1, 1, 1], [1, 1, 1], [0, 0, 1])),
        (1, 3, (2, 2), ([1, 1, 1], [1, 1, 1], [1, 1, 1])),
    ],
)
def test_cutout_by_hand(
    transform: Callable[..., Tensor], top: int, left: int, size: tuple[int, int], expected: Any
) -> None:
    ones = torch.ones(1, 1, 3, 3, dtype=torch.float64)
    cut = transform(ones, dsa_parameters.cutout(numbers(top), numbers(left), *size))
    assert torch.equal(cut, picture(*expected))


def test_flip_by_hand(transform: Callable[..., Tensor]) -> None:
    image = picture([1, 2, 3], [4, 5, 6]).repeat(2, 1, 1, 1)
    flipped = transform(image, dsa_parameters.flip(torch.tensor([True, False])))
    assert torch.equal(flipped, torch.cat([picture([3, 2, 1], [6, 5, 4]), image[1:]]))


def test_scale_by_hand(transform: Callable[..., Tensor]) -> None:
    image = picture([1, 2, 3], [4, 5, 6], [7, 8, 9])
    shrunk = transform(image, dsa_parameters.scale(numbers(2), numbers(1)))
    torch.testing.assert_close(shrunk, picture([0, 2, 0], [0, 5, 0], [0, 8, 0]))
    enlarged = transform(image, dsa_parameters.scale(numbers(1), numbers(0.5)))
    torch.testing.assert_close(enlarged, picture([2.5, 3.5, 4.5], [4, 5, 6], [5.5, 6.5, 7.5]))


def test_a_quarter_turn_is_anticlockwise(transform: Callable[..., Tensor]) -> None:
    image = picture([1, 2, 3], [4, 5, 6], [7, 8, 9])
    turned = transform(image, dsa_parameters.rotate(numbers(math.pi / 2)))
    torch.testing.assert_close(turned, picture([3, 6, 9], [2, 5, 8], [1, 4, 7]))


# Pixel by pixel


def by_pixel(images: Tensor, value: Callable[..., float]) -> Tensor:
    """A tensor whose element (b, c, y, x) is value(b, image b, c, y, x)."""
    result = torch.empty_like(images)
    for b, image in enumerate(images):
        for c, y, x in torch.cartesian_prod(*map(torch.arange, image.shape)).tolist():
            result[b, c, y, x] = value(b, image, c, y, x)
    return result


def pixel_or_zero(image: Tensor, c: int, y: int, x: int) -> float:
    _, height, width = image.shape
    return float(image[c, y, x]) if 0 <= y < height and 0 <= x < width else 0.0


def bilinear(image: Tensor, c: int, u: float, v: float) -> float:
    """The image at u (right) and v (down), both -1 at the first pixel and 1 at the last."""
    _, height, width = image.shape
    x, y = (u + 1) / 2 * (width - 1), (v + 1) / 2 * (height - 1)
    left, top = math.floor(x), math.floor(y)
    return sum(
        (1 - abs(x - column)) * (1 - abs(y - row)) * pixel_or_zero(image, c, row, column)
        for row in (top, top + 1)
        for column in (left, left + 1)
    )


def coordinate(index: int, length: int) -> float:
    return 2 * index / (length - 1) - 1 if length > 1 else -1.0


@pytest.mark.parametrize("shape", SHAPES)
def test_color_is_brightness_then_saturation_then_contrast(
    transform: Callable[..., Tensor], shape: tuple[int, ...]
) -> None:
    images = torch.randn(shape, dtype=torch.float64)
    brightness, saturation, contrast = torch.rand(3, shape[0], dtype=torch.float64)

    def brighter(b: int, image: Tensor, c: int, y: int, x: int) -> Tensor:
        return image[c, y, x] + brightness[b]

    def saturated(b: int, image: Tensor, c: int, y: int, x: int) -> Tensor:
        grey = sum(image[:, y, x]) / shape[1]
        return (image[c, y, x] - grey) * saturation[b] + grey

    def contrasted(b: int, image: Tensor, c: int, y: int, x: int) -> Tensor:
        return (image[c, y, x] - image.mean()) * contrast[b] + image.mean()

    expected = by_pixel(by_pixel(by_pixel(images, brighter), saturated), contrasted)
    result = transform(images, dsa_parameters.color(brightness, saturation, contrast))
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", SHAPES)
def test_crop_moves_the_window(transform: Callable[..., Tensor], shape: tuple[int, ...]) -> None:
    images = torch.randn(shape, dtype=torch.float64)
    shift_y, shift_x = torch.randint(-2, 3, (2, shape[0]))
    expected = by_pixel(
        images,
        lambda b, image, c, y, x: pixel_or_zero(image, c, y + int(shift_y[b]), x + int(shift_x[b])),
    )
    assert torch.equal(transform(images, dsa_parameters.crop(shift_y, shift_x)), expected)


@pytest.mark.parametrize("size", [(2, 2), (3, 3), (1, 4)])
@pytest.mark.parametrize("shape", SHAPES)
def test_cutout_clears_a_rectangle(
    transform: Callable[..., Tensor], shape: tuple[int, ...], size: tuple[int, int]
) -> None:
    images = torch.randn(shape, dtype=torch.float64)
    top, left = (torch.randint(-2, length + 1, shape[:1]) for length in shape[2:])

    def cut(b: int, image: Tensor, c: int, y: int, x: int) -> float:
        inside = 0 <= y - top[b] < size[0] and 0 <= x - left[b] < size[1]
        return 0.0 if inside else float(image[c, y, x])

    result = transform(images, dsa_parameters.cutout(top, left, *size))
    assert torch.equal(result, by_pixel(images, cut))


@pytest.mark.parametrize("shape", SHAPES)
def test_flip_exchanges_left_and_right(
    transform: Callable[..., Tensor], shape: tuple[int, ...]
) -> None:
    images = torch.randn(shape, dtype=torch.float64)
    flipped = torch.arange(shape[0]) % 2 == 0
    expected = by_pixel(
        images, lambda b, image, c, y, x: image[c, y, shape[3] - 1 - x if flipped[b] else x]
    )
    assert torch.equal(transform(images, dsa_parameters.flip(flipped)), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_scale_samples_the_scaled_coordinates(
    transform: Callable[..., Tensor], shape: tuple[int, ...]
) -> None:
    images = torch.randn(shape, dtype=torch.float64)
    scale_x, scale_y = 0.7 + 0.6 * torch.rand(2, shape[0], dtype=torch.float64)
    expected = by_pixel(
        images,
        lambda b, image, c, y, x: bilinear(
            image,
            c,
            float(scale_x[b]) * coordinate(x, shape[3]),
            float(scale_y[b]) * coordinate(y, shape[2]),
        ),
    )
    result = transform(images, dsa_parameters.scale(scale_x, scale_y))
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", SHAPES)
def test_rotate_samples_the_turned_coordinates(
    transform: Callable[..., Tensor], shape: tuple[int, ...]
) -> None:
    images = torch.randn(shape, dtype=torch.float64)
    angle = torch.rand(shape[0], dtype=torch.float64) - 0.5

    def turned(b: int, image: Tensor, c: int, y: int, x: int) -> float:
        u, v = coordinate(x, shape[3]), coordinate(y, shape[2])
        sine, cosine = math.sin(angle[b]), math.cos(angle[b])
        return bilinear(image, c, cosine * u - sine * v, sine * u + cosine * v)

    result = transform(images, dsa_parameters.rotate(angle))
    torch.testing.assert_close(result, by_pixel(images, turned), rtol=0, atol=1e-13)


# Forward and backward against the reference


def rows_of_all_kinds() -> Tensor:
    """Usual parameters and extreme ones, 20 rows."""
    uniform = torch.rand(3, 2, dtype=torch.float64)
    matrices = [[0.3, 0.1, -0.2, 0.4], [2.5, 1.0, 0.4, -3.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1, 1, 1]]
    return torch.cat(
        [
            dsa_parameters.color(uniform[0] - 0.5, 2 * uniform[1], uniform[2] + 0.5),
            dsa_parameters.crop(torch.tensor([1, -2, 100, -3]), torch.tensor([-2, 3, 0, -100])),
            dsa_parameters.cutout(torch.tensor([-3, 2, 40]), torch.tensor([1, -1, 0]), 7, 5),
            dsa_parameters.flip(torch.tensor([True, False])),
            dsa_parameters.scale(numbers(1.2, 0.83, 1), numbers(0.9, 1.1, 1)),
            dsa_parameters.rotate(numbers(0.26, -0.11)),
            torch.cat([torch.full((4, 1), 4.0), torch.tensor(matrices)], dim=1).double(),
        ]
    )


@pytest.fixture
def rows(device: torch.device) -> Tensor:
    return rows_of_all_kinds().to(device)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("size", [(8, 8), (17, 13), (33, 28), (1, 6)])
def test_both_passes_match_the_reference(
    randn: Callable[..., Tensor],
    rows: Tensor,
    channels: int,
    size: tuple[int, int],
    memory_format: torch.memory_format,
) -> None:
    images = randn(len(rows), channels, *size).contiguous(memory_format=memory_format)
    above = randn(len(rows), channels, *size).contiguous(memory_format=memory_format)
    results = []
    for functions in (ops, reference):
        leaf = images.clone().requires_grad_()
        out = functions.dsa(leaf, rows)
        results.append((out, *torch.autograd.grad(out, leaf, above)))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (6, 11, 40)])
def test_the_backward_pass_is_the_transpose(
    randn: Callable[..., Tensor],
    rows: Tensor,
    shape: tuple[int, ...],
    memory_format: torch.memory_format,
) -> None:
    """<A x, y> = <x, A^T y>, sample by sample; and the tangent is the forward without constant."""
    op = torch.ops.trajmatch
    x, y = (randn(len(rows), *shape).contiguous(memory_format=memory_format) for _ in range(2))
    pushed, pulled = op.dsa_tangent(x, rows), op.dsa_backward(y, rows)
    left, right = (pushed * y).sum((1, 2, 3)), (x * pulled).sum((1, 2, 3))
    scale = x.flatten(1).norm(dim=1) * pulled.flatten(1).norm(dim=1)
    assert ((left - right).abs() <= 1e-14 * scale).all()
    constant = op.dsa(torch.zeros_like(x), rows)
    torch.testing.assert_close(op.dsa(x, rows), pushed + constant, rtol=0, atol=1e-12)
    assert (constant.flatten(1).std(1) < 1e-15).all()


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("channels", [1, 3])
def test_float32_is_close_to_float64(
    randn: Callable[..., Tensor], rows: Tensor, channels: int, memory_format: torch.memory_format
) -> None:
    images = randn(len(rows), channels, 32, 32).contiguous(memory_format=memory_format)
    for op in (torch.ops.trajmatch.dsa, torch.ops.trajmatch.dsa_backward):
        single, double = op(images.float(), rows).double(), op(images.float().double(), rows)
        # A sample that is off by part of a pixel is off by that part of what neighbours differ.
        assert ((single - double).norm() / double.norm()).item() < 1e-6


def test_gradcheck_and_gradgradcheck(randn: Callable[..., Tensor], rows: Tensor) -> None:
    images = randn(len(rows), 2, 2, 3, grad=True)
    assert torch.autograd.gradcheck(lambda x: ops.dsa(x, rows), images)
    # The square makes the second derivative something else than 0.
    assert torch.autograd.gradgradcheck(lambda x: ops.dsa(x, rows).square(), images)


# PyTorch's own checks


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_opcheck(
    randn: Callable[..., Tensor], rows: Tensor, memory_format: torch.memory_format, grad: bool
) -> None:
    images = randn(len(rows), 3, 5, 6).contiguous(memory_format=memory_format).requires_grad_(grad)
    op = torch.ops.trajmatch
    for overload in (op.dsa.default, op.dsa_tangent.default, op.dsa_backward.default):
        torch.library.opcheck(overload, (images, rows))


# Images of any kind


def test_the_memory_format_is_kept(randn: Callable[..., Tensor], rows: Tensor) -> None:
    images = randn(len(rows), 3, 5, 6)
    expected = ops.dsa(images, rows)
    assert expected.is_contiguous()
    for memory_format in FORMATS:
        given = images.contiguous(memory_format=memory_format)
        result = ops.dsa(given, rows)
        assert result.is_contiguous(memory_format=memory_format)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-14)
    transposed = images.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(ops.dsa(transposed, rows), expected)
    above = torch.ones((), dtype=images.dtype, device=images.device).expand(images.shape)
    pulled = torch.ops.trajmatch.dsa_backward(above, rows)
    assert torch.equal(pulled, torch.ops.trajmatch.dsa_backward(above.contiguous(), rows))


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4), (2, 3, 4, 0)])
def test_nothing_stays_nothing(device: torch.device, shape: tuple[int, ...]) -> None:
    images = torch.zeros(shape, device=device)
    rows = dsa_parameters.flip(torch.ones(shape[0])).to(device)
    assert ops.dsa(images, rows).shape == shape


def test_is_bitwise_repeatable_and_independent_of_the_batch(
    randn: Callable[..., Tensor], rows: Tensor
) -> None:
    images = randn(len(rows), 3, 32, 32, dtype=torch.float32)
    for op in (torch.ops.trajmatch.dsa, torch.ops.trajmatch.dsa_backward):
        result = op(images, rows)
        assert torch.equal(op(images, rows), result)
        single = [op(images[i : i + 1], rows[i : i + 1]) for i in range(len(rows))]
        assert torch.equal(torch.cat(single), result)


def test_rows_are_float64_whatever_they_are_made_of() -> None:
    rows = dsa_parameters.crop(torch.tensor([1]), torch.tensor([-2]))
    assert rows.dtype == torch.float64
    assert rows.tolist() == [[1, 1, -2, 0, 0]]
    angle = torch.tensor([0.1])
    assert dsa_parameters.rotate(angle)[0, 1].item() == math.cos(angle.item())


def test_errors_say_what_came() -> None:
    images, rows = torch.zeros(2, 3, 4, 4), dsa_parameters.flip(torch.ones(2))
    with pytest.raises(ValueError, match=r"expected images to have 4 dimensions, but got \[3, 4\]"):
        ops.dsa(images[0, :, 0], rows)
    with pytest.raises(TypeError, match="expected images to be float32 or float64, but got"):
        ops.dsa(images.half(), rows)
    with pytest.raises(TypeError, match="expected parameters to be float64, but got float32"):
        ops.dsa(images, rows.float())
    with pytest.raises(
        ValueError, match=r"expected parameters to have shape \[2, 5\], but got \[2, 4\]"
    ):
        ops.dsa(images, rows[:, :4])
    with pytest.raises(ValueError, match=r"expected images to have at most 2\^28 pixels each, but"):
        ops.dsa(torch.zeros(1).expand(2, 3, 20_000, 20_000), rows)
    for kind in (-1, 5, 0.5):
        unknown = rows.clone()
        unknown[1, 0] = kind
        with pytest.raises(ValueError, match=r"parameters to have a kind from 0 to 4, but got"):
            ops.dsa(images, unknown)
    with pytest.raises(ValueError, match="expected parameters to be finite, but got nan"):
        ops.dsa(images, rows * math.nan)
    with pytest.raises(ValueError, match=r"dsa_backward: expected grad_out to have 4 dimensions"):
        torch.ops.trajmatch.dsa_backward(images[0], rows)
