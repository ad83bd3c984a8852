"""Objects that a user names as ``package.module:NAME``: data sets, networks and matching terms."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
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


def described(value: object) -> str:
    """Name the kind of what a user's code made, in words for a message."""
    if value is None:
        return "None"
    size = f" of {len(value)}" if isinstance(value, tuple | list) else ""
    kind = type(value).__name__
    return f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}{size}"


def _place(error: BaseException) -> str:
    """`` (FILE, line N)`` of the user's line that led to an exception; empty if there is none."""
    if isinstance(error, SyntaxError):
        return ""  # its text has the place
    for frame in traceback.extract_tb(error.__traceback__):
        ours = frame.filename.startswith((_PACKAGE, "<frozen", importlib.__file__))
        if not ours:
            return f" ({frame.filename}, line {frame.lineno})"
    return ""
