"""benchmarks/compare_methods.py on a data set of coloured squares, at a scale of a moment."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from shutil import copyfile

import compare_methods as program
import doc_pages
import numpy as np
import pytest
from compare_methods import compare, matching
from comparison import page
from comparison.methods import (
    CIFAR10,
    EXPERTS,
    FIELD,
    PAPERS,
    REAL,
    REAL_SOFT,
    Scale,
    distill_fields,
    experts_of,
)
from comparison.methods import heavy_ball_gain as gain
from slices import SliceOver, Slices

from trajmatch import artifact, files
from trajmatch.distill import DistillConfig
from trajmatch.errors import UserError
from trajmatch.experts import ExpertConfig
from trajmatch.experts.store import Store

pytestmark = pytest.mark.harness

COMMON = {"student_steps": 4, "max_start_epoch": 2, "lr_img": 1.0, "lr_lr": 1e-6, "lr_init": 0.02}
TINY = Scale(
    experts={
        "width": 4,
        "depth": 2,
        "num_experts": 2,
        "epochs": 5,
        "batch_size": 5,
        "holdout": 0.5,
        "workers": 1,
    },
    distill={1: COMMON, 2: {**COMMON, "batch_syn": 4}},
    iterations=10,
    seeds=2,
    networks=2,
    eval_epochs=3,
    real_lr=0.02,
    checkpoint_every=5,
)
KINDS = experts_of(PAPERS)
PAGE = program.HERE.parent / "docs" / "comparison.md"


class Ticks:
    """A clock on which every look takes a second."""

    def __init__(self) -> None:
        self.seconds = 0

    def __call__(self) -> float:
        self.seconds += 1
        return float(self.seconds)


@pytest.fixture(scope="module")
def squares(tmp_path_factory) -> str:
    """Three classes of noisy squares, each of one colour."""
    draw = np.random.default_rng(0)

    def images(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(count) % 3
        pixels = draw.integers(0, 120, (count, 8, 8, 3), dtype=np.uint8)
        pixels[np.arange(count), 2:6, 2:6, labels] += 130
        return pixels, labels

    path = tmp_path_factory.mktemp("data") / "squares.npz"
    (x_train, y_train), (x_test, y_test) = images(120), images(30)
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return f"npz:{path}"


def start(folder: Path, uri: str, slice_seconds: float | None = None) -> dict:
    state = Slices(folder / "record.json", slice_seconds=slice_seconds, now=Ticks())
    return compare(TINY, uri, folder, state)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, squares) -> tuple[Path, dict]:
    """The comparison, done at once."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, start(folder, squares)


def runs(record: dict) -> Iterator[tuple[str, str, int, dict]]:
    for method, by_ipc in record["cells"].items():
        for ipc, entries in by_ipc.items():
            for seed, entry in enumerate(entries):
                yield method, ipc, seed, entry


def test_everything_is_in_the_record(whole) -> None:
    folder, record = whole
    assert files.read_json(folder / "record.json") == record
    found = [(method, ipc, seed) for method, ipc, seed, _ in runs(record)]
    assert sorted(found) == sorted(
        (method, ipc, seed)
        for method in (*REAL, *REAL_SOFT, *PAPERS)
        for ipc in "12"
        for seed in (0, 1)
    )
    for method, ipc, seed, entry in runs(record):
        assert len(entry["accuracies"]) == TINY.networks
        soft = method in (*REAL_SOFT, "DATM")
        assert entry["labels"] == ("soft" if soft else "hard")
        # of each image 8 x 8 x 3 float32, and three logits or a class
        assert entry["stored_bytes"] == 3 * int(ipc) * (4 * 192 + (12 if soft else 8))
        if method in PAPERS:
            name = f"{method.lower()}-ipc{ipc}-seed{seed}.safetensors"
            distilled = artifact.load(folder / "distilled" / name)
            assert entry["fingerprint"] == distilled.fingerprint
            assert entry["step_size"] == distilled.lr
            assert (distilled.ipc, distilled.seed) == (int(ipc), seed)
            assert entry["refused"] == 0
    assert record["calls"] == 1
    assert {kind: len(found) for kind, found in record["experts"].items()} == dict.fromkeys(
        KINDS, 2
    )


def test_all_kinds_of_experts_see_the_same_images(whole) -> None:
    stores = [Store.open(whole[0] / "experts" / kind) for kind in KINDS]
    seen = {store.manifest["holdout"]["training_fingerprint"] for store in stores}
    assert len(seen) == 1
    assert len({store.fingerprint for store in stores}) == len(KINDS)


