"""Command-line arguments to a configuration: the flags are the fields of its dataclass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, TypeVar, get_type_hints

Config = TypeVar("Config")


def parse(config_class: type[Config], argv: Sequence[str], prog: str, *positional: str) -> Config:
    """Fills a configuration from arguments.

    ``--help`` prints the fields with the documentation they have in the class. That and mistakes
    (an unknown flag, a value that is not a number or that the class refuses) end the program, as
    is usual for a command line: with status 0 and 2.

    Args:
        config_class: A dataclass; each field with a line of documentation below it.
        argv: The arguments behind the name of the command.
        prog: The command as the user types it, e.g. ``"trajmatch eval"``.
        positional: Fields that are given by position instead of by a flag.

    Returns:
        The configuration.
    """
    import tyro

    by_position: Any = tyro.conf.Positional
    hints = get_type_hints(config_class, include_extras=True)
    marked: Any = type(
        config_class.__name__,
        (config_class,),
        {
            "__doc__": config_class.__doc__,
            "__module__": config_class.__module__,
            "__annotations__": {name: by_position[hints[name]] for name in positional},
        },
    )
    given = tyro.cli(marked, args=list(argv), prog=prog, config=(tyro.conf.FlagCreatePairsOff,))
    # the class itself and not the marked one, which cannot be pickled for another process
    names = [field.name for field in fields(config_class)]  # type: ignore[arg-type]
    return config_class(**{name: getattr(given, name) for name in names})
