"""`trajmatch recipes`: lists and explains the recipes."""

import shutil
import sys
from dataclasses import dataclass

from trajmatch.cli.arguments import parse
from trajmatch.cli.output import aligned, print_json
from trajmatch.recipes import Recipe, find_recipe, recipe_names
from trajmatch.recipes.recipe import SECTIONS
from trajmatch.schema import flag


@dataclass(frozen=True, kw_only=True)
class RecipesConfig:
    """List the recipes, or explain one."""

    name: str | None = None
    """A recipe to explain, e.g. datm/cifar10/ipc10, or the path of a file of your own."""
    json: bool = False
    """Print only JSON: a list of objects, even for a single recipe."""


def run(argv: list[str]) -> None:
    """Run the command with its arguments."""
    config = parse(RecipesConfig, argv, "trajmatch recipes", "name")
    recipes = [find_recipe(name) for name in ([config.name] if config.name else recipe_names())]
    if config.json:
        print_json([each.as_dict() for each in recipes])
    elif config.name:
        print(explained(recipes[0]))
    else:
        _print_list(recipes)


def _print_list(recipes: list[Recipe]) -> None:
    """Print one line per recipe, starting with the name."""
    rows = [(each.name, _accuracy(each) if each.accuracy else "-", each.title) for each in recipes]
    # Cut lines at the width of a terminal, but keep them whole in a file or pipe.
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in aligned(*rows).splitlines():
        print(line[:room].rstrip())
    print(
        "columns: recipe, published test accuracy in %, title; trajmatch recipes NAME "
        "explains one, trajmatch run --recipe NAME runs it",
        file=sys.stderr,
    )


def explained(recipe: Recipe) -> str:
    """Return a recipe's data set, paper, notes and settings as text."""
    lines = [f"{recipe.name}: {recipe.title}", f"data: {recipe.data or 'any, given by --data'}"]
    if recipe.paper:
        source = f" ({recipe.accuracy_source})" if recipe.accuracy else ""
        lines += [f"paper: {recipe.paper}", f"settings: {recipe.settings}"]
        lines += [f"published accuracy: {_accuracy(recipe)}{source}"]
    lines += [f"note: {note}" for note in recipe.notes]
    for title in SECTIONS:
        settings, kind = getattr(recipe, title), SECTIONS[title][0]
        # Show only settings that differ from the defaults.
        chosen = kind(**settings).chosen(kind)
        lines += ["", f"[{title}]", *(_given(k, v) for k, v in settings.items() if k in chosen)]
    return "\n".join(lines)


def _accuracy(recipe: Recipe) -> str:
    """Return the published accuracy as text."""
    if recipe.accuracy is None:
        return "not available"
    return f"{recipe.accuracy}" if recipe.std is None else f"{recipe.accuracy} +- {recipe.std}"


def _given(name: str, value: object) -> str:
    """Return a setting as a command-line flag."""
    if isinstance(value, bool):
        return flag(name if value else f"no-{name}")
    return f"{flag(name)} {' '.join(map(str, value)) if isinstance(value, tuple) else value}"
