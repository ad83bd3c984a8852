"""`trajmatch distill` and `trajmatch show` as a user types them."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from trajmatch import artifact, files
from trajmatch.cli.main import main
from trajmatch.distill import memory_plan


@pytest.fixture
def arguments(store: Path, tmp_path: Path) -> list[str]:
    return [
        *("distill", "--experts", str(store), "--out", str(tmp_path / "d.safetensors")),
        *("--ipc", "1", "--iterations", "3", "--student-steps", "2", "--expert-epochs", "1"),
        *("--max-start-epoch", "2", "--lr-img", "10"),
    ]


def fails(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """The message of a command that ends with status 2, on one line."""
    try:
        status = main(arguments)
    except SystemExit as exit_status:  # the configuration itself refused a value
        status = exit_status.code
    assert status == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return " ".join(error.replace("\u2502", " ").split())


def test_distil_and_show(arguments, tmp_path, capsys) -> None:
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert str(tmp_path / "d.safetensors") in out
    assert "3/3" in err
    assert main(["show", str(tmp_path / "d.safetensors")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "d.png")
    with Image.open(tmp_path / "d.png") as picture:
        assert picture.format == "PNG"
    target = tmp_path / "new" / "grid.png"
    shown = ["show", str(tmp_path / "d.safetensors"), "--out", str(target), "--scale", "2"]
    assert main([*shown, "--clip", "unit", "--per-class", "1"]) == 0
    with Image.open(target) as picture:
        assert picture.height == 4 + 20 + 2 * 8 + 4


def test_quiet_changes_no_byte_where_memory_is_short(
    arguments, make_store, tmp_path, monkeypatch, capsys
) -> None:
    """Short of memory, batches are divided, which changes the last bits of a result."""
    store = str(make_store("mlp", network="mlp", width=128, depth=3))
    made = {}
    for name, free, flags in (("enough", None, []), ("shown", -1, []), ("quiet", -1, ["--quiet"])):
        if free is not None:
            monkeypatch.setattr(memory_plan, "free_bytes", lambda device, free=free: free)
        out = tmp_path / name
        assert main([*arguments, "--experts", store, "--out", str(out), "--ipc", "2", *flags]) == 0
        made[name] = out.read_bytes(), capsys.readouterr()
    assert made["shown"][0] == made["quiet"][0] != made["enough"][0]
    assert "1 images at a time" in made["shown"][1].err and made["quiet"][1] == ("", "")


def test_the_default_window_is_said(arguments, tmp_path, capsys) -> None:
    at = arguments.index("--max-start-epoch")
    assert main([*arguments[:at], *arguments[at + 2 :], "--out", str(tmp_path / "other")]) == 0
    said = capsys.readouterr().err
    told = "start epochs are 0 to 3, because --max-start-epoch defaults to 4 for experts"
    assert said.count(told) == 1
    assert main(arguments) == 0
    assert "--max-start-epoch" not in capsys.readouterr().err


def test_quiet_says_nothing(arguments, capsys) -> None:
    assert main([*arguments, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_resume_of_nothing_and_of_a_finished_run(arguments, capsys) -> None:
    assert main([*arguments, "--resume"]) == 0
    assert main([*arguments, "--resume"]) == 0
    assert "--resume" in fails(capsys, arguments)


def test_help_names_the_papers_symbols(capsys) -> None:
    with pytest.raises(SystemExit) as exit_status:
        main(["distill", "--help"])
    assert exit_status.value.code == 0
    text = capsys.readouterr().out
    for flag in ("--student-steps", "--expert-epochs", "--lr-lr", "--select", "--init-from"):
        assert flag in text
    assert "syn_steps" in text


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--max-start-epoch", "9"], "--max-start-epoch 9"),
        (["--ipc", "13"], "lower --ipc"),
        (["--ipc", "0"], "--ipc should be a whole number of at least 1, but is 0"),
        (["--select", "holdout", "--eval-every", "1"], "--holdout"),
        (["--device", "abacus"], "--device"),
        (["--data", "npz:/nowhere/at/all.npz"], "/nowhere/at/all.npz"),
        (["--experts", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--init-from", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--out", "/proc/nowhere/d.safetensors"], "/proc/nowhere"),
        (["--dsa", "swirl"], "swirl"),
        (["--lr-init", "1e30", "--iterations", "20"], "--lr-init"),
    ],
)
def test_mistakes_end_with_a_message(arguments, extra, message, capsys, tmp_path) -> None:
    text = fails(capsys, [*arguments, *extra])
    assert message in text
    assert not (tmp_path / "d.safetensors").exists()


def test_a_data_set_that_is_not_the_experts(arguments, make_data, tmp_path, capsys) -> None:
    other = make_data(tmp_path / "other.npz", seed=1)
    message = fails(capsys, [*arguments, "--data", other])
    assert f"but {other} holds other images" in message


def test_a_damaged_store(arguments, store, tmp_path, capsys) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(store, copy)
    expert = next(copy.glob("expert_*"))
    expert.write_bytes(expert.read_bytes()[:1000])
    assert expert.name in fails(capsys, [*arguments, "--experts", str(copy)])


@pytest.mark.parametrize("content", [b"", b"not a distilled set"])
def test_show_refuses_foreign_files(tmp_path, content, capsys) -> None:
    (tmp_path / "f").write_bytes(content)
    assert str(tmp_path / "f") in fails(capsys, ["show", str(tmp_path / "f")])


def test_show_refuses_a_checkpoint(arguments, store, tmp_path, capsys) -> None:
    assert main([*arguments, "--quiet"]) == 0
    tensors, metadata = files.load_tensors(tmp_path / "d.safetensors")
    metadata["format"] = "trajmatch distillation checkpoint"
    files.save_tensors(tmp_path / "c", tensors, metadata)
    assert "its format is 'trajmatch distillation checkpoint'" in fails(
        capsys, ["show", str(tmp_path / "c")]
    )


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--out", "d.safetensors"], ".png"),
        (["--scale", "0"], "--scale should be a whole number of at least 1"),
    ],
)
def test_show_refuses_to_overwrite_the_set(arguments, tmp_path, extra, message, capsys) -> None:
    assert main([*arguments, "--quiet"]) == 0
    before = artifact.load(tmp_path / "d.safetensors").fingerprint
    assert message in fails(capsys, ["show", str(tmp_path / "d.safetensors"), *extra])
    assert artifact.load(tmp_path / "d.safetensors").fingerprint == before


def test_ctrl_c_leaves_a_whole_checkpoint(arguments, tmp_path) -> None:
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from trajmatch.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    many = [*arguments, "--iterations", "1000000", "--checkpoint-every", "2"]
    command = [sys.executable, "-c", program, *many]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        checkpoint = tmp_path / "d.checkpoint.safetensors"
        while not checkpoint.exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        process.send_signal(2)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "continue with --resume" in error and "Traceback" not in error
    progress = files.read_metadata(checkpoint)["progress"]
    done = progress["iteration"]  # that of ctrl-C, or the last regular one
    finish = [*arguments, "--iterations", str(done + 1), "--resume", "--quiet"]
    assert main(finish) == 0
    assert artifact.load(tmp_path / "d.safetensors").recipe["iterations"] == done + 1
