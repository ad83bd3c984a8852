"""The evaluation protocol against a loop written by hand, and the accuracy it ends with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trajmatch import inference, networks, ops
from trajmatch.data import DSA, load_dataset
from trajmatch.evaluate import Protocol, accuracy, train, train_fresh
from trajmatch.random import generator

DSA_SPEC = "color_crop_cutout_flip_scale_rotate"


def toy_set(count: int = 6, soft: bool = False) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(count, 1, 8, 8, generator=draw)
    labels = torch.randn(count, 3, generator=draw) if soft else torch.arange(count) % 3
    return images, labels


def fresh(spec: dict[str, Any], seed: int = 0) -> nn.Module:
    return networks.initialise(networks.build(spec), generator(seed, "initialisation"))


class StepRecord:
    """Stands in for ``ops.sgd_step`` and remembers what it was called with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lrs: list[float] = []
        self.fresh_buffers: list[int] = []
        self.momenta: set[float] = set()
        self.step = ops.sgd_step
        monkeypatch.setattr(ops, "sgd_step", self)

    def __call__(
        self, theta: Tensor, grad: Tensor, lr: float, buffer: Tensor | None, momentum: float
    ) -> tuple[Tensor, Tensor]:
        if buffer is None:
            self.fresh_buffers.append(len(self.lrs))
        self.lrs.append(lr)
        self.momenta.add(momentum)
        theta, buffer = self.step(theta, grad, lr, buffer, momentum)
        return theta, buffer


# --- schedule


def test_a_thousand_epochs_are_1001_with_a_drop_after_index_501() -> None:
    protocol = Protocol(lr=0.01)
    assert (protocol.num_epochs, protocol.drop_round) == (1001, 501)
    assert (protocol.momentum, protocol.weight_decay, protocol.lr_drop) == (0.9, 5e-4, 0.1)
    assert (protocol.batch_size, protocol.dsa) == (256, DSA_SPEC)


def test_schedule_of_steps(network_spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    record = StepRecord(monkeypatch)
    epochs: list[None] = []
    # 10 epochs, so 11 are run, with three steps (4 + 4 + 2 images) in each; the drop is after
    # index 6, that is after 7 epochs.
    train(
        fresh(network_spec),
        *toy_set(10),
        Protocol(lr=0.02, epochs=10, batch_size=4),
        on_epoch=lambda: epochs.append(None),
    )
    assert len(epochs) == 11
    assert record.lrs == [0.02] * 21 + [0.02 * 0.1] * 12
    assert record.fresh_buffers == [0, 21]
    assert record.momenta == {0.9}


@pytest.mark.parametrize("count", [6, 10])
@pytest.mark.parametrize("soft", [False, True])
def test_is_the_loop_of_mtt(network_spec: dict[str, Any], count: int, soft: bool) -> None:
    images, labels = toy_set(count, soft)
    protocol = Protocol(lr=0.03, epochs=4, batch_size=8)
    trained = train(fresh(network_spec), images, labels, protocol, seed=5)

    model = fresh(network_spec)
    order, augmentation = generator(5, "order"), generator(5, "dsa")
    augment = DSA(DSA_SPEC)
    targets = labels.softmax(dim=1) if soft else labels
    lr = 0.03
    optimiser = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    for epoch in range(4 + 1):
        everything = torch.arange(count)
        shuffled = everything if count <= 8 else torch.randperm(count, generator=order)
        for batch in shuffled.split(8):
            logits = model(augment(images[batch], augmentation))
            optimiser.zero_grad()
            F.cross_entropy(logits, targets[batch]).backward()
            optimiser.step()
        if epoch == 4 // 2 + 1:
            lr *= 0.1
            optimiser = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    torch.testing.assert_close(
        networks.flat_parameters(trained), networks.flat_parameters(model), rtol=1e-4, atol=1e-5
    )


def test_any_module_is_trained() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 3))
    images, labels = toy_set()
    train(model, images, labels, Protocol(lr=0.1, dsa="none", epochs=60))
    assert accuracy(model, images, labels) == 100


