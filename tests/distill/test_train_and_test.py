"""Train and test (RaT-BPTT): the gradient, whole runs without experts, and bad input."""

from __future__ import annotations

import copy
import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from stand_ins import PARAMETRISATIONS, Interrupter, lines_of
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss

from trajmatch import artifact, files, networks, ops, reference
from trajmatch.cli.main import main
from trajmatch.distill import DistillConfig, distill
from trajmatch.distill.gradients import gradients_for
from trajmatch.distill.memory_plan import check_parts, forecast
from trajmatch.distill.objectives import Plan
from trajmatch.distill.objectives.chosen_window import ChosenWindow, GradientWindows
from trajmatch.distill.objectives.train_and_test import Student, TrainAndTest
from trajmatch.distill.parameters import leaves
from trajmatch.distill.problem import prepare
from trajmatch.errors import UserError
from trajmatch.protocol import PROTOCOLS
from trajmatch.recipes import find_recipe
from trajmatch.recipes.deviations import deviations
from trajmatch.training import train

Configure = Callable[..., DistillConfig]


@pytest.fixture
def configure(data: str, tmp_path: Path) -> Configure:
    """A configuration of a short run without experts, with some fields set differently."""

    def make(**settings: object) -> DistillConfig:
        return DistillConfig(
            **{
                "objective": "train-and-test",
                "data": data,
                "out": tmp_path / "distilled.safetensors",
                "width": 4,
                "depth": 1,
                "ipc": 2,
                "iterations": 10,
                "window": 3,
                "steps_before": "1:3",
                "batch_syn": 4,
                "lr_img": 0.05,
                "lr_init": 0.05,
                "checkpoint_every": 2,
                "quiet": True,
                **settings,
            }
        )

    return make


def unrolled(
    objective: TrainAndTest, task: Student, parameters: Mapping[str, Tensor]
) -> tuple[Tensor, ...]:
    """The loss of a student as one graph of PyTorch, and its gradients."""
    settings, model = objective.setup.config, objective.setup.model
    theta, before = task.start.double(), task.draw.before
    images, labels, lr = (parameters[name] for name in ("images", "labels", "step_size"))
    m, v = torch.zeros_like(theta), torch.zeros_like(theta)
    inner, outer = reference.soft_cross_entropy, cross_entropy
    if objective.setup.training.loss == "mse":
        inner, outer = mse_loss, mse_loss
    for step, batch in enumerate(task.draw.batches):
        if step == before:
            theta, m, v = (each.detach() for each in (theta, m, v))
        if not theta.requires_grad:
            theta.requires_grad_()
        augment = task.dsa[step >= before]
        assert augment is not None
        shown = augment(images[batch], step - before * (step >= before))
        logits = networks.call_flat(model, theta, shown)
        loss = inner(logits, labels[batch])
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        gradient = gradient + settings.student_weight_decay * theta
        if settings.student_optimiser == "sgd":
            m = settings.student_momentum * m + gradient
            theta = theta - lr * m
        else:
            m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient.square()
            c1, c2 = 1 - 0.9 ** (step + 1), 1 - 0.999 ** (step + 1)
            root = (v / c2).clamp(min=1e-300).sqrt()  # which has no slope at 0
            theta = theta - lr * (m / c1) / (root + 1e-8)
    assert task.dsa_rows is not None
    real = ops.dsa(objective.normalise(objective.images[task.draw.rows]).double(), task.dsa_rows)
    logits = networks.call_flat(model, theta, real)
    loss = outer(logits, objective.labels[task.draw.rows])
    learned = [each for each in parameters.values() if each.requires_grad]
    return loss.detach(), *torch.autograd.grad(loss, learned)


OPTIMISERS = [
    {},
    {"student_momentum": 0.9, "student_weight_decay": 5e-4},
    {"student_optimiser": "adam", "lr_init": 0.01},
]


@pytest.mark.parametrize("settings", OPTIMISERS)
@pytest.mark.parametrize("runs_by", ["engine", "autograd"])
@pytest.mark.parametrize("before", ["0", "4"])
def test_the_gradient_is_that_of_the_unrolled_graph(
    configure: Configure, settings: dict[str, Any], runs_by: str, before: str
) -> None:
    problem = prepare(configure(steps_before=before, real_batch=20, **settings))
    if runs_by == "autograd":
        problem.model.register_forward_hook(lambda *_: None)  # which the engine does not know
    assert ops.engine_for(problem.model) == runs_by
    objective, state = problem.objective, problem.initial_state()
    assert isinstance(objective, TrainAndTest)
    task = objective.task(state.draws.draw(0, 0, 6))
    assert (task.draw.before, len(task.draw.batches)) == (int(before), int(before) + 3)
    assert len(task.draw.rows) == 20
    soft = 3 * torch.randn(6, 3, dtype=torch.float64)
    parameters = {
        name: (soft if name == "labels" else each.double()).detach().requires_grad_()
        for name, each in leaves(state.parameters, "cpu").items()
    }
    found = objective.differentiate(task, parameters, Plan())
    wanted = unrolled(objective, task, parameters)
    assert found[1].item() is True
    for got, value in zip((found[0], *found[2:]), wanted, strict=True):
        assert value.norm() > 0
        assert (got - value).norm() <= 1e-9 * value.norm()


