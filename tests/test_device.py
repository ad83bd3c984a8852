"""The device that a user names, on machines that this one stands in for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trajmatch import UserError, _extension, device
from trajmatch.cli import doctor, selftest
from trajmatch.cli.main import main
from trajmatch.distill import DistillConfig, distill
from trajmatch.errors import in_arguments
from trajmatch.evaluate import EvalConfig, evaluate_artifact
from trajmatch.experts import ExpertConfig, train_experts

LEFT_OUT = {"what": "CUDA kernels", "why": "no nvcc was found", "mend": "Install it, then: pip"}
REINSTALL = "-m pip install --no-cache-dir --force-reinstall --no-deps ."


@pytest.fixture
def machine(monkeypatch):
    """Sets up torch, GPUs and a build as another machine has them; nothing can compute there."""
    monkeypatch.delenv("TRAJMATCH_DEVICE")

    def set_up(
        torch_cuda="13.0",
        capabilities=((8, 0),),
        built="13.0",
        architectures=("8.0", "9.0+PTX"),
        driver="13.0",
    ):
        build = {**_extension.build_info(), "cuda": built, "architectures": [*architectures]}
        build["left_out"] = [] if built else [LEFT_OUT]
        monkeypatch.setattr(torch.version, "cuda", torch_cuda)
        for name, function in {
            "device_count": lambda: len(capabilities),
            "current_device": lambda: 0,
            "get_device_capability": lambda index=0: capabilities[index],
            "get_device_name": lambda index=0: "NVIDIA Stand-in",
            "init": lambda: None,
        }.items():
            monkeypatch.setattr(torch.cuda, name, function)
        release = tuple(map(int, driver.split(".")))
        monkeypatch.setattr(device, "_driver_release", lambda: release)
        for module in (_extension, device):
            monkeypatch.setattr(module, "build_info", lambda: build)

    return set_up


@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_a_gpu_that_the_kernels_were_compiled_for_is_taken(machine, name):
    machine()
    assert device.usable_device(name) == name
    assert device.cuda_fault() is None


FAULTS = {
    "torch without CUDA": (
        {"torch_cuda": None},
        "was built without CUDA",
        "Install a torch with CUDA",
    ),
    "torch without CUDA, and no kernels": (
        {"torch_cuda": None, "built": None},
        "was built without CUDA",
        f"Install a torch with CUDA, then: `{sys.executable} {REINSTALL}` in the source folder of "
        "trajmatch",
    ),
    "no GPU": ({"capabilities": ()}, "torch sees no GPU", "CUDA_VISIBLE_DEVICES"),
    "no kernels": (
        {"built": None},
        "this build of trajmatch has no CUDA kernels, because no nvcc was found",
        "Install it, then: pip",
    ),
    "another card": (
        {"capabilities": ((7, 5),)},
        "the kernels were compiled for 8.0, 9.0+PTX and not for NVIDIA Stand-in, of compute "
        "capability 7.5",
        f"Compile them: `TORCH_CUDA_ARCH_LIST=7.5 {sys.executable} {REINSTALL}` in the source",
    ),
    "too old a card": (
        {"capabilities": ((7, 0),)},
        "the kernels do not run on NVIDIA Stand-in, of compute capability 7.0",
        "They need 7.5 or later",
    ),
    "too old a driver": (
        {"driver": "12.8"},
        "the kernels were compiled by nvcc 13.0, but the driver is made for CUDA 12.8",
        "Install a newer driver; or set CUDA_HOME to a toolkit of CUDA 12",
    ),
    "PTX that is newer than the driver": (
        {"capabilities": ((12, 0),), "built": "13.2", "driver": "13.0"},
        "not for NVIDIA Stand-in, of compute capability 12.0",
        "TORCH_CUDA_ARCH_LIST=12.0 ",
    ),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_gpu_that_cannot_be_used_is_refused_with_what_mends_it(machine, kind):
    here, why, mend = FAULTS[kind]
    machine(**here)
    fault = device.cuda_fault()
    assert why in fault.why
    assert mend in fault.mend
    with pytest.raises(UserError) as refused:
        device.usable_device("cuda")
    assert str(refused.value) == f"--device cuda cannot be used: {fault}"
    assert "\n" not in str(refused.value)


def test_a_wheel_is_compiled_from_the_sources_of_the_registry(machine, monkeypatch):
    machine(capabilities=((7, 5),))
    wheel = {**device.build_info(), "wheel": True}
    monkeypatch.setattr(device, "build_info", lambda: wheel)
    assert device.cuda_fault().mend == (
        f"Compile them: `TORCH_CUDA_ARCH_LIST=7.5 {sys.executable} -m pip install --no-cache-dir "
        "--force-reinstall --no-deps --no-binary trajmatch trajmatch`"
    )


def test_commands_that_mend_keep_their_flags_in_python(machine, monkeypatch):
    machine(capabilities=((7, 5),))
    with pytest.raises(UserError) as refused:
        device.usable_device("cuda")
    message = in_arguments(refused.value.in_flags)
    assert message.startswith("device cuda cannot be used: ") and REINSTALL in message


def test_a_driver_that_torch_cannot_use_is_told_in_its_words(machine, monkeypatch):
    machine()

    def init():
        raise RuntimeError("The NVIDIA driver on your system is too old\nmore lines")

    monkeypatch.setattr(torch.cuda, "init", init)
    with pytest.raises(UserError, match=r"driver on your system is too old\. See nvidia-smi$"):
        device.usable_device("cuda")


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        (["8.0"], (8, 6), True),  # compiled code runs on later ones of its generation
        (["8.6"], (8, 0), False),
        (["8.0"], (9, 0), False),
        (["8.0+PTX"], (9, 0), True),
        (["9.0a"], (9, 0), True),
        (["10.0a+PTX"], (10, 3), False),  # an "a" is for that one alone
        (["10.0f"], (10, 3), True),
        (["7.5", "12.0+PTX"], (12, 1), True),
        ([], (8, 0), False),
    ],
)
def test_compiled_code_runs_on_the_cards_that_cuda_says(machine, architectures, capability, runs):
    machine(architectures=architectures, capabilities=(capability,))
    assert (device.cuda_fault() is None) is runs


@pytest.mark.parametrize(
    "name",
    ["mps", "xla", "meta", "gpu", "CPU", "", "cpu:0", "cuda:", "cuda:-1", "cuda:1x", "auto "],
)
@pytest.mark.parametrize("gpus", [0, 2])
def test_another_word_gets_one_line_that_says_what_is_there(machine, name, gpus):
    machine(capabilities=((8, 0),) * gpus)
    with pytest.raises(UserError) as refused:
        device.usable_device(name)
    there = "cpu, cuda:0, cuda:1" if gpus else "cpu (torch sees no GPU)"
    assert str(refused.value) == (
        f"--device should be auto, cpu, cuda or cuda:N, but is {name!r}; available: {there}"
    )


def test_a_number_that_no_gpu_has_gets_those_that_are_there(machine):
    machine(capabilities=((8, 0), (9, 0)))
    assert device.usable_device("cuda:1") == "cuda:1"
    with pytest.raises(UserError, match=r"there is no cuda:9\. Available: cpu, cuda:0, cuda:1$"):
        device.usable_device("cuda:9")


def test_the_driver_is_asked_for_its_release(monkeypatch, tmp_path):
    source, library = tmp_path / "driver.c", tmp_path / "libcuda.so"
    source.write_text("int cuDriverGetVersion(int* v) { *v = 12080; return 0; }\n")
    subprocess.run(["cc", "-shared", str(source), "-o", str(library)], check=True)
    monkeypatch.setattr(device, "DRIVER", str(library))
    assert device._driver_release() == (12, 8)


def test_the_least_capability_is_the_first_that_the_build_knows():
    source = (Path(__file__).parents[1] / "_build/cuda_toolkit.py").read_text()
    assert 'ARCHITECTURES = ("{}.{}", '.format(*device.LEAST_CAPABILITY) in source


# --- auto


def test_auto_takes_a_gpu_that_can_be_used(machine):
    machine()
    assert device.automatic_device() == ("cuda", "NVIDIA Stand-in")


@pytest.mark.parametrize("kind", FAULTS)
def test_auto_takes_the_cpu_elsewhere_and_knows_why(machine, kind):
    here, why, _ = FAULTS[kind]
    machine(**here)
    taken, reason = device.automatic_device()
    assert taken == "cpu"
    assert why in reason
    assert device.usable_device("auto") == "cpu"


@pytest.mark.parametrize(("processes", "taken"), [(2, "cuda"), (3, "cpu")])
def test_auto_takes_gpus_if_each_process_has_one(machine, monkeypatch, processes, taken):
    machine(capabilities=((8, 0), (8, 0)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert device.automatic_device()[0] == taken


def test_auto_takes_what_the_environment_names(machine, monkeypatch):
    machine(capabilities=((8, 0), (8, 0)))
    monkeypatch.setenv("TRAJMATCH_DEVICE", "cuda:1")
    assert device.usable_device("auto") == "cuda:1"
    monkeypatch.setenv("TRAJMATCH_DEVICE", "gpu")
    with pytest.raises(UserError, match=r"^TRAJMATCH_DEVICE: --device should be .* is 'gpu'"):
        device.usable_device("auto")


COMMANDS = {
    "expert": ["--out", "no/store"],
    "distill": ["--experts", "no/store", "--out", "no/file"],
    "eval": ["no/file"],
    "run": ["--recipe", "cpu/own/ipc1", "--out", "no/folder"],
    "demo": ["--out", "no/folder"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_refuse_the_device_before_anything_is_read(
    machine, capsys, monkeypatch, tmp_path, command
):
    machine(built=None)
    monkeypatch.chdir(tmp_path)
    assert main([command, *COMMANDS[command], "--device", "cuda"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "trajmatch: error: --device cuda cannot be used: this build of trajmatch has no CUDA "
        "kernels, because no nvcc was found. Install it, then: pip\n"
    )
    assert list(tmp_path.iterdir()) == []


CALLS = {
    "train_experts": lambda: train_experts(ExpertConfig(out=Path("no/store"), device="cuda")),
    "distill": lambda: distill(
        DistillConfig(experts=Path("no/store"), out=Path("no.safetensors"), device="cuda")
    ),
    "evaluate_artifact": lambda: evaluate_artifact(EvalConfig(file=Path("no"), device="cuda")),
}


@pytest.mark.parametrize("call", CALLS)
def test_calls_refuse_the_device_before_anything_is_read(machine, monkeypatch, tmp_path, call):
    machine(built=None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="this build of trajmatch has no CUDA kernels"):
        CALLS[call]()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("quiet", [False, True])
def test_auto_is_the_default_and_says_what_it_took(machine, capsys, monkeypatch, command, quiet):
    machine(torch_cuda=None)
    told = f"trajmatch: --device auto takes cpu (torch {torch.__version__} was built without CUDA)"

    class Chosen(Exception):
        pass

    def stop(config, **changes):
        raise Chosen(changes)

    monkeypatch.setattr("trajmatch.cli.device.replace", stop)
    with pytest.raises(Chosen, match="'device': 'cpu'"):
        main([command, *COMMANDS[command], *(["--quiet"] if quiet else [])])
    assert capsys.readouterr().err == ("" if quiet else f"{told}\n")


def test_only_the_first_of_several_processes_says_what_auto_took(machine, capsys, monkeypatch):
    from trajmatch.cli.device import with_device

    machine(torch_cuda=None)
    monkeypatch.setenv("RANK", "1")
    assert with_device(EvalConfig(file=Path("no"))).device == "cpu"
    assert capsys.readouterr().err == ""


# --- doctor


def test_doctor_says_the_same_of_a_gpu(machine, capsys):
    machine(built=None, capabilities=((8, 0), (8, 0)))
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for name in ("cuda:0", "cuda:1"):
        assert f"  {name} cannot be used: {device.cuda_fault()}" in text
    assert text.endswith("All tests passed, but a GPU cannot be used (see above).\n")


def test_doctor_tests_a_gpu_that_can_be_used(machine, monkeypatch):
    machine(capabilities=((7, 0), (8, 0)))
    asked = []
    monkeypatch.setattr(selftest, "run_cases", lambda devices: asked.extend(devices) or [])
    report = doctor.examine()
    assert asked == ["cpu", "cuda:1"]
    assert report["devices"][1:] == ["cuda:1 (NVIDIA Stand-in)"]
    assert list(report["faults"]) == ["cuda:0"]
    json.dumps(report)


# --- a build without CUDA kernels beside a torch with CUDA

BESIDE = """
import json, sys, warnings
import torch
torch.version.cuda = "13.0"
torch.cuda.device_count = lambda: 1
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import trajmatch.ops
from trajmatch._extension import missing_kernels
from trajmatch.cli.doctor import operators
texts = [str(each.message) for each in caught if each.category is UserWarning]
try:
    cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    one = torch.ones(3)
    torch.ops.trajmatch.param_distance.default.redispatch(cuda, one, one, one)
    error = None
