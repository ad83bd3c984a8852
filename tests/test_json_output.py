"""With ``--json`` the standard output is JSON alone, whatever other people's code prints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trajmatch import artifact
from trajmatch.artifact import Artifact
from trajmatch.cli.main import main
from trajmatch.data import load_dataset

MODULE = """
import atexit
import ctypes
import os
import subprocess
import sys



def chatter(where):
    print("python", where)
    sys.__stdout__.write(f"original stream {where}\\n")
    os.write(1, f"descriptor {where}\\n".encode())
    ctypes.CDLL(None).puts(f"library of C {where}".encode())
    subprocess.run(["echo", "program", where])


chatter("at import")
atexit.register(chatter, "at exit")


def network(in_channels, num_classes, image_size):
    chatter("in network")
    from torch import nn

    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes))


def data():
    chatter("in data")
    import numpy as np

    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), np.uint8)
    return images, np.arange(12) % 3, images, np.arange(12) % 3
"""
KINDS = ("python", "descriptor", "library of C", "program")


@pytest.fixture
def chatty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that prints in every way, and a set distilled from its data; returns the set."""
    (tmp_path / "chatty.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("atexit.register", lambda *_: None)
    dataset = load_dataset("chatty:data")
    monkeypatch.delitem(sys.modules, "chatty")
    fields: dict[str, Any] = {
        "images": dataset.normalise(dataset.train_images[:3]),
        "labels": dataset.train_labels[:3],
        "label_kind": "index",
        "lr": 0.03,
        "mean": dataset.mean,
        "std": dataset.std,
        "dsa": "none",
        "network": {
            "name": "chatty:network",
            "in_channels": 1,
            "num_classes": 3,
            "image_size": 8,
        },
        "class_names": dataset.class_names,
        "dataset_name": dataset.name,
        "dataset_fingerprint": dataset.fingerprint,
        "ipc": 1,
        "recipe": {},
        "seed": 0,
        "versions": {},
    }
    artifact.save(tmp_path / "d.safetensors", Artifact(**fields))
    return str(tmp_path / "d.safetensors")


EVAL = "eval {} --data chatty:data --network chatty:network --seeds 1 --epochs 1 --json --quiet"
DOCTOR = "doctor --network chatty:network --image-size 8 --channels 1 --classes 3 --json"


@pytest.mark.parametrize("command", [EVAL, DOCTOR], ids=["eval", "doctor"])
def test_json_is_all_of_the_standard_output(
    chatty: str, capfd: pytest.CaptureFixture[str], command: str
) -> None:
    capfd.readouterr()
    assert main(command.replace("{}", chatty).split()) == 0
    out, err = capfd.readouterr()
    assert isinstance(json.loads(out), dict)
    for kind in KINDS:
        assert f"{kind} at import" in err
    print("after the command")
    assert capfd.readouterr().out == "after the command\n"


PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from trajmatch.cli.output import json_alone, print_json
with json_alone(True):
    import chatty
print_json({"a": 1})
print("the caller")
"""


def test_what_is_printed_at_exit_is_no_output(chatty: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == '{\n  "a": 1\n}\nthe caller\n'
    for kind in (*KINDS, "original stream"):
        for where in ("at import", "at exit"):
            assert f"{kind} {where}" in done.stderr


def test_without_json_the_output_is_as_it_was(
    chatty: str, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    assert main(DOCTOR.removesuffix(" --json").split()) == 0
    assert "descriptor in network" in capfd.readouterr().out


def test_a_mistake_leaves_the_standard_output_empty(
    chatty: str, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    assert main([*EVAL.replace("{}", chatty).split(), "--network", "chatty:nothing"]) == 2
    out, err = capfd.readouterr()
    assert out == "" and "trajmatch: error: " in err
