"""Dataset distillation in one file: learn ten images that stand in for ten thousand.

    python examples/mtt.py

The method is MTT (matching training trajectories, arXiv 2203.11932):

1. Train a few networks, the experts, on the real images. Record their parameters every epoch.
2. Start a network, the student, at an expert's parameters, and train it on the synthetic images for
   some steps. Change these images, and the student's step size, so that the student ends nearer to
   where the expert was two epochs later. Repeat, with other experts and other epochs.
3. Train new networks on the synthetic images, and others on as many random real images. Compare.

It prints accuracies and the matching loss: 1 for a student that does not move, 0 for one that ends
where the expert did.

    experts: 77.5 75.2 74.3 75.5 % of the test images
    iteration 50: matching loss 0.45
    iteration 100: matching loss 0.34
    iteration 150: matching loss 0.34
    iteration 200: matching loss 0.33
    random real images: 55.5 % of the test images
    distilled images: 73.3 % of the test images
"""

from __future__ import annotations

import argparse
import random

import torch
from torch import Tensor, nn

from trajmatch import evaluate, networks, ops
from trajmatch.data import DSA, load_dataset

EXPERT_EPOCHS, STUDENT_STEPS = 2, 20  # the student takes 20 steps to follow 2 epochs of an expert
AUGMENT = DSA()  # random shifts, rotations, cutouts and so on, differentiable in the images

# Parameters are one vector `theta` [P] throughout. A `model` is only the architecture: `ops` does
# not use the parameters that it holds.


def train(model: nn.Module, images: Tensor, labels: Tensor, lr: float, epochs: int) -> list[Tensor]:
    """Train a new network by SGD; return its parameters at the start and after every epoch."""
    theta = networks.flat_parameters(networks.initialise(model, torch.default_generator))
    trajectory = [theta]
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(256):
            augmented = AUGMENT(images[batch], torch.default_generator)
            _, grad = ops.gradient(model, theta, augmented, labels[batch])
            theta = theta - lr * grad
        trajectory.append(theta)
    return trajectory


def distil(
    model: nn.Module, experts: list[list[Tensor]], images: Tensor, iterations: int
) -> tuple[Tensor, float]:
    """Return learned images, one per class, and the learned step size to train on them with."""
    images, labels = images.clone().requires_grad_(), torch.arange(len(images))
    log_lr = torch.tensor(0.02).log().requires_grad_()  # its exponential is always positive
    optimiser = torch.optim.SGD(
        [{"params": [images], "lr": 300.0}, {"params": [log_lr], "lr": 0.025}], momentum=0.5
    )
    batches = [range(len(images))] * STUDENT_STEPS  # every step sees all images
    losses = []
    for i in range(1, iterations + 1):
        expert = random.choice(experts)
        epoch = random.randrange(len(expert) - EXPERT_EPOCHS)
        start, target = expert[epoch], expert[epoch + EXPERT_EPOCHS]
        augment = AUGMENT.replay(seed=i)  # so that the backward pass repeats the same draws
        end = ops.unroll(model, start, images, labels, log_lr.exp(), batches, augment=augment)
        loss = ops.param_distance(end, target, start)  # |end - target|^2 / |start - target|^2
        optimiser.zero_grad()
        loss.backward()  # exactly, through all steps of the student
        optimiser.step()
        losses.append(loss.item())
        if i % 50 == 0:
            print(f"iteration {i}: matching loss {sum(losses[-50:]) / 50:.2f}")
    return images.detach(), log_lr.exp().item()


def main(argv: list[str] | None = None) -> None:
    """Train experts, distil, and compare the result with real images."""
    parser = argparse.ArgumentParser(description="Dataset distillation by MTT.")
    parser.add_argument("--data", help="data set, e.g. cifar10:ROOT (default: the shipped images)")
    parser.add_argument("--width", type=int, default=32, help="channels of the networks")
    parser.add_argument("--experts", type=int, default=4, help="experts to train")
    parser.add_argument("--epochs", type=int, default=6, help="epochs of each expert, at least 2")
    parser.add_argument("--iterations", type=int, default=200, help="updates of the images")
    parser.add_argument("--networks", type=int, default=5, help="networks to train on each set")
    parser.add_argument("--test-epochs", type=int, default=300, help="epochs of each such network")
    asked = parser.parse_args(argv)

    torch.manual_seed(0)
    random.seed(0)
    data = load_dataset(asked.data)
    real, labels = data.normalise(data.train_images), data.train_labels
    test, test_labels = data.normalise(data.test_images), data.test_labels
    model = networks.ConvNet(data.channels, data.num_classes, data.image_size, width=asked.width)
    classes = torch.arange(data.num_classes)

    def one_per_class() -> Tensor:
        return torch.cat([real[random.choice((labels == c).nonzero())] for c in classes])

    def accuracy(theta: Tensor) -> float:
        networks.load_flat_parameters(model, theta)
        return evaluate.accuracy(model, test, test_labels)

    experts = [train(model, real, labels, 0.01, asked.epochs) for _ in range(asked.experts)]
    print("experts:", *(f"{accuracy(each[-1]):.1f}" for each in experts), "% of the test images")
    distilled, lr = distil(model, experts, one_per_class(), asked.iterations)
    random_real = [one_per_class() for _ in range(asked.networks)]
    for name, sets in (("random real", random_real), ("distilled", [distilled] * asked.networks)):
        found = [accuracy(train(model, each, classes, lr, asked.test_epochs)[-1]) for each in sets]
        print(f"{name} images: {sum(found) / len(found):.1f} % of the test images")


if __name__ == "__main__":
    main()
