"""A student of your own: any PyTorch module, here a transformer that reads an image row by row.

    python examples/own_student.py

`ops.unroll` runs the networks of `trajmatch.networks` on its engine in C++ and CUDA, and all other
modules on PyTorch's autograd. Both give the exact gradient. `ops.engine_for` says which is used.

A plain PyTorch loop trains the experts with Adam. Ten images and the student's step size are then
learned, so that a student, which also trains with Adam, follows the experts. New transformers are
trained on the ten images before and after distillation. The example prints:

    Transformer: autograd, ConvNet: engine
    real images: 46.1 % of the test images
    iteration 50: matching loss 0.49, step size 0.0054
    iteration 100: matching loss 0.54, step size 0.0063
    iteration 150: matching loss 0.35, step size 0.0065
    iteration 200: matching loss 0.40, step size 0.0069
    distilled images: 56.9 % of the test images
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trajmatch import networks, ops
from trajmatch.data import load_dataset

ADAM = ops.Adam(eps=1e-4)  # a smaller eps amplifies rounding errors: see docs/ops.md


class Transformer(nn.Module):
    """Classifier of grey images [B, 1, S, S], read as sequences of S rows."""

    def __init__(self, size: int, classes: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(size, width)
        self.position = nn.Parameter(0.1 * torch.randn(size, width))
        self.layer = nn.TransformerEncoderLayer(
            width, nhead=4, dim_feedforward=2 * width, dropout=0.0, batch_first=True
        )
        self.classify = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, classes]."""
        rows = self.embed(images.squeeze(1)) + self.position
        return self.classify(self.layer(rows).mean(dim=1))


def train(model: nn.Module, images: Tensor, labels: Tensor) -> list[Tensor]:
    """Train an expert; return all its parameters, as one vector, after 0, 20, 40 and 60 steps."""
    adam = torch.optim.Adam(model.parameters(), lr=0.003)
    trajectory = [networks.flat_parameters(model)]  # a copy
    for step in range(1, 61):
        batch = torch.randint(len(images), (256,))
        adam.zero_grad()
        cross_entropy(model(images[batch]), labels[batch]).backward()
        adam.step()
        if step % 20 == 0:
            trajectory.append(networks.flat_parameters(model))
    return trajectory


def main(argv: Sequence[str] | None = None) -> None:
    """Train experts, distil along their trajectories, and test."""
    parser = argparse.ArgumentParser(description="A student of your own.")
    for name, default, text in (
        ("--width", 32, "width of the transformer"),
        ("--experts", 4, "experts to train"),
        ("--iterations", 200, "updates of the images"),
        ("--steps", 10, "steps of the student, which follow 40 of an expert"),
        ("--test-steps", 100, "steps of a new transformer"),
    ):
        parser.add_argument(name, type=int, default=default, help=f"{text} (default: {default})")
    asked = parser.parse_args(argv)

    torch.manual_seed(0)
    random.seed(0)
    data = load_dataset()
    real, test = data.normalise(data.train_images), data.normalise(data.test_images)

    def new() -> Transformer:
        return Transformer(data.image_size, data.num_classes, asked.width)

    model, convnet = new(), networks.ConvNet(data.channels, data.num_classes, data.image_size)
    print(f"Transformer: {ops.engine_for(model)}, ConvNet: {ops.engine_for(convnet)}")
    experts = [train(new(), real, data.train_labels) for _ in range(asked.experts)]

    labels = torch.arange(data.num_classes)
    images = torch.stack([real[data.train_labels == each][0] for each in labels]).requires_grad_()
    log_lr = torch.tensor(0.003).log().requires_grad_()

    def student(theta: Tensor, steps: int) -> Tensor:
        """Return the parameters after training from theta, with all images in each step."""
        batches = [range(len(images))] * steps
        return ops.unroll(model, theta, images, labels, log_lr.exp(), batches, optimiser=ADAM)

    def report(name: str) -> None:
        with torch.no_grad():
            theta = student(networks.flat_parameters(new()), asked.test_steps)
            right = networks.call_flat(model, theta, test).argmax(dim=1) == data.test_labels
        print(f"{name} images: {100 * right.double().mean():.1f} % of the test images")

    report("real")
    outer = torch.optim.Adam([{"params": [images], "lr": 0.05}, {"params": [log_lr], "lr": 0.02}])
    for i in range(1, asked.iterations + 1):
        trajectory = random.choice(experts)
        first = random.randrange(len(trajectory) - 2)
        start, target = trajectory[first], trajectory[first + 2]
        loss = ops.param_distance(student(start, asked.steps), target, start)
        outer.zero_grad()
        loss.backward()
        outer.step()
        if i % 50 == 0:
            print(f"iteration {i}: matching loss {loss:.2f}, step size {log_lr.exp():.4f}")
    report("distilled")


if __name__ == "__main__":
    main()
