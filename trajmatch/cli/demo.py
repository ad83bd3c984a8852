"""`trajmatch demo`: `trajmatch run` with a recipe for the shipped data."""

from __future__ import annotations


def run(argv: list[str]) -> int:
    """Run the command with its arguments, and return the exit status."""
    from trajmatch.cli.run import run_recipe
    from trajmatch.recipes import find_recipe

    return run_recipe(find_recipe("cpu/demo"), argv, "demo")
