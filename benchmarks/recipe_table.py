"""All recipes as a page of the docs, with what became of two outer iterations of each.

    python benchmarks/recipe_table.py

runs tests/test_recipes.py, which takes every recipe through two outer iterations on synthetic data
of the right shape, and fills in docs/recipes.md. Its status is 1 when a recipe failed.
"""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from doc_pages import fill, table
from recipe_costs import configurations

from trajmatch.distill import DistillConfig
from trajmatch.experts.config import NetworkSettings
from trajmatch.recipes import Recipe, find_recipe, recipe_names

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "recipes.md"
TEST = "test_a_recipe_runs_two_outer_iterations"

HEAD = ("recipe", "network", "experts", "N", "M", "start epochs", "batch", "published, %", "runs")


def row(recipe: Recipe, outcome: str) -> list[str]:
    """A recipe in the order of :data:`HEAD`."""
    expert, distill = configurations(recipe)
    alone = distill.experts is None
    return [
        f"`{recipe.name}`",
        _network(distill if alone else expert),
        "none" if alone else f"{expert.num_experts} x {expert.epochs}",
        str(distill.window if alone else distill.student_steps),
        "" if alone else str(distill.expert_epochs),
        "" if alone else _window(distill),
        "all" if distill.batch_syn is None else str(distill.batch_syn),
        _published(recipe),
        outcome,
    ]


def recipe_table(outcomes: Mapping[str, str]) -> str:
    """The table of all recipes, in Markdown.

    Args:
        outcomes: By the name of a recipe, what became of its two outer iterations.
    """
    return table(HEAD, (row(find_recipe(name), outcomes[name]) for name in recipe_names()))


def run_all() -> dict[str, str]:
    """Run two outer iterations of every recipe.

    Returns:
        ``"passed"`` or ``"FAILED"`` by name; of a recipe with the settings of one that is run, that
        of ImageNette, what became of this one.
    """
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q", "-k", TEST, f"--junitxml={report}"),
                *("-m", "not harness"),
                str(ROOT / "tests" / "test_recipes.py"),
            ],
            cwd=ROOT,
            check=False,
        )
        cases = ElementTree.parse(report).getroot().iter("testcase")
        found = {
            case.get("name", "").removeprefix(f"{TEST}[").removesuffix("]"): (
                "FAILED" if len(case) else "passed"
            )
            for case in cases
        }
    return {name: found.get(name) or f"{found[twin(name)]} as nette" for name in recipe_names()}


def twin(name: str) -> str:
    """The recipe for ImageNette with the settings of one for another subset."""
    method, _, size = name.split("/")
    return f"{method}/imagenet-nette/{size}"


def _network(settings: NetworkSettings) -> str:
    if settings.network != "convnet":
        return settings.network
    return f"ConvNet D{settings.depth}, width {settings.width}, {settings.norm}"


def _window(distill: DistillConfig) -> str:
    first, last = distill.min_start_epoch, distill.max_start_epoch - 1
    grown = distill.first_max_start_epoch
    return f"{first} to {last}" if grown is None else f"{first} to {grown - 1}, later {last}"


def _published(recipe: Recipe) -> str:
    if recipe.accuracy is None:
        return "not available" if recipe.paper else ""
    return f"{recipe.accuracy}" + ("" if recipe.std is None else f" ± {recipe.std}")


def main() -> int:
    """Run the program."""
    outcomes = run_all()
    fill(PAGE, "recipes", recipe_table(outcomes))
    failed = [name for name, outcome in outcomes.items() if "passed" not in outcome]
    print(f"{len(outcomes)} recipes, {len(failed)} failed", *failed)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
