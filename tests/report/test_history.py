"""The log of a run, read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trajmatch.errors import UserError
from trajmatch.report import history

LINE = {
    "iteration": 1,
    "loss": 0.5,
    "step_size": 0.01,
    "start_epoch": 3,
    "expert": 2,
    "refused": None,
    "seconds": 0.25,
}


def write(path: Path, *lines: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def numbers(told: history.History) -> list[int]:
    return [each.iteration for each in told.iterations]


def test_iterations_and_evaluations(tmp_path) -> None:
    several = {**LINE, "iteration": 2, "start_epochs": [0, 3], "experts": [1, 2], "skipped": True}
    del several["start_epoch"], several["expert"]
    told = history.read(
        write(
            tmp_path / "log",
            LINE,
            several,
            {"iteration": 2, "split": "test", "mean": 50.5, "std": 1, "seeds": 3, "diverged": 0},
            {**LINE, "iteration": 3, "loss": None, "refused": "the loss is not finite"},
        )
    )
    assert numbers(told) == [1, 2, 3]
    assert [each.loss for each in told.iterations] == [0.5, 0.5, None]
    assert [each.start_epochs for each in told.iterations] == [(3,), (0, 3), (3,)]
    assert [each.experts for each in told.iterations] == [(2,), (1, 2), (2,)]
    assert [each.refused for each in told.iterations][2] == "the loss is not finite"
    assert [each.skipped for each in told.iterations] == [False, True, False]
    assert told.evaluations == [history.Evaluation(2, "test", 50.5, 1.0, 3)]


def test_the_log_of_a_run(folder: Path, artifact_path: Path) -> None:
    told = history.read(folder / "distilled.jsonl")
    assert numbers(told) == [*range(1, 13)]
    assert sum(len(each.experts) for each in told.iterations) == 12
    other = history.read(artifact_path.with_suffix(".jsonl"))
    assert sum(len(each.experts) for each in other.iterations) == 18
    assert [each.iteration for each in other.evaluations] == [3, 6, 9]


def test_a_last_line_that_was_cut_is_left_out(tmp_path) -> None:
    path = write(tmp_path / "log", LINE, {**LINE, "iteration": 2})
    path.write_bytes(path.read_bytes()[:-3])
    assert numbers(history.read(path)) == [1]


@pytest.mark.parametrize(
    "change",
    [
        {"iteration": "1"},
        {"iteration": True},
        {"iteration": -1},
        {"iteration": 2**31},
        {"loss": "low"},
        {"loss": 1e300},
        {"loss": float("nan")},
        {"start_epoch": 1.5},
        {"start_epoch": 10**30},
        {"expert": None},
        {"refused": 1},
        {"split": 3},
        {"split": "test", "mean": None},
    ],
)
def test_a_wrong_value_is_refused_and_its_line_named(tmp_path, change) -> None:
    path = write(tmp_path / "log", {**LINE, "iteration": 0}, {**LINE, **change})
    with pytest.raises(UserError, match=r"log is not a log .*line 2: .*--log"):
        history.read(path)


@pytest.mark.parametrize("lost", ["iteration", "refused"])
def test_a_missing_value_is_refused(tmp_path, lost) -> None:
    line = {name: value for name, value in LINE.items() if name != lost}
    with pytest.raises(UserError, match="line 1"):
        history.read(write(tmp_path / "log", line))


@pytest.mark.parametrize(
    "content",
    [b"notes\n", b"[1]\n", b"\xff\xfe\n", b"[" * 100_000 + b"\n", b"x" * 2**21 + b"\n", b"{}\n"],
    ids=["text", "list", "bytes", "depth", "length", "empty"],
)
def test_a_foreign_file_is_refused(tmp_path, content) -> None:
    (tmp_path / "log").write_bytes(content)
    with pytest.raises(UserError, match="line 1"):
        history.read(tmp_path / "log")


def test_iterations_out_of_order_are_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="iteration 1 comes after iteration 1"):
        history.read(write(tmp_path / "log", LINE, LINE))


def test_a_missing_file_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="cannot read the log"):
        history.read(tmp_path / "nothing")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_changed_log_is_read_or_refused(tmp_path_factory, data) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    content = bytearray(write(path, LINE, {**LINE, "iteration": 2}).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        history.read(path)
    except UserError as error:
        assert "--log" in str(error)
