"""The search of ``examples/nas.py`` over four tiny networks."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr
from tiny_sets import tiny_set

from trajmatch import artifact
from trajmatch.data import load_dataset
from trajmatch.evaluate import distilled

PATH = Path(__file__).parents[1] / "examples" / "nas.py"


@pytest.fixture
def nas() -> ModuleType:
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("nas", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """A search for a distilled file that is really the first image of each class."""
    draw, labels = np.random.default_rng(0), np.arange(30) % 3
    images = draw.integers(0, 160, (30, 8, 8, 1), dtype=np.uint8)
    images[np.arange(30), 2 * labels] += 60
    data = tmp_path / "tiny.npz"
    np.savez(data, x_train=images, y_train=labels, x_test=images, y_test=labels)
    dataset = load_dataset(f"npz:{data}")
    images = dataset.normalise(dataset.train_images[:3])
    distilled = tiny_set(f"npz:{data}", images=images, labels=dataset.train_labels[:3], lr=0.05)
    artifact.save(tmp_path / "d.safetensors", distilled)
    text = (
        f"{tmp_path}/d.safetensors --out {tmp_path}/search --data npz:{data} --depths 1 2 --widths "
        "32 --activations relu --norms none batch --poolings average --epochs 3 --real-epochs 2 "
        "--top 2 9 --quiet"
    )
    return text.split()


def test_search(
    nas: ModuleType,
    arguments: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained: list[Any] = []
    train_networks = distilled.train_networks

    def train(sets: Iterable[Any], spec: dict[str, Any], *given: Any) -> Any:
        taken = [*sets]
        trained.extend((spec["depth"], spec["norm"], len(images)) for images, *_ in taken)
        return train_networks(taken, spec, *given)

    monkeypatch.setattr(distilled, "train_networks", train)
    nas.search(arguments)
    networks = [(depth, norm) for depth in (1, 2) for norm in ("none", "batch")]
    assert {*trained} == {(*each, size) for each in networks for size in (3, 30)}
    assert "of 4 architectures, proxy: distilled" in capsys.readouterr().out
    result = json.loads((tmp_path / "search" / "result.json").read_text())
    proxy, real = result["proxy"], result["real"]
    assert list(proxy) == list(real) and len(real) == 4
    wanted = spearmanr([*proxy.values()], [*real.values()]).statistic
    assert result["spearman"]["all"] == pytest.approx(wanted)
    assert result["spearman"]["9"] is None

    trained.clear()  # the same again trains nothing, another proxy what it lacks
    nas.search(arguments)
    assert trained == []
    assert json.loads((tmp_path / "search" / "result.json").read_text()) == result
    nas.search([*arguments, "--proxy", "random-real"])
    assert trained == [(*each, 3) for each in networks]


def test_the_best_are_those_on_the_real_data(nas: ModuleType) -> None:
    real = {"a": 50.0, "b": 70.0, "c": 80.0, "d": 60.0}
    proxy = {"a": 10.0, "b": 30.0, "c": 20.0, "d": 0.0}
    found = nas.correlations(real, proxy, (2, 3))
    assert found["2"] == pytest.approx(-1)
    assert found["3"] == pytest.approx(spearmanr([80, 70, 60], [20, 30, 0]).statistic)
    assert nas.correlations(real, dict.fromkeys(real, 5.0), ())["all"] is None


def test_draws_grow(nas: ModuleType) -> None:
    asked = ["file", "--out", "out", "--count"]
    small, large = ({*nas.architectures(nas.parse([*asked, n]))} for n in ("20", "30"))
    assert len(small) == 20 and small < large and len(large) == 30


@pytest.mark.parametrize("wrong", [["--depths", "9"], ["--norms"], ["--widths", "wide"]])
def test_a_mistake_names_the_flag(
    nas: ModuleType, arguments: list[str], wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        nas.search([*arguments, *wrong])
    assert wrong[0] in capsys.readouterr().err
