"""Recipes: their type, and reading and checking of their files."""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from trajmatch import files
from trajmatch.distill.config import DistillConfig, DistillSettings
from trajmatch.errors import UserError, as_user_error, closest, in_arguments
from trajmatch.evaluate.config import EvalConfig, EvalSettings
from trajmatch.experts.config import ExpertConfig, ExpertSettings, kept_epochs
from trajmatch.schema import Finite, Settings, setting

#: Folder of the package's recipes, ``METHOD/DATA/NAME.toml``.
FOLDER = Path(__file__).parent

#: Size limit; real recipes are far smaller.
_MOST_BYTES = 2**16

NOT_AVAILABLE = "not available"

#: Sections of a recipe, each with the class of its settings and the class of its command's flags.
SECTIONS: dict[str, tuple[type[Any], type[Any]]] = {
    "expert": (ExpertSettings, ExpertConfig),
    "distill": (DistillSettings, DistillConfig),
    "evaluate": (EvalSettings, EvalConfig),
}


@dataclass(frozen=True, kw_only=True)
class Recipe(Settings):
    """Settings that give a published result, with the result and the sources.

    Attributes:
        name: ``METHOD/DATA/NAME`` in the package, or the path of the file.
        title: Short description of the result.
        data: Data set name as for :func:`trajmatch.data.resolve_uri`; empty for any set. Its
            options are added to a ``--data`` of the same set, unless they are given there.
        paper: Source of the method.
        settings: Source of the settings.
        accuracy: Published test accuracy in percent; None if not available.
        std: Published standard deviation of the accuracy.
        accuracy_source: Source of accuracy and std.
        notes: Remarks, such as errors in the source.
        expert: Non-default fields of :class:`trajmatch.experts.ExpertConfig`.
        distill: Non-default fields of :class:`trajmatch.distill.DistillConfig`.
        evaluate: Non-default fields of :class:`trajmatch.evaluate.EvalConfig`.
    """

    name: str
    title: str = ""
    data: str = ""
    paper: str = ""
    settings: str = ""
    accuracy: Finite | None = None
    std: Finite | None = None
    accuracy_source: str = ""
    notes: tuple[str, ...] = ()
    expert: dict[str, Any] = field(default_factory=dict)
    distill: dict[str, Any] = field(default_factory=dict)
    evaluate: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-compatible dictionary; an unknown accuracy is ``"not available"``."""
        accuracy = NOT_AVAILABLE if self.accuracy is None else self.accuracy
        return {**asdict(self), "accuracy": accuracy}


def recipe_names() -> list[str]:
    """Return the names of the package's recipes in alphabetical order."""
    found = FOLDER.glob("*/**/*.toml")
    return sorted(file.relative_to(FOLDER).with_suffix("").as_posix() for file in found)


def find_recipe(name: str) -> Recipe:
    """Load a recipe by name, e.g. ``"datm/cifar10/ipc10"``, or from a path ending in ``.toml``.

    Raises:
        UserError: The recipe does not exist or is invalid.
    """
    if name.endswith(".toml"):
        return load_recipe(Path(name), name)
    names = recipe_names()
    if name not in names:
        beginning = [each for each in names if each.startswith(f"{name.rstrip('/')}/")]
        meant = f" (did you mean {' or '.join(beginning[:3])}?)" if beginning else ""
        meant = meant or closest(name, names)
        raise UserError(
            f"there is no recipe {name!r}{meant}; `trajmatch recipes` lists them; for your own "
            "recipe, give a path that ends in .toml"
        )
    return load_recipe(FOLDER / f"{name}.toml", name)


def load_recipe(path: files.PathLike, name: str) -> Recipe:
    """Load and check a recipe file; messages call it ``name``.

    Raises:
        UserError: The file is unreadable or not TOML, or fields are unknown, invalid or
            contradictory.
    """
    content = _read(Path(path))
    _check_known(content, {each.name for each in fields(Recipe)} - {"name"}, f"recipe {name}")
    known = {k: v for k, v in content.items() if v != NOT_AVAILABLE or k not in ("accuracy", "std")}
    try:
        recipe = Recipe(name=name, **known)
    except UserError as error:
        raise UserError(f"recipe {name}: {in_arguments(error.in_flags)}") from error
    # TOML has lists but no tuples: replace the sections by values of the fields' types.
    sections: dict[str, Any] = {each: _section(each, recipe) for each in SECTIONS}
    recipe = replace(recipe, **sections)
    _check_window(recipe)
    return recipe


def _read(path: Path) -> dict[str, Any]:
    with as_user_error(f"cannot read the recipe {path}: ", OSError), path.open("rb") as file:
        raw = file.read(_MOST_BYTES + 1)
    if len(raw) > _MOST_BYTES:
        raise UserError(f"{path} is not a recipe: it has more than {_MOST_BYTES} bytes")
    # ValueError covers invalid TOML and UTF-8, and integers with thousands of digits.
    with as_user_error(f"{path} is not a recipe: ", ValueError, RecursionError):
        return tomllib.loads(raw.decode())


def _section(section: str, recipe: Recipe) -> dict[str, Any]:
    """Check the settings of a section and convert them to the types of their fields."""
    where, content = f"recipe {recipe.name}, [{section}]", getattr(recipe, section)
    settings, config = SECTIONS[section]
    types = get_type_hints(settings, include_extras=True)
    # Flags of the command that do not affect the result, such as paths and the device.
    of_run = {each.name for each in fields(config)} - types.keys()
    if given := sorted(of_run & content.keys()):
        raise UserError(f"{where} sets {given[0]}, which a recipe cannot set: give it as a flag")
    _check_known(content, types, where)
    try:
        values = {key: setting(value, types[key], key) for key, value in content.items()}
        settings(**values)
    except UserError as error:
        raise UserError(f"{where}: {in_arguments(error.in_flags)}") from error
    return values


def _check_known(content: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Raise UserError for an unknown entry."""
    if unknown := sorted(content.keys() - {*known}):
        raise UserError(f"{where} has an unknown entry {unknown[0]!r}{closest(unknown[0], known)}")


def _check_window(recipe: Recipe) -> None:
    """Raise UserError unless the experts keep every epoch that distillation needs."""
    expert = ExpertSettings(**recipe.expert)
    distill = DistillSettings(**recipe.distill)
    kept = kept_epochs(expert.keep, expert.epochs)
    # Distillation reads each segment's first and last snapshot.
    starts = range(distill.min_start_epoch, distill.window_end(kept))
    needed = {start + after for start in starts for after in (0, distill.expert_epochs)}
    if missing := sorted(needed - set(kept)):
        raise UserError(
            f"recipe {recipe.name} contradicts itself: start epochs from {starts[0]} to "
            f"{starts[-1]} and expert_epochs = {distill.expert_epochs} need epoch {missing[-1]}, "
            f"which its experts do not keep (epochs = {expert.epochs}, keep = {expert.keep})"
        )
