"""Types for settings and file contents, with value ranges and error messages.

The type of a field includes the range, as in ``ipc: PositiveInt``. The check is the same for values
from Python, the command line and TOML files.
"""

import numbers
import os
import re
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import msgspec.inspect
from msgspec import Meta

from trajmatch.errors import UserError, closest

T = TypeVar("T")

_INT = 2**63 - 1  # largest int64, the type in files and in torch
_FLOAT = sys.float_info.max

Int = Annotated[int, Meta(ge=-_INT, le=_INT)]
Count = Annotated[int, Meta(ge=0, le=_INT)]
PositiveInt = Annotated[int, Meta(ge=1, le=_INT)]
Finite = Annotated[float, Meta(ge=-_FLOAT, le=_FLOAT)]
NonNegative = Annotated[float, Meta(ge=0, le=_FLOAT)]
Positive = Annotated[float, Meta(gt=0, le=_FLOAT)]
#: In [0, 1).
Fraction = Annotated[float, Meta(ge=0, lt=1)]

_NAMES: dict[type[Any], str] = {
    msgspec.inspect.IntType: "a whole number",
    msgspec.inspect.FloatType: "a number",
    msgspec.inspect.BoolType: "true or false",
    msgspec.inspect.DictType: "a section",
    msgspec.inspect.StrType: "a text",
}
_BOUNDS = {"ge": "of at least", "gt": "above", "le": "of at most", "lt": "below"}


class Settings:
    """Base of frozen dataclasses that check their values against the types of the fields.

    A value that does not fit raises UserError; the message names the flag of the field.
    """

    def __post_init__(self) -> None:
        """Check the fields."""
        settle(self, flag)

    def expect(self, name: str, holds: bool, wanted: str) -> None:
        """Raise UserError unless ``holds``; for conditions that involve several fields."""
        if not holds:
            raise UserError(f"{flag(name)} should be {wanted}, but is {getattr(self, name)}")

    def chosen(self, kind: type[Any]) -> list[str]:
        """Return the fields of the base class ``kind`` that differ from their defaults."""
        return [each.name for each in fields(kind) if getattr(self, each.name) != each.default]


def settle(record: Any, name_of: Callable[[str], str]) -> None:
    """Convert the fields of a frozen dataclass to their types, e.g. str to Path, list to tuple.

    To be called in ``__post_init__``. Raises UserError, with the name that ``name_of`` gives to the
    field, if a value does not fit.
    """
    kinds = get_type_hints(type(record), include_extras=True)
    for name, kind in ((each.name, kinds[each.name]) for each in fields(record)):
        given = _plain(getattr(record, name))
        value = setting(given, kind, name_of(name))
        if isinstance(given, list) and isinstance(value, tuple):
            given = tuple(given)
        # Keep an int that is given for a float field, because files would have other bytes with 1.0
        # instead of 1.
        kept = given if value is given or given == value else value
        # A frozen dataclass forbids the usual assignment.
        object.__setattr__(record, name, kept)


def setting(value: Any, kind: Any, name: str, *, strict: bool = True) -> Any:
    """Convert the value of the setting ``name`` to its type; raise UserError if it does not fit.

    ``strict=False`` also reads numbers and booleans from strings.
    """
    try:
        return msgspec.convert(value, kind, dec_hook=_other, strict=strict)
    except msgspec.ValidationError as error:
        wanted = shown(kind)
        choices = wanted.removeprefix("one of ").split(", ") if "one of " in wanted else ()
        meant = closest(value, choices) if isinstance(value, str) else ""
        raise UserError(f"{name} should be {wanted}, but is {value!r}{meant}") from error


def settings_of(config: Any, kind: type[Any]) -> dict[str, Any]:
    """Return the fields of ``config`` that the base class ``kind`` defines, as JSON values."""
    values = {field.name: getattr(config, field.name) for field in fields(kind)}
    return {k: list(each) if isinstance(each, tuple) else each for k, each in values.items()}


def convert(content: Any, kind: type[T], place: str, advice: str = "") -> T:
    """Convert the JSON content of a file to a type such as a ``msgspec.Struct``.

    Raises UserError if a value does not fit. The message ``PLACE: ... ADVICE`` says where in the
    content this value is.
    """
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        # A message of msgspec is "Expected `int`, got `str` - at `$.networks[0].mean`".
        expected, _, path = str(error).partition(" - at `$")
        path, value = path.rstrip("`").lstrip("."), content
        if lacking := re.fullmatch(r"Object missing required field `(.*)`", expected):
            name = f"{path}.{lacking[1]}".lstrip(".")
            raise UserError(f"{place}: it lacks {name}{advice}") from error
        # Follow the path to the wrong value, up to [...], which stands for an unknown key.
        for key in re.findall(r"[^.\[\]]+", path.partition("[...]")[0]):
            value = value[int(key)] if isinstance(value, list) else value[key]
        found = f"its {path or 'content'} is {value!r:.100}"
        raise UserError(f"{place}: {found} ({expected}){advice}") from error


def expect_config(function: str, config: object, kind: type[Any]) -> None:
    """Raise TypeError unless ``config`` is an instance of ``kind``."""
    if not isinstance(config, kind):
        raise TypeError(
            f"{function}: expected config to be a {kind.__name__}, but got {type(config).__name__}"
        )


def flag(name: str) -> str:
    """Return the command-line flag of a field."""
    return "--" + name.replace("_", "-")


def shown(kind: Any) -> str:
    """Return a description of a type in words, for messages."""
    return _described(msgspec.inspect.type_info(kind))


def _described(kind: Any) -> str:
    """Describe a type of :mod:`msgspec.inspect`, e.g. ``a whole number of at least 1``."""
    if isinstance(kind, msgspec.inspect.UnionType):
        kinds = (each for each in kind.types if not isinstance(each, msgspec.inspect.NoneType))
        return " or ".join(map(_described, kinds))
    if isinstance(kind, msgspec.inspect.LiteralType):
        return "one of " + ", ".join(map(str, kind.values))
    if isinstance(kind, msgspec.inspect.VarTupleType):
        some = " of one or more" if kind.min_length else ""
        return f"a list{some}, each {_described(kind.item_type)}"
    if isinstance(kind, msgspec.inspect.CustomType):
        return "a path" if kind.cls is Path else f"a {kind.cls.__name__}"
    bounds = {words: getattr(kind, name, None) for name, words in _BOUNDS.items()}
    # Do not mention the bounds of int64 and float64 themselves.
    told = [
        f"{words} {bound}"
        for words, bound in bounds.items()
        if bound is not None and abs(bound) not in (_INT, _FLOAT)
    ]
    finite = "finite number" if _FLOAT in bounds.values() else "number"
    named = _NAMES[type(kind)].replace("number", finite)
    return f"{named} {' and '.join(told).replace('and of', 'and')}".strip()


def _plain(value: Any) -> Any:
    """Convert NumPy numbers to Python numbers."""
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value))
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _other(kind: type[Any], value: Any) -> Any:
    """Convert a value to a type that msgspec does not know, such as Path or Tensor."""
    if kind is Path and isinstance(value, str | os.PathLike):
        return Path(value)
    if isinstance(value, kind):
        return value
    raise TypeError(f"expected a {kind.__name__}, but got {value!r}")
