"""Predicted costs of the recipes: beside what was measured, and in the docs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import recipe_costs
from recipe_costs import CARDS, Run

from trajmatch.distill.objectives import Plan
from trajmatch.experts import ExpertConfig, train_experts
from trajmatch.experts.train import expert_size
from trajmatch.recipes import find_recipe, recipe_names


@pytest.fixture(scope="module")
def runs() -> dict[str, Run]:
    recipes = map(find_recipe, recipe_names())
    return {recipe.name: Run.of(recipe) for recipe in recipes if recipe.data}


def test_the_pages_have_the_tables() -> None:
    for page, text in recipe_costs.tables().items():
        content = (recipe_costs.DOCS / f"{page}.md").read_text(encoding="utf-8")
        assert f"<!-- costs -->\n{text}\n<!-- end of costs -->" in content, page


def test_memory_at_a_size_that_the_prediction_was_not_made_from(runs: dict[str, Run]) -> None:
    run = runs["datm/cifar10/ipc1"]
    assert (run.network["width"], run.batch, run.steps) == (128, 10, 80)
    measured = recipe_costs.gpu_record("outer_iteration")["width 128, batch 10, N 80"]
    kept, lean = run.memory_bytes(Plan(2**40)), run.memory_bytes(Plan())
    assert kept == pytest.approx(measured["trajmatch_tape_graph"]["peak_bytes"], rel=0.05)
    assert lean == pytest.approx(measured["trajmatch_graph"]["peak_bytes"], rel=0.1)


def test_time_of_what_was_measured(runs: dict[str, Run]) -> None:
    run = runs["datm/cifar10/ipc10"]
    experts, distillation = run.seconds("cuda") or (0.0, 0.0)
    measured = recipe_costs.gpu_record("outer_iteration")["width 128, batch 100, N 80"]
    whole = run.distill.iterations * measured["trajmatch_tape_graph"]["median"]
    assert distillation == pytest.approx(whole)
    record = recipe_costs.record("datm_cifar10_ipc10_h200")
    assert experts == pytest.approx(record["seconds"]["experts"] / 2 * 100)


def test_time_grows_with_images_and_steps(runs: dict[str, Run]) -> None:
    run = runs["datm/cifar10/ipc10"]

    def seconds(device: str, **settings: int) -> float:
        found = replace(run, distill=replace(run.distill, **settings)).seconds(device)
        assert found is not None
        return found[1]

    for device in ("cuda", "cpu"):
        assert seconds(device, student_steps=40) == pytest.approx(seconds(device) / 2)
        batches = [seconds(device, ipc=100, batch_syn=count) for count in (10, 50, 500, 1000)]
        assert batches == sorted(batches) and batches[3] == pytest.approx(2 * batches[2])


def test_no_time_without_a_measurement(runs: dict[str, Run]) -> None:
    for name in ("mtt/tiny-imagenet/ipc1", "selmatch/cifar10/ipc250", "fred/cifar10/ipc1"):
        assert runs[name].seconds("cuda") is None and runs[name].seconds("cpu") is None
    assert runs["rat-bptt/cifar10/ipc10"].seconds("cuda") is None


def test_every_recipe_fits_into_the_smaller_card(runs: dict[str, Run]) -> None:
    for name, run in runs.items():
        plan = run.plan(CARDS["24 GB"])
        assert plan is not None and run.memory_bytes(plan) <= 0.9 * CARDS["24 GB"], name
    assert runs["datm/tiny-imagenet/ipc50"].plan(10**8) is None


def test_disk_is_that_of_a_store(tmp_path: Path) -> None:
    config = ExpertConfig(
        out=tmp_path / "experts", num_experts=1, epochs=3, until_epoch=2, width=16, depth=2
    )
    store = train_experts(replace(config, data="fashion-mnist-mini?classes=0,1"))
    written = store.expert_path(0).stat().st_size
    snapshots, size = expert_size(store.manifest)
    assert snapshots == 3 and size == pytest.approx(written, rel=0.05)
