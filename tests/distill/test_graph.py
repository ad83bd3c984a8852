"""The graph of the matches, recorded by a stand-in that calls the functions, and on a GPU."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from stand_ins import Counting
from torch import Tensor

from trajmatch import networks, ops
from trajmatch.data.dsa import DSA
from trajmatch.distill import distill, loop
from trajmatch.distill.batches import student_batches
from trajmatch.distill.graph import MatchGraph, graph_for
from trajmatch.distill.initialise import SyntheticSet
from trajmatch.distill.matching import MatchingLoss, Segment
from trajmatch.distill.outer import Match, OuterGradient, StudentSteps, outer_gradients
from trajmatch.distill.terms import find_term
from trajmatch.errors import UserError
from trajmatch.random import generator
from trajmatch.recording import call_again, cuda_graph

MODEL = networks.ConvNet(1, 3, image_size=8, width=4, depth=2)


def matches(
    number: int,
    *,
    together: int = 1,
    count: int = 7,
    steps: int = 4,
    soft: bool = False,
    augments: Sequence[object] = (None,),
) -> tuple:
    """Positional arguments of ``outer_gradients``; other numbers every time."""
    draw = generator(number, "matches")
    images = torch.randn(count, 1, 8, 8, generator=draw)
    labels = torch.randn(count, 3, generator=draw) if soft else torch.arange(count) % 3
    drawn = []
    for index in range(together):
        theta = networks.flat_parameters(networks.initialise(MODEL, draw))
        target, middle = theta + 0.05 * torch.randn(2, len(theta), generator=draw)
        segment = Segment(theta, target, {1: middle})
        batches = student_batches(count, 3, steps, draw)
        scale = 0.8 + 0.1 * number
        drawn.append(Match(segment, batches, augments[index % len(augments)], scale))
    return MODEL, drawn, SyntheticSet(images, labels), 0.02 + 0.01 * number


CHOICES = {
    "steps": StudentSteps(momentum=0.9),
    "loss": MatchingLoss((find_term("final"), find_term("intermediate")), epochs=2),
}


def assert_equal(ones: list[OuterGradient], others: list[OuterGradient]) -> None:
    assert len(ones) == len(others)
    for one, other in zip(ones, others, strict=True):
        assert torch.equal(one.images, other.images)
        assert (one.labels is None) == (other.labels is None)
        if one.labels is not None:
            assert torch.equal(one.labels, other.labels)
        without = {"images": None, "labels": None}
        assert replace(one, **without) == replace(other, **without)


@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("augmented", [False, True])
def test_replays_give_what_one_after_another_gives(together, soft, augmented) -> None:
    record = Counting()
    graph = MatchGraph(record)
    for number in range(5):
        augments = [DSA().replay(10 * number + k) if augmented else None for k in range(together)]
        arguments = matches(number, together=together, soft=soft, augments=augments)
        assert_equal(graph(*arguments, **CHOICES), outer_gradients(*arguments, **CHOICES))
        assert graph.recorded == (number >= 1)
    assert (record.recordings, record.replays) == (1, 1 + 4)  # the first is compared with a call


def test_a_result_outlives_the_next_replay() -> None:
    graph = MatchGraph(call_again)
    results = [graph(*matches(number, together=2), **CHOICES) for number in range(4)]
    for number, result in enumerate(results):
        assert_equal(result, outer_gradients(*matches(number, together=2), **CHOICES))


def test_the_inputs_are_not_kept() -> None:
    graph = MatchGraph(call_again)
    for number in range(2):
        graph(*matches(number), **CHOICES)
    arguments = matches(2)
    graph(*arguments, **CHOICES)
    _, (match,), synthetic, _ = arguments
    for tensor in (match.segment.start, match.segment.target, synthetic.images):
        tensor.fill_(float("nan"))
    for batch in match.batches:
        batch.fill_(10**9)
    assert_equal(graph(*matches(3), **CHOICES), outer_gradients(*matches(3), **CHOICES))


def test_other_shapes_are_recorded_when_they_come_again() -> None:
    record = Counting()
    graph = MatchGraph(record)
    shapes = [{}, {}, {"count": 5}, {"count": 5}, {"together": 2}, {"steps": 2}, {}, {}]
    for number, shape in enumerate(shapes):
        arguments = matches(number, **shape)
        assert_equal(graph(*arguments, **CHOICES), outer_gradients(*arguments, **CHOICES))
    assert (record.recordings, record.replays) == (3, 3 + 3)


def halved(images: Tensor, step: int) -> Tensor:
    return 0.5 * images


@pytest.mark.parametrize(
    ("steps", "augment"), [(StudentSteps(), None), (StudentSteps(momentum=0.9), halved)]
)
def test_other_choices_are_another_graph(steps, augment) -> None:
    graph = MatchGraph(call_again)
    for number in range(2):
        graph(*matches(number), **CHOICES)
    arguments = matches(2, augments=[augment])
    choices = {"steps": steps, "loss": MatchingLoss()}
    wanted = outer_gradients(*arguments, **choices)
    assert_equal(graph(*arguments, **choices), wanted)


def test_matches_that_are_augmented_in_different_ways() -> None:
    graph = MatchGraph(call_again)
    for number in range(3):
        arguments = matches(number, together=3, augments=[DSA().replay(number), None, halved])
        assert_equal(graph(*arguments, **CHOICES), outer_gradients(*arguments, **CHOICES))
        assert not graph.recorded  # what DSA does is no input here, and never comes again
    for number in range(3):
        arguments = matches(number, together=3, augments=[halved, None])
        assert_equal(graph(*arguments, **CHOICES), outer_gradients(*arguments, **CHOICES))
    assert graph.recorded


def test_an_expert_that_stands_still_is_seen() -> None:
    graph = MatchGraph(call_again)
    for number in range(3):
        model, drawn, *rest = matches(number, together=2)
        assert not any(each.stands_still for each in graph(model, drawn, *rest, **CHOICES))
    still = replace(drawn[1].segment, target=drawn[1].segment.start)
    drawn[1] = replace(drawn[1], segment=still)
    found = graph(model, drawn, *rest, **CHOICES)
    assert [each.stands_still for each in found] == [False, True]


@pytest.mark.parametrize("kind", [RuntimeError, UserError])
def test_what_cannot_be_recorded_runs_without_and_says_so(kind: type[Exception]) -> None:
    def refuse(function):
        raise kind("operation not permitted")

    graph = MatchGraph(refuse)
    graph(*matches(0), **CHOICES)
    with pytest.warns(RuntimeWarning, match=r"not permitted.*--no-graph"):
        result = graph(*matches(1), **CHOICES)
    assert_equal(result, outer_gradients(*matches(1), **CHOICES))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it has been said
        for number in range(2, 5):
            arguments = matches(number)
            assert_equal(graph(*arguments, **CHOICES), outer_gradients(*arguments, **CHOICES))


def test_a_leaner_plan_is_recorded_after_memory_ran_out() -> None:
    def record(function):
        if CHOICES["steps"] in used:
            raise RuntimeError("CUDA out of memory")
        return call_again(function)

    graph, used = MatchGraph(record), [CHOICES["steps"]]
    leaner = {**CHOICES, "steps": replace(CHOICES["steps"], micro_batch=2)}
    graph(*matches(0), **CHOICES)
    with pytest.warns(RuntimeWarning, match="out of memory"):
        graph(*matches(1), **CHOICES)
    used.clear()
    graph(*matches(2), **CHOICES)
    assert not graph.recorded  # no second try, nor a second warning, by the same plan
    for number in range(3, 6):
        arguments = matches(number)
        assert_equal(graph(*arguments, **leaner), outer_gradients(*arguments, **leaner))
    assert graph.recorded


def test_a_graph_that_does_nothing_is_not_used() -> None:
    def empty(function):
        return function(), lambda: None

    graph = MatchGraph(empty)
    graph(*matches(0), **CHOICES)
    with pytest.warns(RuntimeWarning, match=r"the first replay is off by nan.*--no-graph"):
        graph(*matches(1), **CHOICES)
    assert_equal(graph(*matches(2), **CHOICES), outer_gradients(*matches(2), **CHOICES))
    assert not graph.recorded


@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize("dsa", ["none", "color_crop_cutout_flip_scale_rotate"])
def test_a_whole_run_gives_the_same_bytes(configure, tmp_path, monkeypatch, dsa, together) -> None:
    settings = {"dsa": dsa, "matches": together}
    distill(configure(out=tmp_path / "plain", **settings))
    record = Counting()
    monkeypatch.setattr(loop, "graph_for", lambda problem, ranks: MatchGraph(record))
    distill(configure(out=tmp_path / "replayed", **settings))
    assert (record.recordings, record.replays) == (1, 1 + 9)
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
@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize("augmented", [False, True])
def test_a_cuda_graph_gives_what_the_functions_give(together, augmented) -> None:
    device = torch.device("cuda")
    model = networks.ConvNet(1, 3, image_size=8, width=4, depth=2).to(device)

    def on_device(number: int) -> tuple:
        augments = [DSA().replay(10 * number + k) if augmented else None for k in range(together)]
        _, drawn, synthetic, step_size = matches(number, together=together, augments=augments)

        def move(match: Match) -> Match:
            segment = Segment(
                match.segment.start.to(device),
                match.segment.target.to(device),
                {epoch: each.to(device) for epoch, each in match.segment.between.items()},
            )
            batches = [batch.to(device) for batch in match.batches]
            return replace(match, segment=segment, batches=batches)

        images, labels = synthetic.images.to(device), synthetic.labels.to(device)
        return model, [move(each) for each in drawn], SyntheticSet(images, labels), step_size

    graph = MatchGraph(cuda_graph)
    for number in range(5):
        results = graph(*on_device(number), **CHOICES)
        wanted = outer_gradients(*on_device(number), **CHOICES)
        for result, exact in zip(results, wanted, strict=True):
            torch.testing.assert_close(result.images, exact.images, rtol=1e-4, atol=1e-6)
            assert result.loss == pytest.approx(exact.loss, rel=1e-5)
            assert result.step_size == pytest.approx(exact.step_size, rel=1e-4)
    assert graph.recorded
    assert ops.engine_for(model) == "engine"
