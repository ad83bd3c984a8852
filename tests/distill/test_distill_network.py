"""Students other than the ConvNet of the papers."""

import pytest
import torch
from torch import nn

from trajmatch import artifact, lock, ops
from trajmatch.distill import distill
from trajmatch.distill.problem import prepare
from trajmatch.errors import UserError
from trajmatch.experts import ExpertConfig, train_experts


@pytest.fixture
def make_store(data: str, tmp_path):
    def make(**settings):
        config = ExpertConfig(
            out=tmp_path / "store", data=data, num_experts=1, epochs=4, workers=1, **settings
        )
        return train_experts(config).path

    return make


@pytest.mark.parametrize(
    "network", [{"norm": "batch", "width": 4, "depth": 1}, {"network": "mlp:width=4"}]
)
def test_distils(configure, make_store, network: dict) -> None:
    config = configure(experts=make_store(**network), iterations=2, lr_init=1e-3, lr_lr=0.0)
    problem = prepare(config)
    assert ops.engine_for(problem.model) == "engine"
    before = {name: each.clone() for name, each in problem.model.state_dict().items()}
    first = problem.initial_set().images
    result = distill(config)
    assert result.images.isfinite().all()
    assert not torch.equal(result.images, first)
    assert all(torch.equal(each, before[k]) for k, each in problem.model.state_dict().items())
    assert artifact.load(config.out).network == problem.store.manifest["network"]


def test_a_function_that_changed_is_examined_again(configure, make_store, monkeypatch) -> None:
    def make(*more: nn.Module):
        def network(in_channels: int, num_classes: int, image_size: int) -> nn.Module:
            inputs = in_channels * image_size**2
            return nn.Sequential(nn.Flatten(), nn.Linear(inputs, num_classes), *more)

        return network

    monkeypatch.setattr(lock, "network", make(), raising=False)
    store = make_store(network="trajmatch.lock:network")
    monkeypatch.setattr(lock, "network", make(nn.Hardsigmoid()))
    with pytest.raises(UserError, match=r"cannot be used: .* layer module\.2 \(Hardsigmoid\)"):
        prepare(configure(experts=store))
