"""`trajmatch demo`: `trajmatch run` with a recipe for the shipped data."""


def run(argv: list[str]) -> None:
    """Run the command with its arguments."""
    from trajmatch.cli.run import run_recipe
    from trajmatch.recipes import find_recipe

    run_recipe(find_recipe("cpu/demo"), argv, "demo")
