import torch

from trajmatch.distill.batches import student_batches
from trajmatch.random import generator


def test_all_images_in_every_step_by_default() -> None:
    batches = student_batches(6, None, 3, generator(0))
    assert [sorted(batch.tolist()) for batch in batches] == [list(range(6))] * 3


def test_permutations_are_cut_up_and_drawn_anew() -> None:
    batches = student_batches(7, 3, 8, generator(0))
    assert [len(batch) for batch in batches] == [3, 3, 1, 3, 3, 1, 3, 3]
    first, second = torch.cat(batches[:3]), torch.cat(batches[3:6])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(7))
    assert not torch.equal(first, second)


def test_a_batch_larger_than_the_set_is_the_set() -> None:
    assert [len(batch) for batch in student_batches(4, 9, 2, generator(0))] == [4, 4]


def test_same_stream_same_batches() -> None:
    one, two = (student_batches(9, 4, 5, generator(3, "batches")) for _ in range(2))
    assert all(map(torch.equal, one, two))
