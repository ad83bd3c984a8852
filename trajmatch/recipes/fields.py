"""Values of a recipe file as the fields of a configuration."""

from __future__ import annotations

import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from trajmatch.errors import UserError


def check_types(config: type[Any], content: Mapping[str, Any]) -> None:
    """Makes sure that every value is of the type that its field has.

    Args:
        config: A configuration.
        content: Values as TOML has them, by the names of its fields.

    Raises:
        UserError: One is not; it is named.
    """
    hints = get_type_hints(config)
    for name, value in content.items():
        if not _fits(value, hints[name]):
            raise UserError(f"{name} should be {_shown(hints[name])}, but is {value!r}")


def to_fields(config: type[Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """The values in the types of the fields: TOML has lists where they have tuples.

    Args:
        config: A configuration.
        content: Values that :func:`check_types` accepted.
    """
    hints = get_type_hints(config)
    return {name: _converted(value, hints[name]) for name, value in content.items()}


def _fits(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, each) for each in get_args(hint))
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(hint))
    if origin is tuple:
        return isinstance(value, list) and all(_fits(each, get_args(hint)[0]) for each in value)
    if hint is float:
        whole = type(value) is int and abs(value) < 2**1000  # beyond that there is no such float
        return whole or isinstance(value, float)
    if hint is Path:
        return isinstance(value, str)
    return type(value) is hint


def _converted(value: Any, hint: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    if hint is float and isinstance(value, int):
        return float(value)
    return value


def _shown(hint: Any) -> str:
    """A type as a user reads it."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        shown = [_shown(each) for each in get_args(hint) if each is not type(None)]
        return " or ".join(shown)
    if origin is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if origin is tuple:
        return f"a list, each {_shown(get_args(hint)[0])}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return names.get(hint, "a text")
