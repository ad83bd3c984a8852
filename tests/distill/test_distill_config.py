import subprocess
import sys
from pathlib import Path

import pytest

from trajmatch.distill import DistillConfig
from trajmatch.distill.config import DistillSettings
from trajmatch.errors import UserError
from trajmatch.schema import settings_of


def config(**settings: object) -> DistillConfig:
    return DistillConfig(**{"experts": Path("experts"), "out": Path("d.safetensors"), **settings})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ipc", 0),
        ("iterations", 0),
        ("student_steps", 0),
        ("matches", 0),
        ("expert_epochs", 0),
        ("min_start_epoch", -1),
        ("max_start_epoch", 0),
        ("lr_img", float("nan")),
        ("lr_img", -1.0),
        ("lr_lr", float("inf")),
        ("lr_init", 0.0),
        ("momentum_img", 1.0),
        ("momentum_lr", -0.1),
        ("student_momentum", 1.0),
        ("lr_param", "log"),
        ("batch_syn", 0),
        ("init", "zeros"),
        ("select", "best"),
        ("eval_every", -1),
        ("eval_seeds", 0),
        ("eval_epochs", 0),
        ("eval_protocol", "ftd"),
        ("checkpoint_every", 0),
        ("parallel", "experts"),
        ("timeout", 0.0),
        ("timeout", float("inf")),
        ("snapshots", -1),
        ("seed", -1),
    ],
)
def test_refuses_a_value_out_of_range_and_names_the_flag(field: str, value: object) -> None:
    with pytest.raises(UserError) as error:
        config(**{field: value})
    assert f"--{field.replace('_', '-')} " in str(error.value)
    assert str(value) in str(error.value)


def test_the_default_window_ends_at_20_for_long_experts() -> None:
    assert config().window_end(range(51)) == 20
    assert config(min_start_epoch=5).window_end(range(51)) == 20
    assert config().window_end([*range(11), 50]) == 9
    with pytest.raises(UserError, match=r"--min-start-epoch should be below .* 20, but is 20"):
        config(min_start_epoch=20)
    assert config(min_start_epoch=20, max_start_epoch=30).window_end(range(51)) == 30


def test_freeze_is_a_number_of_images_or_a_fraction() -> None:
    assert [config(freeze=freeze).freeze for freeze in (0.5, 2)] == [0.5, 2]
    with pytest.raises(UserError, match="freeze should be a whole number, or a fraction below 1"):
        config(freeze=1.5)


def test_choosing_an_iterate_needs_evaluations() -> None:
    with pytest.raises(UserError, match="--eval-every is 0"):
        config(select="test-max")
    assert config(select="test-max", eval_every=10).select == "test-max"


def test_files_lie_beside_the_artifact() -> None:
    named = config(out=Path("runs/cifar.v1.safetensors"))
    assert named.checkpoint_path == Path("runs/cifar.v1.checkpoint.safetensors")
    assert named.log_path == Path("runs/cifar.v1.jsonl")
    assert config(out=Path("runs/cifar")).log_path == Path("runs/cifar.jsonl")
    assert config(log=Path("elsewhere.log")).log_path == Path("elsewhere.log")


def test_recipe_holds_what_decides_the_result_and_nothing_else() -> None:
    one = config(lr_img=5.0)
    elsewhere = config(
        lr_img=5.0,
        experts=Path("/mnt/experts"),
        out=Path("/mnt/out"),
        data="npz:/mnt/data.npz",
        log=Path("/mnt/log"),
        snapshots=0,
        tensorboard=Path("/mnt/tensorboard"),
        wandb="project",
        quiet=True,
        resume=True,
        device="cuda",
        graph=False,
        parallel="batch",
        timeout=5.0,
        checkpoint_every=7,
        seed=3,
    )
    first, same, other = (
        settings_of(each, DistillSettings) for each in (one, elsewhere, config(lr_img=6.0))
    )
    assert first == same != other
    assert not any(isinstance(value, Path) for value in first.values())


def test_configuration_is_read_without_torch() -> None:
    code = "import sys, trajmatch.distill.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