def test_targets_are_regressed(configure: Configure, target_data: str) -> None:
    problem = prepare(configure(data=target_data, steps_before="4", real_batch=20))
    objective, state = problem.objective, problem.initial_state()
    assert isinstance(objective, TrainAndTest)
    objective = replace(objective, labels=objective.labels.double())
    task = objective.task(state.draws.draw(0, 0, 6))
    parameters = {
        name: each.double().detach().requires_grad_()
        for name, each in leaves(state.parameters, "cpu").items()
    }
    found = objective.differentiate(task, parameters, Plan())
    wanted = unrolled(objective, task, parameters)
    for got, value in zip((found[0], *found[2:]), wanted, strict=True):
        assert (got - value).norm() <= 1e-9 * value.norm()


def test_the_plan_changes_no_more_than_rounding(configure: Configure) -> None:
    problem = prepare(configure(real_batch=30))
    state = problem.initial_state()
    task = problem.objective.task(state.draws.draw(0, 0, 6))
    parameters = {
        name: each.double() if each.is_floating_point() else each
        for name, each in leaves(state.parameters, "cpu").items()
    }
    parameters = {name: each.detach() for name, each in parameters.items()}
    for name in ("images", "step_size"):
        parameters[name].requires_grad_()
    check_parts(problem)
    whole = problem.objective.differentiate(task, parameters, Plan())
    parts = problem.objective.differentiate(task, parameters, Plan(0, micro_batch=3))
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_run_without_experts_lowers_its_loss(configure: Configure) -> None:
    settings: dict[str, Any] = {"window": 8, "lr_init": 0.1, "init": "noise"}
    config = configure(iterations=40, matches=2, **settings)
    result = distill(config)
    lines = lines_of(config.log_path)
    losses = [line["loss"] for line in lines]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    assert {start for line in lines for start in line["window_starts"]} == {1, 2, 3}
    assert result.recipe["window"] == 8
    assert not {"terms", "student_steps", "store", "experts"} & result.recipe.keys()
    assert artifact.load(config.out).network["width"] == 4


CHOSEN = "gradient:high=1.2,low=0.9"


def test_windows_by_the_gradients_of_the_student() -> None:
    norms = torch.tensor([9.0, 1.0, 5.0, 3.0])
    draw = torch.Generator().manual_seed(0)

    def windows(loss: float, temperature: float) -> list[tuple[int, int]]:
        choice = GradientWindows(1.2, 0.9, temperature, spread=8)
        return [choice.choose(norms, 1, loss, 20, draw) for _ in range(600)]

    # |g_t| changes by 8, 4 and 2 in steps 1 to 3
    lengths = {1: 28, 2: 20, 3: 16}
    assert {*windows(2.0, 0.01)} == {(1, lengths[1])}  # early: where gradients are small
    assert {*windows(0.5, 0.01)} == {(2, lengths[2])}  # late: where they are large
    assert {*windows(1.0, 0.01)} == {*lengths.items()}  # in the middle: anywhere
    late = Counter(step for step, _ in windows(0.5, 2.0))
    wanted = torch.softmax(norms[1:] / 2, 0)
    for step in (1, 2, 3):
        assert late[step] / 600 == pytest.approx(wanted[step - 1].item(), abs=0.06)
    # a student that diverged in step 2: its loss is infinite, and the window starts before
    diverged = torch.tensor([9.0, 1.0, torch.inf, torch.nan])
    choice = GradientWindows(1.2, 0.9)
    assert {choice.choose(diverged, 1, math.inf, 20, draw)[0] for _ in range(50)} == {1}
    nothing = norms * float("nan")
    assert {choice.choose(nothing, 1, math.nan, 20, draw)[0] for _ in range(50)} == {1, 2, 3}
    assert GradientWindows(1.2, 0.9, spread=8).choose(nothing, 1, 0.0, 20, draw)[1] == 12


