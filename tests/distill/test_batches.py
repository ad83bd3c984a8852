from collections.abc import Iterator

import torch

from trajmatch.distill.objectives import student_batches
from trajmatch.random import generator
from trajmatch.recipes import find_recipe, recipe_names


def test_all_images_in_every_step_by_default() -> None:
    batches = student_batches(6, None, 3, generator(0))
    assert [sorted(batch.tolist()) for batch in batches] == [list(range(6))] * 3


def test_permutations_are_cut_up_and_drawn_anew() -> None:
    batches = student_batches(7, 3, 8, generator(0))
    assert [len(batch) for batch in batches] == [1, 3, 3, 1, 3, 3, 1, 3]
    first, second = torch.cat(batches[:3]), torch.cat(batches[3:6])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(7))
    assert not torch.equal(first, second)


def test_a_batch_larger_than_the_set_is_the_set() -> None:
    assert [len(batch) for batch in student_batches(4, 9, 2, generator(0))] == [4, 4]


def test_same_stream_same_batches() -> None:
    one, two = (student_batches(9, 4, 5, generator(3, "batches")) for _ in range(2))
    assert all(map(torch.equal, one, two))


def test_batches_that_divide_the_set_are_the_permutation_cut_up_in_order() -> None:
    draw = generator(0)
    whole = torch.cat([torch.randperm(6, generator=draw) for _ in range(2)])
    assert torch.equal(torch.cat(student_batches(6, 2, 6, generator(0))), whole)


#: Classes of the data sets that recipes name.
CLASSES = {
    "cifar10": 10,
    "cifar100": 100,
    "fashion-mnist": 10,
    "imagenet": 10,
    "tiny-imagenet": 200,
}


def first_sizes() -> Iterator[tuple[str, int, int]]:
    """Recipes with a batch size: name, images in the first batch, and images in the second."""
    for name in recipe_names():
        recipe = find_recipe(name)
        data, batch_syn = recipe.data.partition("?")[0], recipe.distill.get("batch_syn")
        if data and batch_syn:
            count = CLASSES[data] * recipe.distill["ipc"]
            first, second = student_batches(count, batch_syn, 2, generator(0))
            yield name, len(first), len(second)


def test_recipes_with_a_short_batch_begin_with_it() -> None:
    """Of the published settings, these are the ones that the order of batches concerns."""
    subsets = ("nette", "woof", "fruit", "meow")
    short = {name: first for name, first, second in first_sizes() if first < second}
    assert short == {
        "ast/cifar100/ipc10": 1000 % 128,
        "ast/cifar100/ipc50": 5000 % 700,
        "ast/cifar100/ipc50-earlier": 5000 % 400,
        "att/cifar100/ipc50": 5000 % 1200,
        **{f"edf/imagenet-{each}/ipc50": 500 % 128 for each in (*subsets, "squawk", "yellow")},
        **{f"ftd/imagenet-{each}/ipc10": 100 % 64 for each in subsets},
        "mtt/tiny-imagenet/ipc50": 10000 % 300,
    }
    assert all(first <= second for _, first, second in first_sizes())
