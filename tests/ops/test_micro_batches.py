"""Batches in parts: the same gradients as in one piece, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trajmatch import networks, ops
from trajmatch.data import DSA

Check = Callable[..., None]
EXACT = 1e-12


def results(
    name: str, device: torch.device, *, soft: bool = True, **choices: object
) -> list[Tensor]:
    """Where two steps of five and three images lead, and all gradients of that."""
    torch.manual_seed(0)
    model = networks.build(networks.specify(name, 3, 4, 16)).double().to(device)
    networks.initialise(model, torch.Generator().manual_seed(0))
    labels = torch.randn(6, 4, dtype=torch.float64) if soft else torch.arange(6) % 4
    inputs = {
        "theta0": networks.flat_parameters(model),
        "images": torch.randn(6, 3, 16, 16, dtype=torch.float64).to(device),
        "labels": labels.to(device),
        "lr": torch.tensor(0.05, dtype=torch.float64, device=device),
    }
    leaves = [each.requires_grad_() for each in inputs.values() if each.is_floating_point()]
    batches = [torch.tensor(each, device=device) for each in ([0, 1, 2, 3, 4], [5, 0, 3])]
    thetas = ops.unroll(
        model,
        **inputs,
        batches=batches,
        steps=[1, 2],
        loss_scale=0.5,
        **{"optimiser": ops.SGD(0.9), **choices},
    )
    return [thetas, *torch.autograd.grad(thetas.square().sum(), leaves)]


@pytest.mark.parametrize(
    "name", ["convnet:instance,width=4,depth=2", "convnet:group,width=4,depth=2", "lenet"]
)
@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_parts_have_the_gradients_of_the_whole(
    name: str, micro_batch: int, device: torch.device, assert_close_as_vectors: Check
) -> None:
    wanted = results(name, device)
    assert_close_as_vectors(results(name, device, micro_batch=micro_batch), wanted, EXACT)


def test_hard_labels_and_augmentation(device: torch.device, assert_close_as_vectors: Check) -> None:
    choices = {"soft": False, "augment": DSA("color_crop_flip_scale_rotate").replay(3)}
    wanted = results("convnet:instance,width=4,depth=2", device, **choices)
    got = results("convnet:instance,width=4,depth=2", device, **choices, micro_batch=2)
    assert_close_as_vectors(got, wanted, EXACT)


def test_adam(device: torch.device, assert_close_as_vectors: Check) -> None:
    choices = {"optimiser": ops.Adam(eps=1e-4)}
    wanted = results("convnet:instance,width=4,depth=2", device, **choices)
    got = results("convnet:instance,width=4,depth=2", device, **choices, micro_batch=2)
    assert_close_as_vectors(got, wanted, 10 * EXACT)


def test_parts_that_hold_all_images_change_nothing(device: torch.device) -> None:
    wanted = results("convnet:instance,width=4,depth=2", device)
    got = results("convnet:instance,width=4,depth=2", device, micro_batch=5)
    assert all(torch.equal(*pair) for pair in zip(got, wanted, strict=True))


@pytest.mark.parametrize("name", ["convnet:batch,width=4,depth=2", "resnet18:batch,width=4"])
def test_a_batch_norm_is_refused(name: str, device: torch.device) -> None:
    with pytest.raises(ValueError, match="mixes the images of a batch, as batch norm does"):
        results(name, device, micro_batch=2)
    results(name, device, micro_batch=5)  # no batch is parted


class Contrast(torch.nn.Module):
    """Compares each image with the mean of its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.out = torch.nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        return self.out(flat - flat.mean(dim=0))


def test_so_is_what_compares_images_without_a_batch_norm(device: torch.device) -> None:
    model = Contrast().to(device)
    theta = networks.flat_parameters(model)
    images, labels = torch.zeros(3, 1, 2, 2, device=device), torch.zeros(3, 2, device=device)
    batches = torch.zeros(1, 3, dtype=torch.int64, device=device)
    with pytest.raises(ValueError, match=r"micro_batch to be None .* got the network Contrast$"):
        ops.unroll(model, theta, images, labels, 0.1, batches, micro_batch=1)


def test_no_image_at_a_time(device: torch.device) -> None:
    with pytest.raises(ValueError, match="micro_batch to be at least 1, but got 0"):
        results("lenet", device, micro_batch=0)
