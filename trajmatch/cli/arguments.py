"""Command-line arguments to a configuration: the flags are the fields of its dataclass."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import itertools
import os
import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

from trajmatch.errors import UserError, closest

if TYPE_CHECKING:
    from trajmatch.recipes import Recipe

#: Columns of a help text at least: in one or two, tyro does not end. The terminal breaks its lines.
_NARROWEST = 20

Config = TypeVar("Config")

#: Attribute of a class of :func:`with_defaults`: the class that has the documentation.
_DOCUMENTED = "_documented"


def parse(
    config_class: type[Config],
    argv: Sequence[str],
    prog: str,
    *positional: str,
    defaults: Mapping[str, Any] | None = None,
) -> Config:
    """Fill a configuration from arguments.

    ``--help`` prints the fields with the documentation they have in the class, and ends the program
    with status 0.

    Args:
        config_class: A dataclass; each field with a line of documentation below it.
        argv: The arguments behind the name of the command.
        prog: The command as the user types it, e.g. ``"trajmatch eval"``.
        positional: Fields that are given by position instead of by a flag.
        defaults: Values of fields that are not given, in place of those of the class.

    Returns:
        The configuration.

    Raises:
        UserError: A flag is unknown or missing, or a value is refused.
    """
    given = fill(with_defaults(config_class, defaults or {}, positional), argv, prog)
    for name in positional:
        if getattr(given, name) == ():
            raise UserError(f"{prog} needs {name.upper()}; see {prog} --help")
    # the class itself and not the marked one, which cannot be pickled for another process
    names = [field.name for field in dataclasses.fields(config_class)]  # type: ignore[arg-type]
    return config_class(**{name: getattr(given, name) for name in names})


def fill(marked: Any, argv: Sequence[str], prog: str) -> Any:
    """Fill a dataclass of :func:`with_defaults` from arguments; see :func:`parse`."""
    import tyro

    if shutil.get_terminal_size().columns < _NARROWEST:
        os.environ["COLUMNS"] = str(_NARROWEST)
    with _plain_messages(tyro, marked, prog):
        return tyro.cli(
            marked,
            args=list(argv),
            prog=prog,
            description=_wrapped(marked),
            config=(tyro.conf.FlagCreatePairsOff,),
        )


def with_defaults(
    config_class: type[Any],
    defaults: Mapping[str, Any],
    positional: Sequence[str] = (),
    hidden: Sequence[str] = (),
    short: Sequence[str] = (),
) -> Any:
    """Make a configuration class whose fields have other defaults, for tyro.

    Args:
        config_class: A dataclass.
        defaults: Values of some fields.
        positional: Fields that are given by position.
        hidden: Fields that have no flag; each must have a default.
        short: Fields of a nested configuration whose flag is also known without the prefix.

    Returns:
        A dataclass that inherits from it.
    """
    import tyro

    documentation, hints = _documentation(config_class), get_type_hints(config_class)
    changed = []
    for field in dataclasses.fields(config_class):
        name, hint, default = field.name, hints[field.name], defaults.get(field.name, field.default)
        several = name in positional and get_origin(hint) is tuple
        shown = "(required)" if several else "" if default is None else None
        marks: list[Any] = [
            tyro.conf.arg(
                help=documentation[name],
                help_behavior_hint=shown,
                metavar=_metavar(hint, name if name in positional else ""),
                aliases=(_flag(name, default),) if name in short else None,
            )
        ]
        marks += [tyro.conf.Positional] if name in positional else []
        marks += [tyro.conf.Suppress, tyro.conf.Fixed] if name in hidden else []
        annotated: Any = Annotated[(hint, *marks)]
        changed.append((name, annotated, dataclasses.field(default=default)))
    marked = dataclasses.make_dataclass(
        config_class.__name__, changed, bases=(config_class,), frozen=True, kw_only=True
    )
    marked.__doc__, marked.__module__ = _description(config_class), config_class.__module__
    setattr(marked, _DOCUMENTED, config_class)
    return marked


def as_typed(message: str, argv: Sequence[str]) -> str:
    """Name the flags in a message as they are spelled among some arguments.

    ``--ipc`` becomes ``--distill.ipc`` or ``--init_from`` where the user typed that.

    Args:
        message: The message, with flags by the names of their fields.
        argv: The arguments.
    """
    typed = {
        "--" + token.partition("=")[0][2:].rpartition(".")[2].replace("_", "-"): token
        for token in argv
        if token.startswith("--")
    }

    def spelled(match: re.Match[str]) -> str:
        way = typed.get(match[0], "").partition("=")[0]
        return match[0] if way in message else way

    # Commands that a message suggests stand in backticks.
    parts = message.split("`")
    parts[::2] = [re.sub(r"--[a-z][a-z0-9-]*(?![\w.])", spelled, part) for part in parts[::2]]
    return "`".join(parts)


def recipe_of(argv: Sequence[str]) -> Recipe | None:
    """Find the recipe that ``--recipe`` among some arguments names.

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


