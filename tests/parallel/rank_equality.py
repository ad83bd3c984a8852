"""A program: every process of torchrun compares what all did together with what one does alone.

``torchrun --nproc-per-node R tests/parallel/rank_equality.py STORE FOLDER`` writes what it measured
to ``FOLDER/measured_RANK.json``: how far float64 and float32 results of R processes are from those
of one, relative to the largest number, and which files have equal bytes.
"""

from __future__ import annotations

import contextlib
import copy
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from trajmatch import networks, ops
from trajmatch.distill import DistillConfig, distill
from trajmatch.distill import loop as loop_module
from trajmatch.distill import memory_plan as plan_module
from trajmatch.distill.gradients import gradients_for
from trajmatch.distill.iteration import outer_iteration
from trajmatch.distill.memory_plan import planned
from trajmatch.distill.objectives import Plan
from trajmatch.distill.parallel import Division, check_division, check_in_step
from trajmatch.distill.problem import Problem, prepare
from trajmatch.distill.state import State
from trajmatch.distill.terms import Course
from trajmatch.distill.terms.course import AtTheEnd
from trajmatch.experts import ExpertConfig, Store, train_experts
from trajmatch.memory import one_thread
from trajmatch.ops.loop import Steps
from trajmatch.ops.parts import ShardedLoop
from trajmatch.ops.student import EngineStudent, Point
from trajmatch.parallel import Ranks, joined

ITERATIONS = 20


class DoubleStore:
    """A store whose snapshots are float64, so that a run is."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def snapshot(self, expert: int, epoch: int) -> Tensor:
        return self._store.snapshot(expert, epoch).double()


def config(store: Path, out: Path, **settings: Any) -> DistillConfig:
    return DistillConfig(
        **{
            "experts": store,
            "out": out,
            "ipc": 2,
            "iterations": ITERATIONS,
            "student_steps": 4,
            "expert_epochs": 2,
            "max_start_epoch": 2,
            "batch_syn": 5,  # of 6 images: every other batch is one image
            "lr_img": 10.0,
            "lr_init": 0.05,
            "lr_lr": 1e-4,
            "checkpoint_every": 7,
            **settings,
        }
    )


def in_double(problem: Problem) -> tuple[Problem, State]:
    """The run and its first state in float64; the engine computes in the dtype of its inputs."""
    state = problem.initial_state()

    def double(tensor: Tensor) -> Tensor:
        return tensor.double() if tensor.is_floating_point() else tensor

    for name, each in state.parameters.items():
        moments = {moment: double(value) for moment, value in each.moments.items()}
        state.parameters[name] = replace(each, value=double(each.value), moments=moments)
    state.average = {name: double(each) for name, each in state.average.items()}
    store: Any = DoubleStore(problem.store)
    single: Any = problem.objective
    objective = replace(single, setup=replace(single.setup, experts=store))
    return replace(problem, experts=store, objective=objective), state


def apart(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).abs().max() / wanted.abs().max())


def batch_in_float64(ranks: Ranks, store: Path, **settings: Any) -> dict[str, float]:
    """Distance after 20 outer iterations of ``--parallel batch``."""
    single = prepare(config(store, Path("-"), parallel="batch", **settings))
    (problem, shared), (_, alone) = in_double(single), in_double(single)
    check_division(problem, shared, ranks)
    first = shared.parameters["images"].value.clone()
    division = Division(ranks, by_batch=True)
    gradients = partial(gradients_for(problem, division), plan=planned(problem, shared=True))
    for _ in range(ITERATIONS):
        together, fault = outer_iteration(problem, shared, gradients, division)
        by_itself, _ = outer_iteration(problem, alone)
        assert fault is None
    check_in_step(shared, ranks)
    assert shared.iteration == shared.applied == ITERATIONS
    assert apart(shared.parameters["images"].value, first) > 1e-3  # the images did move
    found = {
        "images": apart(shared.parameters["images"].value, alone.parameters["images"].value),
        "step size": abs(shared.step_size / alone.step_size - 1),
        "loss": abs(together["loss"] / by_itself["loss"] - 1),
    }
    if settings.get("labels") == "soft":
        found["labels"] = apart(shared.parameters["labels"].value, alone.parameters["labels"].value)
    return found


def with_margin(model: networks.ConvNet, count: int, margin: float) -> Tensor:
    """Images for which no ReLU's input comes closer to zero than ``margin``."""
    nearest: list[Tensor] = []
    model = copy.deepcopy(model)  # with hooks, which the engine does not run
    for module in model.modules():
        if isinstance(module, torch.nn.ReLU):
            module.register_forward_pre_hook(
                lambda _, inputs: nearest.append(inputs[0].abs().flatten(1).min(1)[0])
            )
    images = torch.randn(2000, model.in_channels, model.image_size, model.image_size)
    with torch.no_grad():
        model(images)
    found = images[torch.stack(nearest).min(0)[0] > margin]
    assert len(found) >= count
    return found[:count]


