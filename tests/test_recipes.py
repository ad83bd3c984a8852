"""Every recipe runs; and what a recipe file may hold."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recipe_costs
import recipe_table
import torch
from torch import Tensor

from trajmatch import networks
from trajmatch.cli.main import main
from trajmatch.cli.recipes import explained
from trajmatch.data import Dataset
from trajmatch.distill import DistillConfig, setup
from trajmatch.distill.loop import distill
from trajmatch.errors import UserError
from trajmatch.experts import ExpertConfig, Store
from trajmatch.experts import store as run_store
from trajmatch.experts.train import describe
from trajmatch.images import find_parametrisation
from trajmatch.images.implicit import Implicit
from trajmatch.random import generator
from trajmatch.recipes import find_recipe, recipe_names

#: Channels, side and classes of the data sets.
SHAPES = {name: shape[:3] for name, shape in recipe_costs.SHAPES.items()} | {"": (3, 32, 4)}

#: Recipes of the same settings, of which one is run: the subsets of ImageNet differ in the data.
SAME = {
    f"{method}/imagenet-{subset}/ipc{ipc}"
    for method, subsets, sizes in (
        ("mtt", ("woof", "fruit", "meow", "squawk", "yellow"), (1, 10)),
        ("ftd", ("woof", "fruit", "meow"), (1, 10)),
        ("edf", ("fruit", "meow", "yellow"), (1, 10, 50)),
        ("edf", ("squawk",), (1, 10)),
        ("edf", ("woof",), (1,)),
        ("ddif", ("woof", "fruit", "meow", "squawk", "yellow"), (1,)),
    )
    for subset in subsets
    for ipc in sizes
}

#: Later methods, of which one recipe is run by default; True: none, as all take long.
LATER = {
    **dict.fromkeys(("pad", "selmatch", "att", "fred", "ddif", "rat-bptt"), False),
    **dict.fromkeys(("edf", "at-bptt"), True),
}


def data_of(name: str, count: int = 2) -> Dataset:
    """Noisy images of one pattern for each class: some to train on, and one to test on."""
    channels, side, classes = SHAPES[name.partition("?")[0]]
    draw = generator(0, name)
    patterns = torch.randint(0, 256, (classes, channels, side, side), generator=draw)
    noise = torch.randint(-8, 9, (count + 1, *patterns.shape), generator=draw)
    images = (patterns + noise).clamp(0, 255).to(torch.uint8)
    labels = torch.arange(classes)
    return Dataset(
        name=name or "own",
        train_images=images[:-1].flatten(0, 1),
        train_labels=labels.repeat(count),
        test_images=images[-1],
        test_labels=labels,
        class_names=tuple(map(str, range(classes))),
    )


def last_snapshot(model: torch.nn.Module, theta: Tensor, dataset: Dataset) -> Tensor:
    """The parameters with a classifier that knows the images by the nearest image of each class."""
    networks.load_flat_parameters(model, theta)
    features: list[Tensor] = []
    layer = [each for each in model.modules() if isinstance(each, torch.nn.Linear)][-1]
    handle = layer.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    one_of_each = dataset.normalise(dataset.train_images[: dataset.num_classes])
    with torch.no_grad():
        model.to(memory_format=torch.channels_last)(  # type: ignore[call-overload]
            one_of_each.contiguous(memory_format=torch.channels_last)
        )
        handle.remove()
        layer.weight.copy_(features[0])
        layer.bias.copy_(-features[0].square().sum(dim=1) / 2)
    return networks.flat_parameters(model)


def random_walk(config: ExpertConfig, dataset: Dataset) -> None:
    """A store of two experts that walk at random, and know the images at the end."""
    store = Store.create(config.out, describe(config, dataset, dataset))
    model = networks.build(store.manifest["network"])
    for expert in range(2):
        draw = generator(1, expert)
        theta = networks.flat_parameters(networks.initialise(model, draw))
        steps = torch.randn(len(store.snapshots_kept), len(theta), generator=draw)
        snapshots = theta + (0.002 * steps).cumsum(dim=0)
        snapshots[-1] = last_snapshot(model, theta, dataset)
        store.write_expert(expert, snapshots, {"train_loss": [], "test_accuracy": 0.0})


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Dataset]]:
    """Lets a distillation see a data set that is not on the disk."""
    holder: list[Dataset] = []
    for module in (run_store, setup):
        monkeypatch.setattr(module, "load_dataset", lambda uri: holder[0])
    yield holder


def runs() -> Iterator[Any]:
    """The recipes; by default one is run of each method and data set, and of a later method one."""
    seen = {method for method, slow in LATER.items() if slow}
    for name in recipe_names():
        if name not in SAME:
            method, data = name.partition("/")[0], name.rpartition("/")[0]
            group = method if method in LATER else data
            yield pytest.param(name, marks=pytest.mark.slow if group in seen else ())
            seen.add(group)


@pytest.mark.parametrize("name", list(runs()))
def test_a_recipe_runs_two_outer_iterations(
    name: str, tmp_path: Path, loaded: list[Dataset]
) -> None:
    """As published, but for the number of images and of experts.

    Whitening is left out: its own tests have it, and that of 64 pixels takes gigabytes.
    """
    recipe = find_recipe(name)
    settings: dict[str, Any] = {**recipe.distill, "ipc": min(2, recipe.distill["ipc"])}
    images = find_parametrisation(settings.get("images", "pixels"))
    channels, side, _ = SHAPES[recipe.data.partition("?")[0]]
    count = images.images_per_class(settings["ipc"], torch.Size((channels, side, side)))
    dataset = data_of(recipe.data, max(2, count))
    loaded.append(dataset)
    scores = tmp_path / "scores.npy"
    np.save(scores, np.arange(len(dataset.train_labels)))
    expert = ExpertConfig(
        out=tmp_path / "experts",
        scores=scores if "curriculum" in recipe.expert else None,
        **recipe.expert,
    )
    alone = settings.get("objective") == "train-and-test"
    if not alone:
        random_walk(replace(expert, num_experts=2, zca=False), dataset)
    if settings.get("init_clusters"):
        settings["init_clusters"] = settings["ipc"]
    if settings.get("init") == "difficulty":
        settings |= {"scores": scores, "init_beta": 0}
    if settings.get("skip_above"):
        settings["skip_above"] = 1e6  # a random walk is not there to be matched
    if isinstance(images, Implicit):
        settings["images"] += ",steps=1"
    if settings.get("zca"):
        settings["zca"] = False
    config = DistillConfig(
        experts=None if alone else tmp_path / "experts",
        out=tmp_path / "distilled",
        **{
            **settings,
            "iterations": 2,
            "batch_syn": 2,
            "lr_init": 1e-4,
            "lr_img": 1e-3,
            "lr_lr": 1e-12,
        },
    )
    result = distill(config)
    assert len(result.images) == count * dataset.num_classes
    log = [json.loads(line) for line in config.log_path.read_text().splitlines()]
    assert [line["iteration"] for line in log] == [1, 2]
    assert [line["refused"] for line in log] == [None, None]
    assert not any(line.get("skipped") for line in log)


def test_the_recipes_left_out_are_others_with_other_data() -> None:
    for name in SAME:
        method, _, size = name.split("/")
        one, other = find_recipe(name), find_recipe(f"{method}/imagenet-nette/{size}")
        sections = ("expert", "distill", "evaluate")
        assert [getattr(one, each) for each in sections] == [
            getattr(other, each) for each in sections
        ]


def test_every_published_cell_has_a_recipe() -> None:
    names = recipe_names()
    for dataset, sizes in (("cifar10", (1, 10, 50)), ("cifar100", (1, 10, 50))):
        for ipc in sizes:
            assert {f"{method}/{dataset}/ipc{ipc}" for method in ("mtt", "ftd", "datm")} <= {*names}
    accuracies = {name: find_recipe(name).accuracy for name in names}
    assert accuracies["datm/cifar10/ipc1000"] == 85.5
    assert accuracies["mtt/cifar10/ipc1"] == 46.3
    assert accuracies["ftd/tiny-imagenet/ipc10"] == 24.5
    assert accuracies["edf/imagenet-squawk/ipc50"] == 74.8
    assert accuracies["att/cifar100/ipc50"] == 51.2
    assert accuracies["ddif/imagenet-yellow/ipc1"] == 69.0
    assert accuracies["rat-bptt/cifar100/ipc1"] == 35.3
    assert all(accuracies[name] is None for name in names if name.startswith("ast/"))


def test_the_page_has_every_recipe_as_it_is() -> None:
    text = recipe_table.PAGE.read_text(encoding="utf-8").partition("<!-- end of recipes -->")[0]
    found = [line for line in text.splitlines() if line.startswith("| `")]
    assert all(line.endswith((" passed |", " passed as nette |")) for line in found)
    outcomes = dict(
        zip(recipe_names(), (line.split(" | ")[-1][:-2] for line in found), strict=True)
    )
    assert recipe_table.recipe_table(outcomes).splitlines()[2:] == found
    assert {name for name, outcome in outcomes.items() if "as nette" in outcome} == SAME


def test_the_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in listed] == recipe_names()
    (ast,) = [each for each in listed if each["name"] == "ast/cifar100/ipc1"]
    assert ast["accuracy"] == "not available"
    assert ast["distill"]["terms"] == ["final", "intermediate"]


def test_explained_flags_are_those_of_the_commands(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["recipes", "datm/cifar100/ipc10"]) == 0
    assert capsys.readouterr().out.strip() == explained(find_recipe("datm/cifar100/ipc10"))
    from trajmatch.cli.arguments import parse

    for name in recipe_names():
        recipe = find_recipe(name)
        text = explained(recipe).split("[distill]")[1].split("[evaluate]")[0]
        alone = recipe.distill.get("objective") == "train-and-test"
        flags = [*([] if alone else ["--experts", "e"]), "--out", "o", *text.split()]
        given = parse(DistillConfig, flags, "trajmatch distill")
        experts = None if alone else Path("e")
        assert given == DistillConfig(experts=experts, out=Path("o"), **recipe.distill)


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[distill]\nlr_image = 3.0",
            r"\[distill\] has an unknown entry 'lr_image' \(did you mean lr_img",
        ),
        ("[destill]\nipc = 3", r"unknown entry 'destill' \(did you mean distill"),
        ("[distill]\nipc = 1.5", "ipc should be a whole number of at least 1, but is 1.5"),
        ("[distill]\nipc = true", r"\[distill\]: ipc should be a whole number .*, but is True"),
        ('[distill]\ninit = "reel"', "init should be one of correct, difficulty, noise"),
        ('[distill]\nterms = "final"', "terms should be a list of one or more, each a text"),
        (
            "[distill]\nipc = 0",
            r"\[distill\]: ipc should be a whole number of at least 1, but is 0",
        ),
        (
            "[distill]\nmin_start_epoch = 30",
            "min_start_epoch should be below max_start_epoch 20",
        ),
        ("[distill]\nmax_start_epoch = 90", "contradicts itself: .* need epoch 91"),
        ('[expert]\nkeep = "0-5"\n[distill]\nmax_start_epoch = 20', "contradicts itself"),
        ('[expert]\nout = "here"', r"\[expert\] sets out, which a recipe cannot set"),
        ("[distill]\ntape_mb = 3", r"\[distill\] sets tape_mb, which a recipe cannot set"),
        ("[expert]\nalpha = 0.3", "alpha 0.3 has no effect, because rho 0 turns GSAM off"),
        ("accuracy = true", "accuracy should be a finite number, but is True"),
        ("notes = 3", "notes should be a list, each a text, but is 3"),
        ("title = 3", "title should be a text"),
        ("expert = 3", "expert should be a section"),
        ("[expert", "is not a recipe"),
        ("x" * 70_000, "has more than 65536 bytes"),
    ],
)
def test_what_is_no_recipe(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_recipe(write(tmp_path / "mine.toml", text))


def test_there_is_no_such_recipe(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean mtt/cifar10/ipc1"):
        find_recipe("mtt/cifar10/ipc1_")
    with pytest.raises(UserError, match="cannot read the recipe"):
        find_recipe(str(tmp_path / "absent.toml"))
