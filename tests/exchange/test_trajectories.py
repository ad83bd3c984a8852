"""Trajectories of the papers' scripts: to a store and back, and what is refused."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mutants import archive, mutations, pickle_in
from torch import Tensor

from trajmatch import networks
from trajmatch.data import load_dataset
from trajmatch.distill import DistillConfig, distill
from trajmatch.errors import UserError
from trajmatch.exchange.config import ConvertConfig
from trajmatch.exchange.convert import convert
from trajmatch.exchange.origin import preprocessed
from trajmatch.exchange.trajectories import read_trajectories
from trajmatch.experts import ExpertConfig, Store, train_experts

NETWORK = "convnet:width=4,depth=1"
#: What the experts of the fixtures were trained with.
ORIGIN = {"network": NETWORK, "preprocessing": "data", "dsa": "flip"}
#: Shapes of that network's parameters.
SHAPES = [(4, 1, 3, 3), (4,), (4,), (4,), (3, 64), (3,)]

Content = list[list[list[Tensor]]]


def content(experts: int = 2, snapshots: int = 3) -> Content:
    """Trajectories as the scripts write them."""
    return [
        [[torch.randn(shape) for shape in SHAPES] for _ in range(snapshots)] for _ in range(experts)
    ]


@pytest.fixture
def to_store(tmp_path: Path, data: str) -> Callable[..., Store]:
    """Converts files of trajectories, by default with random numbers in them."""

    def to_store(*files: Any, **flags: Any) -> Store:
        folder = tmp_path / "buffers"
        folder.mkdir(exist_ok=True)
        for number, each in enumerate(files):
            torch.save(each, folder / f"replay_buffer_{number}.pt")
        given = {"data": data, **ORIGIN, **flags}
        with warnings.catch_warnings():  # that random numbers classify no better than by guessing
            warnings.simplefilter("ignore", UserWarning)
            convert(ConvertConfig(source=folder, out=tmp_path / "store", **given))
        return Store.open(tmp_path / "store")

    return to_store


@pytest.fixture
def refusal(tmp_path: Path, data: str) -> Callable[..., str]:
    """The message with which a file of trajectories is refused."""

    def refusal(file: Any, **flags: Any) -> str:
        path = tmp_path / "replay_buffer_0.pt"
        torch.save(file, path)
        given = {"data": data, **ORIGIN, **flags}
        with pytest.raises(UserError) as raised:
            convert(ConvertConfig(source=path, out=tmp_path / "store", **given))
        assert sorted(each.name for each in tmp_path.iterdir()) == [path.name]
        return str(raised.value)

    return refusal


# --- what the scripts write


def test_snapshots_are_those_of_the_file(to_store) -> None:
    first, second = content(experts=2), content(experts=1)
    store = to_store(first, second)
    assert store.num_experts == 3 and store.snapshots_kept == [0, 1, 2]
    for expert, trajectory in enumerate([*first, *second]):
        for epoch, snapshot in enumerate(trajectory):
            flat = torch.cat([tensor.reshape(-1) for tensor in snapshot])
            assert torch.equal(store.snapshot(expert, epoch), flat)


def test_files_are_taken_in_the_order_of_their_numbers(to_store) -> None:
    written = [content(experts=1) for _ in range(11)]
    store = to_store(*written)
    assert torch.equal(store.snapshot(10, 0)[:36], written[10][0][0][0].flatten())


def test_parameters_and_half_precision_are_read(to_store) -> None:
    (trajectory,) = content(experts=1)
    half = [[torch.nn.Parameter(each.half()) for each in snapshot] for snapshot in trajectory]
    store = to_store([half])
    expected = torch.cat([each.half().float().reshape(-1) for each in trajectory[1]])
    assert torch.equal(store.snapshot(0, 1), expected)


def test_metrics_are_what_follows_from_the_snapshots(to_store) -> None:
    store = to_store(content())
    moved = [
        (store.snapshot(1, epoch + 1) - store.snapshot(1, epoch)).norm().item() for epoch in (0, 1)
    ]
    assert store.metrics(1) == {"displacement": pytest.approx(moved)}


def test_epochs_can_be_left_out(to_store) -> None:
    written = content(experts=1, snapshots=6)
    store = to_store(written, keep="0-2")
    assert store.snapshots_kept == [0, 1, 2, 5]
    assert torch.equal(store.snapshot(0, 5)[-3:], written[0][5][-1])


def convolution(out: int, inside: int, size: int = 3) -> list[tuple[int, ...]]:
    return [(out, inside, size, size), (out,)]


def without_bias(out: int, inside: int, size: int = 3) -> list[tuple[int, ...]]:
    return [(out, inside, size, size), (out,), (out,)]  # the convolution, then its norm


def residual(out: int, inside: int) -> list[tuple[int, ...]]:
    shortcut = without_bias(out, inside, 1) if out != inside else []
    return [*without_bias(out, inside), *without_bias(out, out), *shortcut]


def stages() -> list[tuple[int, ...]]:
    blocks = [(64, 64), (64, 64), (128, 64), (128, 128)]
    blocks += [(256, 128), (256, 256), (512, 256), (512, 512)]
    return sum((residual(*block) for block in blocks), without_bias(64, 3))


def normed(*channels: int) -> list[tuple[int, ...]]:
    pairs = itertools.pairwise((3, *channels))
    return [shape for inside, out in pairs for shape in (*convolution(out, inside), (out,), (out,))]


#: ``[tuple(p.shape) for p in model.parameters()]`` of MTT's networks.py, for CIFAR-10.
OF_THE_SCRIPTS = {
    "convnet": [*normed(128, 128, 128), (10, 2048), (10,)],
    "vgg11": [*normed(64, 128, 256, 256, 512, 512, 512, 512), (10, 512), (10,)],
    "resnet18": [*stages(), (10, 512), (10,)],
    "resnet18_ap": [*stages(), (10, 512 * 4 * 4), (10,)],
    "alexnet": [
        *convolution(128, 3, 5),
        *convolution(192, 128, 5),
        *convolution(256, 192),
        *convolution(192, 256),
        *convolution(192, 192),
        (10, 192 * 4 * 4),
        (10,),
    ],
    "lenet": [
        *convolution(6, 3, 5),
        *convolution(16, 6, 5),
        *[(120, 400), (120,), (84, 120), (84,), (10, 84), (10,)],
    ],
    "mlp": [(128, 3072), (128,), (128, 128), (128,), (10, 128), (10,)],
}


@pytest.mark.parametrize("name", OF_THE_SCRIPTS)
def test_networks_have_the_parameters_of_the_scripts_in_their_order(name: str) -> None:
    with torch.device("meta"):
        model = networks.build(networks.specify(name, 3, 10, 32))
    assert [tuple(parameter.shape) for parameter in model.parameters()] == OF_THE_SCRIPTS[name]


# --- there and back


def test_a_store_comes_back_to_the_bit(experts: Store, data: str, tmp_path: Path) -> None:
    out = tmp_path / "buffers"
    made = convert(ConvertConfig(source=experts.path, out=out, per_file=2))
    assert "3 experts in 2 files" in made
    assert [path.name for path in sorted(out.iterdir())] == [
        "replay_buffer_0.pt",
        "replay_buffer_1.pt",
    ]
    convert(ConvertConfig(source=out, out=tmp_path / "store", data=data, **ORIGIN))
    again = Store.open(tmp_path / "store")
    for expert in range(3):
        for epoch in range(4):
            assert torch.equal(again.snapshot(expert, epoch), experts.snapshot(expert, epoch))
        moved = experts.metrics(expert)["displacement"]
        assert again.metrics(expert)["displacement"] == pytest.approx(moved)
    for field in ("dataset", "preprocessing", "network", "snapshots", "dtype"):
        assert again.manifest[field] == experts.manifest[field]


def test_written_files_are_what_the_scripts_read(experts: Store, tmp_path: Path) -> None:
    convert(ConvertConfig(source=experts.path, out=tmp_path / "buffers"))
    read = torch.load(tmp_path / "buffers" / "replay_buffer_0.pt", weights_only=True)
    assert [len(read), len(read[0])] == [3, 4]
    assert [tuple(tensor.shape) for tensor in read[2][3]] == SHAPES
    flat = torch.cat([tensor.reshape(-1) for tensor in read[2][3]])
    assert torch.equal(flat, experts.snapshot(2, 3))


def test_a_converted_store_distils_to_the_same_images(experts, data, tmp_path) -> None:
    convert(ConvertConfig(source=experts.path, out=tmp_path / "buffers"))
    given = {"data": data, **ORIGIN}
    convert(ConvertConfig(source=tmp_path / "buffers", out=tmp_path / "store", **given))
    settings = {"iterations": 3, "student_steps": 2, "max_start_epoch": 1, "dsa": "flip"}
    first, second = (
        distill(DistillConfig(experts=store, out=tmp_path / name, **settings))
        for name, store in (("first", experts.path), ("second", tmp_path / "store"))
    )
    assert torch.equal(first.images, second.images) and first.lr == second.lr


def test_a_bfloat16_store_with_a_gap_is_written_up_to_the_gap(data: str, tmp_path: Path) -> None:
    settings = {"num_experts": 1, "epochs": 4, "width": 4, "depth": 1, "workers": 1}
    kept = {"keep": "0-2", "dtype": "bfloat16"}
    store = train_experts(ExpertConfig(out=tmp_path / "store", data=data, **settings, **kept))
    with pytest.warns(UserWarning, match=r"has gaps between its epochs; epochs from 4 on"):
        convert(ConvertConfig(source=store.path, out=tmp_path / "buffers"))
    (read,) = torch.load(tmp_path / "buffers" / "replay_buffer_0.pt", weights_only=True)
    assert len(read) == 3
    flat = torch.cat([tensor.reshape(-1) for tensor in read[2]])
    assert torch.equal(flat, store.snapshot(0, 2))


def test_a_store_without_the_initialisation_is_refused(data: str, tmp_path: Path) -> None:
    settings = {"num_experts": 1, "epochs": 2, "width": 4, "depth": 1, "workers": 1}
    config = ExpertConfig(out=tmp_path / "store", data=data, keep="1", **settings)
    train_experts(config)
    with pytest.raises(UserError, match=r"keeps the epochs 1, 2, .*begin with the epochs 0 and 1"):
        convert(ConvertConfig(source=tmp_path / "store", out=tmp_path / "buffers"))
    assert not (tmp_path / "buffers").exists()


def test_running_statistics_are_left_out_with_a_warning(data: str, tmp_path: Path) -> None:
    settings = {"num_experts": 1, "epochs": 1, "width": 4, "depth": 1, "norm": "batch"}
    train_experts(ExpertConfig(out=tmp_path / "store", data=data, **settings, workers=1))
    with pytest.warns(UserWarning, match="cannot hold the running statistics"):
        convert(ConvertConfig(source=tmp_path / "store", out=tmp_path / "buffers"))


# --- what the files do not say


def test_everything_that_is_lacking_is_named_at_once(tmp_path: Path) -> None:
    torch.save(content(), tmp_path / "replay_buffer_0.pt")
    config = ConvertConfig(source=tmp_path / "replay_buffer_0.pt", out=tmp_path / "store")
    with pytest.raises(UserError) as raised:
        convert(config)
    message = str(raised.value)
    for flag in ("--data", "--network", "--preprocessing", "--dsa", "--recipe"):
        assert flag in message


@pytest.mark.parametrize("flag", ["data", "network", "preprocessing", "dsa"])
def test_each_lacking_flag_is_asked_for_by_name(refusal, flag: str) -> None:
    message = refusal(content(), **{flag: None})
    assert f"also give --{flag} " in message


def test_statistics_of_the_flags_are_what_distillation_uses(to_store, data: str, tmp_path) -> None:
    store = to_store(content(), preprocessing=None, mean=(0.25,), std=(0.5,))
    assert store.manifest["preprocessing"] == {"mean": [0.25], "std": [0.5]}
    settings = {"iterations": 1, "student_steps": 1, "max_start_epoch": 1, "expert_epochs": 1}
    config = DistillConfig(experts=store.path, out=tmp_path / "d", lr_img=0.0, **settings)
    result = distill(config)
    assert (result.mean, result.std) == ((0.25,), (0.5,))
    pixels = (result.images * 0.5 + 0.25) * 255
    torch.testing.assert_close(pixels, pixels.round(), rtol=0, atol=1e-3)


def test_a_whitened_store_has_the_whitening_of_the_training_images(to_store, data: str) -> None:
    store = to_store(content(), preprocessing="zca")
    images = load_dataset(data).train_images
    expected = reference_whitening(images)
    torch.testing.assert_close(store.zca.apply(images).double(), expected, rtol=0, atol=1e-4)


def reference_whitening(images: Tensor) -> Tensor:
    """kornia's formula: (x - mean) U diag(1 / sqrt(S + 0.1)) U^T."""
    rows = images.double().flatten(1) / 255
    centred = rows - rows.mean(dim=0)
    u, s, _ = torch.linalg.svd(centred.T @ centred / (len(rows) - 1))
    return (centred @ u @ torch.diag((s + 0.1).rsqrt()) @ u.T).view(images.shape)


