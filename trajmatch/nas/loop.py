"""The search: every architecture trained on the proxy and on the real data, and the two rankings.

After each network's training its record is on the disk, so that an interrupted search goes on with
the next. Accuracies are on the test images, as in FTD; a network that diverged has 0.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from trajmatch import artifact, interruption
from trajmatch.artifact import Artifact
from trajmatch.data import Dataset
from trajmatch.evaluate.baselines import TrainingSet, TrainingSets
from trajmatch.evaluate.device import usable_device
from trajmatch.evaluate.distilled import k_center_features, source_dataset
from trajmatch.evaluate.records import Records
from trajmatch.evaluate.scores import evaluate_each
from trajmatch.fields import expect_config
from trajmatch.lock import locked
from trajmatch.nas.config import NasConfig
from trajmatch.nas.ranking import rank_correlations
from trajmatch.nas.records import LAYOUT, read_real_scores
from trajmatch.nas.space import Architecture, choose
from trajmatch.progress import NoProgress, ProgressLike, Stages, silent


def search(config: NasConfig, stages: Stages = silent) -> dict[str, Any]:
    """Ranks architectures on a proxy and on the real data.

    Args:
        config: What to search, and how.
        stages: Shows the epochs that are done of the networks on the proxy, and then of those on
            the real data: an epoch there takes many times as long.

    Returns:
        What is in ``result.json``, as JSON can hold it:

        - ``spearman``: what :func:`trajmatch.nas.rank_correlations` gives, and ``top_by``;
        - ``proxy`` and ``real``: the test accuracy of each architecture, in percent, by name;
        - ``found``: the best on the proxy, and ``best``: the best on the real data, each with
          ``architecture``, ``proxy`` and ``real``;
        - ``diverged``: names of those of which a network diverged, on ``proxy`` and ``real``;
        - ``seconds`` that training and testing took on ``proxy`` and ``real``, interruptions left
          out. ``real`` is None here and above where the accuracies came from a file;
        - ``description``: what was trained on what, and how; ``dataset``: ``name`` and
          ``fingerprint``.

    Raises:
        UserError: A file, folder or data set cannot be used, or an architecture does not fit the
            images.
        Interrupted: ``config.max_time`` is up; the records of all networks before are there.
    """
    expect_config("search", config, NasConfig)
    config = replace(config, device=usable_device(config.device))
    distilled = artifact.load(config.file)
    dataset = source_dataset(distilled, config.file, config.data)
    architectures = choose(config)
    given = None
    if config.real_scores is not None:
        names = [each.name for each in architectures]
        given = read_real_scores(config.real_scores, names, dataset.fingerprint)
    trainer = _Trainer(config, distilled, dataset)

    with locked(config.out, inside=True), interruption.time_limit(config.max_time):
        records = Records.open(config.out, LAYOUT, trainer.description, config.resume)
        proxy = trainer.train_all("proxy", architectures, stages, records)
        real = trainer.train_all("real", architectures, stages, records) if given is None else None
        result = _result(config, trainer, proxy, real, given or {})
        records.write_result(result)
    return result


def _result(
    config: NasConfig,
    trainer: _Trainer,
    proxy: dict[str, dict[str, Any]],
    real: dict[str, dict[str, Any]] | None,
    given: dict[str, float],
) -> dict[str, Any]:
    """The result of a search from all of its records; see :func:`search`."""
    dataset = trainer.dataset
    proxy_scores = _accuracies(proxy)
    real_scores = _accuracies(real) if real is not None else given

    def about(name: str) -> dict[str, Any]:
        scores = {"proxy": proxy_scores[name], "real": real_scores[name]}
        return {"architecture": name, **scores}

    return {
        "spearman": rank_correlations(real_scores, proxy_scores, config.top, config.top_by),
        "top_by": config.top_by,
        "proxy": proxy_scores,
        "real": real_scores,
        "found": about(max(proxy_scores, key=lambda name: proxy_scores[name])),
        "best": about(max(real_scores, key=lambda name: real_scores[name])),
        "diverged": {"proxy": _diverged(proxy), "real": real and _diverged(real)},
        "seconds": {"proxy": _seconds(proxy), "real": None if real is None else _seconds(real)},
        "description": trainer.description,
        "dataset": {"name": dataset.name, "fingerprint": dataset.fingerprint},
    }


class _Trainer:
    """Trains architectures on the proxy and on the real data, those that have no record yet."""

    def __init__(self, config: NasConfig, distilled: Artifact, dataset: Dataset) -> None:
        """Check what can be checked before anything is trained."""
        self._config = config
        self.dataset = dataset
        self._progress: ProgressLike = NoProgress()
        self._done = 0
        self._sizes = (dataset.channels, dataset.num_classes, dataset.image_size)
        for architecture in choose(config):
            architecture.spec(*self._sizes)
        self._test_images = distilled.preprocessing.apply(dataset.test_images)
        self._protocols = {
            "proxy": config.proxy_protocol(distilled.lr, distilled.dsa),
            "real": config.real_protocol(distilled.lr, distilled.dsa),
        }
        sets = TrainingSets(distilled, dataset, config.seed, config.k_center_store, config.device)
        proxies: dict[str, TrainingSet] = {
            "distilled": sets.distilled,
            "random-real": sets.random_real,
            "k-center": sets.k_center,
        }
        self._sets = {"proxy": proxies[config.proxy], "real": sets.whole_real}
        if config.proxy == "k-center":
            sets.k_center(0)  # a store that cannot be used is found before anything is trained
        self.description: dict[str, Any] = {
            "proxy": config.proxy,
            "file": distilled.fingerprint,
            "selection": distilled.selection,
            "images_per_class": distilled.ipc,
            "k_center_features": (
                k_center_features(config.k_center_store) if config.proxy == "k-center" else None
            ),
            "dataset": dataset.fingerprint,
            "protocol": self._protocols["proxy"].describe(),
            "real_protocol": self._protocols["real"].describe(),
            "seeds": config.seeds,
            "seed": config.seed,
        }

    def train_all(
        self, kind: str, architectures: list[Architecture], stages: Stages, records: Records
    ) -> dict[str, dict[str, Any]]:
        """Train the architectures that have no record yet, and give the records of all by name.

        Args:
            kind: ``"proxy"`` or ``"real"``.
            architectures: What to train.
            stages: Shows the epochs that are done, those of an earlier call included.
            records: Where they are kept.
        """
        names = [each.name for each in architectures]
        read = {name: records.read(kind, name) for name in names}
        found = {name: record for name, record in read.items() if record is not None}
        epochs = self._config.seeds * self._protocols[kind].num_epochs
        with stages(epochs * len(names), f"{kind} epochs") as self._progress:
            self._done = epochs * len(found)
            self._progress.update(self._done)
            for architecture in architectures:
                if architecture.name in found:
                    continue
                record = found[architecture.name] = self._train(kind, architecture)
                records.write(kind, architecture.name, record)
                self._progress.update(self._done, accuracy=record["mean"])
        return {name: found[name] for name in names}

    def _train(self, kind: str, architecture: Architecture) -> dict[str, Any]:
        began = time.perf_counter()
        score = evaluate_each(
            self._sets[kind],
            architecture.spec(*self._sizes),
            self._protocols[kind],
            self._test_images,
            self.dataset.test_labels,
            self._config.seeds,
            self._config.seed,
            self._config.device,
            self._on_epoch,
        )
        return {**score.as_dict(), "seconds": time.perf_counter() - began}

    def _on_epoch(self) -> None:
        self._done += 1
        self._progress.update(self._done)
        interruption.check()


def _accuracies(records: dict[str, dict[str, Any]]) -> dict[str, float]:
    return {name: record["mean"] for name, record in records.items()}


def _diverged(records: dict[str, dict[str, Any]]) -> list[str]:
    return [name for name, record in records.items() if record["diverged"]]


def _seconds(records: dict[str, dict[str, Any]]) -> float:
    return sum(record["seconds"] for record in records.values())
