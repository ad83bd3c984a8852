"""A search on a handful of tiny networks."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from trajmatch import artifact, interruption
from trajmatch.cli.main import main
from trajmatch.data import load_dataset
from trajmatch.errors import UserError
from trajmatch.evaluate import Outcome, Protocol, TrainingSets, scores
from trajmatch.evaluate.training import train_fresh
from trajmatch.nas import NasConfig, choose, search
from trajmatch.random import derive_seed

Configure = Callable[..., NasConfig]
NAMES = [f"d{depth}-w32-relu-{norm}-average" for depth in (1, 2) for norm in ("none", "batch")]


class Recorder:
    """The units of work of each stage, and how many were said to be done, one after another."""

    def __init__(self) -> None:
        self.totals: dict[str, int] = {}
        self.done: list[int] = []

    def stage(self, total: int, title: str) -> AbstractContextManager[Recorder]:
        self.totals[title] = total
        return nullcontext(self)

    def update(self, done: int, **numbers: float) -> None:
        self.done.append(done)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Trainings with given accuracies, and the architectures that were asked for."""
    trained: list[str] = []

    def script(*outcomes: float | BaseException) -> list[str]:
        remaining = list(outcomes)
        trained.clear()

        def train(*arguments: Any, **named: Any) -> Outcome:
            found = remaining.pop(0)
            if isinstance(found, BaseException):
                raise found
            spec, real = arguments[2], len(arguments[0]) == 30
            trained.append(f"{'real' if real else 'proxy'} {spec['depth']} {spec['norm']}")
            return Outcome(found, None, found == 0)

        monkeypatch.setattr(scores, "train_fresh", train)
        return trained

    return script


def test_trains_every_architecture_on_both(configure: Configure, data: str) -> None:
    config, recorder = configure(seeds=2, real_lr=0.1), Recorder()
    result = search(config, recorder.stage)
    assert list(result["proxy"]) == list(result["real"]) == NAMES
    assert recorder.totals == {"proxy epochs": 4 * 2 * 4, "real epochs": 4 * 2 * 3}
    assert (max(recorder.done), recorder.done[-1]) == (4 * 2 * 4, 4 * 2 * 3)

    dataset, distilled = load_dataset(data), artifact.load(config.file)
    sets = TrainingSets(distilled, dataset, 0)
    architecture = choose(config)[3]
    for kind, training_set, protocol in (
        ("proxy", sets.distilled, Protocol(lr=0.05, dsa="none", epochs=3)),
        ("real", sets.whole_real, Protocol(lr=0.1, dsa="none", epochs=2)),
    ):
        alone = [
            train_fresh(
                *training_set(0),
                architecture.spec(1, 3, 8),
                protocol,
                dataset.normalise(dataset.test_images),
                dataset.test_labels,
                seed=derive_seed(0, "evaluate", network),
            ).accuracy
            for network in range(2)
        ]
        assert result[kind][architecture.name] == sum(alone) / 2
        record = json.loads((config.out / kind / f"{architecture.name}.json").read_text())
        assert record["accuracies"] == alone
        assert record["seconds"] > 0
    assert json.loads((config.out / "result.json").read_text()) == result


def test_what_is_found(configure: Configure, scripted: Callable[..., list[str]]) -> None:
    trained = scripted(10.0, 30.0, 20.0, 0.0, 50.0, 70.0, 80.0, 60.0)
    result = search(configure())
    order = ["1 none", "1 batch", "2 none", "2 batch"]
    assert trained == [f"{kind} {each}" for kind in ("proxy", "real") for each in order]
    correlations = result["spearman"]
    wanted = stats.spearmanr([10, 30, 20, 0], [50, 70, 80, 60]).statistic
    assert correlations["all"] == pytest.approx(wanted)
    assert correlations["2"] == pytest.approx(-1)  # 20 and 30 of 80 and 70
    assert correlations["3"] == pytest.approx(stats.spearmanr([30, 20, 0], [70, 80, 60]).statistic)
    assert correlations["9"] is None
    assert result["found"] == {"architecture": NAMES[1], "proxy": 30.0, "real": 70.0}
    assert result["best"] == {"architecture": NAMES[2], "proxy": 20.0, "real": 80.0}
    assert result["diverged"] == {"proxy": [NAMES[3]], "real": []}
    by_proxy = search(configure(top_by="proxy", resume=True))
    assert by_proxy["spearman"]["3"] == pytest.approx(
        stats.spearmanr([10, 30, 20], [50, 70, 80]).statistic
    )