def test_a_recipe_stands_for_network_preprocessing_and_augmentation(tmp_path, to_store) -> None:
    recipe = tmp_path / "own.toml"
    recipe.write_text("[expert]\nwidth = 4\ndepth = 1\nzca = true\nlr = 0.02\ndsa = 'flip_crop'\n")
    lacking = dict.fromkeys(ORIGIN)
    manifest = to_store(content(), recipe=str(recipe), **lacking).manifest
    assert manifest["network"] == networks.specify(NETWORK, 1, 3, 8)
    assert manifest["preprocessing"]["kind"] == "zca"
    assert manifest["recipe"]["dsa"] == "flip_crop" and manifest["recipe"]["lr"] == 0.02
    assert manifest["recipe"]["epochs"] == 2


def test_the_constants_of_mtt(refusal, data: str) -> None:
    dataset = load_dataset(data)
    colour = {
        f"{split}_images": getattr(dataset, f"{split}_images").expand(-1, 3, -1, -1)
        for split in ("train", "test")
    }
    channels = {"mean": (0.5,) * 3, "std": (0.2,) * 3}
    cifar = dataclasses.replace(dataset, name="cifar100?classes=1,2,3", **colour, **channels)
    config = ConvertConfig(source=Path("x"), out=Path("y"))
    for given, mean, std in (
        (cifar, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        (dataclasses.replace(dataset, published_statistics=True), dataset.mean, dataset.std),
    ):
        found = preprocessed(given, "mtt", config)
        assert (found.mean, found.std) == (mean, std)
    message = refusal(content(), preprocessing="mtt")
    assert "no published statistics of the data set" in message and "--mean and --std" in message


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"lr": 0.1}, "is a file of trajectories: --lr does not apply"),
        ({"per_file": 2}, "--per-file does not apply"),
        ({"labels": "logit"}, "--labels does not apply"),
        ({"network": "convnot"}, "did you mean convnet"),
        ({"network": "convnet:width=4,depth=1,norm=batch"}, "running statistics"),
        ({"dsa": "swirl"}, "swirl"),
        ({"preprocessing": None, "mean": (0.5, 0.5), "std": (1.0, 1.0)}, "one for each channel"),
        ({"keep": "7"}, "should list epochs from 0 to 2 as numbers and ranges, e.g. 0-22,30, but"),
        ({"data": "npz:nothing"}, "nothing"),
    ],
)
def test_flags_that_do_not_fit(refusal, flags: dict[str, Any], message: str) -> None:
    assert message in refusal(content(), **flags)


