"""Import of user objects, such as a network ``package.module:NAME``, and lazy imports.

Packages of trajmatch import their public names at first use, so that torch loads only if needed.
"""

import contextlib
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from trajmatch.errors import UserError, closest
from trajmatch.memory import is_out_of_memory

T = TypeVar("T")

_PACKAGE = str(Path(__file__).parent)


def lazily(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a package's ``__getattr__``, which imports the public names at first use.

    ``modules`` maps each module to its public names, separated by spaces.
    """
    module_of = {name: module for module, names in modules.items() for name in names.split()}

    def get(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(module_of[name]), name)
        # From now on, Python finds the name in the package and does not call this function for it.
        setattr(sys.modules[package], name, value)
        return value

    return get


def search_current_folder() -> None:
    """Append the current folder to ``sys.path`` if it is missing."""
    with contextlib.suppress(OSError):  # the folder was deleted
        folder = os.getcwd()
        if folder not in sys.path:
            sys.path.append(folder)


def import_object(address: str) -> Any:
    """Import a module and return the attribute at ``package.module:NAME``.

    The current folder is searched after ``sys.path``. Raises UserError if the module or attribute
    does not exist, or if the import fails; the message has the line of the failure.
    """
    module_name, _, name = address.partition(":")
    search_current_folder()
    # The file of the module may be newer than Python's cache of the folder.
    importlib.invalidate_caches()
    with blamed(f"{address} cannot be used: the module {module_name}"):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if not error.name or not f"{module_name}.".startswith(f"{error.name}."):
                raise  # a dependency of the user's module is missing
            raise UserError(
                f"there is no Python module {error.name!r}, which {address!r} needs, neither in "
                "the current folder nor on Python's search path; add the folder of your module to "
                "the environment variable PYTHONPATH"
            ) from error
    if not hasattr(module, name):
        place = getattr(module, "__file__", None) or "built in"
        raise UserError(
            f"the module {module_name} ({place}) has no {name!r}{closest(name, vars(module))}"
        )
    return getattr(module, name)


def named(flag: str, what: str, name: str, table: Mapping[str, T]) -> T | Any:
    """Return ``table[name]``, or import the object ``package.module:NAME``.

    Raises UserError if there is no such object. The message has the flag that gave the name, and
    ``what``, a noun for the object, e.g. ``"objective"``.
    """
    if name in table:
        return table[name]
    if ":" not in name:
        raise UserError(
            f"{flag} has no {what} {name!r}{closest(name, table)}; choose from "
            f"{', '.join(table)}, or give your own as package.module:NAME"
        )
    return import_object(name)


def parsed(
    flag: str, spec: str, names: Collection[str]
) -> tuple[str, list[int | float | str], dict[str, int | float | str]]:
    """Split ``NAME`` or ``NAME:SETTINGS`` into the name, positional values and keyword values.

    Settings are comma-separated values, then ``KEY=VALUE`` pairs; numbers are converted. ``NAME``
    is one of ``names`` or ``package.module:NAME``. Raises UserError, with ``flag``, for a value
    after a pair or a duplicate key.
    """
    name, colon, text = spec.partition(":")
    # In "package.module:NAME:SETTINGS" the first colon belongs to the name.
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
    """Return the object for a spec ``NAME`` or ``NAME:SETTINGS``, such as a term of the loss.

    If ``NAME`` is a class or is in ``table``, or if there are settings, the named object is called
    with the settings; otherwise it is returned unchanged. See :func:`named` for ``flag``, ``what``
    and ``table``. Raises UserError if the object is missing, rejects the settings, or fails.
    """
    name, values, settings = parsed(flag, spec, table)
    found = named(flag, what, name, table)
    if not (isinstance(found, type) or name in table or values or settings):
        return found
    with blamed(f"{flag} {spec}"):
        # Compare with the signature first, to tell wrong settings from a TypeError in the call.
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
    """Turn an exception of user code into a UserError ``WHAT failed: ...`` with the line."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        # A lack of memory is not a fault of that code.
        if is_out_of_memory(error):
            raise
        raise UserError(f"{what} failed: {type(error).__name__}: {error}{_place(error)}") from error


def expect_kind(what: str, value: object, kind: type[Any]) -> None:
    """Raise UserError unless ``value`` is an instance of ``kind``; ``what`` starts the message."""
    if not isinstance(value, kind):
        wanted = f"{kind.__module__}.{kind.__name__}"
        raise UserError(f"{what} should give an instance of {wanted}, but gave {described(value)}")


def described(value: object) -> str:
    """Return the type of a value in words, and the shape of a tensor or array, for a message."""
    if value is None:
        return "None"
    size = f" of {len(value)}" if isinstance(value, tuple | list) else ""
    if hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, type):
        size = f" of shape {list(value.shape)} and type {value.dtype}"
    kind = type(value).__name__
    return f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}{size}"


def _number(text: str) -> int | float | str:
    """Return the number that a text stands for, or the text."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def _place(error: BaseException) -> str:
    """Return `` (FILE, line N)`` of the outermost frame in user code, or ""."""
    # The message of a SyntaxError already has file and line.
    if isinstance(error, SyntaxError):
        return ""
    for frame in traceback.extract_tb(error.__traceback__):
        if not frame.filename.startswith((_PACKAGE, "<frozen", importlib.__file__)):
            return f" ({frame.filename}, line {frame.lineno})"
    return ""
