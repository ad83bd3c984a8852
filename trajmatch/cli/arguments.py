"""Command-line arguments to a configuration: the flags are the fields of its dataclass."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

if TYPE_CHECKING:
    from trajmatch.recipes import Recipe

Config = TypeVar("Config")


def parse(
    config_class: type[Config],
    argv: Sequence[str],
    prog: str,
    *positional: str,
    defaults: Mapping[str, Any] | None = None,
) -> Config:
    """Fills a configuration from arguments.

    ``--help`` prints the fields with the documentation they have in the class. That and mistakes
    (an unknown flag, a value that is not a number or that the class refuses) end the program, as
    is usual for a command line: with status 0 and 2.

    Args:
        config_class: A dataclass; each field with a line of documentation below it.
        argv: The arguments behind the name of the command.
        prog: The command as the user types it, e.g. ``"trajmatch eval"``.
        positional: Fields that are given by position instead of by a flag.
        defaults: Values of fields that are not given, in place of those of the class.

    Returns:
        The configuration.
    """
    import tyro

    marked = with_defaults(config_class, defaults or {}, positional)
    given = tyro.cli(marked, args=list(argv), prog=prog, config=(tyro.conf.FlagCreatePairsOff,))
    # the class itself and not the marked one, which cannot be pickled for another process
    names = [field.name for field in dataclasses.fields(config_class)]  # type: ignore[arg-type]
    return config_class(**{name: getattr(given, name) for name in names})


def with_defaults(
    config_class: type[Any],
    defaults: Mapping[str, Any],
    positional: Sequence[str] = (),
    hidden: Sequence[str] = (),
) -> Any:
    """A configuration class whose fields have other defaults, for tyro.

    Args:
        config_class: A dataclass.
        defaults: Values of some fields.
        positional: Fields that are given by position.
        hidden: Fields that have no flag; each must have a default.

    Returns:
        A dataclass that inherits from it.
    """
    import tyro

    hints = get_type_hints(config_class, include_extras=True)
    by_position: Any = tyro.conf.Positional
    suppressed: Any = tyro.conf.Suppress
    changed: list[tuple[str, Any, Any]] = []
    for name in dict.fromkeys([*positional, *hidden, *defaults]):
        hint = hints[name]
        if name in positional:
            hint = by_position[hint]
        if name in hidden:
            hint = suppressed[hint]
        field = dataclasses.field(**({"default": defaults[name]} if name in defaults else {}))
        changed.append((name, hint, field))
    marked = dataclasses.make_dataclass(
        config_class.__name__, changed, bases=(config_class,), frozen=True, kw_only=True
    )
    marked.__doc__, marked.__module__ = config_class.__doc__, config_class.__module__
    return marked


def recipe_of(argv: Sequence[str]) -> Recipe | None:
    """The recipe that ``--recipe`` among some arguments names.

    It is read before the other flags, because it decides what they are when not given.

    Args:
        argv: The arguments behind the name of the command.

    Returns:
        The recipe; None without the flag, or with nothing behind it.

    Raises:
        UserError: There is no such recipe, or it cannot be used.
    """
    for number, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if flag == "--recipe" and (equals or argv[number + 1 :]):
            from trajmatch.recipes import find_recipe

            return find_recipe(value if equals else argv[number + 1])
    return None
