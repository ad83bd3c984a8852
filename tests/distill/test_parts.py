"""The parts of FTD, AST and DATM in whole runs."""

import math
from dataclasses import replace

import pytest
import torch
from stand_ins import Interrupter, lines_of

from trajmatch import artifact, networks, ops
from trajmatch.distill import distill, initialise
from trajmatch.distill.iteration import outer_iteration
from trajmatch.distill.objectives.start import balance, perturbed
from trajmatch.distill.problem import prepare
from trajmatch.errors import UserError
from trajmatch.experts.final import FinalExperts, soft_labels
from trajmatch.random import generator

#: Everything at once, as no paper has it.
TOGETHER = {
    "first_max_start_epoch": 1,
    "max_start_epoch": 2,
    "growth_iterations": 6,
    "expert_epochs": 2,
    "student_steps": 4,
    "terms": ("final", "intermediate-rising"),
    "balance": True,
    "perturb": 1.0,
    "skip_above": 50.0,
    "init": "representative",
    "labels": "soft",
    "lr_label": 0.5,
    "ema": 0.9,
    "student_momentum": 0.5,
    "matches": 2,
    "select": "test-max",
    "eval_every": 4,
    "eval_seeds": 1,
    "eval_epochs": 2,
}


def test_all_together_goes_on_with_equal_bytes(configure, tmp_path) -> None:
    whole = configure(out=tmp_path / "whole" / "d", **TOGETHER)
    distill(whole)
    part = replace(whole, out=tmp_path / "part" / "d")
    with pytest.raises(KeyboardInterrupt):
        distill(part, Interrupter(7))  # its last checkpoint is of iteration 6
    distill(replace(part, resume=True))
    assert part.out.read_bytes() == whole.out.read_bytes()
    result = artifact.load(whole.out)
    assert result.label_kind == "logit"
    assert result.recipe["terms"] == ["final", "intermediate-rising"]
    starts = [line["start_epochs"] for line in lines_of(whole.log_path) if "loss" in line]
    assert all(start == 0 for pair in starts[:3] for start in pair)
    assert any(start == 1 for pair in starts[6:] for start in pair)


def test_a_match_starts_perturbed_and_balanced(configure) -> None:
    problem = prepare(configure(perturb=1.0, balance=True, max_start_epoch=3))
    state = problem.initial_state()
    draw = state.draws.draw(5, 1, 6)
    match = problem.objective.task(draw)
    snapshot = problem.store.snapshot(draw.expert, draw.start_epoch)
    stream = generator(0, "distill", "perturbation", 5, 1)
    wanted = perturbed(problem.model, snapshot, 1.0, stream)
    assert torch.equal(match.start, wanted)
    assert not torch.equal(wanted, snapshot)
    target = problem.store.snapshot(draw.expert, draw.start_epoch + 1)
    assert torch.equal(match.expert[1], target)
    assert match.loss_scale == balance(draw.start_epoch, 3)


def test_balance_scales_every_gradient_of_the_student() -> None:
    """A factor of the step size is one of the loss, momentum or not."""
    model = networks.ConvNet(1, 3, image_size=8, width=4, depth=1)
    theta = networks.flat_parameters(networks.initialise(model, generator(0))).double()
    draw = generator(1)
    images = torch.randn(4, 1, 8, 8, generator=draw, dtype=torch.float64)
    labels, batches = torch.tensor([0, 1, 2, 0]), torch.tensor([[0, 1], [2, 3], [1, 2]])
    ends = [
        ops.unroll(model, theta, images, labels, lr, batches, momentum=0.9, loss_scale=scale)
        for lr, scale in ((0.1, 0.7), (0.1 * 0.7, 1.0))
    ]
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-12)


def test_updates_above_the_limit_are_left_out(configure) -> None:
    """Losses of this problem lie around 1: with a limit among them some updates are left out."""
    free = configure(iterations=8)
    distill(free)
    losses = sorted(line["loss"] for line in lines_of(free.log_path))
    limit = losses[4]
    problem = prepare(configure(iterations=8, skip_above=limit))
    state = problem.initial_state()
    skipped = 0
    for _ in range(8):
        before = state.parameters["images"].value
        numbers, fault = outer_iteration(problem, state)
        assert fault is None
        assert numbers["skipped"] == (numbers["loss"] > limit)
        assert numbers["skipped"] == torch.equal(before, state.parameters["images"].value)
        skipped += numbers["skipped"]
        assert state.applied + skipped == state.iteration
    assert 0 < skipped < 8