@pytest.mark.parametrize("flags", [{"lr": 0.1}, {"data": "x"}, {"keep": "0-1"}])
def test_a_store_says_itself_what_it_is(experts: Store, tmp_path: Path, flags) -> None:
    with pytest.raises(UserError, match=r"is a store of experts: --.* does not apply"):
        convert(ConvertConfig(source=experts.path, out=tmp_path / "out", **flags))


def test_experts_that_only_guess_are_reported(tmp_path: Path, data: str) -> None:
    file = content()
    file[0][-1] = [torch.zeros(shape) for shape in SHAPES]  # class 0 for every image
    torch.save(file, tmp_path / "replay_buffer_0.pt")
    given = {"source": tmp_path, "out": tmp_path / "store", "data": data, **ORIGIN}
    with pytest.warns(
        UserWarning, match=r"test accuracy of 33.3 % .* above chance \(33.3 %\): --network"
    ):
        convert(ConvertConfig(**given))


# --- what is refused


def changed(expert: int, epoch: int, tensor: int, value: Any) -> Content:
    trajectories = content()
    trajectories[expert][epoch][tensor] = value
    return trajectories


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (torch.zeros(3), "is not a list of experts, each a list of two or more snapshots, each"),
        ({"state": torch.zeros(3)}, "list of tensors: Expected `array`, got `object`"),
        ([], "of tensors: Expected `array` of length >= 1"),
        ([[]], "Expected `array` of length >= 2 - at `$[0]`"),
        (content(snapshots=1), "Expected `array` of length >= 2 - at `$[0]`"),
        ([[torch.zeros(3), torch.zeros(3)]], "Expected `array`, got `Tensor` - at `$[0][0]`"),
        (
            changed(1, 2, 0, torch.zeros(8, 1, 3, 3)),
            "expert 1, epoch 2: tensor 1 should be features.0.weight of the network, [4, 1, 3, 3] "
            "of float32 (or a smaller type), but is [8, 1, 3, 3] of torch.float32",
        ),
        (changed(0, 0, 3, "text"), "tensor 4 should be features.1.bias"),
        (changed(0, 0, 5, 1.0), "tensor 6 should be classifier.bias"),
        ([[SHAPES, SHAPES]], "tensor 1 should be features.0.weight"),
        (changed(0, 1, 1, torch.zeros(4, dtype=torch.float64)), "of torch.float64; give"),
        (changed(0, 1, 1, torch.zeros(4, dtype=torch.int64)), "of torch.int64; give"),
        (changed(1, 2, 5, torch.tensor([0, 0, float("nan")])), "expert 1 diverged: its parameters"),
        (changed(0, 1, 5, torch.tensor([0, 0, float("inf")])), "after epoch 1 are not all finite"),
        ([content()[0], content(snapshots=4)[0]], "has experts of 3, 4 snapshots; convert"),
        (
            [[each[:-1] for each in content()[0]]],
            "of the network, [3] of float32 (or a smaller type), but is none",
        ),
        ([[[*each, torch.zeros(1)] for each in content()[0]]], "but the network has 6 parameters"),
    ],
)
def test_wrong_content_is_refused_by_name(refusal, file: Any, message: str) -> None:
    assert message in refusal(file)


