"""Measurements in a process of their own: it has its own peak, and gives all its memory back."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from subprocess import CalledProcessError
from types import MappingProxyType
from typing import Any

from trajmatch.children import Emit, Job, children
from trajmatch.errors import UserError


def in_process(
    function: Callable[[Job, Emit], None],
    job: Job,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Generator[dict[str, Any], None, None]:
    """Run a function in a fresh process, which ends with the iteration at the latest.

    Args:
        function: A function of a module; it gets the job and a function that emits results.
        job: Its arguments, as JSON can hold them.
        environment: Variables for the process, besides those of this one.

    Yields:
        The results that it emits.

    Raises:
        UserError: The process failed, for want of memory for example.
    """
    try:
        with children(function, [job], environment) as results:
            yield from results
    except CalledProcessError as failure:
        raise UserError(
            f"the benchmark's process for {job} ended with status {failure.returncode} (-9 is what "
            "the system does where memory runs out); choose a smaller size"
        ) from failure
