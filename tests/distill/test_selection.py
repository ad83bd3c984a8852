import json

import pytest
import torch

from trajmatch import artifact
from trajmatch.distill import distill, selection
from trajmatch.evaluate.scores import Score

EVALUATED = {"eval_every": 4, "eval_seeds": 2, "eval_epochs": 3}


@pytest.fixture
def scripted(monkeypatch):
    """Evaluations with the given means, and what they were given."""
    calls = []

    def script(*means: float) -> list[tuple[torch.Tensor, float, int]]:
        remaining = list(means)

        def evaluate_set(images, labels, spec, protocol, test_images, test_labels, *settings):
            calls.append((images.clone(), protocol.lr, len(test_labels)))
            return Score((remaining.pop(0),), {"name": "scripted"})

        monkeypatch.setattr(selection, "evaluate_set", evaluate_set)
        return calls

    return script


class Recorder:
    """Remembers the accuracies it is told."""

    def __init__(self) -> None:
        self.accuracies: list[float | None] = []

    def update(self, done: int, **numbers: float) -> None:
        self.accuracies.append(numbers.get("accuracy"))


def test_scores_are_shown_and_in_log_and_artifact(configure) -> None:
    config, recorder = configure(**EVALUATED), Recorder()
    result = distill(config, recorder)
    means = [score["mean"] for score in result.scores]
    assert recorder.accuracies == [None] * 4 + [means[0]] * 4 + [means[1]] * 2 + [means[2]]
    lines = [json.loads(line) for line in config.log_path.read_text().splitlines()]
    evaluations = [line for line in lines if "split" in line]
    assert [line["iteration"] for line in evaluations] == [4, 8, 10]
    assert [score["mean"] for score in result.scores] == [line["mean"] for line in evaluations]
    assert all(score["split"] == "test" and score["seeds"] == 2 for score in result.scores)
    assert all(0 <= score["mean"] <= 100 for score in result.scores)
    assert result.scores[0]["protocol"]["epochs"] == 3


def test_protocol_of_the_evaluations(configure) -> None:
    result = distill(configure(**EVALUATED, eval_protocol="ast"))
    protocol = result.scores[0]["protocol"]
    assert (protocol["name"], protocol["weight_decay"], protocol["epochs"]) == ("ast", 1e-3, 3)
    assert result.scores[0]["diverged"] == 0
    assert result.scores[0]["test_max"]["mean"] >= result.scores[0]["mean"]
    assert "biased upwards" in result.scores[0]["test_max"]["chosen"]
    assert result.recipe["eval_protocol"] == "ast"


def test_last_is_the_last_whatever_the_scores(configure, scripted, tmp_path) -> None:
    plain = distill(configure(out=tmp_path / "plain"))
    scripted(90.0, 50.0, 40.0)
    result = distill(configure(out=tmp_path / "evaluated", **EVALUATED))
    assert torch.equal(result.images, plain.images)
    assert result.selection == "last"


def test_test_max_is_the_best_on_the_test_set(configure, scripted) -> None:
    calls = scripted(50.0, 90.0, 60.0)
    result = distill(configure(select="test-max", **EVALUATED))
    assert torch.equal(result.images, calls[1][0])
    assert result.lr == calls[1][1]
    assert result.selection == "test-max"
    assert [score["mean"] for score in result.scores] == [50.0, 90.0, 60.0]
    assert [tested for _, _, tested in calls] == [18, 18, 18]


def test_the_first_of_equals_is_kept(configure, scripted) -> None:
    calls = scripted(70.0, 70.0, 60.0)
    result = distill(configure(select="test-max", **EVALUATED))
    assert torch.equal(result.images, calls[0][0])


def test_holdout_is_the_best_on_images_that_no_expert_saw(
    configure, scripted, holdout_store
) -> None:
    calls = scripted(90.0, 50.0, 40.0)
    config = configure(experts=holdout_store, select="holdout", **EVALUATED)
    result = distill(config)
    assert torch.equal(result.images, calls[0][0])
    assert [tested for _, _, tested in calls] == [9, 9, 9]
    assert artifact.load(config.out).selection == "holdout"
    assert all(score["split"] == "holdout" for score in result.scores)


def test_the_best_survives_an_interruption(configure, scripted) -> None:
    class Interrupt:
        def update(self, done: int, **numbers: float) -> None:
            if done == 6:
                raise KeyboardInterrupt

    calls = scripted(90.0, 50.0, 40.0)
    with pytest.raises(KeyboardInterrupt):
        distill(configure(select="test-max", **EVALUATED), Interrupt())
    result = distill(configure(select="test-max", resume=True, **EVALUATED))
    assert len(calls) == 3
    assert torch.equal(result.images, calls[0][0])


def test_a_run_cut_short_at_its_checkpoint_is_evaluated_there(configure, scripted) -> None:
    class Interrupt:
        def update(self, done: int, **numbers: float) -> None:
            if done == 3:
                raise KeyboardInterrupt

    calls = scripted(30.0)
    with pytest.raises(KeyboardInterrupt):
        distill(configure(select="test-max", **EVALUATED), Interrupt())
    result = distill(configure(select="test-max", resume=True, **{**EVALUATED, "iterations": 2}))
    assert torch.equal(result.images, calls[0][0])
    assert [score["iteration"] for score in result.scores] == [2]


def test_no_evaluation_unless_asked_for(configure, scripted) -> None:
    assert distill(configure()).scores == ()
    assert scripted() == []
