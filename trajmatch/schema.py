"""Types of settings and of what files hold: their ranges, and messages for what does not fit.

A range stands in the type of a field (``ipc: PositiveInt``), for values from Python, from the
command line and from TOML.
"""

from __future__ import annotations

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

_INT = 2**63 - 1  # as in files and in torch
_FLOAT = sys.float_info.max

Int = Annotated[int, Meta(ge=-_INT, le=_INT)]
Count = Annotated[int, Meta(ge=0, le=_INT)]
PositiveInt = Annotated[int, Meta(ge=1, le=_INT)]
Finite = Annotated[float, Meta(ge=-_FLOAT, le=_FLOAT)]
NonNegative = Annotated[float, Meta(ge=0, le=_FLOAT)]
Positive = Annotated[float, Meta(gt=0, le=_FLOAT)]
#: From 0, and below 1.
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
    """Base of frozen dataclasses whose values are checked against the types of their fields.

    Raises:
        UserError: A value does not fit; it is named as a flag.
    """

    def __post_init__(self) -> None:
        """Check the fields."""
        settle(self, flag)

    def expect(self, name: str, holds: bool, wanted: str) -> None:
        """Raise UserError unless a field fits the others."""
        if not holds:
            raise UserError(f"{flag(name)} should be {wanted}, but is {getattr(self, name)}")

    def chosen(self, kind: type[Any]) -> list[str]:
        """List the fields of a base class that do not have their default values."""
        return [each.name for each in fields(kind) if getattr(self, each.name) != each.default]


def settle(record: Any, name_of: Callable[[str], str]) -> None:
    """Bring the fields of a frozen dataclass into their types: texts into paths, lists into tuples.

    Args:
        record: In its ``__post_init__``.
        name_of: Gives the name of a field in messages.

    Raises:
        UserError: A value does not fit the type of its field.
    """
    kinds = get_type_hints(type(record), include_extras=True)
    for name, kind in ((each.name, kinds[each.name]) for each in fields(record)):
        given = _plain(getattr(record, name))
        value = setting(given, kind, name_of(name))
        if isinstance(given, list) and isinstance(value, tuple):
            given = tuple(given)
        # A whole number for a float stays whole: the bytes of files depend on it.
        kept = given if value is given or given == value else value
        object.__setattr__(record, name, kept)


def setting(value: Any, kind: Any, name: str, *, strict: bool = True) -> Any:
    """Convert the value of a setting to its type.

    Args:
        value: From Python or TOML.
        kind: The annotation of the field.
        name: The setting as the user writes it.
        strict: False to take numbers and truth values from texts.

    Raises:
        UserError: It does not fit; the message says what does.
    """
    try:
        return msgspec.convert(value, kind, dec_hook=_other, strict=strict)
    except msgspec.ValidationError as error:
        wanted = shown(kind)
        choices = wanted.removeprefix("one of ").split(", ") if "one of " in wanted else ()
        meant = closest(value, choices) if isinstance(value, str) else ""
        raise UserError(f"{name} should be {wanted}, but is {value!r}{meant}") from error


def settings_of(config: Any, kind: type[Any]) -> dict[str, Any]:
    """Return the fields of a configuration that one of its base classes has, as JSON holds them."""
    values = {field.name: getattr(config, field.name) for field in fields(kind)}
    return {k: list(each) if isinstance(each, tuple) else each for k, each in values.items()}


def convert(content: Any, kind: type[T], place: str, advice: str = "") -> T:
    """Convert what was read from a file to its type.

    Args:
        content: As JSON holds it.
        kind: Such as a ``msgspec.Struct`` or a ``TypedDict``.
        place: The beginning of the message, e.g. ``"store.json is damaged"``.
        advice: The end of it, e.g. ``"; delete it"``.

    Raises:
        UserError: It does not fit; the message says where.
    """
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        expected, _, path = str(error).partition(" - at `$")
        path, value = path.rstrip("`").lstrip("."), content
        if lacking := re.fullmatch(r"Object missing required field `(.*)`", expected):
            name = f"{path}.{lacking[1]}".lstrip(".")
            raise UserError(f"{place}: it lacks {name}{advice}") from error
        for key in re.findall(r"[^.\[\]]+", path.partition("[...]")[0]):
            value = value[int(key)] if isinstance(value, list) else value[key]
        found = f"its {path or 'content'} is {value!r:.100}"
        raise UserError(f"{place}: {found} ({expected}){advice}") from error


def expect_config(function: str, config: object, kind: type[Any]) -> None:
    """Raise TypeError unless a function was given its configuration."""
    if not isinstance(config, kind):
        raise TypeError(
            f"{function}: expected config to be a {kind.__name__}, but got {type(config).__name__}"
        )


def flag(name: str) -> str:
    """Return the flag of a field."""
    return "--" + name.replace("_", "-")


def shown(kind: Any) -> str:
    """Describe a type to a user."""
    return _described(msgspec.inspect.type_info(kind))


def _described(kind: Any) -> str:
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
    told = [
        f"{words} {bound}"
        for words, bound in bounds.items()
        if bound is not None and abs(bound) not in (_INT, _FLOAT)
    ]
    finite = "finite number" if _FLOAT in bounds.values() else "number"
    named = _NAMES[type(kind)].replace("number", finite)
    return f"{named} {' and '.join(told).replace('and of', 'and')}".strip()


def _plain(value: Any) -> Any:
    """Convert numbers of NumPy to numbers of Python."""
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value))
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _other(kind: type[Any], value: Any) -> Any:
    """Convert to a type that msgspec does not know: a path, or a class of PyTorch or ours."""
    if kind is Path and isinstance(value, str | os.PathLike):
        return Path(value)
    if isinstance(value, kind):
        return value
    raise TypeError(f"expected a {kind.__name__}, but got {value!r}")