def step_in_float32(ranks: Ranks) -> dict[str, float]:
    """Distance of one step's gradient and of its derivative along a direction."""
    torch.manual_seed(0)
    model = networks.ConvNet(3, 4, 8, 16, 2)
    theta = networks.flat_parameters(model)
    images, labels = with_margin(model, 10, 2e-4), torch.arange(10) % 4
    direction = torch.randn_like(theta)
    student = EngineStudent(networks.engine_description(model), 1.0, 0)
    loop = ShardedLoop(ranks, student, Steps([torch.arange(10)], [1], ops.SGD(), None, True))
    (mine,) = loop.steps.batches
    gradient = loop.gradient(0, Point(theta, images[mine], labels[mine]))
    own = loop.jvp(0, Point(theta, images[mine], labels[mine]), direction)
    _, whole = student.jvp(Point(theta, images, labels), direction)
    return {
        "gradient": apart(gradient, student.gradient(Point(theta, images, labels))[1]),
        "tangent": apart(own.grad_theta, whole.grad_theta),
        "image share": apart(own.grad_images, whole.grad_images[mine]),
    }


class Remembering(AtTheEnd):
    """A matching term that remembers which parameters were near, and how far all were."""

    def memory(self, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
        size = sum(shape.numel() for shape in shapes.values())
        return {"near": torch.zeros(size, dtype=torch.bool), "far": torch.zeros(())}

    def remember(self, course: Course) -> dict[str, Tensor]:
        error = (course.student[course.steps] - course.expert[course.epochs]).square()
        near = course.memory["near"] | (error < 1e-6 * 1.5**course.iteration)
        return {"near": near, "far": 0.9 * course.memory["far"] + error.sum().sqrt()}

    def loss(self, course: Course) -> Tensor:
        remembered = self.remember(course)
        return remembered["far"] * course.distance(course.end, 1.0 + remembered["near"])


class Interruption:
    """A display of progress that ends a run after its tenth iteration."""

    def update(self, done: int, **numbers: float) -> None:
        if done == 10:
            raise KeyboardInterrupt


def matches(ranks: Ranks, store: Path, folder: Path) -> dict[str, bool]:
    """Files of ``--parallel matches``, with one match more than there are processes.

    One process begins the run; all go on from its checkpoint.
    """
    settings = {
        "matches": ranks.size + 1,
        "terms": ("final", "__main__:Remembering"),
        "mask_gradient": 1.0,
        "mask_every": 6,
        "labels": "soft",
        "ema": 0.9,
        "eval_every": 10,
        "eval_seeds": 1,
        "eval_epochs": 2,
        "select": "test-max",
    }
    shared = config(store, folder / "shared", **settings)
    if ranks.is_rank_0:
        with contextlib.suppress(KeyboardInterrupt):
            distill(shared, Interruption())
        assert shared.checkpoint_path.exists() and not shared.out.exists()
    ranks.barrier()
    result = distill(replace(shared, resume=True), ranks=ranks)
    alone = replace(shared, out=folder / "alone" / str(ranks.rank))
    wanted = distill(alone)

    def lines(path: Path) -> list[dict[str, Any]]:
        """A log without times."""
        content = [json.loads(line) for line in path.read_text().splitlines()]
        return [{key: line[key] for key in line if key != "seconds"} for line in content]

    return {
        "artifact": shared.out.read_bytes() == alone.out.read_bytes(),
        "result": torch.equal(result.images, wanted.images) and result.scores == wanted.scores,
        "log": lines(shared.log_path) == lines(alone.log_path),
        "snapshots": shared.snapshots_path.read_bytes() == alone.snapshots_path.read_bytes(),
        "nothing else": {path.name for path in folder.iterdir()}
        == {"alone", "shared", "shared.jsonl", shared.snapshots_path.name},
    }


def plan(ranks: Ranks, store: Path, folder: Path) -> dict[str, bool]:
    """Plans of ``--parallel batch`` where memory is short: announced, and computed by."""
    announced: list[Plan] = []
    used: set[Plan] = set()

    def watched(problem: Problem, division: Division) -> Any:
        gradients = gradients_for(problem, division)

        def remembered(tasks: Any, leaves: Any, plan: Plan) -> Any:
            used.add(plan)
            return gradients(tasks, leaves, plan)

        return remembered

    with (
        mock.patch.object(plan_module, "free_bytes", lambda device: -1),
        mock.patch.object(loop_module, "gradients_for", watched),
    ):
        asked = config(store, folder, parallel="batch", iterations=2)
        distill(asked, ranks=ranks, tell=lambda found: announced.append(found.plan))
    one_by_one = Plan(0, micro_batch=1)
    return {
        "announced": announced == ([one_by_one] if ranks.is_rank_0 else []),
        "used": used == {one_by_one},
    }


def experts(ranks: Ranks, store: Path, folder: Path) -> dict[str, bool]:
    """Files of experts that the processes train together, of some that are missing."""
    made = Store.open(store)
    recipe, network = made.manifest["recipe"], made.manifest["network"]
    settings = {key: recipe[key] for key in ("epochs", "batch_size", "lr")}
    asked = ExpertConfig(
        out=folder,
        data=made.manifest["data"],
        num_experts=5,
        width=network["width"],
        depth=network["depth"],
        workers=1,
        **settings,
    )
    whole = train_experts(asked, ranks=ranks)
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    ranks.barrier()
    if ranks.is_rank_0:
        for expert in (0, 3, 4):
            whole.expert_path(expert).unlink()
    train_experts(replace(asked, resume=True), ranks=ranks)
    first = range(made.num_experts)
    return {
        "bytes": all(
            contents[made.expert_path(i).name] == made.expert_path(i).read_bytes() for i in first
        ),
        "again": contents == {path.name: path.read_bytes() for path in folder.iterdir()},
    }


def words(ranks: Ranks) -> dict[str, bool]:
    """What processes say to each other besides tensors."""
    number = ranks.on_rank_0(lambda: [0.1 + 0.2, ranks.rank])
    count = ranks.counter()
    count()
    ranks.barrier()
    return {"writer": number == [0.1 + 0.2, 0], "counter": count() > ranks.size}


def main() -> None:
    store, folder = Path(sys.argv[1]), Path(sys.argv[2])
    with joined("cpu") as ranks, one_thread():
        measured = {
            "processes": ranks.size,
            "float64": batch_in_float64(ranks, store),
            "float64, all parts": batch_in_float64(
                ranks,
                store,
                labels="soft",
                balance=True,
                perturb=0.1,
                matches=2,
                ema=0.9,
                student_momentum=0.5,
                terms=("final", "intermediate"),
            ),
            "float32": step_in_float32(ranks),
            "matches": matches(ranks, store, folder / "matches"),
            "experts": experts(ranks, store, folder / "experts"),
            "plan": plan(ranks, store.with_name("mlp"), folder / "plan"),
            "words": words(ranks),
        }
        (folder / f"measured_{ranks.rank}.json").write_text(json.dumps(measured))


if __name__ == "__main__":
    main()
