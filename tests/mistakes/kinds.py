"""The two kinds of mistakes that a user can make: on the command line, and in Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["refused", "told", "works", "either"]
"""Answers of a good program to a mistake.

It refuses it with a message; does that, or goes on with a warning; copes with it; or one of all."""

Setup = Callable[[], object]
"""A function that writes files into the current folder before the mistake is made."""


@dataclass(frozen=True)
class Command:
    """A mistake on the command line.

    Attributes:
        name: A short name, unique among all mistakes.
        line: What is typed: a text goes through a shell, as a user's does; a tuple does not.
        setup: Called in the folder of the mistake, a copy of the good inputs, before it is made.
        environment: Variables to set, or, with None, to take away.
        expects: Words that a good message must contain, in capitals or not.
        forbids: Words that must not be printed, such as the progress of work that is of no use.
        outcome: What a good program does with it.
        own_process: Whether the program must be started anew, because what it imports matters.
    """

    name: str
    line: str | tuple[str, ...]
    setup: Setup | None = None
    environment: Mapping[str, str | None] = field(default_factory=dict)
    expects: tuple[str, ...] = ()
    forbids: tuple[str, ...] = ()
    outcome: Outcome = "refused"
    own_process: bool = False


@dataclass(frozen=True)
class Call:
    """A mistake in Python.

    Attributes:
        name: A short name, unique among all mistakes.
        source: A program that ends in the mistaken call. Where the outcome may be that it works, an
            assertion at the end says that the result is not nonsense.
        setup: Called in the folder of the mistake, a copy of the good inputs, before it is made.
        expects: Words that a good message must contain, in capitals or not.
        outcome: What a good program does with it.
    """

    name: str
    source: str
    setup: Setup | None = None
    expects: tuple[str, ...] = ()
    outcome: Outcome = "refused"


Mistake = Command | Call
