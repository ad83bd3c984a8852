"""A folder appears as a whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from trajmatch.errors import UserError
from trajmatch.files import whole_folder


def test_the_folder_has_what_was_written(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "parent" / "new") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text("content")
        assert not (tmp_path / "parent" / "new").exists()
    assert (tmp_path / "parent" / "new" / "sub" / "file").read_text() == "content"
    assert [path.name for path in (tmp_path / "parent").iterdir()] == ["new"]


def test_an_empty_folder_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with whole_folder(Path("empty")) as folder:
        (folder / "file").touch()
    assert (tmp_path / "empty" / "file").exists()


@pytest.mark.parametrize("failure", [UserError("a"), KeyboardInterrupt(), OSError(28, "No space")])
def test_nothing_is_left_of_a_failure(tmp_path: Path, failure: BaseException) -> None:
    wanted = type(failure) if not isinstance(failure, OSError) else UserError
    with pytest.raises(wanted), whole_folder(tmp_path / "new") as folder:
        (folder / "file").touch()
        raise failure
    assert not [*tmp_path.iterdir()]


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=r"already exists|cannot write"), whole_folder(path):
            raise AssertionError("entered")
