"""Parse command-line arguments into dataclasses, whose fields are the flags."""

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
    """A configuration class whose fields become arguments."""

    config: type[Any]  # a dataclass with a documentation string below each field
    defaults: Mapping[str, Any] = {}  # override the defaults of the class
    positional: Collection[str] = ()  # fields given by position instead of by a flag
    hidden: Collection[str] = ()  # fields without a flag
    # If several sections are parsed together, flags are --STAGE.FIELD, below the heading STAGE.
    stage: str = ""
    short: Collection[str] = ()  # fields that also have the flag --FIELD, without the stage


class _Option(NamedTuple):
    """A field and its argparse action."""

    section: Section
    field: str
    hint: Any
    required: bool
    action: argparse.Action

    @property
    def shown(self) -> str:
        """Flag of the field; for a positional argument, the name in capitals."""
        return str([*self.action.option_strings, self.action.metavar][0])


def parse(
    config: type[Config],
    argv: Sequence[str],
    prog: str,
    *positional: str,
    defaults: Mapping[str, Any] | None = None,
) -> Config:
    """Return a configuration filled from the arguments ``argv`` of a command.

    ``config`` is a dataclass with a documentation string below each field, which ``--help`` prints
    before it exits with status 0. ``prog`` is the command as typed, e.g. ``"trajmatch eval"``.
    ``positional`` are fields given by position, and ``defaults`` override the defaults of the
    class. Raises UserError if a flag is unknown or missing, or if a value is invalid.
    """
    (given,) = read([Section(config, defaults or {}, positional)], argv, prog)
    return config(**{**(defaults or {}), **given})


def read(sections: Sequence[Section], argv: Sequence[str], prog: str) -> list[dict[str, Any]]:
    """Return the values given for the fields of each section, without defaults."""
    text = (sections[0].config.__doc__ or "").partition("Raises:")[0]
    # SUPPRESS keeps arguments that are not given out of the result, for the caller's defaults.
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
    # Accept underscores in flags, because the papers' programs have them.
    tokens = [re.sub(r"^--[^=]+", lambda flag: flag[0].replace("_", "-"), each) for each in argv]
    try:
        # "Intermixed" allows positional arguments between flags.
        found, unknown = parser.parse_known_intermixed_args(tokens)
    except argparse.ArgumentError as error:
        name = (error.argument_name or "").split("/")[-1]
        raise UserError(f"{name}: {error.message}; see {prog} --help") from error
    if unknown:
        raise UserError(f"{_refusal(unknown, options, prog)}; see {prog} --help")
    given = {key: value for key, value in vars(found).items() if value is not None}
    for option in options:
        if option.action.nargs == "?" and option.action.dest not in given:
            # In `--network convnet FILE` the list of --network has taken FILE: move it back.
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
    """Add an argument for each field of a section to the parser, and yield the options."""
    texts, hints = _documentation(section.config), typing.get_type_hints(section.config)
    group = parser.add_argument_group(section.stage) if section.stage else parser
    fields = dataclasses.fields(section.config)
    # Required fields come first in the help.
    for field in sorted(fields, key=lambda each: each.default is not dataclasses.MISSING):
        if field.name in section.hidden:
            continue
        default = section.defaults.get(field.name, field.default)
        kind, several = _kind(hints[field.name])
        # A field that is on by default gets the flag --no-FIELD, which turns it off.
        name = ("no-" if default is True else "") + field.name.replace("_", "-")
        flags = [f"--{section.stage}.{name}"] if section.stage else []
        flags += [f"--{name}"] if not section.stage or field.name in section.short else []
        off = "On by default; this flag turns it off: " if default is True else ""
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
    """Return the type of one value of a field, and True if the field takes several values."""
    kinds = [each for each in typing.get_args(hint) if each is not NoneType]
    if NoneType in typing.get_args(hint):
        return _kind(kinds[0])
    return (kinds[0], True) if typing.get_origin(hint) is tuple else (hint, False)


def _shown_default(default: Any) -> str:
    """Return the default as an addition to the help text of a field."""
    if default is dataclasses.MISSING:
        return " (required)"
    if default is None or default == () or isinstance(default, bool):
        return ""
    values = default if isinstance(default, tuple | list) else [default]
    return f" (default: {' '.join(map(str, values))})"


def _refusal(unknown: Sequence[str], options: Sequence[_Option], prog: str) -> str:
    """Return the message for unknown arguments, with a suggestion for the first unknown flag."""
    # The values of an unknown flag are unknown too, so look for the flag first.
    token = next((each for each in unknown if each.startswith("-")), unknown[0]).partition("=")[0]
    if not token.startswith("-"):
        return f"{prog} got an unexpected argument {token!r}"
    name = token.lstrip("-").rpartition(".")[2]
    flags = [each for each in options if each.action.option_strings]
    meant = [each.shown for each in flags if each.field.replace("_", "-") == name]
    # Help texts give the flags of the papers' programs in this form: (MTT: lr_img).
    papers = re.compile(rf"\b[A-Z]+: {re.escape(name.replace('-', '_'))}\b")
    meant = meant or [each.shown for each in flags if papers.search(each.action.help or "")][:1]
    names = [each for flag in flags for each in flag.action.option_strings]
    hint = f" (did you mean {' or '.join(meant)}?)" if meant else closest(token, names)
    return f"{prog} has no flag {token}{hint}"


def _documentation(config_class: type[Any]) -> dict[str, str]:
    """Return the documentation string below each field, as one line."""
    found = {}
    # Bases come first, so that a subclass can replace the text of a field.
    for base in filter(dataclasses.is_dataclass, reversed(config_class.__mro__)):
        # Python discards strings that stand alone in a class, so read them from the source.
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for field, text in itertools.pairwise(tree.body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                assert isinstance(field.target, ast.Name) and isinstance(text.value, ast.Constant)
                found[field.target.id] = " ".join(str(text.value.value).split())
    return found


def as_typed(message: str, argv: Sequence[str]) -> str:
    """Return a message with its flags as the user typed them, e.g. ``--distill.ipc``."""
    # The key of a typed flag is its last part: ipc for --distill.ipc, init-from for --init_from.
    ways = [token.partition("=")[0] for token in argv if token.startswith("--")]
    typed = {way.lstrip("-").rpartition(".")[2].replace("_", "-"): way for way in ways}

    def spelled(flag: re.Match[str]) -> str:
        way = typed.get(flag[0].lstrip("-").rpartition(".")[2], flag[0])
        # If the message already has the typed flag, this is the same flag of another stage.
        return flag[0] if way in message else way

    # Odd parts are in backticks: commands that the message suggests, which stay unchanged.
    parts = message.split("`")
    parts[::2] = [re.sub(r"--[a-z](?:[.-]?[a-z0-9])*", spelled, part) for part in parts[::2]]
    return "`".join(parts)


def recipe_of(argv: Sequence[str]) -> Recipe:
    """Return the recipe that ``--recipe`` names; an empty recipe without that flag.

    Raises UserError if the recipe is missing or invalid, or has settings that ``--objective`` does
    not have.
    """
    # Read --recipe before all other flags, because the recipe decides their defaults. With "?", a
    # missing value is no error here: the main parser reports it.
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