def test_goes_on_where_it_was_interrupted(
    configure: Configure, scripted: Callable[..., list[str]]
) -> None:
    scripted(10.0, 30.0, 20.0, 40.0, 50.0, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        search(configure())
    with pytest.raises(UserError, match="holds a search already; add --resume to go on"):
        search(configure())
    trained, recorder = scripted(70.0, 80.0, 60.0), Recorder()
    result = search(configure(resume=True), recorder.stage)
    assert trained == ["real 1 batch", "real 2 none", "real 2 batch"]
    assert [*result["proxy"].values()] == [10.0, 30.0, 20.0, 40.0]
    assert [*result["real"].values()] == [50.0, 70.0, 80.0, 60.0]
    assert recorder.totals == {"proxy epochs": 4 * 4, "real epochs": 4 * 3}
    # The proxy's are all there; of the others one, and each of three stands for no epochs here.
    assert recorder.done == [4 * 4, 3, 3, 3, 3]


def test_a_search_can_grow(configure: Configure, scripted: Callable[..., list[str]]) -> None:
    scripted(*range(4))
    search(configure(depths=(2,)))
    trained = scripted(*range(10, 14))
    result = search(configure(resume=True))
    assert trained == ["proxy 1 none", "proxy 1 batch", "real 1 none", "real 1 batch"]
    assert [*result["proxy"].values()] == [10, 11, 0, 1]


def test_real_accuracies_from_a_file(
    configure: Configure, scripted: Callable[..., list[str]], tmp_path: Path
) -> None:
    scripted(10.0, 30.0, 20.0, 40.0, 50.0, 70.0, 80.0, 60.0)
    first = search(configure())
    trained = scripted(1.0, 2.0, 3.0, 4.0)
    config = replace(
        configure(real_scores=tmp_path / "search" / "result.json", proxy="random-real"),
        out=tmp_path / "second",
    )
    second = search(config)
    assert trained == ["proxy 1 none", "proxy 1 batch", "proxy 2 none", "proxy 2 batch"]
    assert second["real"] == first["real"]
    assert second["seconds"]["real"] is None and second["diverged"]["real"] is None
    wanted = stats.spearmanr([1, 2, 3, 4], [50, 70, 80, 60]).statistic
    assert second["spearman"]["all"] == pytest.approx(wanted)


@pytest.mark.parametrize("proxy", ["random-real", "k-center"])
def test_other_proxies(configure: Configure, data: str, proxy: Any, monkeypatch: Any) -> None:
    seen = []

    def train(*arguments: Any, **named: Any) -> Outcome:
        seen.append(arguments[0])
        return Outcome(float(len(seen)), None, False)

    monkeypatch.setattr(scores, "train_fresh", train)
    config = configure(proxy=proxy)
    search(config)
    sets = TrainingSets(artifact.load(config.file), load_dataset(data), 0)
    wanted = sets.random_real(0) if proxy == "random-real" else sets.k_center(0)
    for images in seen[:4]:
        assert images.equal(wanted[0])


def test_diverged_networks_get_nothing_right(configure: Configure) -> None:
    result = search(configure(lr=1e30, norms=("none",)))
    assert {*result["proxy"].values(), *result["real"].values()} == {0.0}
    assert result["diverged"]["proxy"] == result["diverged"]["real"] == NAMES[::2]
    assert result["spearman"]["all"] is None


# --- refusals


def test_architectures_that_do_not_fit(configure: Configure) -> None:
    config = configure(depths=(1, 4))
    with pytest.raises(UserError, match="d4-w32-relu-none-average does not fit images of 8 pixels"):
        search(config)
    assert not config.out.exists()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"epochs": 4}, r"protocol\.drop_epoch = 2 .*protocol\.epochs = 3 \(asked for: 4\)"),
        ({"seed": 1}, r"seed = 0 \(asked for: 1\)"),
        ({"lr": 0.1}, r"file = [0-9a-f]+ \(asked for: .*protocol.lr = 0.05 \(asked for: 0.1\)"),
    ],
)
def test_resuming_another_search(
    configure: Configure,
    scripted: Callable[..., list[str]],
    changes: dict[str, Any],
    field: str,
) -> None:
    scripted(*range(8))
    search(configure())
    with pytest.raises(UserError, match=f"holds a search with {field}"):
        search(configure(resume=True, **changes))


@pytest.mark.parametrize("content", ['{"mean": 1', '{"mean": 1.0, "architecture": "other"}', "{}"])
def test_a_damaged_record(
    configure: Configure, scripted: Callable[..., list[str]], content: str
) -> None:
    scripted(*range(8))
    config = configure()
    search(config)
    (config.out / "proxy" / f"{NAMES[1]}.json").write_text(content)
    with pytest.raises(UserError, match=f"{NAMES[1]}.json"):
        search(configure(resume=True))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, 'should have "real"'),
        ({"real": {NAMES[0]: "high"}}, 'should have "real"'),
        ({"real": {NAMES[0]: 1.0}}, f"lacks 3 of the 4 architectures, the first is {NAMES[1]}"),
        ({"real": {}, "dataset": {"fingerprint": "beef"}}, "with fingerprint beef"),
    ],
)
def test_real_accuracies_that_cannot_be_used(
    configure: Configure, tmp_path: Path, content: dict[str, Any], message: str
) -> None:
    path = tmp_path / "real.json"
    path.write_text(json.dumps(content))
    config = configure(real_scores=path)
    with pytest.raises(UserError, match=message):
        search(config)
    assert not config.out.exists()


# --- the command


def test_command(configure: Configure, data: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = configure()
    arguments = ["nas", str(config.file), "--out", str(config.out), "--data", data]
    arguments += ["--depths", "1", "--widths", "32", "--activations", "relu", "leaky_relu"]
    arguments += ["--norms", "none", "--poolings", "max", "--epochs", "1", "--real-epochs", "1"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert "proxy epochs 4/4" in err and "real epochs 4/4" in err
    for text in ("2 architectures, proxy: distilled", "all", "best on the proxy: d1-w32-"):
        assert text in out
    assert main([*arguments, "--resume", "--json", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert json.loads(out) == json.loads((config.out / "result.json").read_text())
    assert main(arguments) == 2
    assert "add --resume" in capsys.readouterr().err


def test_the_time_is_up_and_the_search_goes_on(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    looked = 0

    def remaining() -> float:
        nonlocal looked
        looked += 1
        return 0.0 if looked == 6 else 100.0

    wanted = search(configure())
    config = replace(configure(), out=tmp_path / "stopped", resume=True)
    monkeypatch.setattr(interruption, "remaining", remaining)
    with pytest.raises(interruption.Interrupted) as stop:
        search(config)
    assert stop.value.status == 75
    result = search(config)
    assert (result["proxy"], result["real"]) == (wanted["proxy"], wanted["real"])
