"""Types of the fields of configurations: values from Python, from recipes, and their names."""

from __future__ import annotations

import numbers
import os
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from trajmatch.errors import UserError, closest


def settle(config: object) -> None:
    """Bring every field of a configuration into its type: texts into paths, lists into tuples.

    Args:
        config: A frozen dataclass, in its ``__post_init__``.

    Raises:
        UserError: A value is of another type or none of the choices; it is named.
    """
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if not _fits(value, hint):
            flag, meant = "--" + name.replace("_", "-"), _meant(value, hint)
            raise UserError(f"{flag} should be {shown(hint)}, but is {value!r}{meant}")
        object.__setattr__(config, name, _settled(value, hint))


def expect_config(function: str, config: object, kind: type[Any]) -> None:
    """Raise TypeError unless a function was given its configuration."""
    if not isinstance(config, kind):
        raise TypeError(
            f"{function}: expected config to be a {kind.__name__}, but got {type(config).__name__}"
        )


def check_types(config: type[Any], content: Mapping[str, Any]) -> None:
    """Make sure that every value is of the type that its field has.

    Args:
        config: A configuration.
        content: Values as TOML has them, by the names of its fields.

    Raises:
        UserError: One is not; it is named.
    """
    hints = get_type_hints(config)
    for name, value in content.items():
        if not _fits(value, hints[name]):
            raise UserError(f"{name} should be {shown(hints[name])}, but is {value!r}")


def to_fields(config: type[Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """Convert values to the types of the fields: TOML has lists where they have tuples.

    Args:
        config: A configuration.
        content: Values that :func:`check_types` accepted.
    """
    hints = get_type_hints(config)
    return {name: _converted(value, hints[name]) for name, value in content.items()}


def shown(hint: Any) -> str:
    """A type as a user reads it."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(shown(each) for each in get_args(hint) if each is not type(None))
    if origin is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if origin is tuple:
        return f"a list, each {shown(get_args(hint)[0])}"
    names = {int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}
    return names.get(hint, "a text")


def _meant(value: Any, hint: Any) -> str:
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    return closest(value, map(str, choices)) if isinstance(value, str) else ""


def _fits(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, each) for each in get_args(hint))
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(hint))
    if origin is tuple:
        listed = isinstance(value, list | tuple)
        return listed and all(_fits(each, get_args(hint)[0]) for each in value)
    if isinstance(value, bool):
        return hint is bool
    if hint is int:  # of 64 bits, as in files and in torch
        return isinstance(value, numbers.Integral) and abs(int(value)) < 2**63
    if hint is float:
        if isinstance(value, numbers.Integral):
            return abs(int(value)) < 2**1000  # beyond that there is no such float
        return isinstance(value, numbers.Real)
    if hint is Path:
        return isinstance(value, str | os.PathLike)
    return type(value) is hint


def _settled(value: Any, hint: Any) -> Any:
    """Convert a value that fits to plain Python types; a whole number for a float stays whole."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _settled(value, next(each for each in get_args(hint) if _fits(value, each)))
    if origin is tuple:
        return tuple(_settled(each, get_args(hint)[0]) for each in value)
    if hint is Path:
        return Path(value)
    if hint is int or (hint is float and isinstance(value, numbers.Integral)):
        return int(value)
    return float(value) if hint is float else value


def _converted(value: Any, hint: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    if hint is float and isinstance(value, int):
        return float(value)
    return value