def test_a_run_whose_loss_stays_above_the_limit_ends(configure, monkeypatch) -> None:
    monkeypatch.setattr("trajmatch.distill.guard.MAX_SKIPS", 3)
    with pytest.raises(UserError, match=r"iteration 3: the last 3 updates .* --skip-above 1e-09"):
        distill(configure(skip_above=1e-9))


def test_the_average_is_what_is_written(configure, tmp_path) -> None:
    plain = configure(iterations=3)
    problem = prepare(plain)
    state = problem.initial_state()
    wanted = state.parameters["images"].value.double()
    for _ in range(3):
        outer_iteration(problem, state)
        wanted = 0.8 * wanted + 0.2 * state.parameters["images"].value.double()
    averaged = distill(configure(iterations=3, ema=0.8, out=tmp_path / "averaged"))
    torch.testing.assert_close(averaged.images.double(), wanted, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(averaged.images, state.parameters["images"].value)
    assert averaged.lr == state.step_size  # the step size is not averaged


@pytest.mark.parametrize("whose", ["right", "first"])
def test_soft_labels_begin_with_the_experts_and_are_learned(configure, whose, tmp_path) -> None:
    config = configure(init="correct", labels="soft", label_experts=whose, iterations=4)
    problem = prepare(config)
    experts = FinalExperts(problem.store, problem.model, "test")
    draw = generator(config.seed, "distill", "initialise")
    first = initialise.from_correct(problem.training, config.ipc, experts, draw)
    expected = (
        soft_labels(first.images, first.labels, experts)
        if whose == "right"
        else experts.logits(0, first.images)
    )
    begun = problem.initial_set()
    assert torch.equal(begun.images, first.images)
    assert torch.equal(begun.labels, expected)
    learned = distill(config)
    assert not torch.allclose(learned.labels, expected)
    kept = distill(replace(config, lr_label=0.0, out=tmp_path / "kept"))
    assert torch.equal(kept.labels, expected)


def test_teslas_gradient_leaves_out_the_hessians(configure) -> None:
    problems = [prepare(configure(gradient=name)) for name in ("exact", "tesla")]
    images = []
    for problem in problems:
        state = problem.initial_state()
        outer_iteration(problem, state)
        images.append(state.parameters["images"].value)
    assert not torch.allclose(*images)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"first_max_start_epoch": 4}, r"--first-max-start-epoch should be above .* at most"),
        (
            {"first_max_start_epoch": 2},
            "--growth-iterations should be .* 1 with it, but is 0",
        ),
        ({"growth_iterations": 5}, "--growth-iterations should be 0 without --first-max"),
        ({"terms": ()}, "--terms should be a list of one or more"),
        ({"perturb": -1.0}, "--perturb should be a finite number of at least 0"),
        ({"skip_above": 0.0}, "--skip-above should be a number above 0"),
        ({"skip_above": math.nan}, "--skip-above should be a number above 0"),
        ({"ema": 1.0}, "--ema should be a number of at least 0 and below 1"),
        ({"init_clusters": 2}, "--init-clusters applies only to --init representative"),
        ({"init": "noise", "labels": "soft"}, "nothing for --init noise"),
        ({"gradient": "approximate"}, "--gradient should be one of exact, tesla"),
    ],
)
def test_settings_that_do_not_fit(configure, settings, message) -> None:
    with pytest.raises(UserError, match=message):
        configure(**settings)


def test_terms_in_between_need_their_epochs(configure) -> None:
    with pytest.raises(UserError, match="did you mean final"):
        prepare(configure(terms=("finale",)))
    with pytest.raises(UserError, match="--student-steps 3 is below --expert-epochs 4"):
        prepare(configure(terms=("intermediate",), expert_epochs=4, max_start_epoch=1))
