"""Objects that a user names as ``package.module:NAME``: data sets, networks and matching terms."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from trajmatch.errors import UserError, closest
from trajmatch.memory import is_out_of_memory

T = TypeVar("T")

_PACKAGE = str(Path(__file__).parent)


def search_current_folder() -> None:
    """Put the current folder at the end of ``sys.path``, unless it is there already."""
    with contextlib.suppress(OSError):  # the folder was deleted
        folder = os.getcwd()
        if folder not in sys.path:
            sys.path.append(folder)


def import_object(address: str) -> Any:
    """Import a module and return one of its attributes.

    The module is looked for where Python looks, and then in the current folder.

    Args:
        address: ``package.module:NAME``.

    Returns:
        The attribute.

    Raises:
        UserError: There is no such module or attribute, or the module fails when it is imported;
            the message names the line.
    """
    module_name, _, name = address.partition(":")
    search_current_folder()
    importlib.invalidate_caches()  # the module may be newer than Python's list of the folder
    with blamed(f"{address} cannot be used: the module {module_name}"):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if not error.name or not f"{module_name}.".startswith(f"{error.name}."):
                raise  # a module that the user's module needs
            raise UserError(
                f"there is no Python module {error.name!r}, which {address!r} needs, neither in "
                "the current folder nor where Python looks; put the folder of your module into "
                "the environment variable PYTHONPATH"
            ) from error
    if not hasattr(module, name):
        place = getattr(module, "__file__", None) or "built in"
        raise UserError(
            f"the module {module_name} ({place}) has no {name!r}{closest(name, vars(module))}"
        )
    return getattr(module, name)


def named(flag: str, what: str, name: str, table: Mapping[str, T]) -> T | Any:
    """Return the part of a name, or the object of ``package.module:NAME``.

    Args:
        flag: The flag that names it, for messages.
        what: A word for what it is, for messages.
        name: The name, or an address.
        table: The parts that have a name.

    Raises:
        UserError: There is no such name, module or attribute.
    """
    if name in table:
        return table[name]
    if ":" not in name:
        raise UserError(
            f"{flag} has no {what} {name!r}{closest(name, table)}; there is {', '.join(table)}, "
            "and package.module:NAME for one of your own"
        )
    return import_object(name)


def parsed(
    flag: str, spec: str, names: Collection[str]
) -> tuple[str, list[int | float | str], dict[str, int | float | str]]:
    """Split the spec of a part into its name and its settings.

    Args:
        flag: The flag that has it, for messages.
        spec: ``NAME`` or ``NAME:SETTINGS``, where ``NAME`` is one of the names or
            ``package.module:NAME``. Settings are values, and then ``NAME=VALUE``, with commas in
            between.
        names: Parts that have a name.

    Returns:
        The name, the values without a name, and those with one; numbers where they are numbers.

    Raises:
        UserError: A value stands after one with a name, or a name comes twice.
    """
    name, colon, text = spec.partition(":")
    attribute, second, more = text.partition(":")
    if name not in names and attribute.isidentifier():
        name, colon, text = f"{name}:{attribute}", second, more
    values: list[int | float | str] = []
    settings: dict[str, int | float | str] = {}
    for each in text.split(",") if colon else ():
        key, equals, value = each.rpartition("=")
        if (settings and not equals) or key in settings:
            wanted = "come only once" if equals else "be NAME=VALUE, like the one before it"
            raise UserError(f"{flag} {spec}: {each!r} should {wanted}")
        if equals:
            settings[key] = _number(value)
        else:
            values.append(_number(value))
    return name, values, settings


def made(flag: str, what: str, spec: str, table: Mapping[str, Any]) -> Any:
    """Make the part of a spec: see :func:`parsed` and :func:`named`.

    A class is called with the settings, and so is a function that is given some; another object is
    the part itself.

    Raises:
        UserError: There is no such part, or it does not take these settings, or it fails.
    """
    name, values, settings = parsed(flag, spec, table)
    found = named(flag, what, name, table)
    if not (isinstance(found, type) or name in table or values or settings):
        return found
    with blamed(f"{flag} {spec}"):
        signature = inspect.signature(found)
        try:
            signature.bind(*values, **settings)
        except TypeError as error:
            takes = ", ".join(signature.parameters)
            advice = f"takes {takes}, as {name}:VALUE,... or {name}:NAME=VALUE,..."
            raise UserError(
                f"{flag} {spec}: {error}; {name} {advice if takes else 'takes no settings'}"
            ) from error
        return found(*values, **settings)


@contextlib.contextmanager
def blamed(what: str) -> Iterator[None]:
    """Turn an exception of a user's code into a message that names its line.

    An allocation that fails is no fault of that code: its exception passes as it is.

    Args:
        what: The code that runs in the block, for the message.

    Raises:
        UserError: The block raised an exception, which is the cause of this one.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"{what} failed: {type(error).__name__}: {error}{_place(error)}") from error


def expect_kind(what: str, value: object, kind: type[Any]) -> None:
    """Make sure that what a user's code made is of a class of the package.

    Args:
        what: The flag and what it was given, for the message.
        value: What was made.
        kind: The class.

    Raises:
        UserError: It is of another.
    """
    if not isinstance(value, kind):
        wanted = f"{kind.__module__}.{kind.__name__}"
        raise UserError(f"{what} should be a subclass of {wanted}, but made {described(value)}")


def described(value: object) -> str:
    """Name the kind of what a user's code made, in words for a message."""
    if value is None:
        return "None"
    size = f" of {len(value)}" if isinstance(value, tuple | list) else ""
    kind = type(value).__name__
    return f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}{size}"


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def _place(error: BaseException) -> str:
    """`` (FILE, line N)`` of the user's line that led to an exception; empty if there is none."""
    if isinstance(error, SyntaxError):
        return ""  # its text has the place
    for frame in traceback.extract_tb(error.__traceback__):
        ours = frame.filename.startswith((_PACKAGE, "<frozen", importlib.__file__))
        if not ours:
            return f" ({frame.filename}, line {frame.lineno})"
    return ""
