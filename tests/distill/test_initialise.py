from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trajmatch import networks
from trajmatch.data import load_dataset
from trajmatch.distill import distill, initialise
from trajmatch.errors import UserError
from trajmatch.experts import Store
from trajmatch.experts.final import FinalExperts, soft_labels
from trajmatch.random import generator


def test_real_images_are_distinct_images_of_their_class(data: str) -> None:
    dataset = load_dataset(data)
    first = initialise.from_real(dataset, 3, generator(0))
    assert first.images.dtype == torch.float32
    assert first.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    normalised = dataset.normalise(dataset.train_images)
    matches = (first.images[:, None] == normalised[None]).flatten(2).all(dim=2)
    assert (matches.sum(dim=1) == 1).all()
    assert matches.any(dim=0).sum() == 9
    for image, label in zip(matches, first.labels, strict=True):
        assert dataset.train_labels[image].item() == label


def test_real_images_depend_on_the_stream(data: str) -> None:
    dataset = load_dataset(data)
    one, same, other = (initialise.from_real(dataset, 2, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(one.images, same.images)
    assert not torch.equal(one.images, other.images)


def test_more_real_images_than_there_are(data: str) -> None:
    with pytest.raises(UserError, match=r"class 'circle/o' of shapes has \(13 instead of 12\)"):
        initialise.from_real(load_dataset(data), 13, generator(0))


def test_noise_is_standard_normal(data: str) -> None:
    first = initialise.from_noise(load_dataset(data), 50, generator(0))
    assert first.images.shape == (150, 1, 8, 8)
    assert first.labels.tolist() == [0] * 50 + [1] * 50 + [2] * 50
    assert first.images.mean().abs() < 0.05
    assert (first.images.std() - 1).abs() < 0.05


def test_images_and_labels_of_an_earlier_result(configure, data: str) -> None:
    source = distill(configure(iterations=1))
    dataset = load_dataset(data)
    first = initialise.from_artifact(source, Path("old"), dataset, 2)
    assert torch.equal(first.images, source.images)
    assert torch.equal(first.labels, source.labels)


def test_an_earlier_result_is_brought_into_the_normalisation(configure, data: str) -> None:
    dataset = load_dataset(data)
    source = distill(configure(iterations=1))
    other = replace(source, mean=(0.1,), std=(0.4,))
    first = initialise.from_artifact(other, Path("old"), dataset, 2)
    pixels = first.images * dataset.std[0] + dataset.mean[0]
    torch.testing.assert_close(pixels, source.images * 0.4 + 0.1)


def test_an_earlier_result_of_another_kind(configure, data: str) -> None:
    source = distill(configure(iterations=1))
    with pytest.raises(
        UserError,
        match=r"--init-from old .* has 6 images in 3 classes, .* has 1 per class",
    ):
        initialise.from_artifact(source, Path("old"), load_dataset(data), 1)
    renamed = replace(source, class_names=("a", "b", "c"))
    with pytest.raises(UserError, match=r"classes \('a', 'b', 'c'\)"):
        initialise.from_artifact(renamed, Path("old"), load_dataset(data), 2)


class Told:
    """Experts whose logits are given: ``answers[expert]`` maps an image's mean to a row."""

    def __init__(self, *answers) -> None:
        self.answers, self.count = answers, len(answers)

    def logits(self, expert: int, images: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.answers[expert](image) for image in images])


@pytest.fixture
def final_experts(store: Path) -> FinalExperts:
    opened = Store.open(store)
    return FinalExperts(opened, networks.build(opened.manifest["network"]), "--labels soft")


def logits_by_hand(store: Path, expert: int, images: torch.Tensor) -> torch.Tensor:
    """One call of the module itself, with the parameters after the last epoch."""
    opened = Store.open(store)
    model = networks.build(opened.manifest["network"])
    return networks.call_flat(model, opened.snapshot(expert, 4), images).detach()


def test_logits_of_the_last_epoch(store: Path, data: str, final_experts: FinalExperts) -> None:
    dataset = load_dataset(data)
    images = dataset.normalise(dataset.train_images)  # 36, so more than one batch
    for expert in (0, 1, 0):
        found = final_experts.logits(expert, images)
        wanted = logits_by_hand(store, expert, images)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_store_without_the_last_epoch(store: Path) -> None:
    opened = Store.open(store)
    opened.manifest["trained_epochs"] = 3
    with pytest.raises(UserError, match=r"--init correct needs the experts after epoch 4.* 3 of 4"):
        FinalExperts(opened, networks.build(opened.manifest["network"]), "--init correct")


def test_correct_images_are_the_first_ones_that_an_expert_gets_right(data: str) -> None:
    dataset = load_dataset(data)
    pixels = dataset.normalise(dataset.train_images)
    numbers = {image.sum().item(): row for row, image in enumerate(pixels)}

    def right_about(rows: set[int]):
        def answer(image: torch.Tensor) -> torch.Tensor:
            row = numbers[image.sum().item()]
            label = int(dataset.train_labels[row])
            return torch.eye(3)[label if row in rows else (label + 1) % 3]

        return answer

    # 12 of each class, in rows 0-11, 12-23, 24-35
    experts = Told(right_about({1, 2, 3, 13, 25, 26, 30}), right_about({12, 14, 15, 25}))
    first = initialise.from_correct(dataset, 3, experts, generator(4))
    chosen = [numbers[image.sum().item()] for image in first.images]
    assert set(chosen[:3]) == {1, 2, 3}
    assert chosen[3] == 13 and set(chosen[4:6]) < {12, 14, 15}
    assert set(chosen[6:]) == {25, 26, 30}
    assert first.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    with pytest.raises(UserError, match=r"only 4 images of class 'circle/o'|only 3 images"):
        initialise.from_correct(dataset, 5, experts, generator(4))


def test_representatives_are_nearest_to_the_centres_of_k_means(data: str) -> None:
    dataset = load_dataset(data)
    pixels = dataset.normalise(dataset.train_images)
    # Three groups of logits in every class, far apart; the nearest to a group's mean is known.
    places = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]])
    offsets = torch.tensor([[0.1, 0.0], [1.0, 0.0], [-1.1, 0.0], [0.0, 2.0]])
    offsets = offsets - offsets.mean(dim=0)
    nearest = offsets.norm(dim=1).argsort()
    rows = {image.sum().item(): row for row, image in enumerate(pixels)}

    def answer(image: torch.Tensor) -> torch.Tensor:
        inside = rows[image.sum().item()] % 12
        return places[inside // 4] + offsets[inside % 4]

    for ipc, clusters in ((3, None), (6, 3)):
        first = initialise.from_representatives(
            dataset, ipc, Told(answer, answer), generator(0), clusters
        )
        chosen = [rows[image.sum().item()] for image in first.images]
        of_each = ipc // 3
        wanted = {
            12 * label + 4 * group + int(member)
            for label in range(3)
            for group in range(3)
            for member in nearest[:of_each]
        }
        assert set(chosen) == wanted and len(chosen) == 3 * ipc
        assert first.labels.tolist() == sorted(first.labels.tolist())


def test_representatives_of_a_real_expert(data: str, final_experts: FinalExperts) -> None:
    dataset = load_dataset(data)
    for ipc in (1, 2, 12):
        one, same = (
            initialise.from_representatives(dataset, ipc, final_experts, generator(7), None)
            for _ in range(2)
        )
        assert torch.equal(one.images, same.images)
        assert len(one.images.flatten(1).unique(dim=0)) == 3 * ipc  # none twice


def test_clusters_that_do_not_divide(data: str, final_experts: FinalExperts) -> None:
    with pytest.raises(UserError, match="--init-clusters 4 should divide the 6 images per class"):
        initialise.from_representatives(load_dataset(data), 6, final_experts, generator(0), 4)


def test_soft_labels_are_the_mean_of_the_experts_that_are_right() -> None:
    images = torch.zeros(3, 1, 2, 2)
    images[:, 0, 0, 0] = torch.tensor([0.0, 1.0, 2.0])  # the number of the image
    said = torch.tensor(
        [
            [[4.0, 1.0], [1.0, 3.0], [0.0, 2.0]],  # right about 0 and 1
            [[1.0, 2.0], [0.0, 5.0], [1.0, 6.0]],  # right about 1
            [[3.0, 0.0], [9.0, 1.0], [2.0, 4.0]],  # right about 0
        ]
    )
    experts = Told(*(lambda image, rows=rows: rows[int(image[0, 0, 0])] for rows in said))
    labels = soft_labels(images, torch.tensor([0, 1, 0]), experts)
    # about image 2 nobody is right: the mean of all
    assert torch.equal(labels, torch.tensor([[3.5, 0.5], [0.5, 4.0], [1.0, 4.0]]))