def test_a_chosen_window_is_differentiated_like_any_other(configure: Configure) -> None:
    config = configure(
        steps_before="2:5",
        window_choice=f"{CHOSEN},spread=2",
        student_optimiser="adam",
        lr_init=0.01,
    )
    problem = prepare(config)
    objective, state = problem.objective, problem.initial_state()
    assert isinstance(objective, ChosenWindow)
    draw = state.draws.draw(0, 0, 6)
    assert draw.logged() == {} and len(draw.batches) == 5 + 3 + 2
    parameters = leaves(state.parameters, "cpu")
    task = objective.placed(objective.task(draw), parameters, Plan())
    step, steps = task.draw.before, len(task.draw.batches)
    assert 2 <= step <= 5 and step + 1 <= steps <= step + 5
    found = objective.differentiate(objective.task(draw), parameters, Plan())
    plain, _ = objective.trial(6, 1)
    wanted = plain.differentiate(task, parameters, Plan())
    assert all(map(torch.equal, found, wanted))
    result = distill(replace(config, iterations=3))
    assert result.recipe["window_choice"] == config.window_choice


def test_an_interrupted_run_goes_on_with_equal_bytes(configure: Configure, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"holdout": 0.25, "zca": True, "real_batch": 7, "network": "mlp"}
    settings |= {"width": 128, "depth": 3, "select": "holdout", "eval_every": 5}
    settings |= {"eval_seeds": 1, "eval_epochs": 1}
    whole = configure(out=tmp_path / "whole" / "d", **settings)
    part = configure(out=tmp_path / "part" / "d", **settings)
    result = distill(whole)
    with pytest.raises(KeyboardInterrupt):
        distill(part, Interrupter(5))
    distill(replace(part, resume=True))
    assert part.out.read_bytes() == whole.out.read_bytes()
    assert result.zca is not None and result.scores[0]["split"] == "holdout"
    for other in ({"window": 4}, {"seed": 1}, {"holdout": 0.5}):
        with pytest.raises(UserError, match=f"made with {next(iter(other))} = "):
            distill(replace(part, resume=True, **other))


def test_what_is_held_out_is_seen_by_no_student(configure: Configure) -> None:
    problem = prepare(configure(holdout=0.25))
    assert isinstance(problem.objective, TrainAndTest)
    assert len(problem.objective.images) == 27 and len(problem.held_out[0]) == 9
    assert problem.training.mean != prepare(configure()).training.mean


def test_experts_decide_network_and_preprocessing(
    configure: Configure, holdout_store: Path
) -> None:
    config = configure(experts=holdout_store, width=128, depth=3, init="correct", labels="soft")
    result = distill(replace(config, iterations=2))
    assert result.label_kind == "logit" and result.network["width"] == 4
    assert result.recipe["experts"]["holdout"]["fraction"] == 0.25
    assert "width" not in result.recipe


def test_no_graph_and_no_warning_on_a_gpu(configure: Configure) -> None:
    problem: Any = prepare(configure())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradients_for(replace(problem, device=torch.device("cuda")))


