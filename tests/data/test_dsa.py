"""DSA as a whole: which group, which parameters, gradients, replay."""

import math

import pytest
import torch

from trajmatch import ops
from trajmatch.data import DSA
from trajmatch.errors import UserError
from trajmatch.ops.dsa_parameters import KINDS
from trajmatch.random import generator

GROUPS = ["color", "crop", "cutout", "flip", "scale", "rotate"]
ALL = "color_crop_cutout_flip_scale_rotate"


def images_of(*shape, dtype=torch.float32):
    return torch.randn(shape, dtype=dtype, generator=generator(0, "images"))


# Gradients


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("group", GROUPS)
def test_every_group_is_differentiable_twice_in_the_images(group, channels):
    images = images_of(2, channels, 5, 5, dtype=torch.float64).requires_grad_()
    rows = DSA(group).draw(2, 5, 5, generator(1))
    assert torch.autograd.gradcheck(ops.dsa, (images, rows))
    # The square makes the second derivative something else than 0.
    assert torch.autograd.gradgradcheck(lambda x: ops.dsa(x, rows).square(), images)


@pytest.mark.parametrize("group", GROUPS)
def test_the_gradient_is_the_transpose(group):
    """<A(x) - A(0), y> = <x, A^T y>, at a size that is used."""
    images = images_of(4, 3, 28, 28, dtype=torch.float64).requires_grad_()
    cotangent = torch.randn(images.shape, dtype=torch.float64, generator=generator(2))
    rows = DSA(group).draw(4, 28, 28, generator(1))
    result = ops.dsa(images, rows)
    (pulled,) = torch.autograd.grad(result, images, cotangent)
    constant = ops.dsa(torch.zeros_like(images), rows)
    pushed = ((result - constant) * cotangent).sum()
    torch.testing.assert_close((images * pulled).sum(), pushed, rtol=1e-12, atol=0)


# Which group


def group_of(rows):
    """The group of some rows; scale and rotate are of one kind."""
    kind = KINDS[int(rows[0, 0])]
    return kind if kind != "sample" else "rotate" if rows[0, 2] else "scale"


def test_groups_are_equally_likely():
    dsa, stream, counts = DSA(ALL), generator(0), dict.fromkeys(GROUPS, 0)
    for _ in range(6000):
        counts[group_of(dsa.draw(1, 8, 8, stream))] += 1
    # The standard deviation of each count is 29.
    assert all(abs(count - 1000) < 120 for count in counts.values()), counts


def test_only_the_groups_of_the_strategy_are_drawn():
    dsa, stream = DSA("flip_rotate"), generator(0)
    assert {group_of(dsa.draw(1, 8, 8, stream)) for _ in range(50)} == {"flip", "rotate"}


# Which parameters


def drawn(group, size=28, count=4000):
    """The numbers drawn for each image, by the rows; of cutout the middle of the square."""
    _, *numbers = DSA(group).draw(count, size, size, generator(5)).unbind(1)
    if group == "cutout":
        top, left, height, width = numbers
        return top + height // 2, left + width // 2
    if group == "rotate":
        cosine, _, sine, _ = numbers
        return (torch.atan2(sine, cosine),)
    places = {"color": (0, 1, 2), "crop": (0, 1), "flip": (0,), "scale": (0, 3)}
    return [numbers[place] for place in places[group]]


@pytest.mark.parametrize(
    ("group", "ranges"),
    [
        ("color", [(-0.5, 0.5), (0, 2), (0.5, 1.5)]),
        ("scale", [(1 / 1.2, 1.2)] * 2),
        ("rotate", [(-math.radians(15), math.radians(15))]),
    ],
)
def test_continuous_parameters_fill_their_range_evenly(group, ranges):
    parameters = drawn(group)
    assert len(parameters) == len(ranges)
    for values, (low, high) in zip(parameters, ranges, strict=True):
        part = (values.double() - low) / (high - low)
        assert -1e-6 <= part.min() < 0.01 and 0.99 < part.max() <= 1 + 1e-6
        counts = torch.histc(part, bins=4, min=0, max=1)
        assert (counts - 1000).abs().max() < 120  # standard deviation 27


def test_the_parameters_of_a_group_are_independent():
    for group in ("color", "crop", "cutout", "scale"):
        correlation = torch.corrcoef(torch.stack(drawn(group)).double())
        assert correlation.fill_diagonal_(0).abs().max() < 0.08  # standard deviation 0.016


@pytest.mark.parametrize(("size", "largest"), [(32, 4), (28, 4), (20, 3), (9, 1), (3, 0)])
def test_crop_shifts_by_up_to_an_eighth_rounded_half_up(size, largest):
    for shifts in drawn("crop", size):
        assert shifts.unique().tolist() == list(range(-largest, largest + 1))


@pytest.mark.parametrize(
    ("size", "side", "last"), [(32, 16, 32), (28, 14, 28), (5, 3, 4), (6, 3, 5)]
)
def test_cutout_clears_half_the_size_about_any_place(size, side, last):
    for centers in drawn("cutout", size):
        assert centers.unique().tolist() == list(range(last + 1))
    rows = DSA("cutout").draw(500, size, size, generator(5))
    cleared = ops.dsa(torch.ones(500, 1, size, size), rows) == 0
    assert cleared.sum((1, 2, 3)).max() == side * side