def test_snapshots_that_alias_each_other_are_refused(refusal) -> None:
    """MTT's script keeps ``p.detach().cpu()``, which on a CPU is the parameter itself."""
    snapshot = [torch.randn(shape) for shape in SHAPES]
    assert "snapshots share memory" in refusal([[snapshot] * 40])
    copied = [[tensor.clone() for tensor in snapshot] for _ in range(3)]
    assert "all 3 snapshots of expert 0 are the same" in refusal([copied])


def test_tensors_larger_than_their_numbers_are_refused(refusal) -> None:
    spread = [torch.zeros(1).expand(100, 64), torch.zeros(1).expand(100), torch.zeros(100, 100)]
    spread += [torch.zeros(1).expand(shape) for shape in ((100,), (3, 100), (3,))]
    assert "share memory" in refusal([[spread] * 9], network="mlp:width=100")


@pytest.mark.parametrize("count", [100, pytest.param(10_000, marks=pytest.mark.slow)])
def test_fuzzed_files_give_a_message_or_parameters_of_the_network(tmp_path: Path, count) -> None:
    path, sound = tmp_path / "replay_buffer_0.pt", tmp_path / "sound.pt"
    spec = networks.specify("mlp:width=2", 1, 2, 2)
    shapes = networks.parameter_shapes(networks.build(spec))
    torch.save([[[torch.randn(shape) for shape in shapes.values()] for _ in range(3)]], sound)
    archive(path, pickle_in(sound), storages=18)
    assert [len(expert) for expert in read_trajectories(path, shapes)] == [3]
    for changed in mutations(pickle_in(sound), count):
        archive(path, changed, storages=18)
        try:
            experts = read_trajectories(path, shapes)
        except UserError:
            continue
        for snapshot in (each for expert in experts for each in expert):
            assert [tensor.shape for tensor in snapshot] == [*shapes.values()]
