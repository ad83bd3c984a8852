"""Evaluation of a distilled set, compared with sets of real images."""

import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from trajmatch import files, interruption, networks, zoo
from trajmatch.artifact import Artifact, source_dataset
from trajmatch.device import usable_device
from trajmatch.errors import UserError, as_user_error
from trajmatch.evaluate.baselines import TrainingSets
from trajmatch.evaluate.config import EvalConfig
from trajmatch.evaluate.records import RESULT, Records
from trajmatch.evaluate.scores import Score, robust_scores
from trajmatch.evaluate.sets import SETS
from trajmatch.experts.store import Store
from trajmatch.lock import locked
from trajmatch.progress import NoProgress, ProgressLike
from trajmatch.random import derive_seed
from trajmatch.schema import expect_config
from trajmatch.training import Outcome, train_networks


def evaluate_artifact(
    config: EvalConfig,
    progress: ProgressLike | None = None,
    on_stop: Callable[[dict[str, Any]], None] = lambda partial_result: None,
) -> dict[str, Any]:
    """Train networks on a distilled set, and as many on each set of real images; test them all.

    Step size, normalisation and augmentation come from the file, and so does the network, unless
    ``config`` names others. Network ``k`` of a baseline starts from the same parameters as network
    ``k`` of the distilled set and trains by the same protocol, with the learned step size. The
    accuracy with random images hardly depends on the step size: with one image per class of
    Fashion-MNIST, it is between 49.6 and 51.6 % for step sizes from 0.1 to 0.001. On the CPU,
    the same seed and number of threads give the same result.

    Args:
        config: Distilled set and protocol.
        progress: Updated with the number of epochs so far over all networks (the number of steps,
            if ``equal_steps`` is set).
        on_stop: Called with the result so far if the run is stopped after the first network has
            finished. The entry ``unfinished`` of the result has the number of finished networks,
            ``done``, and the number of all networks, ``of``.

    Returns:
        The content of ``result.json``, by name:

        - each of :data:`trajmatch.evaluate.sets.SETS`: :meth:`trajmatch.evaluate.Score.as_dict`, or
          None if no network was trained on it;
        - ``sets``: :meth:`TrainingSets.size` of each set that networks are trained on;
        - ``robust``, with ``config.robust``: :func:`trajmatch.evaluate.scores.robust_scores`;
        - ``protocol``: how the networks were trained;
        - ``networks``: ``network``, scores and ``protocol`` of each architecture, in order; the
          scores above are those of the first;
        - ``selection``: rule that chose the distilled images among the iterates of their run;
        - ``k_center_features``: features of k-center and herding, or None;
        - ``dataset``: ``name``, ``fingerprint``, ``training_images`` and ``test_images``;
          ``images_per_class``; ``seed``.

    Raises:
        UserError: File, data set, network or records cannot be used, or do not fit each other.
        Interrupted: ``config.max_time`` is up, or a signal arrived inside
            :func:`trajmatch.interruption.signals`.
    """
    expect_config("evaluate_artifact", config, EvalConfig)
    config = replace(config, device=usable_device(config.device))
    evaluation = _Evaluation(config, progress or NoProgress())
    with ExitStack() as stack:
        stack.enter_context(networks.cuda_blocks(config.cuda_blocks))
        if config.records is not None:
            stack.enter_context(locked(config.records, inside=True))
            evaluation.keep(config.records)
        stack.enter_context(interruption.time_limit(config.max_time))
        try:
            evaluation.train_all()
        except interruption.Interrupted as stop:
            stop.kept = "nothing was kept; an evaluation with --resume keeps each finished network"
            stop.resumes = config.records is not None
            if config.records is not None:
                of = len(evaluation.trainings)
                stop.kept = f"{config.records} has {len(evaluation.outcomes)} of {of} networks"
            if evaluation.outcomes:
                on_stop(evaluation.result())
            raise
        return evaluation.result()


