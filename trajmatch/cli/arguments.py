"""Command-line arguments to configurations: the flags are the fields of a dataclass."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import itertools
import re
import textwrap
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import NoneType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from trajmatch.errors import UserError, closest
from trajmatch.schema import flag, setting

if TYPE_CHECKING:
    from trajmatch.recipes import Recipe

Config = TypeVar("Config")


class Section(NamedTuple):
    """A configuration whose fields are flags.

    Attributes:
        config: A dataclass; each field with a line of documentation below it.
        defaults: Values of fields that are not given; they override the class's defaults.
        positional: Fields that are given by position instead of by a flag.
        hidden: Fields that cannot be given.
        stage: First part of the flags, and heading in the help, where several sections are read.
        short: Fields whose flag is also known without the stage.
    """

    config: type[Any]
    defaults: Mapping[str, Any] = {}
    positional: Collection[str] = ()
    hidden: Collection[str] = ()
    stage: str = ""
    short: Collection[str] = ()


class _Option(NamedTuple):
    """A field that can be given, and how argparse knows it."""

    section: Section
    field: str
    hint: Any
    required: bool
    action: argparse.Action

    @property
    def shown(self) -> str:
        """Its flag, or its name in capitals where it is given by position."""
        return str([*self.action.option_strings, self.action.metavar][0])


def parse(
    config: type[Config],
    argv: Sequence[str],
    prog: str,
    *positional: str,
    defaults: Mapping[str, Any] | None = None,
) -> Config:
    """Fill a configuration from arguments.

    ``--help`` prints the fields with the documentation they have in the class, and ends the program
    with status 0.

    Args:
        config: A dataclass; each field with a line of documentation below it.
        argv: The arguments after the name of the command.
        prog: The command as the user types it, e.g. ``"trajmatch eval"``.
        positional: Fields that are given by position instead of by a flag.
        defaults: Values of fields that are not given; they override the class's defaults.

    Returns:
        The configuration.

    Raises:
        UserError: A flag is unknown or missing, or a value is refused.
    """
    (given,) = read([Section(config, defaults or {}, positional)], argv, prog)
    return config(**{**(defaults or {}), **given})


def read(sections: Sequence[Section], argv: Sequence[str], prog: str) -> list[dict[str, Any]]:
    """Return the values that the arguments give to each section's fields; see :func:`parse`."""
    text = (sections[0].config.__doc__ or "").partition("Raises:")[0]
    parser = argparse.ArgumentParser(
        description=" ".join(text.split()),
        argument_default=argparse.SUPPRESS,
        exit_on_error=False,
        allow_abbrev=False,
    )
    options = [option for section in sections for option in _add_options(parser, section)]
    needed = [each for each in options if each.required]
    flags = [f"{each.shown} {each.field.upper()}" for each in needed if each.action.option_strings]
    others = [each.shown for each in needed if not each.action.option_strings]
    parser.usage = " ".join([prog, *others, *flags, "[OPTIONS]"])
    # The programs of the papers have underscores in their flags.
    tokens = [re.sub(r"^--[^=]+", lambda flag: flag[0].replace("_", "-"), each) for each in argv]
    try:
        found, unknown = parser.parse_known_intermixed_args(tokens)
    except argparse.ArgumentError as error:
        name = (error.argument_name or "").split("/")[-1]
        raise UserError(f"{name}: {error.message}; see {prog} --help") from error
    if unknown:
        raise UserError(f"{_refusal(unknown, options, prog)}; see {prog} --help")
    given = {key: value for key, value in vars(found).items() if value is not None}
    for option in options:
        if option.action.nargs == "?" and option.action.dest not in given:
            # In `--network convnet FILE` the list before it has taken the file.
            for values in [*given.values()]:
                if isinstance(values, list) and len(values) > 1 and values[-1] == tokens[-1]:
                    given[option.action.dest] = values.pop()
    missing = [each.shown for each in options if each.required and not given.get(each.action.dest)]
    if missing:
        raise UserError(f"{prog} needs {' and '.join(missing)}; see {prog} --help")
    return [
        {
            each.field: setting(given[each.action.dest], each.hint, each.shown, strict=False)
            for each in options
            if each.section is section and each.action.dest in given
        }
        for section in sections
    ]


