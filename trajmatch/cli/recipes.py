"""`trajmatch recipes`: lists and explains the recipes."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass

from trajmatch.recipes import Recipe, find_recipe, recipe_names
from trajmatch.recipes.recipe import SECTIONS
from trajmatch.schema import flag


@dataclass(frozen=True, kw_only=True)
class RecipesConfig:
    """List the recipes, or explain one."""

    name: str | None = None
    """A recipe to explain, e.g. datm/cifar10/ipc10, or the path of a file of your own."""
    json: bool = False
    """Print JSON, and nothing else: a list of objects, also for one recipe."""


def run(argv: list[str]) -> int:
    """Run the command.

    Args:
        argv: Arguments after the command's name.

    Returns:
        The exit status.
    """
    from trajmatch.cli.arguments import parse

    config = parse(RecipesConfig, argv, "trajmatch recipes", "name")
    names = recipe_names() if config.name is None else [config.name]
    recipes = [find_recipe(name) for name in names]
    if config.json:
        print(json.dumps([recipe.as_dict() for recipe in recipes], indent=2, sort_keys=True))
    elif config.name is None:
        _print_list(recipes)
    else:
        print(explained(recipes[0]))
    return 0


def _print_list(recipes: list[Recipe]) -> None:
    """Print a line for each recipe: its whole name, and of the rest what the terminal can show."""
    columns = [
        (recipe.name, "-" if recipe.accuracy is None else _accuracy(recipe), recipe.title)
        for recipe in recipes
    ]
    first, second = (max(len(row[column]) for row in columns) for column in (0, 1))
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for name, accuracy, title in columns:
        print(f"{name:{first}}  {accuracy:>{second}}  {title}"[:room].rstrip())
    print(
        "columns: recipe, published test accuracy in %, what it makes; trajmatch recipes NAME "
        "explains one, trajmatch run --recipe NAME runs it",
        file=sys.stderr,
    )


def explained(recipe: Recipe) -> str:
    """Explain a recipe to a reader.

    Args:
        recipe: The recipe.
    """
    published = _accuracy(recipe) + (f" ({recipe.accuracy_source})" if recipe.accuracy else "")
    lines = [f"{recipe.name}: {recipe.title}", f"data: {recipe.data or 'any, given by --data'}"]
    if recipe.paper:
        lines += [f"paper: {recipe.paper}", f"settings: {recipe.settings}"]
        lines += [f"published accuracy: {published}"]
    lines += [f"note: {note}" for note in recipe.notes]
    for title in SECTIONS:
        lines += ["", f"[{title}]"]
        lines += [_given(name, value) for name, value in getattr(recipe, title).items()]
    return "\n".join(lines)


def _accuracy(recipe: Recipe) -> str:
    if recipe.accuracy is None:
        return "not available" if recipe.paper else ""
    return f"{recipe.accuracy} +- {recipe.std}" if recipe.std is not None else f"{recipe.accuracy}"


def _given(name: str, value: object) -> str:
    """A field as it is given on the command line."""
    if isinstance(value, bool):
        return flag(name if value else f"no-{name}")
    return f"{flag(name)} {' '.join(map(str, value)) if isinstance(value, tuple) else value}"