def test_depends_on_the_seed_only(network_spec: dict[str, Any]) -> None:
    def parameters(seed: int) -> Tensor:
        model = train(fresh(network_spec), *toy_set(), Protocol(lr=0.03, epochs=3), seed)
        return networks.flat_parameters(model)

    assert torch.equal(parameters(1), parameters(1))
    assert not torch.equal(parameters(1), parameters(2))


def test_batch_norm_is_that_of_torch() -> None:
    def model() -> nn.Sequential:
        torch.manual_seed(0)
        layers = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 3)
        return nn.Sequential(*layers)

    images, labels = toy_set()
    trained = train(model().eval(), images, labels, Protocol(lr=0.1, dsa="none", epochs=2))
    wanted = model()
    optimiser = torch.optim.SGD(wanted.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    for _ in range(2 + 1):  # the step size drops after the last
        optimiser.zero_grad()
        F.cross_entropy(wanted(images), labels).backward()
        optimiser.step()
    torch.testing.assert_close(trained.state_dict(), wanted.state_dict(), rtol=1e-4, atol=1e-5)
    assert trained[1].num_batches_tracked == 3


# --- refusals


@pytest.mark.parametrize(("images", "labels"), [(6, 5), (0, 0)])
def test_refuses_sets_that_do_not_fit(
    network_spec: dict[str, Any], images: int, labels: int
) -> None:
    all_images, all_labels = toy_set()
    with pytest.raises(ValueError, match=f"but got {images} images and {labels} labels"):
        train(fresh(network_spec), all_images[:images], all_labels[:labels], Protocol(lr=0.1))


# --- accuracy


@pytest.mark.parametrize("count", [1, 4, 5, 9])
def test_accuracy_is_the_share_of_right_answers(
    network_spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(inference, "_BATCH_ENGINE", 4)
    model, (images, labels) = fresh(network_spec), toy_set(count)
    right = (model(images).argmax(dim=1) == labels).sum().item()
    assert accuracy(model, images, labels) == pytest.approx(100 * right / count)


def test_accuracy_normalises_each_batch(network_spec: dict[str, Any], tiny_data: str) -> None:
    dataset = load_dataset(tiny_data)
    model = fresh(network_spec)
    train(
        model,
        dataset.normalise(dataset.train_images),
        dataset.train_labels,
        Protocol(0.05, "none", 5),
    )
    at_once = accuracy(model, dataset.normalise(dataset.test_images), dataset.test_labels)
    by_batch = accuracy(
        model, dataset.test_images, dataset.test_labels, normalise=dataset.normalise
    )
    assert by_batch == at_once


def test_accuracy_is_that_of_evaluation_mode() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.999), nn.Linear(64, 3)).train()
    images, _ = toy_set(20)
    labels = model[2](images.flatten(1)).argmax(dim=1)
    assert accuracy(model, images, labels) == 100


def test_dropout_stays_on_and_follows_the_seed() -> None:
    images, labels = toy_set(20)

    def trained(seed: int, p: float = 0.5) -> Tensor:
        model = nn.Sequential(nn.Flatten(), nn.Dropout(p), nn.Linear(64, 3))
        networks.initialise(model, generator(0))
        before = torch.get_rng_state()
        train(model, images, labels, Protocol(0.05, "none", 3), seed)
        assert torch.equal(torch.get_rng_state(), before)
        return networks.flat_parameters(model)

    first = trained(1)
    torch.manual_seed(7)
    assert torch.equal(first, trained(1))
    assert not torch.equal(first, trained(2))
    assert not torch.equal(first, trained(1, p=0.0))


def test_a_network_that_diverged_gets_nothing_right(network_spec: dict[str, Any]) -> None:
    images, labels = toy_set()
    protocol = Protocol(lr=1e30, epochs=3)
    assert train_fresh(images, labels, network_spec, protocol, images, labels).accuracy == 0
    # argmax alone would name class 0 and be right for a third of the images.
    assert (labels == 0).any()


def test_a_fresh_network_learns(network_spec: dict[str, Any], tiny_data: str) -> None:
    dataset = load_dataset(tiny_data)
    outcome = train_fresh(
        dataset.normalise(dataset.train_images),
        dataset.train_labels,
        network_spec,
        Protocol(lr=0.05, epochs=40, dsa="none"),
        dataset.normalise(dataset.test_images),
        dataset.test_labels,
    )
    assert outcome.accuracy > 80