def test_methods_differ_and_so_do_seeds(whole) -> None:
    prints = [entry["fingerprint"] for method, *_, entry in runs(whole[1]) if method in PAPERS]
    assert len(set(prints)) == len(prints) == 2 * 2 * len(PAPERS)


@pytest.mark.slow
def test_slices_give_the_same_as_one_run(whole, squares, tmp_path) -> None:
    calls = 0
    while True:
        calls += 1
        try:
            record = start(tmp_path, squares, slice_seconds=12)
            break
        except SliceOver:
            assert calls < 100
    assert calls > 10
    assert record["calls"] == calls
    for name in ("cells", "experts", "identity"):
        assert record[name] == whole[1][name]


@pytest.mark.slow
def test_the_program(squares, tmp_path, capsys) -> None:
    copy = tmp_path / "page.md"
    copyfile(PAGE, copy)
    arguments = [
        f"--data={squares}",
        f"--out={tmp_path / 'out'}",
        f"--record={tmp_path / 'record.json'}",
        f"--page={copy}",
    ]
    scale = replace(TINY, seeds=1, networks=1)
    assert program.main([*arguments, "--budget=0.001s"], scale) == program.COME_AGAIN
    assert "the same command goes on" in capsys.readouterr().out
    assert copy.read_text() == PAGE.read_text()

    assert program.main([*arguments, "--only=random real"], scale) == 0
    record = files.read_json(tmp_path / "record.json")
    assert set(record["cells"]) == {"random real"}
    assert page.NOT_COMPLETE in copy.read_text()

    assert program.main(arguments, scale) == 0
    record = files.read_json(tmp_path / "record.json")
    assert record["calls"] == 3
    assert page.result(record) in capsys.readouterr().out
    assert page.result(record) in copy.read_text()


def test_what_is_in_the_record_is_not_done_again(whole, squares, tmp_path, capsys) -> None:
    copyfile(whole[0] / "record.json", tmp_path / "record.json")
    record = start(tmp_path, squares)
    assert record["cells"] == whole[1]["cells"]
    assert not (tmp_path / "experts").exists()


def test_a_curriculum_by_the_scores_of_the_plain_experts(squares, tmp_path) -> None:
    scale = replace(TINY, experts={**TINY.experts, "epochs": 8}, seeds=1, networks=1)
    slices = Slices(tmp_path / "record.json")
    record = compare(scale, squares, tmp_path / "out", slices, methods=FIELD, only=["PAD"])
    assert record["cells"].keys() == {"PAD"}
    assert record["experts"].keys() == {"plain", "curriculum"}
    recipe = Store.open(tmp_path / "out" / "experts" / "curriculum").manifest["recipe"]
    assert recipe["curriculum"] == "0.75,2" and recipe["scores"]


def test_another_comparison_in_the_same_record(whole, squares) -> None:
    state = Slices(whole[0] / "record.json")
    with pytest.raises(UserError, match=r"work with another scale, methods; write to a new place"):
        compare(replace(TINY, iterations=20), squares, whole[0], state)


def test_the_table_by_hand(whole) -> None:
    record = json.loads(json.dumps(whole[1]))
    for number, (_, _, seed, entry) in enumerate(runs(record)):
        entry["accuracies"] = [number + seed, number + 3 * seed]
    record["cells"]["MTT"]["2"] = [
        {
            **{"accuracies": [10, 20], "step_size": 0.25, "matching_loss": [1.0, 0.5]},
            **{"labels": "hard", "stored_bytes": 1234},
        },
        {"accuracies": [30, 20], "step_size": 0.75, "matching_loss": [0.5, 0.25]},
    ]
    record["experts"]["flat"] = [60.0, 61.0]
    record["seconds"] = dict.fromkeys(record["seconds"], 0.0)
    record["seconds"] |= {"MTT, 2 per class": 3600.0, "others": 1800.0}
    text = page.result(record)
    row = next(line for line in text.splitlines() if line.startswith("| MTT |"))
    assert row.endswith("| 20.0 ± 5.0 | 1,234 |")
    assert "| MTT | 2 | 0.750 | 0.375 | 0.5 | 30 |" in text
    assert "| flat | FTD, DATM | 60.5 ± 0.5 |" in text
    assert "1.5 hours" in text
    methods = [line.split(" | ")[0].strip("| ") for line in text.split("\n\n")[0].splitlines()[2:]]
    assert methods == [*REAL, *REAL_SOFT, *PAPERS]
    del record["cells"][REAL_SOFT[0]]  # as in records of the first release
    assert f"| {REAL_SOFT[0]} |" not in page.result(record)