except NotImplementedError as raised:
    error = str(raised)
keys = operators()["param_distance"]
print(json.dumps([texts, error, str(missing_kernels()), torch.cuda.is_initialized(), keys]))
"""


@pytest.mark.skipif(_extension.missing_kernels() is None, reason="this build has CUDA kernels")
def test_missing_kernels_are_told_at_import_and_by_operators_on_cuda_tensors():
    without = {k: v for k, v in os.environ.items() if k != "TRAJMATCH_WARNED"}
    command = [sys.executable, "-c", BESIDE]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, env=without)
    texts, error, missing, initialised, keys = json.loads(answer.stdout)
    assert texts == [f"torch sees a GPU, but {missing}"]
    assert error == missing
    assert not initialised
    assert "CPU" in keys and "CUDA" not in keys


@pytest.mark.parametrize(
    ("gpus", "environment", "warnings"),
    [(1, {}, 1), (0, {}, 0), (1, {"LOCAL_RANK": "1"}, 0), (1, {"TRAJMATCH_WARNED": "1"}, 0)],
)
def test_one_process_warns_of_a_gpu(machine, monkeypatch, recwarn, gpus, environment, warnings):
    machine(built=None, capabilities=((8, 0),) * gpus)
    monkeypatch.setenv("TRAJMATCH_WARNED", "")  # so that it is as before afterwards
    monkeypatch.delenv("TRAJMATCH_WARNED")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    _extension._warn_of_idle_gpu()
    _extension._warn_of_idle_gpu()
    assert len(recwarn) == warnings
