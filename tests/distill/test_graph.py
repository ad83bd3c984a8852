"""The graph of a match, recorded by a stand-in that calls the function, and on a GPU for real."""

import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from trajmatch import networks, ops
from trajmatch.data.dsa import DSA
from trajmatch.distill import distill, loop
from trajmatch.distill.batches import student_batches
from trajmatch.distill.graph import MatchGraph, call_again, cuda_graph, graph_for
from trajmatch.distill.initialise import SyntheticSet
from trajmatch.distill.matching import Segment
from trajmatch.distill.outer import OuterGradient, outer_gradient
from trajmatch.random import generator

MODEL = networks.ConvNet(1, 3, image_size=8, width=4, depth=2)


def match(number: int, *, count: int = 7, steps: int = 4, soft: bool = False) -> tuple:
    """Positional arguments of ``outer_gradient``; other numbers for every match."""
    draw = generator(number, "match")
    theta = networks.flat_parameters(networks.initialise(MODEL, draw))
    segment = Segment(theta, theta + 0.05 * torch.randn(len(theta), generator=draw))
    images = torch.randn(count, 1, 8, 8, generator=draw)
    labels = torch.randn(count, 3, generator=draw) if soft else torch.arange(count) % 3
    return (
        MODEL,
        segment,
        SyntheticSet(images, labels),
        0.02 + 0.01 * number,
        student_batches(count, 3, steps, draw),
    )


CHOICES = {"student_momentum": 0.9, "augment": None}


def assert_equal(one: OuterGradient, two: OuterGradient) -> None:
    assert torch.equal(one.images, two.images)
    assert replace(one, images=None) == replace(two, images=None)


class Counting:
    """Records as ``call_again`` does, and counts recordings and replays."""

    def __init__(self) -> None:
        self.recordings = self.replays = 0

    def __call__(self, function):
        self.recordings += 1
        outputs, replay = call_again(function)

        def counted() -> None:
            self.replays += 1
            replay()

        return outputs, counted


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("augmented", [False, True])
def test_replays_give_what_the_function_gives(soft, augmented) -> None:
    record = Counting()
    graph = MatchGraph(record)
    for number in range(5):
        arguments = match(number, soft=soft)
        choices = {**CHOICES, "augment": DSA().replay(number) if augmented else None}
        assert_equal(graph(*arguments, **choices), outer_gradient(*arguments, **choices))
        assert graph.recorded == (number >= 1)
    assert (record.recordings, record.replays) == (1, 4)


def test_a_result_outlives_the_next_replay() -> None:
    graph = MatchGraph(call_again)
    results = [graph(*match(number), **CHOICES) for number in range(4)]
    for number, result in enumerate(results):
        assert_equal(result, outer_gradient(*match(number), **CHOICES))


def test_the_inputs_are_not_kept() -> None:
    graph = MatchGraph(call_again)
    for number in range(2):
        graph(*match(number), **CHOICES)
    arguments = match(2)
    graph(*arguments, **CHOICES)
    _, segment, synthetic, _, batches = arguments
    for tensor in (segment.start, segment.target, synthetic.images):
        tensor.fill_(float("nan"))
    for batch in batches:
        batch.fill_(10**9)
    assert_equal(graph(*match(3), **CHOICES), outer_gradient(*match(3), **CHOICES))


def test_other_shapes_are_recorded_when_they_come_again() -> None:
    record = Counting()
    graph = MatchGraph(record)
    shapes = [{}, {}, {"count": 5}, {"count": 5}, {"steps": 2}, {}, {}]
    for number, shape in enumerate(shapes):
        arguments = match(number, **shape)
        assert_equal(graph(*arguments, **CHOICES), outer_gradient(*arguments, **CHOICES))
    assert (record.recordings, record.replays) == (3, 3)


