import json
import math

import pytest
import torch

from trajmatch import ops, reference
from trajmatch.cli import doctor, selftest
from trajmatch.cli.main import main


@pytest.fixture(scope="module")
def report():
    return doctor.examine()


def test_the_self_test_passes(report):
    assert report["passed"]
    assert {outcome["case"] for outcome in report["self_test"]} == {
        "param_distance",
        "sgd_step",
        "norm_act_pool",
        "dsa",
        "soft_cross_entropy",
        "gradient",
        "gradient_jvp",
        "unroll",
    }


def test_every_operator_is_listed_with_its_kernels(report):
    assert report["operators"].keys() >= {"param_distance", "sgd_step", "norm_act_pool"}
    for name, keys in report["operators"].items():
        assert "CPU" in keys, name
    built_with_cuda = report["build"]["cuda"] is not None
    assert built_with_cuda == any("CUDA" in keys for keys in report["operators"].values())


def test_json_is_the_report(capsys):
    assert main(["doctor", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["versions"]["torch"] == torch.__version__
    assert printed["passed"] is True


def test_the_text_says_everything(capsys, report):
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for name, version in report["versions"].items():
        assert f"{name} {version}" in text
    for name in report["operators"]:
        assert f"\n{name} " in text
    for part in report["build"]["left_out"]:
        assert f"left out: {part['what']}, because {part['why']}." in text
        assert part["mend"] in text
    assert text.endswith("All is well.\n")


@pytest.mark.parametrize("wrong", [1 + 1e-6, math.nan])
def test_a_wrong_operator_fails_the_self_test(capsys, monkeypatch, wrong):
    def param_distance(student, target, start):
        return reference.param_distance(student, target, start) * wrong

    monkeypatch.setattr(ops, "param_distance", param_distance)
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "FAILED: do not trust" in text
    (line,) = [line for line in text.splitlines() if line.endswith("  FAILED")]
    assert line.startswith("param_distance")


def test_a_result_that_is_missing_is_an_error(monkeypatch):
    broken = selftest.Case([(1,)], lambda module, ones: (ones,) * len(module), 0)
    monkeypatch.setattr(selftest, "CASES", {"broken": broken})
    monkeypatch.setattr(selftest, "reference", [1])
    monkeypatch.setattr(selftest, "ops", [1, 2])
    with pytest.raises(ValueError, match="zip"):
        selftest.run_cases(["cpu"])