class _Evaluation:
    """Networks to train and their outcomes; all input is checked before training starts."""

    def __init__(self, config: EvalConfig, progress: ProgressLike) -> None:
        self._config, self._progress = config, progress
        self._distilled = zoo.load(config.file, config.data)
        for name in ("experts", "robust"):
            if self._distilled.loss == "mse" and getattr(config, name):
                raise UserError(
                    f"--{name} is for sets with classes as labels, but the labels of {config.file} "
                    "are target vectors; leave it out"
                )
        self._dataset = source_dataset(self._distilled, config.file, config.data)
        self._specs = _network_specs(self._distilled, config)
        self._test_images = self._distilled.preprocessing.apply(self._dataset.test_images)
        self._protocol = config.training_protocol(self._distilled.lr, self._distilled.dsa)
        stores = config.k_center_store, config.device, config.experts
        self._sets = TrainingSets(self._distilled, self._dataset, config.seed, *stores)
        self._kinds = config.training_sets(self._sets.is_soft("distilled"))
        # Compared with the fingerprint in the records when an evaluation is resumed.
        self._experts = config.experts and Store.open(config.experts).fingerprint
        # In the order of training: by architecture, then by set, then by number.
        self.trainings = {
            self._key(spec, kind, number): (spec, kind, number)
            for _, spec in self._specs
            for kind in self._kinds
            for number in range(config.seeds)
        }
        self._sizes = {kind: self._sets.size(kind) for kind in self._kinds}
        self._check_batches()
        self._rounds = 0
        self.outcomes: dict[tuple[str, str], Outcome] = {}
        self.records: Records | None = None

    def _key(self, spec: dict[str, Any], kind: str, number: int) -> tuple[str, str]:
        """Return the key of a network: the name of its training set, and the name of its record."""
        slug, decides = re.sub(r"\W+", "-", str(spec["name"])), spec
        # A resumed evaluation may add or change the experts; then only the networks that depend on
        # them are trained again.
        if self._sets.asks_experts(kind):
            decides = {"network": spec, "experts": self._experts}
        return kind, f"{slug}-{files.json_checksum(decides)[:16]}-{number}"

    def _check_batches(self) -> None:
        """Raise UserError unless every network can train on the batches of every set."""
        size, steps = self._protocol.batch_size, self._protocol.steps
        counts = {each["images"] for each in self._sizes.values()}
        for _, spec in self._specs:
            model = networks.build(spec)
            for count in counts:
                # Training may end before the last batch, which is shorter and could be too small.
                if steps is not None and steps <= count // size:
                    continue
                with as_user_error():
                    networks.check_batches(model, count, size, "--batch-size")

    def keep(self, folder: Path) -> None:
        """Keep a record of each network in a folder, and load the records already there."""
        config, store = self._config, self._config.k_center_store
        description = {
            # Leave out the scores: a score added to the file does not change the distilled set.
            "file": replace(self._distilled, scores=()).fingerprint,
            "dataset": self._dataset.fingerprint,
            "protocol": self._protocol.describe(),
            "seed": config.seed,
            "k_center_store": None if store is None else Store.open(store).fingerprint,
        }
        self.records = Records(folder, description, config.resume)
        for key in self.trainings:
            if (outcome := self.records.read(*key)) is not None:
                self.outcomes[key] = outcome
        if self.outcomes:
            self._rounds = len(self.outcomes) * self._protocol.num_rounds
            self._progress.update(self._rounds)

    def train_all(self) -> None:
        """Train and test the networks that have no record."""
        tests = self._test_images, self._dataset.test_answers
        left = [key for key in self.trainings if key not in self.outcomes]
        for (spec, kind), group in groupby(left, lambda key: self.trainings[key][:2]):
            keys = [*group]
            # Network k has the same seed for every set, so that it starts from the same parameters.
            sets = (
                (*self._sets.of(kind, number), derive_seed(self._config.seed, "evaluate", number))
                for number in (self.trainings[key][2] for key in keys)
            )
            dsa = self._protocol.dsa if SETS[kind].augmented else "none"
            options = replace(self._protocol, dsa=dsa), tests, self._config.device, self._on_epoch
            for key, outcome in zip(keys, train_networks(sets, spec, *options), strict=True):
                if self.records is not None:
                    self.records.write(*key, outcome)
                # Write the record first, so that an interrupted run reports only what it kept.
                self.outcomes[key] = outcome

    def result(self) -> dict[str, Any]:
        """Return the result of the finished networks, and write the result beside the records."""
        config, features = self._config, None
        if {"k_center", "k_center_soft", "herding"} & self._sizes.keys():
            store = config.k_center_store or config.experts
            features = f"logits of expert 0 of {store.name}" if store else "preprocessed pixels"
        scores = [found for each in self._specs if (found := self._scores(*each)) is not None]
        result = {
            **{key: value for key, value in scores[0].items() if key != "network"},
            "networks": scores,
            "selection": self._distilled.selection,
            "k_center_features": features,
            "sets": self._sizes,
            "dataset": {
                "name": self._dataset.name,
                "fingerprint": self._dataset.fingerprint,
                "training_images": len(self._dataset.train_images),
                "test_images": len(self._dataset.test_images),
            },
            "images_per_class": self._distilled.ipc,
            "seed": config.seed,
        }
        done, of = len(self.outcomes), len(self.trainings)
        if done < of:
            result["unfinished"] = {"done": done, "of": of}
        if self.records is not None:
            files.write_json(self.records.folder / RESULT, result)
        return result

    def _scores(self, name: str, spec: dict[str, Any]) -> dict[str, Any] | None:
        """Return the scores of an architecture by training set; None if no network has finished."""
        protocol = {**self._protocol.describe(), "network": spec}
        found: dict[str, Score] = {}
        for kind in self._kinds:
            keys = [self._key(spec, kind, number) for number in range(self._config.seeds)]
            if outcomes := [self.outcomes[key] for key in keys if key in self.outcomes]:
                found[kind] = Score.of_outcomes(outcomes, protocol, self._dataset.test_answers)
        if not found:
            return None
        scores = {kind: found[kind].as_dict() if kind in found else None for kind in SETS}
        if self._config.robust:
            whole = self._config.whole_real_accuracy
            scores["robust"] = robust_scores(found, self._sets.is_soft("distilled"), whole)
        return {"network": name, **scores, "protocol": protocol}

    def _on_epoch(self) -> None:
        self._rounds += 1
        self._progress.update(self._rounds)
        interruption.check()


def _network_specs(distilled: Artifact, config: EvalConfig) -> list[tuple[str, dict[str, Any]]]:
    """Return the names and specs of the networks to train; raise UserError if one cannot run."""
    own, (_, channels, size, _) = distilled.network, distilled.images.shape
    specs = []
    for text in config.network:
        with as_user_error(f"--network {text}: "):
            specs.append((text, networks.specify(text, channels, distilled.num_outputs, size)))
    if not specs and networks.is_user_function(own["name"]):
        raise UserError(
            f"{config.file} was distilled for the network of the function {own['name']}. "
            "trajmatch does not call a function just because a file names it: add "
            f"--network {own['name']}, or choose another network"
        )
    specs = specs or [(str(own["name"]), own)]
    with as_user_error():
        for _, spec in specs:
            networks.check_runs(spec)
    return specs