@pytest.mark.parametrize(
    "changes", [{"student_momentum": 0.0}, {"augment": lambda images, step: 0.5 * images}]
)
def test_other_choices_are_another_graph(changes) -> None:
    graph = MatchGraph(call_again)
    for number in range(2):
        graph(*match(number), **CHOICES)
    wanted = outer_gradient(*match(2), **{**CHOICES, **changes})
    assert_equal(graph(*match(2), **{**CHOICES, **changes}), wanted)


def test_an_expert_that_stands_still_is_seen() -> None:
    graph = MatchGraph(call_again)
    for number in range(3):
        model, segment, *rest = match(number)
        assert not graph(model, segment, *rest, **CHOICES).stands_still
    assert graph(model, Segment(segment.start, segment.start), *rest, **CHOICES).stands_still


def test_what_cannot_be_recorded_runs_without_and_says_so() -> None:
    def refuse(function):
        raise RuntimeError("operation not permitted")

    graph = MatchGraph(refuse)
    graph(*match(0), **CHOICES)
    with pytest.warns(RuntimeWarning, match=r"not permitted.*--no-graph"):
        result = graph(*match(1), **CHOICES)
    assert_equal(result, outer_gradient(*match(1), **CHOICES))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it has been said
        for number in range(2, 5):
            assert_equal(
                graph(*match(number), **CHOICES), outer_gradient(*match(number), **CHOICES)
            )


@pytest.mark.parametrize("dsa", ["none", "color_crop_cutout_flip_scale_rotate"])
def test_a_whole_run_gives_the_same_bytes(configure, tmp_path, monkeypatch, dsa) -> None:
    settings = {"dsa": dsa, "matches": 2}
    distill(configure(out=tmp_path / "plain", **settings))
    record = Counting()
    monkeypatch.setattr(loop, "graph_for", lambda problem: MatchGraph(record))
    distill(configure(out=tmp_path / "replayed", **settings))
    assert (record.recordings, record.replays) == (1, 19)
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "replayed").read_bytes()


def problem_on(device: str, **changes: object) -> SimpleNamespace:
    settings = {"model": MODEL, "config": SimpleNamespace(graph=True)}
    return SimpleNamespace(device=torch.device(device), **{**settings, **changes})


def test_a_graph_is_for_cuda_and_may_be_refused() -> None:
    assert graph_for(problem_on("cpu")) is None
    assert graph_for(problem_on("cuda", config=SimpleNamespace(graph=False))) is None
    assert isinstance(graph_for(problem_on("cuda")), MatchGraph)


def test_a_network_that_the_engine_does_not_know_has_no_graph() -> None:
    with pytest.warns(RuntimeWarning, match="because the experts' network is not one that"):
        assert graph_for(problem_on("cuda", model=torch.nn.Linear(2, 2))) is None


@pytest.mark.cuda
@pytest.mark.parametrize("augmented", [False, True])
def test_a_cuda_graph_gives_what_the_function_gives(augmented) -> None:
    device = torch.device("cuda")
    model = networks.ConvNet(1, 3, image_size=8, width=4, depth=2).to(device)

    def on_device(number: int) -> tuple:
        _, segment, synthetic, step_size, batches = match(number)

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device)

        return (
            model,
            Segment(move(segment.start), move(segment.target)),
            SyntheticSet(move(synthetic.images), move(synthetic.labels)),
            step_size,
            [move(batch) for batch in batches],
        )

    graph = MatchGraph(cuda_graph)
    for number in range(5):
        choices = {**CHOICES, "augment": DSA().replay(number) if augmented else None}
        result = graph(*on_device(number), **choices)
        wanted = outer_gradient(*on_device(number), **choices)
        torch.testing.assert_close(result.images, wanted.images, rtol=1e-4, atol=1e-6)
        assert result.loss == pytest.approx(wanted.loss, rel=1e-5)
        assert result.step_size == pytest.approx(wanted.step_size, rel=1e-4)
    assert graph.recorded
    assert ops.engine_for(model) == "engine"