def test_an_unfinished_record_says_what_it_has(whole) -> None:
    record = json.loads(json.dumps(whole[1]))
    record["cells"]["DATM"]["2"][1]["accuracies"].pop()
    record["cells"]["MTT"]["1"] = []
    text = page.result(record)
    cells = {row.split(" | ")[0].strip("| "): row for row in reversed(text.splitlines())}
    assert page.NOT_COMPLETE in text
    assert "(1 of 2)" in cells["DATM"] and cells["MTT"].startswith("| MTT | - | - | - |")
    for none in ({}, None):
        assert page.result(none) == page.NOT_MEASURED


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("comparison", "result"),
        ("comparison_field", "result of comparison_field"),
        ("comparison_equal_time", "result of comparison_equal_time"),
    ],
)
def test_the_page_is_what_the_record_says(name: str, part: str) -> None:
    path = program.HERE / "results" / f"{name}.json"
    record = files.read_json(path) if path.exists() else None
    assert f"<!-- {part} -->\n{page.result(record)}\n<!-- end of {part} -->" in PAGE.read_text()


def test_the_page_has_the_settings_of_the_scale() -> None:
    text = f"<!-- settings -->\n{page.settings(CIFAR10)}\n<!-- end of settings -->"
    assert text in PAGE.read_text()


def test_a_page_without_the_part(tmp_path) -> None:
    (tmp_path / "page.md").write_text("<!-- result -->\n")
    with pytest.raises(UserError, match=r"<!-- result --> and <!-- end of result --> once, has 0"):
        doc_pages.fill(tmp_path / "page.md", "result", "text")


def test_data_that_is_nowhere(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.delenv("TRAJMATCH_DATA", raising=False)
    assert program.main([f"--out={tmp_path}", f"--record={tmp_path / 'record.json'}"]) == 2
    assert "'cifar10' is not found" in capsys.readouterr().err


def test_a_method_that_is_none(squares, tmp_path, capsys) -> None:
    arguments = [f"--data={squares}", f"--out={tmp_path}", "--only=MTT, flipped"]
    assert program.main(arguments) == 2
    assert "--only 'MTT, flipped' is none of 'random real', " in capsys.readouterr().err


@pytest.mark.parametrize("scale", [CIFAR10, TINY])
@pytest.mark.parametrize("method", PAPERS)
def test_settings_fit_the_configurations(method, scale) -> None:
    fields = {**scale.experts, **EXPERTS[PAPERS[method].experts]}
    experts = ExpertConfig(out=Path("x"), **fields)
    for ipc in scale.distill:
        config = DistillConfig(
            experts=Path("x"), out=Path("y"), **distill_fields(method, scale, ipc)
        )
        assert config.ipc == ipc
        assert config.iterations == scale.iterations
        assert config.iterations % scale.checkpoint_every == 0
        assert config.max_start_epoch - 1 + config.expert_epochs <= experts.epochs


@pytest.mark.parametrize("ipc", [1, 10])
def test_what_all_methods_share(ipc) -> None:
    shared = {"iterations", "student_steps", "expert_epochs", "batch_syn", "lr_img"}
    fields = [distill_fields(method, CIFAR10, ipc) for method in PAPERS]
    assert len({tuple(each.get(name) for name in sorted(shared)) for each in fields}) == 1


def test_the_average_has_its_share_of_the_run() -> None:
    decay = distill_fields("FTD", CIFAR10, 10)["ema"]
    assert decay**CIFAR10.iterations == pytest.approx(0.999**5000)


def test_gain_of_momentum() -> None:
    place, velocity = 0.0, 0.0
    for _ in range(20):
        velocity = 0.9 * velocity + 1.0
        place += velocity
    assert gain(20, 0.9) == pytest.approx(place / 20)
    assert gain(20, 0.0) == 1.0


def test_how_a_distillation_went(tmp_path) -> None:
    losses = [2.0, *[1.0] * 18, 0.5]
    lines = [{"loss": loss, "refused": None, "skipped": loss > 1} for loss in losses]
    lines.append({"loss": None, "refused": "the matching loss is not finite"})
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert matching(log) == {"matching_loss": [1.5, 0.75], "skipped": 1, "refused": 1}
