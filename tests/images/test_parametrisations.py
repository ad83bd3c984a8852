"""Every parametrisation by itself: values, gradients, what is stored, and what it pays for."""

from __future__ import annotations

import re

import pytest
import scipy.fft
import torch
import torch.nn.functional as F
from torch import Tensor

from trajmatch.errors import UserError
from trajmatch.images import find_parametrisation, parametrisation
from trajmatch.images.frequency import cosines
from trajmatch.random import generator

SPECS = (
    "pixels",
    "flip",
    "upsample",
    "upsample:factor=4,mode=bicubic",
    "frequency:coefficients=9",
    "implicit:width=3,layers=2,steps=30",
    "palette:colours=5",
)
SHAPE = torch.Size([3, 8, 4])
CLASSES = 2


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2 * CLASSES, *SHAPE, generator=generator(0), dtype=dtype)


def parts(spec: str, dtype: torch.dtype = torch.float32):
    part = find_parametrisation(spec)
    return part, dict(part.initial(images(dtype), CLASSES))


def floats(parameters: dict[str, Tensor]) -> list[Tensor]:
    return [each for each in parameters.values() if each.is_floating_point()]


@pytest.mark.parametrize("spec", [each for each in SPECS if "palette" not in each])
def test_the_gradient_is_that_of_the_images(spec: str) -> None:
    part, parameters = parts(spec, torch.float64)
    names = [name for name, value in parameters.items() if value.is_floating_point()]

    def render(*values: Tensor) -> Tensor:
        return part.render({**parameters, **dict(zip(names, values, strict=True))}, SHAPE)

    assert torch.autograd.gradcheck(render, [parameters[name].requires_grad_() for name in names])


@pytest.mark.parametrize("spec", SPECS)
def test_what_is_stored_shows_the_same_images_to_the_bit(spec: str) -> None:
    part, parameters = parts(spec)
    shown = part.render(parameters, SHAPE)
    stored = part.stored(parameters)
    assert shown.shape == images().shape
    assert torch.equal(part.render(stored, SHAPE), shown)
    restored = part.restored(stored, SHAPE)
    assert {k: (v.shape, v.dtype) for k, v in restored.items()} == {
        k: (v.shape, v.dtype) for k, v in parameters.items()
    }
    assert torch.equal(part.render(restored, SHAPE), shown)


