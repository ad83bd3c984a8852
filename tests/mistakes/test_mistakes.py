from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from mistakes import run
from mistakes.by_newcomers import MISTAKES
from mistakes.kinds import Mistake


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The good inputs that every mistake gets a copy of."""
    folder = tmp_path_factory.mktemp("mistakes") / "prepared"
    run.prepare(folder)
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[run.Server]:
    """A process that has imported the program."""
    server = run.Server()
    yield server
    server.close()


def test_names_are_unique() -> None:
    names = [mistake.name for mistake in MISTAKES]
    assert len(set(names)) == len(names) >= 100


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_answer(mistake: Mistake, prepared: Path, server: run.Server, tmp_path: Path) -> None:
    result = run.attempt(mistake, prepared, tmp_path, server)
    assert not result.complaints, result.line() + "\n" + result.output
