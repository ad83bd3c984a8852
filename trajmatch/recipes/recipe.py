"""Reading and checking of recipe files."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trajmatch import files
from trajmatch.distill.config import DistillConfig
from trajmatch.errors import UserError, closest
from trajmatch.evaluate.config import EvalConfig
from trajmatch.experts.config import ExpertConfig, kept_epochs
from trajmatch.fields import check_types, to_fields

#: Where the recipes of the package are: ``METHOD/DATA/NAME.toml``.
FOLDER = Path(__file__).parent

#: No recipe is nearly as large; what is larger is something else.
_MOST_BYTES = 2**16

NOT_AVAILABLE = "not available"

#: Fields that belong to a run and not to a recipe: where things are, and how they are shown.
_OF_A_RUN = {
    "expert": (
        "out",
        "data",
        "until_epoch",
        "resume",
        "checkpoint_seconds",
        "test_every",
        "max_time",
        "workers",
        "device",
        "quiet",
        "seed",
        "recipe",
    ),
    "distill": (
        "experts",
        "out",
        "data",
        "init_from",
        "max_time",
        "log",
        "resume",
        "quiet",
        "device",
        "parallel",
        "timeout",
        "seed",
        "recipe",
    ),
    "evaluate": ("file", "out", "data", "json", "resume", "max_time", "device", "quiet", "seed"),
}
_CONFIGS: dict[str, type[Any]] = {
    "expert": ExpertConfig,
    "distill": DistillConfig,
    "evaluate": EvalConfig,
}
#: What the configurations cannot do without, to try their checks.
_STAND_INS = {
    "expert": {"out": Path("store")},
    "distill": {"experts": Path("store"), "out": Path("distilled")},
    "evaluate": {"file": Path("distilled")},
}
_TEXTS = ("title", "paper", "settings", "data", "accuracy_source")


@dataclass(frozen=True, kw_only=True)
class Recipe:
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
        expert: Fields of :class:`ExpertConfig`.
        distill: Fields of :class:`DistillConfig`.
        evaluate: Fields of :class:`EvalConfig`.
    """

    name: str
    title: str = ""
    data: str = ""
    paper: str = ""
    settings: str = ""
    accuracy: float | None = None
    std: float | None = None
    accuracy_source: str = ""
    notes: tuple[str, ...] = ()
    expert: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    distill: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    evaluate: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """All of it, as JSON can hold it; an unknown accuracy is ``"not available"``."""
        content = dataclasses.asdict(self)
        if self.accuracy is None:
            content["accuracy"] = NOT_AVAILABLE
        return content


def recipe_names() -> list[str]:
    """The names of the package's recipes, in alphabetical order."""
    found = FOLDER.glob("*/**/*.toml")
    return sorted(file.relative_to(FOLDER).with_suffix("").as_posix() for file in found)


def find_recipe(name: str) -> Recipe:
    """A recipe of the package by its name, or one of the user's own by its path.

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
    """Reads a recipe and checks all of it.

    Args:
        path: The file.
        name: What it is called.

    Raises:
        UserError: It cannot be read, is no TOML, or has a field that is unknown, of the wrong kind,
            out of its range or in contradiction to another one; the message names it.
    """
    content = _read(Path(path))
    known = [field.name for field in dataclasses.fields(Recipe) if field.name != "name"]
    for key, value in content.items():
        if key not in known:
            raise UserError(f"recipe {name} has an unknown entry {key!r}{closest(key, known)}")
        if key in _TEXTS and not isinstance(value, str):
            raise UserError(f"recipe {name}: {key} should be a text, but is {value!r}")
    for section in _CONFIGS:
        content[section] = _section(name, section, content.get(section, {}))
    recipe = Recipe(name=name, **_about(name, content))
    _check_window(recipe)
    return recipe


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
        if len(raw) > _MOST_BYTES:
            raise UserError(f"{path} is no recipe: it has more than {_MOST_BYTES} bytes")
        return tomllib.loads(raw.decode())
    except OSError as error:
        raise UserError(f"cannot read the recipe {path}: {error.strerror}") from error
    except UserError:
        raise
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no recipe: it is not UTF-8 (byte {error.start})") from error
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        raise UserError(f"{path} is no recipe: {error}") from error


def _about(name: str, content: dict[str, Any]) -> dict[str, Any]:
    """The entries outside of the sections, checked, with the sections as they are."""
    about = dict(content)
    notes = about.get("notes", [])
    if not (isinstance(notes, list) and all(isinstance(note, str) for note in notes)):
        raise UserError(f"recipe {name}: notes should be a list of texts, but is {notes!r}")
    about["notes"] = tuple(notes)
    for key in ("accuracy", "std"):
        value = about.get(key)
        if value == NOT_AVAILABLE:
            about[key] = None
        elif value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise UserError(
                f"recipe {name}: {key} should be a number or {NOT_AVAILABLE!r}, but is {value!r}"
            )
    return about


def _section(name: str, section: str, content: Any) -> dict[str, Any]:
    """The fields of one configuration, of the right types and accepted by its checks."""
    if not isinstance(content, dict):
        raise UserError(f"recipe {name}: {section} should be a section, but is {content!r}")
    config = _CONFIGS[section]
    known = [
        field.name for field in dataclasses.fields(config) if field.name not in _OF_A_RUN[section]
    ]
    for key in content:
        if key in _OF_A_RUN[section]:
            raise UserError(
                f"recipe {name} sets {key} in [{section}], which belongs to a run: give it as a "
                "flag"
            )
        if key not in known:
            raise UserError(
                f"recipe {name} has an unknown field {key!r} in [{section}]{closest(key, known)}"
            )
    try:
        check_types(config, content)
        fields = to_fields(config, content)
        config(**_STAND_INS[section], **fields)
    except UserError as error:
        raise UserError(f"recipe {name}, [{section}]: {error}") from error
    return fields


def _check_window(recipe: Recipe) -> None:
    """Makes sure that the experts keep what the distillation starts from and matches."""
    expert = ExpertConfig(out=Path("store"), **recipe.expert)
    distill = DistillConfig(experts=Path("store"), out=Path("distilled"), **recipe.distill)
    kept = kept_epochs(expert.keep, expert.epochs)
    starts = range(distill.min_start_epoch, distill.window_end(kept))
    needed = {start + after for start in starts for after in (0, distill.expert_epochs)}
    if missing := sorted(needed - set(kept)):
        raise UserError(
            f"recipe {recipe.name} contradicts itself: segments of {distill.expert_epochs} epochs "
            f"from epochs {starts[0]} to {starts[-1]} need epoch {missing[-1]}, which its experts "
            f"(epochs {expert.epochs}, keep {expert.keep}) do not have"
        )