def _documentation(config_class: type[Any]) -> dict[str, str]:
    """Read the text below each field of a class, without its line breaks."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(config_class))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, text in itertools.pairwise(tree.body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            assert isinstance(field.target, ast.Name) and isinstance(text.value, ast.Constant)
            found[field.target.id] = " ".join(str(text.value.value).split())
    return found


def _description(config_class: type[Any]) -> str:
    """Read what a class is for, without line breaks."""
    text = (config_class.__doc__ or "").partition("Raises:")[0]
    return " ".join(text.split())


def _wrapped(marked: type[Any]) -> str:
    """Wrap the description of a class to the terminal; tyro joins lines that are not indented."""
    width, indent = shutil.get_terminal_size().columns, "  "
    text = marked.__doc__ or ""
    return textwrap.fill(text, width - 2, initial_indent=indent, subsequent_indent=indent)


def _metavar(hint: Any, positional: str) -> str | None:
    """Name a value by position, or that of a flag that can be left out; None leaves it to tyro."""
    if positional:
        return positional.upper() + (" ..." if get_origin(hint) is tuple else "")
    kinds = [each for each in get_args(hint) if each is not type(None)]
    if type(None) not in get_args(hint) or len(kinds) != 1 or get_origin(kinds[0]) is tuple:
        return None
    if get_origin(kinds[0]) is Literal:
        return "{" + ",".join(map(str, get_args(kinds[0]))) + "}"
    return {int: "INT", float: "FLOAT", str: "STR", Path: "PATH"}[kinds[0]]


def _flag(name: str, default: object = None) -> str:
    """The flag of a field; of one that is true by default the flag that switches it off."""
    return ("--no-" if default is True else "--") + name.replace("_", "-")


def _plain_messages(
    tyro: Any, marked: type[Any], prog: str
) -> contextlib.AbstractContextManager[None]:
    """Replace what tyro says of mistakes, in boxes and its own words, by one line of ours."""
    events = getattr(tyro, "_errors", None)
    if events is None:  # another release, which says it in its own way
        return contextlib.nullcontext()

    def refuse(event: Any) -> None:
        kind, help_ = type(event).__name__, f"see {prog} --help"
        flag = _shown_flag(event.argument) if getattr(event, "argument", None) else ""
        tokens = getattr(event, "tokens", getattr(event, "unrecognized_tokens", []))
        if tokens:
            raise UserError(f"{_unknown(prog, tokens, marked)}; {help_}")
        if kind == "MissingArgs":
            missing = " and ".join(_shown_flag(each.arg) for each in event.missing_arguments)
            raise UserError(f"{prog} needs {missing}; {help_}")
        if kind == "InvalidChoice":
            meant = closest(event.value, event.choices)
            choices = ", ".join(event.choices)
            raise UserError(f"{flag} should be one of {choices}, but is {event.value!r}{meant}")
        if kind == "BadValue" and event.reason == "fixed":
            raise UserError(f"{flag} is set by {prog} itself; leave it out")
        if kind == "BadValue":
            raise UserError(f"{flag} needs a value; {help_}")
        if kind == "InstantiationFailure" and flag:
            from trajmatch.fields import shown

            value, wanted = re.search(r"'.*'", event.message), event.argument.field.type_stripped
            given = value[0] if value else event.message
            raise UserError(f"{flag} should be {shown(wanted)}, but is {given}")
        if kind == "InstantiationFailure":
            raise UserError(event.message)

    manager: contextlib.AbstractContextManager[None] = events.on_parse_error(refuse)
    return manager


def _shown_flag(argument: Any) -> str:
    """The flag of an argument as the help has it; its name in capitals where it has no flag."""
    if argument.is_positional():
        return str(argument.field.intern_name).upper()
    return str(argument.lowered.name_or_flags[0])


def _unknown(prog: str, tokens: Sequence[str], marked: type[Any]) -> str:
    """Say of the first argument that is not known what was meant."""
    token = next((each for each in tokens if each.startswith("-")), tokens[0]).partition("=")[0]
    if not token.startswith("-"):
        return f"{prog} does not know what to do with {token!r}"
    known: dict[str, list[str]] = {}
    for field in dataclasses.fields(marked):
        nested = field.type if dataclasses.is_dataclass(field.type) else None
        for each in dataclasses.fields(nested) if nested else (field,):
            short = _flag(each.name, each.default)
            long = short.replace("--", f"--{field.name}.") if nested else short
            known.setdefault(short, []).append(long)
    short = "--" + token[2:].rpartition(".")[2].replace("_", "-")
    ways = known.get(short, [])
    if short != token and token in ways:  # a field of a stage that has no flag of its own
        own = f"give {short}, which is for all stages" if short in ways else "leave it out"
        return f"{token} is set by {prog} itself; {own}"
    if len(ways) > 1:
        return f"{token} is a flag of several stages: say which with {' or '.join(ways)}"
    names = {*known, *itertools.chain(*known.values())}
    meant = closest(token, names)
    if papers := _by_papers_name(marked, token[2:].replace("-", "_")):
        meant = f" (did you mean {papers}?)"
    return f"{prog} has no flag {token}{meant}"


def _by_papers_name(marked: type[Any], name: str) -> str | None:
    """Find the flag that the help calls by a name of the papers' programs, as in (MTT: name)."""
    for field in dataclasses.fields(marked):
        nested = field.type if dataclasses.is_dataclass(field.type) else None
        for each, text in _documentation(getattr(nested or marked, _DOCUMENTED)).items():
            if re.search(rf"\b[A-Z]+: {re.escape(name)}\b", text):
                return _flag(f"{field.name}.{each}" if nested else each)
    return None
