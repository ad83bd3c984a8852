import json
from pathlib import Path

import pytest

from trajmatch.distill.metrics import metrics_log
from trajmatch.errors import UserError


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, first: int, last: int) -> None:
    with metrics_log(path, first - 1) as log:
        for iteration in range(first, last + 1):
            log(iteration=iteration, loss=1 / iteration)


def test_one_object_a_line(tmp_path) -> None:
    write(tmp_path / "log", 1, 3)
    assert lines(tmp_path / "log") == [{"iteration": i, "loss": 1 / i} for i in (1, 2, 3)]


def test_what_is_not_finite_is_null(tmp_path) -> None:
    with metrics_log(tmp_path / "log", 0) as log:
        log(iteration=1, loss=float("nan"), step_size=float("inf"))
    assert lines(tmp_path / "log") == [{"iteration": 1, "loss": None, "step_size": None}]


def test_what_is_not_finite_in_a_list_is_null(tmp_path) -> None:
    with metrics_log(tmp_path / "log", 0) as log:
        log(iteration=1, losses=[0.5, float("nan")])
    assert lines(tmp_path / "log") == [{"iteration": 1, "losses": [0.5, None]}]


def test_lines_beyond_the_checkpoint_are_dropped(tmp_path) -> None:
    write(tmp_path / "log", 1, 7)
    write(tmp_path / "log", 5, 6)
    assert [line["iteration"] for line in lines(tmp_path / "log")] == [1, 2, 3, 4, 5, 6]


def test_a_line_cut_by_a_crash_is_dropped(tmp_path) -> None:
    write(tmp_path / "log", 1, 3)
    whole = (tmp_path / "log").read_text()
    (tmp_path / "log").write_text(whole[:-5])
    write(tmp_path / "log", 4, 4)
    assert [line["iteration"] for line in lines(tmp_path / "log")] == [1, 2, 4]


def test_a_line_cut_just_before_its_end_is_dropped(tmp_path) -> None:
    write(tmp_path / "log", 1, 3)
    (tmp_path / "log").write_text((tmp_path / "log").read_text()[:-1])
    write(tmp_path / "log", 4, 4)
    assert [line["iteration"] for line in lines(tmp_path / "log")] == [1, 2, 4]


@pytest.mark.parametrize(
    "content", ["my notes\nof today\n", '{"loss": 1}\n', "[1]\n", "\xff\n", "\xff"]
)
def test_a_foreign_file_is_refused_and_kept(tmp_path, content) -> None:
    path = tmp_path / "log"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match="log"), metrics_log(path, 10):
        pass
    assert path.read_bytes() == content.encode("latin-1")
