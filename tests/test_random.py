import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trajmatch import random


def test_a_seed_is_the_same_on_every_machine():
    # sha256("0/expert/3/batches"), first 8 bytes, shifted right by one
    assert random.derive_seed(0, "expert", 3, "batches") == 2675742019830491451
    assert random.derive_seed(7) == 3078907467250169895


@given(st.integers(), st.lists(st.one_of(st.text("abc", min_size=1), st.integers(0, 99))))
def test_seeds_fit_into_63_bits(seed, names):
    assert 0 <= random.derive_seed(seed, *names) < 2**63


def test_streams_differ_by_seed_and_by_every_name():
    streams = [(0,), (1,), (0, "a"), (0, "b"), (0, "a", 0), (0, "a", 1), (0, "a", "b")]
    seeds = {random.derive_seed(*stream) for stream in streams}
    assert len(seeds) == len(streams)


def test_a_stream_starts_anew_and_is_independent_of_others():
    first = torch.rand(5, generator=random.generator(3, "a"))
    torch.rand(100, generator=random.generator(3, "b"))
    torch.rand(100)
    assert torch.equal(first, torch.rand(5, generator=random.generator(3, "a")))


@pytest.mark.parametrize("name", ["a", 5])
def test_drawing_leaves_the_global_generator_alone(name):
    before = torch.get_rng_state()
    torch.rand(5, generator=random.generator(0, name))
    assert torch.equal(before, torch.get_rng_state())


def test_generators_are_made_for_the_device(device):
    assert random.generator(0, "a", device=device).device.type == device.type