def test_half_of_the_images_are_flipped():
    (flipped,) = drawn("flip")
    assert flipped.unique().tolist() == [0, 1]
    assert abs(int(flipped.sum()) - 2000) < 130  # standard deviation 32


@pytest.mark.parametrize("group", GROUPS)
def test_each_image_has_parameters_of_its_own(group):
    same = images_of(1, 3, 16, 16).expand(16, -1, -1, -1)
    assert len(DSA(group)(same, generator(0)).flatten(1).unique(dim=0)) > 1


# Images of any kind


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("shape", [(3, 1, 28, 28), (2, 3, 32, 32), (2, 3, 15, 15), (2, 4, 9, 12)])
def test_shape_and_dtype_are_kept_and_the_images_are_not_changed(group, shape):
    for dtype in (torch.float32, torch.float64):
        images = images_of(*shape, dtype=dtype)
        before = images.clone()
        result = DSA(group)(images, generator(0))
        assert result.shape == images.shape and result.dtype == dtype
        assert result.isfinite().all()
        assert torch.equal(images, before)


@pytest.mark.parametrize("group", GROUPS)
def test_memory_layout_makes_no_difference(group):
    images = images_of(4, 3, 12, 12)
    rows = DSA(group).draw(4, 12, 12, generator(0))
    channels_last = images.to(memory_format=torch.channels_last)
    result = ops.dsa(images, rows)
    torch.testing.assert_close(ops.dsa(channels_last, rows), result, rtol=0, atol=1e-6)
    every_second = images.repeat_interleave(2, 0)[::2]
    assert not every_second.is_contiguous()
    assert torch.equal(ops.dsa(every_second, rows), result)


@pytest.mark.parametrize("group", GROUPS)
def test_a_seed_means_the_same_transformation_in_both_precisions(group):
    images = images_of(4, 3, 12, 12)
    single = DSA(group)(images, generator(7))
    double = DSA(group)(images.double(), generator(7))
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-5)


@pytest.mark.cuda
@pytest.mark.parametrize("group", GROUPS)
def test_a_seed_means_the_same_transformation_on_the_gpu(group):
    images = images_of(4, 3, 12, 12)
    on_gpu = DSA(group)(images.cuda(), generator(7))
    assert on_gpu.is_cuda
    torch.testing.assert_close(on_gpu.cpu(), DSA(group)(images, generator(7)), rtol=0, atol=1e-5)


# Replay


def test_replay_gives_the_same_transformation_for_the_same_step():
    images = images_of(8, 3, 16, 16)
    augment = DSA(ALL).replay(seed=1)
    first = [augment(images, step) for step in range(20)]
    again = {step: augment(images, step) for step in reversed(range(20))}
    assert all(torch.equal(first[step], again[step]) for step in range(20))
    elsewhere = DSA(ALL).replay(seed=1)
    assert all(torch.equal(first[step], elsewhere(images, step)) for step in range(20))


def test_replay_differs_between_steps_and_seeds():
    images = images_of(8, 3, 16, 16)
    results = [DSA(ALL).replay(seed)(images, step) for seed in (0, 1) for step in range(10)]
    assert len(torch.stack(results).flatten(1).unique(dim=0)) == 20


def test_replay_names_the_parameters_of_a_call():
    images = images_of(8, 3, 16, 12)
    for strategy in (*GROUPS, ALL, "none"):
        replay = DSA(strategy).replay(seed=2)
        rows = replay.dsa_parameters(5, 8, 16, 12)
        assert torch.equal(rows, replay.dsa_parameters(5, 8, 16, 12))
        assert torch.equal(ops.dsa(images, rows), replay(images, 5))
        assert isinstance(replay, ops.DsaReplay)


def test_replay_is_the_call_with_the_named_stream():
    images = images_of(8, 3, 16, 16)
    expected = DSA(ALL)(images, generator(4, "dsa", 11))
    assert torch.equal(DSA(ALL).replay(seed=4)(images, 11), expected)


def test_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    for group in GROUPS:
        DSA(group).replay(seed=0)(images_of(2, 3, 8, 8), 0)
    assert torch.equal(torch.get_rng_state(), before)


# Strategies and bad input


def test_none_is_the_identity():
    images = images_of(2, 3, 8, 8)
    assert DSA("none")(images, generator(0)) is images
    assert DSA("none").replay(seed=0)(images, 3) is images
    assert torch.equal(ops.dsa(images, DSA("none").draw(2, 8, 8, generator(0))), images)


def test_the_strategy_can_be_read_back():
    assert DSA().spec == ALL
    assert DSA("flip_crop").spec == "flip_crop"
    assert DSA("flip_crop") == DSA(spec="flip_crop") != DSA("crop_flip")


@pytest.mark.parametrize(
    "strategy", ["", "colour", "color_", "flip_flip", "color-crop", "flip_none"]
)
def test_an_impossible_strategy_is_refused(strategy):
    with pytest.raises(
        UserError, match=r"DSA strategy .* color, crop, cutout, flip, scale, rotate"
    ):
        DSA(strategy)


def test_wrong_images_are_refused():
    with pytest.raises(ValueError, match=r"to have 4 dimensions, but got \[3, 8, 8\]"):
        DSA()(torch.zeros(3, 8, 8), generator(0))
    with pytest.raises(TypeError, match="to be float32 or float64"):
        DSA()(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), generator(0))