def _add_options(parser: argparse.ArgumentParser, section: Section) -> Iterator[_Option]:
    """Make the fields of a configuration known; what is not given is left out of the result."""
    texts, hints = _documentation(section.config), typing.get_type_hints(section.config)
    group = parser.add_argument_group(section.stage) if section.stage else parser
    fields = dataclasses.fields(section.config)
    for field in sorted(fields, key=lambda each: each.default is not dataclasses.MISSING):
        if field.name in section.hidden:
            continue
        default = section.defaults.get(field.name, field.default)
        kind, several = _kind(hints[field.name])
        name = ("no-" if default is True else "") + field.name.replace("_", "-")
        flags = [f"--{section.stage}.{name}"] if section.stage else []
        flags += [f"--{name}"] if not section.stage or field.name in section.short else []
        off = "Turn off what is on by default: " if default is True else ""
        settings: dict[str, Any] = {
            "dest": f"{section.stage}.{field.name}",
            "help": off + texts[field.name].replace("%", "%%") + _shown_default(default),
        }
        if kind is bool:
            settings |= {"action": "store_const", "const": default is not True}
        elif field.name in section.positional:
            flags = []
            settings |= {"nargs": "*" if several else "?", "metavar": field.name.upper()}
        else:
            choices = ",".join(map(str, typing.get_args(kind)))
            metavar = f"{{{choices}}}" if choices else kind.__name__.upper()
            settings |= {"nargs": "*" if several else None, "metavar": metavar}
        action = group.add_argument(*flags, **settings)
        yield _Option(
            section, field.name, hints[field.name], default is dataclasses.MISSING, action
        )


def _kind(hint: Any) -> tuple[Any, bool]:
    """Type of a value that is given, or of each of several, and whether there are several."""
    kinds = [each for each in typing.get_args(hint) if each is not NoneType]
    if NoneType in typing.get_args(hint):
        return _kind(kinds[0])
    return (kinds[0], True) if typing.get_origin(hint) is tuple else (hint, False)


def _shown_default(default: Any) -> str:
    if default is dataclasses.MISSING:
        return " (required)"
    if default is None or default == () or isinstance(default, bool):
        return ""
    values = default if isinstance(default, tuple | list) else [default]
    return f" (default: {' '.join(map(str, values))})"


def _refusal(unknown: Sequence[str], options: Sequence[_Option], prog: str) -> str:
    """Say of the first argument that is not known what was meant."""
    token = next((each for each in unknown if each.startswith("-")), unknown[0]).partition("=")[0]
    if not token.startswith("-"):
        return f"{prog} does not know what to do with {token!r}"
    name = token.lstrip("-").rpartition(".")[2]
    flags = [each for each in options if each.action.option_strings]
    meant = [each.shown for each in flags if each.field.replace("_", "-") == name]
    # The help names what the papers' programs have, as in (MTT: lr_img).
    papers = re.compile(rf"\b[A-Z]+: {re.escape(name.replace('-', '_'))}\b")
    meant = meant or [each.shown for each in flags if papers.search(each.action.help or "")][:1]
    names = [each for flag in flags for each in flag.action.option_strings]
    hint = f" (did you mean {' or '.join(meant)}?)" if meant else closest(token, names)
    return f"{prog} has no flag {token}{hint}"


def _documentation(config_class: type[Any]) -> dict[str, str]:
    """Read the text below each field of a class and its bases, without its line breaks."""
    found = {}
    for base in filter(dataclasses.is_dataclass, reversed(config_class.__mro__)):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for field, text in itertools.pairwise(tree.body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                assert isinstance(field.target, ast.Name) and isinstance(text.value, ast.Constant)
                found[field.target.id] = " ".join(str(text.value.value).split())
    return found


def as_typed(message: str, argv: Sequence[str]) -> str:
    """Name the flags in a message as they are spelled among some arguments.

    ``--ipc`` becomes ``--distill.ipc`` or ``--init_from`` where the user typed that.

    Args:
        message: The message, with flags by the names of their fields.
        argv: The arguments.
    """
    # by the last part of their names; a flag stands before =
    ways = [token.partition("=")[0] for token in argv if token.startswith("--")]
    typed = {way.lstrip("-").rpartition(".")[2].replace("_", "-"): way for way in ways}

    def spelled(flag: re.Match[str]) -> str:
        way = typed.get(flag[0].lstrip("-").rpartition(".")[2], flag[0])
        return flag[0] if way in message else way

    # Commands that a message suggests stand in backticks.
    parts = message.split("`")
    parts[::2] = [re.sub(r"--[a-z](?:[.-]?[a-z0-9])*", spelled, part) for part in parts[::2]]
    return "`".join(parts)


def recipe_of(argv: Sequence[str]) -> Recipe:
    """Find the recipe that ``--recipe`` among some arguments names.

    It is read before the other flags, because it decides what they are when not given.

    Args:
        argv: The arguments after the name of the command.

    Returns:
        The recipe; an empty one without the flag, or with nothing behind it.

    Raises:
        UserError: There is no such recipe, it cannot be used, or ``--objective`` has no such
            settings.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--recipe", nargs="?")
    parser.add_argument("--objective", "--distill.objective", nargs="?")
    given = parser.parse_known_args(argv)[0]
    from trajmatch.distill.config import DistillSettings
    from trajmatch.recipes import Recipe, find_recipe

    if given.recipe is None:
        return Recipe(name="")
    recipe = find_recipe(given.recipe)
    foreign = DistillSettings(objective=given.objective).foreign if given.objective else []
    if wrong := [flag(name) for name in recipe.distill if name in foreign]:
        raise UserError(
            f"recipe {recipe.name} sets {wrong[0]}, which --objective {given.objective} does not "
            "have; give another recipe"
        )
    return recipe
