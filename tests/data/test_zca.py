"""ZCA whitening: the transform, its inverse, what it refuses, and the object that carries it."""

import pytest
import torch

from trajmatch import memory
from trajmatch.data import ChannelNormalisation, Dataset, load_dataset, zca
from trajmatch.data.preprocessing import unit
from trajmatch.errors import UserError

SHAPE = (3, 6, 6)


def pictures(count, shape=SHAPE, seed=0):
    """Images whose pixels are correlated, as those of photographs are; uint8."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, shape[0], 3, 3, generator=draw)
    smooth = torch.nn.functional.interpolate(coarse, shape[1:], mode="bilinear")
    noise = 0.1 * torch.rand(count, *shape, generator=draw)
    return (smooth * 200 + noise * 255).round().to(torch.uint8)


def reference(images, eps):
    """Mean, W and its inverse by the textbook, in float64: SVD of the centred images."""
    flat = images.flatten(1).double() / 255
    centred = flat - flat.mean(0)
    few = len(flat) < flat.shape[1]  # then the rest of the directions is wanted, too
    _, singular, right = torch.linalg.svd(centred, full_matrices=few)
    eigenvalues = torch.zeros(flat.shape[1], dtype=torch.float64)
    eigenvalues[: len(singular)] = singular**2 / (len(flat) - 1)
    whiten = right.T @ torch.diag((eigenvalues + eps) ** -0.5) @ right
    undo = right.T @ torch.diag((eigenvalues + eps) ** 0.5) @ right
    return flat.mean(0), whiten, undo


# 1500 images are two blocks; 40 are fewer than the 108 dimensions.
@pytest.mark.parametrize("count", [1500, 40, 2])
@pytest.mark.parametrize("eps", [0.1, 1e-3])
def test_it_is_the_transform_of_the_textbook(count, eps):
    images = pictures(count)
    transform = zca.fit(images, eps)
    mean, whiten, undo = reference(images, eps)
    torch.testing.assert_close(transform.mean.flatten().double(), mean, rtol=0, atol=1e-7)
    torch.testing.assert_close(transform.matrix.double(), whiten, rtol=1e-5, atol=1e-5)

    others = pictures(30, seed=1)
    expected = (others.flatten(1).double() / 255 - mean) @ whiten
    found = transform.apply(others)
    assert found.dtype == torch.float32 and found.shape == others.shape
    torch.testing.assert_close(found.flatten(1).double(), expected, rtol=0, atol=1e-4)
    inverted = transform.invert(found)
    torch.testing.assert_close(inverted.double(), others.double() / 255, rtol=0, atol=1e-4)
    back = (found.flatten(1).double() @ undo + mean).view(found.shape)
    torch.testing.assert_close(inverted.double(), back, rtol=0, atol=1e-4)


def test_it_is_the_transform_of_kornia():
    kornia = pytest.importorskip("kornia")
    images, others = pictures(300), pictures(30, seed=1)
    oracle = kornia.enhance.ZCAWhitening(eps=0.1, compute_inv=True)
    oracle.fit(unit(images))
    transform = zca.fit(images)
    theirs, ours = oracle(unit(others)), transform.apply(others)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    undone = oracle.inverse_transform(theirs)
    torch.testing.assert_close(transform.invert(ours), undone, rtol=0, atol=1e-4)


def test_it_is_the_transform_of_kornia_on_real_images():
    kornia = pytest.importorskip("kornia")
    dataset = load_dataset()  # 10,000 images, 784 dimensions
    oracle = kornia.enhance.ZCAWhitening(eps=0.1, compute_inv=True)
    oracle.fit(unit(dataset.train_images))
    transform = zca.fit(dataset.train_images)
    theirs, ours = oracle(unit(dataset.test_images)), transform.apply(dataset.test_images)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    undone = oracle.inverse_transform(theirs)
    torch.testing.assert_close(transform.invert(ours), undone, rtol=0, atol=1e-4)


def test_whitened_training_images_are_uncorrelated():
    images = pictures(2000)
    whitened = zca.fit(images, eps=1e-6).apply(images).flatten(1).double()
    covariance = torch.cov(whitened.T)
    identity = torch.eye(len(covariance), dtype=torch.float64)
    torch.testing.assert_close(covariance, identity, rtol=0, atol=5e-3)


def test_the_covariance_is_exact():
    # pixels of 0 and 255 only: the largest products there are, in more than one block
    images = (pictures(2100) > 100).to(torch.uint8) * 255
    backwards = images.flip(0)
    first, second = zca.fit(images), zca.fit(backwards)
    assert torch.equal(first.matrix, second.matrix)  # whatever the order of the sums
    assert torch.equal(first.mean, second.mean)


def test_apply_takes_pixels_and_numbers_from_0_to_1():
    images = pictures(50)
    for preprocessing in (zca.fit(images), ChannelNormalisation((0.5,) * 3, (0.2,) * 3)):
        from_numbers = preprocessing.apply(images.double() / 255)
        torch.testing.assert_close(from_numbers, preprocessing.apply(images), rtol=0, atol=1e-5)
        assert from_numbers.dtype == torch.float32
        with pytest.raises(TypeError, match=r"uint8 or floating point, but got torch\.int64"):
            preprocessing.apply(images.long())


def test_devices_agree(device):
    images = pictures(50)
    for own in (zca.fit(images), ChannelNormalisation((0.5,) * 3, (0.2,) * 3)):
        expected, there = own.apply(images), own.to(device)
        found = there.apply(images.to(device))
        assert found.device.type == device.type
        torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(there.invert(found).cpu(), unit(images), rtol=0, atol=1e-4)
        kept, finish = own.staged(images.to(device))
        torch.testing.assert_close(finish(kept[:7]).cpu(), expected[:7], rtol=0, atol=1e-5)


def test_no_images_become_no_images():
    transform = zca.fit(pictures(50))
    assert transform.apply(pictures(50)[:0]).shape == (0, *SHAPE)


@pytest.mark.parametrize("kind", ["channels", "zca"])
def test_staged_gives_the_inputs_of_every_batch(kind):
    images = pictures(50)
    own = zca.fit(images) if kind == "zca" else ChannelNormalisation((0.5,) * 3, (0.2,) * 3)
    kept, finish = own.staged(images)
    assert kept.dtype == (torch.float32 if kind == "zca" else torch.uint8)
    batch = torch.tensor([3, 1, 7])
    torch.testing.assert_close(finish(kept[batch]), own.apply(images[batch]), rtol=0, atol=1e-6)


def test_half_of_the_matrix_is_all_of_it():
    transform = zca.fit(pictures(50))
    assert torch.equal(transform.matrix, transform.matrix.T)
    parts = transform.tensors()
    assert list(parts["zca_triangle"].shape) == [108 * 109 // 2]
    assert torch.equal(parts["zca_triangle"][:108], transform.matrix[0])
    again = zca.from_parts(transform.spec(), parts)
    assert torch.equal(again.matrix, transform.matrix) and torch.equal(again.mean, transform.mean)


def test_the_same_preprocessing_is_known_by_its_values():
    images = pictures(50)
    transform = zca.fit(images)
    channels = ChannelNormalisation((0.5,), (0.2,))
    assert transform.same_as(zca.from_parts(transform.spec(), transform.tensors()))
    assert not transform.same_as(zca.fit(images, eps=0.2))
    assert not transform.same_as(zca.fit(pictures(50, seed=1)))
    assert not transform.same_as(channels) and not channels.same_as(transform)
    assert channels.same_as(ChannelNormalisation((0.5,), (0.2,)))
    assert not channels.same_as(ChannelNormalisation((0.5,), (0.3,)))


def dataset():
    images, labels = pictures(20), torch.arange(20) % 2
    return Dataset("tiny", images, labels, images, labels, ("cat", "dog"))


def test_a_data_set_uses_it_in_place_of_the_normalisation():
    plain = dataset()
    transform = zca.fit(plain.train_images)
    whitened = plain.whitened(transform)
    assert torch.equal(whitened.normalise(plain.test_images), transform.apply(plain.test_images))
    shown = transform.invert(whitened.normalise(plain.test_images))
    torch.testing.assert_close(shown, unit(plain.test_images), rtol=0, atol=1e-4)
    assert whitened.fingerprint == plain.fingerprint
    assert plain.whitened(None) is plain


def test_a_data_set_takes_the_preprocessing_that_a_description_gives():
    plain = dataset()
    transform = zca.fit(plain.train_images)
    assert plain.preprocessed_as(plain.preprocessing.spec(), None) is plain
    assert plain.preprocessed_as(transform.spec(), transform).preprocessing is transform
    other = ChannelNormalisation((0.25,) * plain.channels, (0.5,) * plain.channels)
    expected = other.apply(plain.test_images)
    found = plain.preprocessed_as(other.spec(), None)
    assert torch.equal(found.normalise(plain.test_images), expected)
    assert found.fingerprint == plain.fingerprint


# What cannot be used


def test_images_too_large_for_the_memory_are_refused_before_anything_is_made(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 64 * 10**9)
    monkeypatch.setattr(torch, "zeros", None)
    images = torch.empty(2, 3, 128, 128, dtype=torch.uint8)
    with pytest.raises(UserError) as refusal:
        zca.fit(images)
    message = str(refusal.value)
    assert "the matrices of ZCA, 49152 x 49152 numbers, take 77.3 GB of memory" in message
    assert "but 64.0 GB are free; leave out --zca, which normalises each channel" in message


def test_a_single_image_is_refused():
    with pytest.raises(UserError, match="at least 2 training images, but got 1"):
        zca.fit(pictures(1))


def test_parts_that_do_not_fit_are_refused():
    parts = zca.fit(pictures(10)).tensors()
    mean, triangle = parts["zca_mean"], parts["zca_triangle"]
    sound = zca.spec()
    for spec, tensors, told in (
        (sound, {"zca_mean": mean}, r"zca_triangle .* is \[0\], torch.float32$"),
        ({"kind": "pca", "eps": 0.1}, parts, "but has {'kind': 'pca'"),
        ({"kind": "zca"}, parts, "but has {'kind': 'zca'}"),
        ({"kind": "zca", "eps": "x"}, parts, "'eps': 'x'"),
        ({"kind": "zca", "eps": 0}, parts, "'eps': 0"),
        (3, parts, "but has 3; "),
        (sound, {**parts, "zca_triangle": triangle[1:]}, r"is \[5885\], torch.float32$"),
        (
            sound,
            {**parts, "zca_mean": mean.double()},
            r"is \[3, 6, 6\], torch.float64; ",
        ),
        (sound, {**parts, "zca_mean": mean.flatten()}, r"is \[108\], torch.float32; "),
    ):
        with pytest.raises(UserError, match=f"a ZCA transform should have kind .*{told}"):
            zca.from_parts(spec, tensors)
    with pytest.raises(
        UserError, match=r"images of shape \[3, 4, 4\], but the images of tiny have"
    ):
        dataset().whitened(zca.fit(pictures(10, (3, 4, 4))))
