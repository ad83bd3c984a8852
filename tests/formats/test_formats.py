"""Files of release 0.1 are read, evaluated and resumed; ``make.py`` lists them."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from trajmatch import artifact
from trajmatch.errors import UserError
from trajmatch.experts import Store, store_maintenance
from trajmatch.report.config import ReportConfig
from trajmatch.report.page import write_report

RELEASES = [
    path for path in sorted(Path(__file__).parent.iterdir()) if (path / "tiny.npz").exists()
]


@pytest.fixture(scope="module")
def make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make", Path(__file__).with_name("make.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=RELEASES, ids=lambda path: path.name)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of what a release wrote."""
    return Path(shutil.copytree(request.param, tmp_path / request.param.name))


def contents(path: Path) -> dict[str, bytes]:
    """The files of a run without the description of a store, which says where its data is."""
    files = path.rglob("*") if path.is_dir() else [path]
    return {str(f): f.read_bytes() for f in files if f.is_file() and f.name != "store.json"}


def says_all(found: Any, was: Any) -> bool:
    """Return True if an object of JSON has all that an older one has."""
    if isinstance(was, dict):
        return all(says_all(found[key], value) for key, value in was.items())
    if isinstance(was, list):
        return all(map(says_all, found, was)) and len(found) == len(was)
    return bool(found == was)


def test_finished_runs_are_known_as_finished(make: ModuleType, folder: Path) -> None:
    runs = make.configurations(folder)
    for name, config in runs.items():
        if not name.startswith("unfinished"):
            run, _ = make.RUNS[type(config)]
            before = contents(folder / name)
            with pytest.raises(UserError, match="--resume"):
                run(config)
            run(dataclasses.replace(config, resume=True))
            after = contents(folder / name)
            for path in [path for path in before if Path(path).name == "result.json"]:
                was, found = (json.loads(each[path]) for each in (before, after))
                assert says_all(found, was)  # later releases say more
                after[path] = before[path]
            assert after == before, name
            setting = next(each for each in ("lr", "lr_img", "seed") if each in vars(config))
            other = dataclasses.replace(config, resume=True, **{setting: 7})
            with pytest.raises(UserError, match=setting):
                run(other)


def test_unfinished_runs_go_on(make: ModuleType, folder: Path) -> None:
    runs = {n: each for n, each in make.configurations(folder).items() if n.startswith("unf")}
    before = {name: contents(folder / name) for name in runs if (folder / name).is_dir()}
    log = (folder / "unfinished.jsonl").read_text()
    for config in runs.values():
        make.RUNS[type(config)][0](dataclasses.replace(config, resume=True))

    assert (folder / "unfinished.jsonl").read_text().startswith(log)
    for name, there in before.items():
        after = contents(folder / name)
        kept = [each for each in there if "checkpoint" not in each and "result" not in each]
        assert kept and all(after[each] == there[each] for each in kept)
        assert not any("checkpoint" in each for each in after)
    whole, resumed = (Store.open(folder / name) for name in ("experts", "unfinished-experts"))
    for epoch in range(4):
        torch.testing.assert_close(whole.snapshot(1, epoch), resumed.snapshot(1, epoch))


def test_stores_and_sets_say_what_they_said(folder: Path) -> None:
    for name in ("experts", "whitened"):
        assert {each.status for each in store_maintenance.verify(folder / name)} == {"ok"}
    hard, soft = (artifact.load(folder / f"{n}.safetensors") for n in ("distilled", "soft"))
    assert (hard.label_kind, hard.ipc, hard.selection, hard.zca) == ("index", 1, "holdout", None)
    assert hard.recipe["lr_img"] == 10 and hard.recipe["experts"]["epochs"] == 3
    assert soft.label_kind == "logit" and soft.zca is not None and soft.dsa == "flip"
    assert soft.network["norm"] == "batch" and soft.recipe["experts"]["optimiser"] == "adam"
    assert hard.scores[-1]["split"] == "holdout" and soft.scores[-1]["protocol"]["epochs"] == 2


def test_a_run_is_reported(folder: Path) -> None:
    results = tuple(folder.glob("*evaluation/result.json"))
    run = folder / "distilled.safetensors"
    write_report(ReportConfig(run=run, out=folder / "page.html", evaluation=results))
    page = (folder / "page.html").read_text()
    assert page.count("<img") >= 2 and "random real" in page
