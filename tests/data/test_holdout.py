"""Setting a part of the training set aside."""

import pytest
import torch

from trajmatch.data import Dataset
from trajmatch.errors import UserError


def dataset(counts=(20, 20, 20)):
    """Every image differs: its first two pixels hold its number."""
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    images = torch.zeros(len(labels), 1, 4, 4, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(len(labels)) % 256
    images[:, 0, 0, 1] = torch.arange(len(labels)) // 256
    names = [f"class {label}" for label in range(len(counts))]
    return Dataset("numbered", images, labels, images[:3], labels[:3], names)


def numbers(images):
    return images[:, 0, 0, 0].int() + 256 * images[:, 0, 0, 1].int()


def test_every_class_gives_the_same_part():
    rest, images, labels = dataset((20, 20, 20)).without_holdout(0.25, seed=0)
    assert labels.bincount().tolist() == [5, 5, 5]
    assert rest.train_labels.bincount().tolist() == [15, 15, 15]
    assert images.shape == (15, 1, 4, 4) and images.dtype == torch.uint8
    _, _, labels = dataset((10, 20, 40)).without_holdout(0.1, seed=0)
    assert labels.bincount().tolist() == [1, 2, 4]


def test_no_image_is_lost_or_on_both_sides():
    whole = dataset()
    rest, images, labels = whole.without_holdout(0.3, seed=1)
    kept, held_out = numbers(rest.train_images).tolist(), numbers(images).tolist()
    assert sorted(kept + held_out) == list(range(60))
    assert kept == sorted(kept) and held_out == sorted(held_out)  # the order of the set
    assert torch.equal(labels, whole.train_labels[held_out])
    assert torch.equal(rest.train_labels, whole.train_labels[kept])
    assert torch.equal(rest.test_images, whole.test_images)


def test_the_seed_chooses_the_images():
    first, again, other = (dataset().without_holdout(0.3, seed)[1] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_each_class_is_drawn_on_its_own():
    """Neither does one class decide what is drawn from another, nor are all drawn alike."""
    order = torch.arange(60) % 3
    images = torch.arange(60, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 1, 4, 4)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = torch.arange(60), 0
    three = Dataset("three", images, order, images[:3], order[:3], list("abc"))
    first = order < 2
    two = Dataset("two", images[first], order[first], images[:2], order[:2], list("ab"))
    _, of_three, labels = three.without_holdout(0.3, seed=0)
    _, of_two, _ = two.without_holdout(0.3, seed=0)
    assert torch.equal(of_three[labels < 2], of_two)
    places = [numbers(of_three[labels == label]) // 3 for label in range(3)]
    assert not torch.equal(places[0], places[1])


def test_the_draw_is_random_within_each_class():
    held_out = [numbers(dataset().without_holdout(0.5, seed)[1]) for seed in range(40)]
    counts = torch.cat(held_out).bincount(minlength=60)
    assert counts.sum() == 40 * 30
    assert counts.min() > 6 and counts.max() < 34  # mean 20, standard deviation 3.2


def test_statistics_and_fingerprint_are_those_of_what_is_left():
    whole = dataset()
    rest = whole.without_holdout(0.3, seed=1)[0]
    pixels = rest.train_images.double() / 255
    assert rest.mean[0] == pytest.approx(float(pixels.mean()), rel=1e-12)
    assert rest.mean != whole.mean
    assert rest.fingerprint == dataset().without_holdout(0.3, seed=1)[0].fingerprint
    fingerprints = {
        whole.fingerprint,
        rest.fingerprint,
        whole.without_holdout(0.3, seed=2)[0].fingerprint,
        whole.without_holdout(0.2, seed=1)[0].fingerprint,
    }
    assert len(fingerprints) == 4


def test_nothing_is_held_out_at_0():
    rest, images, labels = dataset().without_holdout(0, seed=0)
    assert len(images) == len(labels) == 0
    assert rest.fingerprint == dataset().fingerprint


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, float("nan")])
def test_a_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(UserError, match=r"at least 0 and less than 1, but is"):
        dataset().without_holdout(fraction, seed=0)


@pytest.mark.parametrize(("fraction", "aside"), [(0.01, 0), (0.99, 20)])
def test_a_class_too_small_for_the_fraction_is_refused(fraction, aside):
    with pytest.raises(
        UserError,
        match=f"--holdout {fraction} would hold out {aside} of the 20 images of class 'class 0'",
    ):
        dataset().without_holdout(fraction, seed=0)
