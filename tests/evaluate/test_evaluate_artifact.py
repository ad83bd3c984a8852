"""Evaluation of a distilled file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stand_ins import each_network

from trajmatch.data import load_dataset
from trajmatch.errors import UserError
from trajmatch.evaluate import EvalConfig, Outcome, Protocol, evaluate_artifact, evaluate_set

MakeArtifact = Callable[..., Path]


def config(file: Path, **changes: Any) -> EvalConfig:
    return EvalConfig(file=file, **{"seeds": 2, "epochs": 6, **changes})


def test_scores_the_file_by_what_it_says(
    make_artifact: MakeArtifact, tiny_data: str, network_spec: dict[str, Any]
) -> None:
    result = evaluate_artifact(config(make_artifact(), data=tiny_data, seed=3))
    dataset = load_dataset(tiny_data)
    score = evaluate_set(
        dataset.normalise(dataset.train_images[:6]),
        dataset.train_labels[:6],
        network_spec,
        Protocol(lr=0.03, epochs=6, dsa="flip_crop"),
        dataset.normalise(dataset.test_images),
        dataset.test_labels,
        seeds=2,
        seed=3,
    )
    assert result["distilled"] == score.as_dict()
    assert result["protocol"] == score.protocol
    assert result["dataset"] == {
        "name": "tiny",
        "fingerprint": dataset.fingerprint,
        "training_images": len(dataset.train_images),
        "test_images": len(dataset.test_images),
    }
    assert (result["images_per_class"], result["seed"]) == (2, 3)


def test_test_images_are_normalised_by_the_file(
    make_artifact: MakeArtifact, tiny_data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []

    def look(*arguments: Any) -> Outcome:
        seen.append(arguments[4])
        return Outcome(0.0, None, False)

    monkeypatch.setattr("trajmatch.evaluate.distilled.train_networks", each_network(look))
    evaluate_artifact(config(make_artifact(mean=(0.25,), std=(0.5,)), data=tiny_data))
    pixels = load_dataset(tiny_data).test_images.float() / 255
    torch.testing.assert_close(seen[0], (pixels - 0.25) / 0.5)


def test_baseline_is_real_images_of_the_same_number(
    make_artifact: MakeArtifact, tiny_data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []

    def record(*arguments: Any) -> Outcome:
        calls.append(arguments)
        return Outcome(float(len(calls)), None, False)

    monkeypatch.setattr("trajmatch.evaluate.distilled.train_networks", each_network(record))
    result = evaluate_artifact(config(make_artifact(), data=tiny_data))
    assert result["distilled"]["accuracies"] == [1.0, 2.0]
    assert result["random_real"]["accuracies"] == [3.0, 4.0]

    dataset = load_dataset(tiny_data)
    real = {
        image.tobytes(): label
        for image, label in zip(
            dataset.normalise(dataset.train_images).numpy(),
            dataset.train_labels.tolist(),
            strict=True,
        )
    }
    for distilled, baseline in zip(calls[:2], calls[2:], strict=True):
        images, labels = baseline[:2]
        assert labels.tolist() == [0, 0, 1, 1, 2, 2]
        assert [real[image.tobytes()] for image in images.numpy()] == labels.tolist()
        assert baseline[2:4] == distilled[2:4]  # network and protocol
        assert baseline[6:] == distilled[6:]  # seed, device and callback
    assert not torch.equal(calls[2][0], calls[3][0])  # every network has its own draw


def test_without_baseline(make_artifact: MakeArtifact, tiny_data: str) -> None:
    result = evaluate_artifact(config(make_artifact(), data=tiny_data, random_baseline=False))
    assert result["random_real"] is None


def test_soft_labels(make_artifact: MakeArtifact, tiny_data: str) -> None:
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    file = make_artifact(labels=logits, label_kind="logit")
    result = evaluate_artifact(config(file, data=tiny_data))
    assert result["distilled"]["seeds"] == result["random_real"]["seeds"] == 2


def test_is_deterministic_and_json(make_artifact: MakeArtifact, tiny_data: str) -> None:
    file = make_artifact()
    first, again = (json.dumps(evaluate_artifact(config(file, data=tiny_data))) for _ in range(2))
    assert first == again


def test_progress_counts_the_epochs_of_all_networks(
    make_artifact: MakeArtifact, tiny_data: str
) -> None:
    class Progress:
        done = 0

        def update(self, done: int, **numbers: float) -> None:
            assert done == self.done + 1
            self.done = done

    progress = Progress()
    evaluate_artifact(config(make_artifact(), data=tiny_data), progress)
    assert progress.done == 2 * 2 * 7


# --- which data


def test_finds_the_data_by_name(
    make_artifact: MakeArtifact, tiny_data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAJMATCH_DATA", str(Path(tiny_data.removeprefix("npz:")).parent))
    file = make_artifact()
    assert evaluate_artifact(config(file)) == evaluate_artifact(config(file, data=tiny_data))


def test_data_that_is_not_found(
    make_artifact: MakeArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRAJMATCH_DATA", raising=False)
    with pytest.raises(
        UserError, match=r"'tiny'.*\(the variable is empty\); add its folder there, or say"
    ):
        evaluate_artifact(config(make_artifact()))


def test_other_data(make_artifact: MakeArtifact, other_data: str, tiny_data: str) -> None:
    mine = load_dataset(tiny_data).fingerprint[:16]
    other = load_dataset(other_data).fingerprint[:16]
    with pytest.raises(
        UserError, match=rf"from the data set 'tiny', .*other.npz .*{other}\.\.\., expected {mine}"
    ):
        evaluate_artifact(config(make_artifact(), data=other_data))


# --- refusals


def test_no_such_device(make_artifact: MakeArtifact, tiny_data: str) -> None:
    with pytest.raises(
        UserError, match="--device should be auto, cpu, cuda or cuda:N, but is 'toaster'"
    ):
        evaluate_artifact(config(make_artifact(), data=tiny_data, device="toaster"))


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing"):
        evaluate_artifact(config(tmp_path / "nothing"))


@pytest.mark.parametrize("field", ["seeds", "epochs", "batch_size"])
def test_config_refuses_what_is_out_of_range(field: str) -> None:
    flag = "--" + field.replace("_", "-")
    with pytest.raises(UserError, match=f"{flag} should be a whole number of at least 1, but is 0"):
        config(Path("file"), **{field: 0})


# --- which networks


def test_several_networks_in_one_call(make_artifact: MakeArtifact, tiny_data: str) -> None:
    file = make_artifact()
    names = ("mlp:width=4", "convnet:batch,width=4")
    result = evaluate_artifact(config(file, data=tiny_data, network=names, seed=1))
    assert [each["network"] for each in result["networks"]] == list(names)
    first, second = result["networks"]
    assert first["protocol"]["network"]["name"] == "MLP"
    assert second["protocol"]["network"]["norm"] == "batch"
    for key in ("distilled", "random_real", "protocol"):
        assert result[key] == first[key]
    alone = evaluate_artifact(config(file, data=tiny_data, network=names[1:], seed=1))
    assert alone["networks"] == [second]  # whatever is tested beside it
    assert json.loads(json.dumps(result)) == result


def test_the_network_of_the_file_by_default(make_artifact: MakeArtifact, tiny_data: str) -> None:
    result = evaluate_artifact(config(make_artifact(), data=tiny_data))
    (only,) = result["networks"]
    assert only["network"] == "ConvNet"
    assert only["distilled"] == result["distilled"]


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("resnt18", r"--network resnt18: .*did you mean resnet18\?"),
        ("lenet", "--network lenet: .*expected image_size"),
        ("torchvision:resnet19", r"did you mean resnet18\?"),
    ],
)
def test_no_such_network(
    make_artifact: MakeArtifact, tiny_data: str, network: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        evaluate_artifact(config(make_artifact(), data=tiny_data, network=("mlp", network)))


def test_a_function_is_not_called_because_a_file_names_it(
    make_artifact: MakeArtifact, tiny_data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def make(in_channels: int, num_classes: int, image_size: int) -> torch.nn.Module:
        calls.append(image_size)
        inputs = in_channels * image_size**2
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(inputs, num_classes))

    monkeypatch.setattr("trajmatch.lock.make", make, raising=False)
    name = "trajmatch.lock:make"
    spec = {"name": name, "in_channels": 1, "num_classes": 3, "image_size": 8}
    file = make_artifact(network=spec)
    with pytest.raises(UserError, match=f"because a file names it: add --network {name}"):
        evaluate_artifact(config(file, data=tiny_data))
    assert not calls
    evaluate_artifact(config(file, data=tiny_data, network=(name,)))
    assert calls