def test_the_forecast_counts_the_steps_before_the_window(configure: Configure) -> None:
    objective = prepare(configure(window=4, steps_before="0:8")).objective
    assert len(objective.batch_sizes(6)) == 4 and max(objective.batch_sizes(6)) == 4
    _, task = objective.trial(6, 3)
    assert (task.draw.before, len(task.draw.batches)) == (3, 6)
    chosen = configure(window=4, steps_before="0:8", window_choice=f"{CHOSEN},spread=2")
    objective = prepare(chosen).objective
    assert len(objective.batch_sizes(6)) == 6
    plain, task = objective.trial(6, 3)
    assert type(plain) is TrainAndTest
    assert (task.draw.before, len(task.draw.batches)) == (15, 18)
    problem = prepare(configure())
    found = forecast(problem, leaves(problem.initial_state().parameters, problem.device), Plan())
    assert found.seconds > 0 and found.peak_bytes > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 0}, "--window should be a whole number of at least 1, but is 0"),
        ({"window": -3}, "--window should be a whole number of at least 1"),
        ({"steps_before": "5:3"}, "--steps-before should be K0:K1 with 0 <= K0 <= K1, .* but is 5"),
        ({"steps_before": "-1:3"}, "--steps-before should be K0:K1"),
        ({"steps_before": "all"}, "--steps-before should be K0:K1"),
        ({"real_batch": 0}, "--real-batch should be a whole number of at least 1"),
        ({"student_optimiser": "adam", "student_momentum": 0.9}, "--student-momentum should be 0"),
        ({"expert_epochs": 3}, "--expert-epochs has no meaning for --objective train-and-test"),
        ({"terms": ("final", "final")}, "--terms has no meaning for --objective train-and-test"),
        ({"balance": True}, "--balance has no meaning"),
        ({"student_steps": 10}, "--student-steps has no meaning"),
        ({"init": "correct"}, "--init correct needs --experts, a store that `trajmatch expert`"),
        ({"labels": "soft"}, "--labels soft needs --experts"),
        ({"experts": "e"}, "--(width|depth) is fixed by the store given with --experts"),
        ({"objective": "match-trajectory"}, "--(window|steps-before) has no meaning for"),
    ],
)
def test_settings_that_contradict_each_other(
    configure: Configure, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        configure(**settings)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("gradients", "has no choice of windows 'gradients' .*did you mean gradient"),
        ("gradient", "missing a required argument: 'high'; gradient takes high, low, temperature"),
        ("gradient:high=1,low=2", "high=1 is below low=2"),
        ("gradient:high=1,low=x", "low should be a finite number, but is .x."),
        ("gradient:2,1,temperature=0", "temperature should be a finite number above 0"),
        ("gradient:2,1,spread=1.5", "spread should be a whole number of at least 0"),
        ("gradient:2,1,spread=3", "the spread should be below --window 3"),
        ("fractions:Fraction", "should give an instance of .*GradientWindows"),
    ],
)
def test_windows_that_cannot_be_chosen(configure: Configure, choice: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare(configure(window_choice=choice))


def test_bad_networks_and_holdouts(configure: Configure) -> None:
    with pytest.raises(UserError, match="this run holds out none"):
        prepare(configure(select="holdout", eval_every=1))
    with pytest.raises(UserError, match="--width 4 applies only to --network convnet"):
        prepare(configure(network="mlp"))
    with pytest.raises(UserError, match="--objective builtins:vars needs --experts"):
        _ = prepare(configure()).store_for("--objective builtins:vars")


def test_labels_of_an_earlier_set_need_no_experts(configure: Configure, tmp_path: Path) -> None:
    first = configure(iterations=1)
    distill(first)
    second = configure(init_from=first.out, out=tmp_path / "second", labels="soft", iterations=1)
    with pytest.raises(UserError, match="--labels soft needs --experts"):
        distill(second)


def test_the_protocol_that_trains_by_adam() -> None:
    protocol = replace(PROTOCOLS["rat"], lr=0.01, dsa="none", epochs=4)
    model = networks.ConvNet(1, 3, 8, width=4, depth=1, norm="none")
    images, labels = torch.randn(6, 1, 8, 8), torch.arange(6) % 3
    own = copy.deepcopy(model)
    optimiser = torch.optim.Adam(own.parameters(), lr=0.01)
    for _ in range(5):
        optimiser.zero_grad()
        cross_entropy(own(images), labels).backward()
        optimiser.step()
    train(model, images, labels, protocol)
    found, wanted = map(networks.flat_parameters, (model, own))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)
    assert protocol.describe()["optimiser"] == "adam"
    assert "optimiser" not in PROTOCOLS["mtt"].describe()


@pytest.mark.parametrize("images", PARAMETRISATIONS)
def test_every_parametrisation_learns_and_goes_on(
    configure: Configure, images: str, tmp_path: Path
) -> None:
    lr = 1e-3 if "implicit" in images else 0.05
    settings = {"images": images, "lr_img": lr, "iterations": 4, "real_batch": 20}
    settings |= {"batch_syn": None}  # all of them: every image is learned
    whole = configure(**settings, keep_rendered=True, out=tmp_path / "whole" / "d")
    part = replace(whole, out=tmp_path / "part" / "d")
    result = distill(whole)
    with pytest.raises(KeyboardInterrupt):
        distill(part, Interrupter(3))
    distill(replace(part, resume=True))
    assert part.out.read_bytes() == whole.out.read_bytes()
    first = prepare(whole).initial_set().images
    assert (result.images != first).flatten(1).any(dim=1).all()
    kept = files.load_tensors(whole.out)[0]
    assert torch.equal(kept["images"], result.images)


def test_a_recipe_without_experts_from_data_to_report(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "own.toml"
    recipe.write_text(
        '[distill]\nobjective = "train-and-test"\nwidth = 4\ndepth = 1\nwindow = 2\n'
        'steps_before = "0:2"\niterations = 4\n'
        "[evaluate]\nepochs = 1\nseeds = 1\n"
    )
    arguments = ["run", "--recipe", str(recipe), "--data", data, "--out", str(tmp_path / "out")]
    assert main([*arguments, "--width", "8"]) == 2
    said = capsys.readouterr().err
    why = "this run trains no experts; leave it out"
    assert f"--width applies only when experts are trained, but {why}" in said
    assert "did you mean --distill.width?" in said
    assert main([*arguments, "--distill.width", "8"]) == 0
    report = (tmp_path / "out" / "report.html").read_text()
    assert "window start K" in report and "matching loss" not in report.lower()
    assert not (tmp_path / "out" / "experts").exists()
    distilled = artifact.load(tmp_path / "out" / "distilled.safetensors")
    assert distilled.network["width"] == 8
    assert distilled.recipe["lr_lr"] == 0 and distilled.lr == distilled.recipe["lr_init"]
    found = deviations(find_recipe(str(recipe)), distilled)
    assert [each.name for each in found] == ["distill.width"]
