"""Experts with other networks than the ConvNet, and running statistics in the store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from trajmatch import files, networks
from trajmatch.cli.main import main
from trajmatch.data import load_dataset
from trajmatch.errors import UserError
from trajmatch.evaluate import accuracy
from trajmatch.experts import ExpertConfig, Store, train_experts
from trajmatch.random import generator

MakeConfig = Callable[..., ExpertConfig]
DEFAULTS = {"width": 128, "depth": 3}


def test_a_batch_norm_expert_is_that_of_torch(make_config: MakeConfig) -> None:
    config = make_config(norm="batch", num_experts=1, epochs=2, dsa="none", lr=0.05)
    store = train_experts(config)
    dataset = load_dataset(config.data)
    model = networks.build(store.manifest["network"])
    networks.load_flat_parameters(model, store.snapshot(0, 0))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    order = generator(0, "expert", 0, "order")
    for epoch in (0, 1, 2):
        if epoch:
            for batch in torch.randperm(36, generator=order).split(16):
                optimiser.zero_grad()
                logits = model(dataset.normalise(dataset.train_images[batch]))
                F.cross_entropy(logits, dataset.train_labels[batch]).backward()
                optimiser.step()
        kept = store.buffers(0, epoch)
        assert kept is not None
        torch.testing.assert_close(kept, networks.flat_buffers(model), rtol=1e-4, atol=1e-5)
    assert kept[-1] == 2 * 3  # batches seen

    again = networks.build(store.manifest["network"])
    store.load_into(again, 0, 2)
    test_images = dataset.normalise(dataset.test_images)
    torch.testing.assert_close(
        again.eval()(test_images), model.eval()(test_images), rtol=1e-3, atol=1e-4
    )
    measured = accuracy(again, test_images, dataset.test_labels)
    assert store.metrics(0)["test_accuracy"] == measured


def test_a_store_without_buffers_is_as_it_was(make_config: MakeConfig) -> None:
    store = train_experts(make_config(num_experts=1, epochs=1))
    tensors, _ = files.load_tensors(store.expert_path(0))
    assert tensors.keys() == {"snapshots"}
    assert store.buffers(0, 1) is None
    model = networks.build(store.manifest["network"])
    store.load_into(model, 0, 1)
    assert torch.equal(networks.flat_parameters(model), store.snapshot(0, 1))


def test_another_network(make_config: MakeConfig) -> None:
    config = make_config(network="mlp:width=6", num_experts=1, epochs=2, **DEFAULTS)
    store = train_experts(config)
    assert store.manifest["network"] == {
        "name": "MLP",
        "in_channels": 1,
        "num_classes": 3,
        "image_size": 8,
        "width": 6,
    }
    assert store.metrics(0)["train_loss"][1] < store.metrics(0)["train_loss"][0]


# --- which network


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"network": "resnt18"}, r"did you mean resnet18\?"),
        ({"network": "resnet18", "width": 32}, r"--width 32 applies only to --network convnet"),
        ({"network": "mlp", "norm": "batch"}, r"--norm batch .* after the name"),
        ({"network": "lenet"}, r"expected image_size to be large enough .* but got 8"),
        ({"network": "mlp:depth=2"}, "MLP does not accept all of these options: depth"),
    ],
)
def test_refusals_before_any_work(
    make_config: MakeConfig, fields: dict[str, Any], message: str
) -> None:
    config = make_config(**{**DEFAULTS, **fields})
    with pytest.raises(UserError, match=message):
        train_experts(config)
    assert not config.out.exists()


def test_the_command_names_network_and_path(
    tmp_path: Path, tiny_data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "store"
    flags = f"--data {tiny_data} --num-experts 1 --epochs 1 --workers 1 --network mlp:width=4"
    assert main(["expert", "--out", str(out), *flags.split()]) == 0
    assert "MLP with 295 parameters, steps run by: engine" in capsys.readouterr().out
    assert json.loads((out / "store.json").read_text())["network"]["name"] == "MLP"
    assert Store.open(out).num_experts == 1