@pytest.mark.parametrize("spec", SPECS)
def test_in_batches_nothing_changes(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for _ in range(2):
        part, parameters = parts(spec, torch.float64)
        learned = [
            each.requires_grad_() for each in parameters.values() if each.is_floating_point()
        ]
        shown = part.render(parameters, SHAPE)
        results.append([shown, *torch.autograd.grad(shown.sin().sum(), learned)])
        monkeypatch.setattr(parametrisation, "_MOST_VALUES", 1)
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("spec", SPECS)
def test_rendering_never_waits_for_the_device(spec: str) -> None:
    """So that a CUDA graph can record it: tensors without numbers are enough."""
    part, parameters = parts(spec)
    there = {name: value.to("meta") for name, value in parameters.items()}
    learned = [each.requires_grad_() for each in floats(there)]
    shown = part.render(there, SHAPE)
    gradients = torch.autograd.grad(shown.sum(), learned)
    assert {each.device.type for each in (shown, *gradients)} == {"meta"}


@pytest.mark.parametrize(
    ("spec", "ipc", "shape", "count"),
    [
        ("pixels", 10, (3, 32, 32), 10),
        ("flip", 10, (3, 32, 32), 20),
        ("upsample", 1, (3, 32, 32), 4),
        ("upsample:factor=4", 2, (1, 28, 28), 32),
        ("frequency:coefficients=64", 1, (3, 32, 32), 16),  # FreD
        ("frequency:coefficients=196", 1, (1, 28, 28), 4),
        ("frequency:coefficients=1000", 1, (3, 32, 32), 1),
        ("implicit:width=6,layers=2", 1, (3, 32, 32), 37),  # 3072 // (2*6+6 + 6*6+6 + 6*3+3)
        ("implicit:width=20,layers=2", 50, (3, 32, 32), 50 * 3072 // 543),  # DDiF
        ("implicit:width=20,layers=3", 1, (3, 128, 128), 49152 // 963),
        ("palette:colours=64", 1, (3, 32, 32), 3072 // (768 + 192 + 8)),
        ("palette:colours=16", 10, (3, 32, 32), 30720 // (512 + 48 + 8)),
        ("palette:colours=5", 1, (1, 9, 9), 81 // (31 + 5 + 8)),
    ],
)
def test_images_of_a_budget(spec: str, ipc: int, shape: tuple[int, ...], count: int) -> None:
    part = find_parametrisation(spec)
    assert part.images_per_class(ipc, torch.Size(shape)) == count
    if count <= 50:  # and what is stored is no more than that
        part = find_parametrisation(spec + (",steps=0" if "implicit" in spec else ""))
        pictures = torch.randn(2 * count, *shape, generator=generator(1))
        stored = part.stored(part.initial(pictures, 2)).values()
        if "palette" in spec:
            size = sum(each.nbytes for each in stored)
        else:
            size = sum(each.numel() for each in stored if each.is_floating_point())
        assert size <= 2 * ipc * torch.Size(shape).numel()


@pytest.mark.parametrize(
    ("spec", "ipc", "shape", "message"),
    [
        ("upsample:factor=0", 1, SHAPE, "--images upsample: factor should be a whole number"),
        (
            "upsample:mode=cubic",
            1,
            SHAPE,
            "mode should be one of bicubic, bilinear, nearest, but is .cubic",
        ),
        ("upsample:factor=8", 1, SHAPE, "sides are multiples of 8, but they are 8 x 4"),
        ("frequency:coefficients=1.5", 1, SHAPE, "coefficients should be a whole number"),
        ("frequency:coefficients=33", 1, SHAPE, "exceeds the 32 pixels of an image of 8 x 4"),
        ("implicit:width=0", 1, SHAPE, "--images implicit: width should be a whole number"),
        ("implicit:w0=0", 1, SHAPE, "w0 should be a finite number above 0"),
        ("implicit:steps=-1", 1, SHAPE, "steps should be a whole number of at least 0"),
        (
            "implicit:width=20",
            1,
            SHAPE,
            "implicit:width=20,layers=2 stores 543 values for each image, but the budget of --ipc "
            r"1 is 96 values per class \(1 x 96\); take --ipc 6 or more, or a smaller",
        ),
        ("palette:colours=1", 1, SHAPE, "colours should be a whole number of at least 2 and"),
        ("palette:colours=257", 1, SHAPE, "colours should be .*and at most 256, but is 257"),
        ("palette", 1, SHAPE, r"palette:colours=64 stores 224 bytes .*take --ipc 3 or more"),
        ("palette", 1, torch.Size([1, 8, 8]), "stores 120 bytes .*take --ipc 2 or more"),
        ("palette:colors=8", 1, SHAPE, "unexpected keyword argument 'colors'; palette takes colo"),
    ],
)
def test_what_does_not_fit(spec: str, ipc: int, shape: torch.Size, message: str) -> None:
    with pytest.raises(UserError) as error:
        find_parametrisation(spec).images_per_class(ipc, shape)
    assert re.search(message, error.value.in_flags), error.value.in_flags


def test_mirror_images_follow_the_images_of_their_class() -> None:
    part, parameters = parts("flip")
    first, *_ = parameters.values()
    assert torch.equal(first, images()[[0, 2]])
    wanted = [first[0], first[0].flip(2), first[1], first[1].flip(2)]
    assert torch.equal(part.render(parameters, SHAPE), torch.stack(wanted))


def test_small_images_are_means_and_are_shown_by_bilinear_weights() -> None:
    part, parameters = parts("upsample", torch.float64)
    small = parameters["small_images"]
    torch.testing.assert_close(small[..., 1, 0], images(torch.float64)[..., 2:4, 0:2].mean((2, 3)))

    def doubled(x: Tensor) -> Tensor:
        """Along the last side: a new pixel lies a quarter of an old one from an old centre."""
        before, after = (torch.cat(each, -1) for each in ((x[..., :1], x), (x, x[..., -1:])))
        left = 0.75 * x + 0.25 * before[..., :-1]
        right = 0.75 * x + 0.25 * after[..., 1:]
        return torch.stack((left, right), -1).flatten(-2)

    wanted = doubled(doubled(small).mT).mT
    torch.testing.assert_close(part.render(parameters, SHAPE), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [1, 5, 32])
def test_cosines_are_orthonormal(size: int) -> None:
    matrix = cosines(size, torch.empty(0, dtype=torch.float64))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size).double(), rtol=0, atol=1e-13)


def test_frequencies_are_those_that_explain_most_variance() -> None:
    part, parameters = parts("frequency:coefficients=9", torch.float64)
    spectrum = torch.from_numpy(
        scipy.fft.dctn(images(torch.float64).numpy(), axes=(2, 3), norm="ortho")
    )
    wanted = torch.zeros_like(spectrum)
    for rows in (slice(0, 2), slice(2, 4)):
        explained = spectrum[rows].mean(1).var(0)
        kept = explained >= explained.flatten().sort(descending=True).values[8]
        assert kept.sum() == 9
        wanted[rows] = spectrum[rows] * kept
    shown = scipy.fft.idctn(wanted.numpy(), axes=(2, 3), norm="ortho")
    found = part.render(parameters, SHAPE)
    torch.testing.assert_close(found, torch.from_numpy(shown), rtol=1e-12, atol=1e-12)
    assert part.stored(parameters)["positions"].dtype == torch.int16


def test_all_frequencies_are_the_images() -> None:
    part, parameters = parts("frequency:coefficients=32", torch.float64)
    torch.testing.assert_close(part.render(parameters, SHAPE), images(torch.float64))


def test_a_network_of_sines() -> None:
    """Against modules of PyTorch; and at first it is drawn as SIREN's are."""
    part, parameters = parts("implicit:width=4,layers=2,w0=7,first_w0=20,steps=0", torch.float64)
    for layer, bound in enumerate((1 / 2, (6 / 4) ** 0.5 / 7, (6 / 4) ** 0.5 / 7)):
        largest = max(parameters[f"{kind}_{layer}"].abs().max() for kind in ("weight", "bias"))
        assert 0.8 * bound < largest <= bound
    rows, columns = (torch.linspace(-1, 1, side, dtype=torch.float64) for side in SHAPE[1:])
    places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1)
    for number, image in enumerate(part.render(parameters, SHAPE)):
        x = places
        for layer, factor in enumerate((20, 7, None)):
            linear = [parameters[f"{kind}_{layer}"][number] for kind in ("weight", "bias")]
            x = F.linear(x, linear[0].T, linear[1][0])
            x = x if factor is None else torch.sin(factor * x)
        torch.testing.assert_close(image, x.permute(2, 0, 1))


def test_networks_are_fitted_and_the_same_each_time() -> None:
    smooth = F.interpolate(
        torch.randn(4, 3, 2, 2, generator=generator(5)), size=(8, 8), mode="bilinear"
    )
    part = find_parametrisation("implicit:width=8,layers=2,steps=400")
    fits = [part.initial(smooth, 2) for _ in range(2)]
    assert all(torch.equal(fits[0][name], fits[1][name]) for name in fits[0])
    shown = part.render(fits[0], smooth.shape[1:])
    before = find_parametrisation("implicit:width=8,layers=2,steps=0")
    unfitted = before.render(before.initial(smooth, 2), smooth.shape[1:])
    assert (shown - smooth).square().mean() < 0.3 * (unfitted - smooth).square().mean()
    assert not any(each.requires_grad for each in fits[0].values())


def test_a_palette_is_rounded_and_each_pixel_shows_its_nearest_colour() -> None:
    part, parameters = parts("palette:colours=5")
    palette, low = parameters["palette"], parameters["palette"].amin((1, 2), keepdim=True)
    step = (parameters["palette"].amax((1, 2), keepdim=True) - low) / 255
    shown = part.render(parameters, SHAPE).flatten(2).mT
    assert (torch.cdist(shown, palette).amin(-1) <= step[..., 0] * 3**0.5 / 2 * 1.01).all()
    assert all(len(each.unique(dim=0)) == 5 for each in shown)
    steps = (shown - low) / step
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)
    to_own = (images().flatten(2).mT - shown).norm(dim=-1)
    to_nearest = torch.cdist(images().flatten(2).mT, palette).amin(-1)
    assert (to_own - to_nearest).abs().max() < 2 * step.max()


def test_pixels_and_colours_of_a_palette_move_alike() -> None:
    part, parameters = parts("palette:colours=5", torch.float64)
    pixels, palette = (each.requires_grad_() for each in parameters.values())
    shown = part.render(parameters, SHAPE)
    gradient = torch.randn(shown.shape, generator=generator(4), dtype=torch.float64)
    of_pixels, of_palette = torch.autograd.grad(shown, (pixels, palette), gradient)
    assert torch.equal(of_pixels, gradient)
    colours = shown.detach().flatten(2).mT
    for image in range(len(shown)):
        index = torch.cdist(colours[image], palette[image].detach()).argmin(-1)
        means = [gradient[image].flatten(1)[:, index == k].mean(1) for k in range(5)]
        torch.testing.assert_close(of_palette[image], torch.stack(means))


def test_an_image_of_fewer_colours_than_its_palette() -> None:
    part = find_parametrisation("palette:colours=7")
    flat = torch.tensor([0.25, -1.0]).repeat_interleave(32).reshape(2, 1, 8, 4)
    parameters = part.initial(flat, 2)
    assert torch.equal(part.render(parameters, flat.shape[1:]), flat)
    assert torch.equal(part.render(part.stored(parameters), flat.shape[1:]), flat)
