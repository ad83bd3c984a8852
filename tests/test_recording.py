"""Recordings: each is compared with a call, made in the fastest way, and on its own device.

On the CPU ``call_again`` and its likes stand for a CUDA graph: this shows the comparison, and with
stand-ins for streams which one is asked for, but not what CUDA does with it.
"""

from __future__ import annotations

import weakref
from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from bench.recorders import call_again
from torch import Tensor

from trajmatch import networks, recording
from trajmatch.block import CudaBlocks
from trajmatch.networks import engine
from trajmatch.networks.engine import ways_to_measure
from trajmatch.recording import Replayed, checked, cuda_graph


def distorted(change):
    """Records a replay whose results are changed."""

    def record(function):
        results, replay = call_again(function)

        def distort() -> None:
            replay()
            for each in results:
                each.copy_(change(each))

        return results, distort

    return record


def numbers() -> tuple[Tensor, ...]:
    return torch.linspace(1, 2, 50), torch.tensor([3.0, float("inf")]), torch.zeros(2)


@pytest.mark.parametrize(
    "change",
    [lambda x: x, lambda x: x * (1 + 1e-3), lambda x: x.masked_fill(x.isinf(), 7.0)],
    ids=["the same", "rounding", "another number for one that is not finite"],
)
def test_a_replay_that_differs_by_rounding_is_taken(change) -> None:
    results, replay = checked(distorted(change), numbers)
    replay()
    for found, wanted in zip(results, numbers(), strict=True):
        torch.testing.assert_close(found, change(wanted))


@pytest.mark.parametrize(
    "change",
    [lambda x: 0 * x, lambda x: 1.5 * x, lambda x: x.flip(0), lambda x: x + 1e-3],
    ids=["zeros", "half too much", "another order", "not zero"],
)
def test_a_replay_with_other_results_is_refused(change) -> None:
    with pytest.raises(RuntimeError, match="the first replay differs from a normal call by"):
        checked(distorted(change), numbers)


def test_a_replay_may_be_as_far_off_as_two_calls() -> None:
    draw = torch.Generator().manual_seed(0)
    checked(call_again, lambda: (torch.randn(50, generator=draw),))


class Counter:
    """A function with a state: each call adds to it."""

    def __init__(self) -> None:
        self.state = torch.full((3,), 100.0)

    def __call__(self) -> tuple[Tensor, ...]:
        self.state.add_(torch.tensor([1.0, 2.0, 3.0]))
        return (self.state.sum(),)


def test_recording_leaves_the_state() -> None:
    counter = Counter()
    (total,), replay = checked(call_again, counter, [counter.state])
    assert counter.state.tolist() == [100.0] * 3
    replay()
    assert counter.state.tolist() == [101.0, 102.0, 103.0] and total == 306.0


@pytest.mark.parametrize("steps", [0, 2])
def test_a_replay_that_changes_the_state_otherwise_is_refused(steps: int) -> None:
    """Although the state itself is nearly the same."""
    counter = Counter()

    def record(function):
        (total,) = function()

        def replay() -> None:
            counter.state.add_(steps * torch.tensor([1.0, 2.0, 3.0]))
            total.fill_(306.0)

        return (total,), replay

    with pytest.raises(RuntimeError, match=r"differs from a normal call by 1 \(relative\)"):
        checked(record, counter, [counter.state])
    assert counter.state.tolist() == [100.0] * 3


class Clock:
    """Ways to compute a function, in each of which a replay takes another time."""

    def __init__(self, monkeypatch, **seconds: float) -> None:
        self.seconds, self.now, self.inside, self.recordings = seconds, 0.0, "", []
        self.kept = ""
        self.alive = weakref.WeakSet()
        monkeypatch.setattr(recording.time, "perf_counter", lambda: self.now)

    def ways(self):
        @contextmanager
        def inside(name: str):
            self.inside = name
            yield
            self.inside = ""

        def way(name: str):
            calls = partial(inside, name)
            calls.keep = lambda: setattr(self, "kept", name)
            return calls

        return [] if self.kept else [way(name) for name in self.seconds]

    def record(self, function):
        way = self.inside or self.kept
        self.recordings.append(way)
        assert not self.alive  # of several recordings, only one is in memory
        if self.seconds[way] < 0:
            raise RuntimeError(f"{way} cannot be recorded")
        results, replay = call_again(function)

        def slowly() -> None:
            replay()
            self.now += self.seconds[way]

        self.alive.add(slowly)
        return results, slowly


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [
        ({"one": 2.0, "other": 1.0}, "other"),
        ({"one": 1.0, "other": 2.0}, "one"),
        ({"one": -1.0, "other": 2.0}, "other"),
    ],
    ids=["the second", "the first", "the one that can be recorded"],
)
def test_the_fastest_way_is_recorded(monkeypatch, seconds, wanted) -> None:
    clock, counter = Clock(monkeypatch, **seconds), Counter()
    replayed = Replayed("it runs", record=clock.record, ways=clock.ways)
    for number in range(1, 5):  # the second call records
        fails = number == 2 and seconds["one"] < 0
        told = pytest.warns(RuntimeWarning, match="one of 2 ways to compute could not be")
        with told if fails else nullcontext():
            (total,) = replayed(
                "counter", [torch.zeros(1)], lambda given: counter(), [counter.state]
            )
        assert total == 300 + 6 * number
    assert clock.recordings == ["one", "other", wanted]
    replayed.forget()
    assert not replayed.recorded
    (total,) = replayed("counter", [torch.zeros(1)], lambda given: counter(), [counter.state])
    assert total == 330 and replayed.recorded
    assert clock.recordings == ["one", "other", wanted, wanted]  # not measured again


