"""Recipe files: reading, and checks of all that they hold."""

from __future__ import annotations

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

#: Where the recipes of the package are: ``METHOD/DATA/NAME.toml``.
FOLDER = Path(__file__).parent

#: No recipe is nearly as large; what is larger is something else.
_MOST_BYTES = 2**16

NOT_AVAILABLE = "not available"

#: The sections of a recipe: settings that it has, and the configuration of their command.
SECTIONS: dict[str, tuple[type[Any], type[Any]]] = {
    "expert": (ExpertSettings, ExpertConfig),
    "distill": (DistillSettings, DistillConfig),
    "evaluate": (EvalSettings, EvalConfig),
}


@dataclass(frozen=True, kw_only=True)
class Recipe(Settings):
    """The settings of a result.

    Attributes:
        name: ``METHOD/DATA/NAME`` in the package, or the path it was read from.
        title: What it makes.
        data: The data set, as :func:`trajmatch.data.resolve_uri` takes its name; empty for any. Its
            options hold for a ``--data`` of the same set that leaves them open.
        paper: Where the method comes from.
        settings: Where the settings come from.
        accuracy: Published test accuracy in percent; None where it is not available.
        std: Its published standard deviation.
        accuracy_source: Where both are published.
        notes: What to know: errors of the source, other readings.
        expert: Fields of :class:`ExpertSettings` that are not the defaults.
        distill: Those of :class:`DistillSettings`.
        evaluate: Those of :class:`EvalSettings`.
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
        """Return all of it, as JSON can hold it; an unknown accuracy is ``"not available"``."""
        accuracy = NOT_AVAILABLE if self.accuracy is None else self.accuracy
        return {**asdict(self), "accuracy": accuracy}


def recipe_names() -> list[str]:
    """Return the names of the package's recipes, in alphabetical order."""
    found = FOLDER.glob("*/**/*.toml")
    return sorted(file.relative_to(FOLDER).with_suffix("").as_posix() for file in found)


def find_recipe(name: str) -> Recipe:
    """Return a recipe of the package by its name, or one of the user's own by its path.

    Args:
        name: Such as ``"datm/cifar10/ipc10"``, or the path of a file that ends in ``.toml``.

    Raises:
        UserError: There is none, or it cannot be used.
    """
    if name.endswith(".toml"):
        return load_recipe(Path(name), name)
    names = recipe_names()
    if name not in names:
        beginning = [each for each in names if each.startswith(f"{name.rstrip('/')}/")]
        meant = f" (did you mean {' or '.join(beginning[:3])}?)" if beginning else ""
        meant = meant or closest(name, names)
        raise UserError(
            f"there is no recipe {name!r}{meant}; `trajmatch recipes` lists them, and a file of "
            "your own is given by its path, ending in .toml"
        )
    return load_recipe(FOLDER / f"{name}.toml", name)


def load_recipe(path: files.PathLike, name: str) -> Recipe:
    """Read a recipe and check all of it.

    Args:
        path: The file.
        name: The name that messages call it by.

    Raises:
        UserError: It cannot be read, is no TOML, or has a field that is unknown, of the wrong kind,
            out of its range or in contradiction to another one; the message names it.
    """
    content = _read(Path(path))
    _check_known(content, {each.name for each in fields(Recipe)} - {"name"}, f"recipe {name}")
    known = {k: v for k, v in content.items() if v != NOT_AVAILABLE or k not in ("accuracy", "std")}
    try:
        recipe = Recipe(name=name, **known)
    except UserError as error:
        raise UserError(f"recipe {name}: {in_arguments(error.in_flags)}") from error
    sections: dict[str, Any] = {each: _section(each, recipe) for each in SECTIONS}
    recipe = replace(recipe, **sections)
    _check_window(recipe)
    return recipe


def _read(path: Path) -> dict[str, Any]:
    with as_user_error(f"cannot read the recipe {path}: ", OSError), path.open("rb") as file:
        raw = file.read(_MOST_BYTES + 1)
    if len(raw) > _MOST_BYTES:
        raise UserError(f"{path} is no recipe: it has more than {_MOST_BYTES} bytes")
    # Also for a number of thousands of digits.
    with as_user_error(f"{path} is no recipe: ", ValueError, RecursionError):
        return tomllib.loads(raw.decode())


def _section(section: str, recipe: Recipe) -> dict[str, Any]:
    """Convert the settings of a section to the types of their fields, and check them."""
    where, content = f"recipe {recipe.name}, [{section}]", getattr(recipe, section)
    settings, config = SECTIONS[section]
    types = get_type_hints(settings, include_extras=True)
    of_run = {each.name for each in fields(config)} - types.keys()
    if given := sorted(of_run & content.keys()):
        raise UserError(f"{where} sets {given[0]}, which belongs to a run: give it as a flag")
    _check_known(content, types, where)
    try:
        values = {key: setting(value, types[key], key) for key, value in content.items()}
        settings(**values)
    except UserError as error:
        raise UserError(f"{where}: {in_arguments(error.in_flags)}") from error
    return values


def _check_known(content: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Raise UserError for an entry that is not known."""
    if unknown := sorted(content.keys() - {*known}):
        raise UserError(f"{where} has an unknown entry {unknown[0]!r}{closest(unknown[0], known)}")


def _check_window(recipe: Recipe) -> None:
    """Make sure that the experts keep what the distillation starts from and matches."""
    expert = ExpertSettings(**recipe.expert)
    distill = DistillSettings(**recipe.distill)
    kept = kept_epochs(expert.keep, expert.epochs)
    starts = range(distill.min_start_epoch, distill.window_end(kept))
    needed = {start + after for start in starts for after in (0, distill.expert_epochs)}
    if missing := sorted(needed - set(kept)):
        raise UserError(
            f"recipe {recipe.name} contradicts itself: segments of {distill.expert_epochs} epochs "
            f"from epochs {starts[0]} to {starts[-1]} need epoch {missing[-1]}, which its experts "
            f"(epochs {expert.epochs}, keep {expert.keep}) do not have"
        )
