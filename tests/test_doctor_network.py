"""`trajmatch doctor --network`: what runs each layer."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from trajmatch import lock
from trajmatch.cli.main import main


def doctor(*flags: str) -> int:
    return main(["doctor", "--network", *flags])


def report(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    doctor(*flags, "--json")
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("network", "runs_by"),
    [
        ("convnet:width=4", "engine"),
        ("convnet:batch,width=4", "engine"),
        ("lenet", "engine"),
        ("resnet18:width=4", "engine"),
    ],
)
def test_every_layer_is_listed(
    capsys: pytest.CaptureFixture[str], network: str, runs_by: str
) -> None:
    seen = report(capsys, network, "--image-size", "16")
    assert seen["passed"] is True
    assert seen["runs_by"] == runs_by
    assert {layer["runs"] for layer in seen["layers"]} == {runs_by}
    assert sum(layer["parameters"] for layer in seen["layers"]) == seen["parameters"]
    assert seen["network"]["image_size"] == 16
    types = {layer["type"] for layer in seen["layers"]}
    assert {"Conv2d", "ReLU", "Linear"} < types


@pytest.fixture
def make_hard(monkeypatch: pytest.MonkeyPatch) -> str:
    """A function whose network has a layer without a second derivative; its name."""

    def make(in_channels: int, num_classes: int, image_size: int) -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Flatten(),
            torch.nn.Linear(in_channels * image_size**2, num_classes),
            torch.nn.Hardsigmoid(),
        )

    monkeypatch.setattr(lock, "make_hard", make, raising=False)
    return "trajmatch.lock:make_hard"


def test_a_layer_that_is_not_twice_differentiable(
    capsys: pytest.CaptureFixture[str], make_hard: str
) -> None:
    assert doctor(make_hard, "--image-size", "4") == 1
    text = capsys.readouterr().out
    (line,) = [line for line in text.splitlines() if "not twice differentiable: " in line]
    assert line.split()[:2] == ["module.2", "Hardsigmoid"]
    assert "derivative for aten::hardsigmoid_backward is not implemented" in line
    (line,) = [line for line in text.splitlines() if line.startswith("module.1")]
    assert line.split() == ["module.1", "Linear", "490", "autograd"]
    assert "can be an evaluation network, but not an expert or student" in text


def test_such_an_expert_is_refused_before_any_work(
    capsys: pytest.CaptureFixture[str], make_hard: str, tmp_path: Any
) -> None:
    out = tmp_path / "store"
    assert main(["expert", "--out", str(out), "--network", make_hard]) == 2
    assert "layer module.2 (Hardsigmoid) of " in capsys.readouterr().err
    assert not out.exists()


def test_sizes_come_from_the_data(capsys: pytest.CaptureFixture[str]) -> None:
    seen = report(capsys, "mlp:width=4", "--data", "fashion-mnist-mini")
    sizes = {"in_channels": 1, "num_classes": 10, "image_size": 28}
    assert seen["network"].items() >= sizes.items()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["resnt18"], "did you mean resnet18?"),
        (["lenet", "--image-size", "8"], "expected image_size to be large enough"),
        (["vgg11:batsh"], "expected norm to be one of"),
    ],
)
def test_mistakes_exit_2(
    capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert doctor(*flags) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("trajmatch: error: --network ")
    assert message in err