def test_where_no_way_can_be_recorded_the_function_is_called(monkeypatch) -> None:
    clock = Clock(monkeypatch, one=-1.0, other=-1.0)
    replayed = Replayed("it runs", record=clock.record, ways=clock.ways)
    replayed("numbers", [torch.zeros(1)], lambda given: numbers())
    with pytest.warns(RuntimeWarning, match="cannot be recorded"):
        replayed("numbers", [torch.zeros(1)], lambda given: numbers())
    assert not replayed.recorded and not clock.kept


@pytest.mark.parametrize(
    ("network", "device", "blocks", "rounds", "ways"),
    [
        ("convnet", "cuda", "auto", True, ["first", "tf32"]),
        ("convnet", "cpu", "auto", True, []),
        ("convnet", "cuda", "fp16", True, []),
        ("convnet", "cuda", "auto", False, []),
        ("resnet18", "cuda", "auto", True, []),
    ],
)
def test_which_blocks_are_measured(monkeypatch, network, device, blocks, rounds, ways) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", rounds)
    model = networks.build(networks.specify(network, 3, 10, 32))
    with networks.cuda_blocks(blocks):
        measured = []
        for way in ways_to_measure(model, torch.device(device)):
            with way():
                measured.append(blocks_of(model))
        assert measured == ways


def blocks_of(model: torch.nn.Module) -> str:
    description = networks.engine_description(model)
    assert description is not None
    return get_args(CudaBlocks)[description[4]]


def test_the_blocks_that_were_fastest_are_kept_for_their_network(monkeypatch) -> None:
    monkeypatch.setattr(engine, "_fastest", {})
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    model, same, other = (networks.ConvNet(3, 10, 32, width=width) for width in (64, 64, 128))
    gpu = torch.device("cuda")
    ways_to_measure(model, gpu)[1].keep()
    assert [blocks_of(each) for each in (model, same, other)] == ["tf32", "tf32", "auto"]
    assert not ways_to_measure(same, gpu)
    assert len(ways_to_measure(other, gpu)) == len(ways_to_measure(model, gpu, precise=True)) == 2
    with networks.cuda_blocks("first"):
        assert blocks_of(model) == "first"


class Streams:
    """Stand-ins for what ``cuda_graph`` uses of ``torch.cuda``, which note where captures go."""

    def __init__(self) -> None:
        self.device: object = torch.device("cuda", 0)
        self.default: SimpleNamespace | None = None
        self.captures: list[object] = []

    def stream(self) -> SimpleNamespace:
        return SimpleNamespace(device=self.device, wait_stream=lambda other: None)

    @contextmanager
    def on(self, device: object):
        before, self.device = self.device, device
        yield
        self.device = before

    @contextmanager
    def capture(self, graph: object, stream: SimpleNamespace | None = None):
        self.default = self.default or self.stream()  # as torch does
        self.captures.append((stream or self.default).device)
        yield


def test_a_capture_is_on_a_stream_of_its_device(monkeypatch) -> None:
    fake = Streams()
    monkeypatch.setattr(torch.cuda, "device", fake.on)
    monkeypatch.setattr(torch.cuda, "Stream", fake.stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: fake.on(stream.device))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: fake.stream())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
    monkeypatch.setattr(torch.cuda, "graph", fake.capture)
    devices = [torch.device("cuda", index) for index in (0, 1, 0)]
    for device in devices:
        cuda_graph(lambda: (torch.zeros(1),), device)
    assert fake.captures == devices


@pytest.mark.cuda
def test_graphs_on_two_devices_give_their_own_results() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    for index in (0, 1):
        given = torch.ones(1000, device=f"cuda:{index}")
        (doubled,), replay = checked(
            lambda function, device=given.device: cuda_graph(function, device),
            lambda given=given: (2 * given,),
        )
        given.fill_(21.0)
        replay()
        assert doubled.eq(42.0).all()


@pytest.mark.cuda
def test_a_recording_that_fails_leaves_the_current_stream() -> None:
    before = torch.cuda.current_stream()
    with pytest.raises(RuntimeError):
        cuda_graph(lambda: (torch.zeros(1, device="cuda").nonzero(),))
    assert torch.cuda.current_stream() == before
