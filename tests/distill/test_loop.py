import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from stand_ins import lines_of

from trajmatch import artifact
from trajmatch.distill import DistillConfig, distill
from trajmatch.distill.problem import prepare
from trajmatch.errors import UserError


class Recorder:
    """Remembers what it is told; interrupts the run after some iteration."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.heard: list[tuple[int, dict[str, float]]] = []
        self._interrupt_at = interrupt_at

    def update(self, done: int, **numbers: float) -> None:
        self.heard.append((done, numbers))
        if done == self._interrupt_at:
            raise KeyboardInterrupt


def files_of(config: DistillConfig) -> set[str]:
    return {path.name for path in config.out.parent.iterdir()}


def test_the_matching_loss_falls_and_images_move(configure) -> None:
    config = configure(iterations=60, batch_syn=None, student_steps=5, dsa="none")
    first = prepare(config).initial_set()
    result = distill(config)
    losses = [line["loss"] for line in lines_of(config.log_path)]
    assert sum(losses[-20:]) < 0.95 * sum(losses[:20])
    assert not torch.equal(result.images, first.images)
    assert torch.equal(result.labels, first.labels)


def test_result_is_returned_and_written_with_all_that_it_needs(configure, store, data) -> None:
    config = configure()
    problem = prepare(config)
    result = distill(config)
    loaded = artifact.load(config.out)
    assert loaded.fingerprint == result.fingerprint
    assert loaded.images.shape == (6, 1, 8, 8)
    assert loaded.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert (loaded.label_kind, loaded.selection, loaded.ipc, loaded.seed) == ("index", "last", 2, 0)
    assert loaded.mean == problem.training.mean and loaded.std == problem.training.std
    assert loaded.network == problem.store.manifest["network"]
    assert loaded.dsa == problem.store.manifest["recipe"]["dsa"]
    assert loaded.dataset_name == "shapes"
    assert loaded.dataset_fingerprint == problem.dataset.fingerprint
    assert loaded.recipe["store"] == problem.store.fingerprint
    assert loaded.recipe["lr_init"] == 0.05
    assert loaded.lr == lines_of(config.log_path)[-1]["step_size"]


def test_log_and_progress(configure) -> None:
    config, recorder = configure(iterations=4), Recorder()
    distill(config, recorder)
    log = lines_of(config.log_path)
    assert [line["iteration"] for line in log] == [1, 2, 3, 4]
    assert set(log[0]) == {
        "iteration",
        "loss",
        "step_size",
        "start_epoch",
        "expert",
        "refused",
        "seconds",
    }
    assert sorted(line["expert"] for line in log[:2]) == [0, 1]
    assert all(0 <= line["start_epoch"] < 3 for line in log)
    assert [done for done, _ in recorder.heard] == [0, 1, 2, 3, 4]
    assert recorder.heard[-1][1] == {"loss": log[-1]["loss"], "step_size": log[-1]["step_size"]}


def test_progress_counts_the_updates_that_were_dropped(configure) -> None:
    recorder = Recorder()
    distill(configure(iterations=4, skip_above=1e-9), recorder)
    assert [numbers.get("dropped") for _, numbers in recorder.heard] == [None, 1, 2, 3, 4]


def test_only_artifact_log_and_snapshots_are_left(configure) -> None:
    config = configure()
    distill(config)
    assert files_of(config) == {
        "distilled.safetensors",
        "distilled.jsonl",
        "distilled.snapshots.safetensors",
    }


@pytest.mark.parametrize("settings", [{}, {"init": "noise", "batch_syn": None}])
def test_same_seed_same_bytes_wherever(configure, tmp_path, settings) -> None:
    one = configure(out=tmp_path / "a" / "x.safetensors", **settings)
    two = configure(out=tmp_path / "b" / "other", checkpoint_every=3, **settings)
    distill(one)
    distill(two)
    assert one.out.read_bytes() == two.out.read_bytes()


@pytest.mark.parametrize("field", ["seed", "lr_img", "student_steps", "dsa", "lr_param"])
def test_another_setting_another_result(configure, tmp_path, field) -> None:
    other = {"seed": 1, "lr_img": 3.0, "student_steps": 2, "dsa": "flip", "lr_param": "raw"}[field]
    one = distill(configure(out=tmp_path / "a"))
    two = distill(configure(out=tmp_path / "b", **{field: other}))
    assert one.fingerprint != two.fingerprint


def test_the_artifact_holds_no_path_and_no_time(configure, store, data, tmp_path) -> None:
    config = configure()
    distill(config)
    content = config.out.read_bytes()
    for text in (str(tmp_path), str(store), data, "seconds"):
        assert text.encode() not in content


def test_an_interrupted_run_goes_on_with_equal_bytes(configure, tmp_path) -> None:
    whole = configure(out=tmp_path / "whole" / "d.safetensors")
    distill(whole)
    part = configure(out=tmp_path / "part" / "d.safetensors")
    with pytest.raises(KeyboardInterrupt):
        distill(part, Recorder(interrupt_at=5))  # its last checkpoint is of iteration 4
    beside = {"d.jsonl", "d.snapshots.safetensors"}
    assert files_of(part) == {"d.checkpoint.safetensors"} | beside
    recorder = Recorder()
    distill(replace(part, resume=True), recorder)
    assert recorder.heard[0][0] == 4
    assert part.out.read_bytes() == whole.out.read_bytes()
    assert files_of(part) == {"d.safetensors"} | beside

    def without_seconds(config: DistillConfig) -> list[dict[str, object]]:
        return [{**line, "seconds": None} for line in lines_of(config.log_path)]

    assert without_seconds(part) == without_seconds(whole)


def test_a_killed_process_goes_on_with_equal_bytes(configure, tmp_path) -> None:
    whole = configure(out=tmp_path / "whole.safetensors")
    distill(whole)
    part = configure(out=tmp_path / "part.safetensors")
    settings = {name: getattr(part, name) for name in part.__dataclass_fields__}
    program = textwrap.dedent(
        f"""
        import os
        from pathlib import Path, PosixPath
        from trajmatch.distill import DistillConfig, distill

        class Killer:
            def update(self, done, **numbers):
                if done == 4:
                    os.kill(os.getpid(), 9)

        distill(DistillConfig(**{settings!r}), Killer())
        """
    )
    killed = subprocess.run([sys.executable, "-c", program], check=False)
    assert killed.returncode == -9
    assert not part.out.exists()
    distill(replace(part, resume=True))
    assert part.out.read_bytes() == whole.out.read_bytes()


def test_resume_starts_afresh_where_nothing_is(configure, tmp_path) -> None:
    distill(configure(out=tmp_path / "a"))
    distill(configure(out=tmp_path / "b", resume=True))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_resume_of_a_finished_run_changes_nothing(configure) -> None:
    config = configure()
    result = distill(config)
    before = (config.out.read_bytes(), config.out.stat().st_mtime_ns, config.log_path.read_bytes())
    recorder = Recorder()
    again = distill(replace(config, resume=True), recorder)
    after = (config.out.read_bytes(), config.out.stat().st_mtime_ns, config.log_path.read_bytes())
    assert again.fingerprint == result.fingerprint
    assert before == after
    assert [done for done, _ in recorder.heard] in ([], [10])


@pytest.mark.parametrize("changes", [{"lr_img": 1.0}, {"iterations": 11}, {"seed": 5}])
def test_resume_of_a_finished_run_with_other_settings(configure, changes) -> None:
    config = configure()
    distill(config)
    content = config.out.read_bytes()
    field, value = next(iter(changes.items()))
    with pytest.raises(
        UserError, match=rf"made with {field} = .*, but this run has {field} = {value}"
    ):
        distill(replace(config, resume=True, **changes))
    assert config.out.read_bytes() == content


def test_a_run_can_be_cut_short_but_not_below_its_checkpoint(configure) -> None:
    config = configure()
    with pytest.raises(KeyboardInterrupt):
        distill(config, Recorder(interrupt_at=7))
    with pytest.raises(UserError, match="at iteration 6, beyond --iterations 5"):
        distill(replace(config, resume=True, iterations=5))
    distill(replace(config, resume=True, iterations=6))
    assert artifact.load(config.out).recipe["iterations"] == 6


@pytest.mark.parametrize("ending", [".pt", ".npz", ".PNG"])
def test_an_ending_of_another_kind_of_file_is_warned_of(configure, tmp_path, ending) -> None:
    plain = configure(out=tmp_path / "plain", iterations=1)
    distill(plain)
    config = configure(out=tmp_path / f"x{ending}", iterations=1)
    with pytest.warns(UserWarning, match=rf"x{ending} will be a safetensors file"):
        distill(config)
    assert config.out.read_bytes() == plain.out.read_bytes()


@pytest.mark.parametrize("which", ["out", "checkpoint_path", "log_path"])
def test_what_is_there_is_refused_without_resume(configure, which) -> None:
    config = configure()
    path: Path = getattr(config, which)
    path.write_text("precious")
    with pytest.raises(UserError, match=r"already exists; add --resume"):
        distill(config)
    assert path.read_text() == "precious"
    assert files_of(config) == {path.name}


def test_resume_refuses_foreign_files(configure) -> None:
    config = configure(resume=True)
    config.out.write_text("precious")
    with pytest.raises(UserError, match=str(config.out)):
        distill(config)
    assert config.out.read_text() == "precious"


def test_the_log_may_not_be_where_the_artifact_goes(configure, tmp_path) -> None:
    with pytest.raises(UserError, match="--log"):
        distill(configure(log=tmp_path / "distilled.safetensors"))


def test_starts_from_an_earlier_result(configure, tmp_path) -> None:
    source = distill(configure(out=tmp_path / "source"))
    config = configure(
        out=tmp_path / "warm", init_from=tmp_path / "source", lr_init=None, lr_img=0.0, lr_lr=0.0
    )
    result = distill(config)
    assert torch.equal(result.images, source.images)
    assert result.lr == source.lr
    assert result.recipe["init"] == f"file {source.fingerprint}"


def test_starts_from_a_result_with_soft_labels(configure, tmp_path) -> None:
    source = distill(configure(out=tmp_path / "source"))
    soft = replace(source, labels=torch.eye(3)[source.labels] * 4, label_kind="logit", recipe={})
    artifact.save(tmp_path / "soft", soft)
    result = distill(configure(out=tmp_path / "warm", init_from=tmp_path / "soft"))
    assert result.label_kind == "logit"
    assert torch.equal(result.labels, soft.labels)
    assert not torch.equal(result.images, soft.images)


def test_a_tape_changes_no_byte(configure, tmp_path) -> None:
    without = distill(configure(out=tmp_path / "without.safetensors", tape_mb=0))
    with_tape = distill(configure(out=tmp_path / "with.safetensors", tape_mb=64))
    assert without.fingerprint == with_tape.fingerprint
