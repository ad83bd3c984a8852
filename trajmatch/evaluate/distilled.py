"""Evaluation of a distilled file beside real images, with all that it says about itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from trajmatch import artifact, files, interruption, networks
from trajmatch.artifact import Artifact
from trajmatch.data import Dataset, load_dataset, resolve_uri
from trajmatch.data.identity import check_same_data, describe_dataset
from trajmatch.data.sources import SEARCH_VARIABLE, searched_folders
from trajmatch.device import usable_device
from trajmatch.errors import UserError
from trajmatch.evaluate.baselines import TrainingSets
from trajmatch.evaluate.config import EvalConfig
from trajmatch.evaluate.records import Layout, Records
from trajmatch.evaluate.scores import Score, evaluate_each
from trajmatch.experts.store import Store
from trajmatch.fields import expect_config
from trajmatch.lock import locked
from trajmatch.progress import NoProgress, ProgressLike
from trajmatch.training import Outcome

#: What networks can be trained on, by their names in the result.
SETS = ("distilled", "random_real", "k_center", "whole_real")

LAYOUT = Layout("eval", "evaluation", "network", ("accuracy", "max_accuracy", "diverged"))


def evaluate_artifact(
    config: EvalConfig,
    progress: ProgressLike | None = None,
    on_stop: Callable[[dict[str, Any]], None] = lambda partial_result: None,
) -> dict[str, Any]:
    """Train networks on a distilled set, and as many on real images, and test all of them.

    Step size, normalisation and augmentation are those in the file, and so is the network unless
    others are asked for. Network ``k`` of a baseline begins with the parameters of network ``k`` of
    the distilled set and trains by the same protocol, learned step size included, with the classes
    of the images as labels: on a random draw of its own of as many images of each class, on those
    that k-center chooses, or on the whole training set. The score of random images hardly depends
    on the step size (one image per class of Fashion-MNIST: 49.6 to 51.6 % from 0.1 down to 0.001).
    On the CPU one seed gives the same result every time, on the same number of threads.

    Args:
        config: What to evaluate, and how.
        progress: Told how many epochs (steps with ``equal_steps``) of all networks are done.
        on_stop: Called with the result of the networks that are finished, if there are any, where
            the evaluation is stopped. It has ``unfinished``: how many are ``done`` ``of`` all.

    Returns:
        What is in ``result.json`` where records are kept, as JSON can hold it:

        - ``distilled``, ``random_real``, ``k_center`` and ``whole_real`` (None where not asked
          for): :meth:`trajmatch.evaluate.Score.as_dict`, with ``mean`` and ``std`` (of the
          population) of the test accuracy in percent and ``seeds``, the number of networks;
        - ``protocol``: how the networks were trained;
        - ``networks``: one object for each architecture, in the order asked for, with its
          ``network``, the scores and the ``protocol``; those above are the first's;
        - ``selection``: how the distilled images were chosen among the iterates of their run;
        - ``k_center_features``: what k-center measured distances in, or None;
        - ``dataset``: ``name``, ``fingerprint``, numbers of ``training_images`` and
          ``test_images``; ``images_per_class``; ``seed``.

    Raises:
        UserError: The file cannot be used, the data set is not found or is another one, there is
            no such network, or records cannot be kept or are of another evaluation.
        Interrupted: ``config.max_time`` is up, or the program handles signals
            (:func:`trajmatch.interruption.signals`) and got one.
    """
    expect_config("evaluate_artifact", config, EvalConfig)
    config = replace(config, device=usable_device(config.device))
    evaluation = _Evaluation(config, progress or NoProgress())
    with ExitStack() as stack:
        if config.records is not None:
            stack.enter_context(locked(config.records, inside=True))
            evaluation.keep(config.records)
        stack.enter_context(interruption.time_limit(config.max_time))
        try:
            evaluation.train_all()
        except interruption.Interrupted as stop:
            stop.kept, stop.resumes = evaluation.kept, evaluation.records is not None
            if evaluation.done:
                on_stop(evaluation.result())
            raise
        return evaluation.result()


class _Evaluation:
    """Networks to train, and the outcomes of those that are finished.

    Args:
        config: What to evaluate, and how.
        progress: Told how many rounds of all networks are done.

    Raises:
        UserError: Something that was given cannot be used; found before anything is trained.
    """

    def __init__(self, config: EvalConfig, progress: ProgressLike) -> None:
        self._config, self._progress = config, progress
        self._distilled = artifact.load(config.file)
        self._dataset = source_dataset(self._distilled, config.file, config.data)
        self._specs = _network_specs(self._distilled, config)
        self._test_images = self._distilled.preprocessing.apply(self._dataset.test_images)
        self._protocol = config.training_protocol(self._distilled.lr, self._distilled.dsa)
        self._sets = TrainingSets(
            self._distilled, self._dataset, config.seed, config.k_center_store, config.device
        )
        if config.k_center:
            self._sets.k_center(0)  # a store that cannot be used is found here
        self._check_batches()
        self._rounds = 0
        self._outcomes: dict[tuple[str, str], Outcome] = {}  # by training set and name
        self.records: Records | None = None

    def _check_batches(self) -> None:
        """Make sure that every network trains on the batches of every set."""
        size, steps = self._protocol.batch_size, self._protocol.steps
        counts = {len(getattr(self._sets, name)(0)[1]) for name in self._config.training_sets}
        for _, spec in self._specs:
            model = networks.build(spec)
            for count in counts:
                if steps is not None and steps <= count // size:
                    continue  # it never comes to the last batch
                try:
                    networks.check_batches(model, count, size, "--batch-size")
                except ValueError as error:
                    raise UserError(str(error)) from error

    def keep(self, folder: Path) -> None:
        """Keep a record of each network in a folder, and go on from those that are there."""
        config, store = self._config, self._config.k_center_store
        description = {
            "file": replace(self._distilled, scores=()).fingerprint,
            "dataset": self._dataset.fingerprint,
            "protocol": self._protocol.describe(),
            "seed": config.seed,
            "k_center_store": None if store is None else Store.open(store).fingerprint,
        }
        self.records = Records.open(folder, LAYOUT, description, config.resume)
        for _, spec in self._specs:
            for key in self._keys(spec):
                if (record := self.records.read(*key)) is not None:
                    fields = {field: record[field] for field in LAYOUT.fields}
                    self._outcomes[key] = Outcome(**fields)
        if self._outcomes:
            self._rounds = self.done * self._protocol.num_rounds
            self._progress.update(self._rounds)

    @property
    def done(self) -> int:
        """Number of networks that are finished."""
        return len(self._outcomes)

    @property
    def total(self) -> int:
        """Number of networks in all."""
        return len({key for _, spec in self._specs for key in self._keys(spec)})

    @property
    def kept(self) -> str:
        """The state on the disk, for people."""
        if self.records is None:
            return "nothing was kept; an evaluation with --resume keeps each finished network"
        return f"{self.records.folder} has {self.done} of {self.total} networks"

    def train_all(self) -> None:
        """Train and test the networks that have no record."""
        config = self._config
        for _, spec in self._specs:
            for name in config.training_sets:
                evaluate_each(
                    getattr(self._sets, name),
                    spec,
                    self._protocol,
                    self._test_images,
                    self._dataset.test_labels,
                    config.seeds,
                    config.seed,
                    config.device,
                    self._on_epoch,
                    partial(self._outcome, name, spec),
                )

    def result(self) -> dict[str, Any]:
        """The result of the networks that are finished, one at least; written beside records."""
        config, scores = self._config, []
        for name, spec in self._specs:
            protocol = {**self._protocol.describe(), "network": spec}
            found: dict[str, list[Outcome]] = {}
            for key in self._keys(spec):
                if key in self._outcomes:
                    found.setdefault(key[0], []).append(self._outcomes[key])
            if found:
                each = {kind: Score.of_outcomes(of, protocol) for kind, of in found.items()}
                numbers = {kind: score.as_dict() for kind, score in each.items()}
                scores.append(
                    {"network": name, **dict.fromkeys(SETS), **numbers, "protocol": protocol}
                )
        features = k_center_features(config.k_center_store) if config.k_center else None
        result = {
            **{key: value for key, value in scores[0].items() if key != "network"},
            "networks": scores,
            "selection": self._distilled.selection,
            "k_center_features": features,
            "dataset": {
                "name": self._dataset.name,
                "fingerprint": self._dataset.fingerprint,
                "training_images": len(self._dataset.train_images),
                "test_images": len(self._dataset.test_images),
            },
            "images_per_class": self._distilled.ipc,
            "seed": config.seed,
        }
        if self.done < self.total:
            result["unfinished"] = {"done": self.done, "of": self.total}
        if self.records is not None:
            self.records.write_result(result)
        return result

    def _outcome(
        self, training_set: str, spec: dict[str, Any], network: int, train: Callable[[], Outcome]
    ) -> Outcome:
        """The outcome of a network that is known, or is now trained."""
        key = training_set, _name(spec, network)
        if key not in self._outcomes:
            outcome = train()
            if self.records is not None:
                self.records.write(*key, asdict(outcome))
            self._outcomes[key] = outcome
        return self._outcomes[key]

    def _keys(self, spec: dict[str, Any]) -> list[tuple[str, str]]:
        """Training sets and names of all networks of an architecture."""
        numbers = range(self._config.seeds)
        return [(kind, _name(spec, k)) for kind in self._config.training_sets for k in numbers]

    def _on_epoch(self) -> None:
        self._rounds += 1
        self._progress.update(self._rounds)
        interruption.check()


def _name(spec: dict[str, Any], network: int) -> str:
    """Name of a network's record."""
    slug = re.sub(r"\W+", "-", str(spec["name"]))
    return f"{slug}-{files.json_checksum(spec)[:16]}-{network}"


def k_center_features(store: Path | None) -> str:
    """What k-center measures distances in, in words."""
    return "preprocessed pixels" if store is None else f"logits of expert 0 of {store.name}"


def _network_specs(distilled: Artifact, config: EvalConfig) -> list[tuple[str, dict[str, Any]]]:
    """Names and specs of the networks to train; each can be built and runs on the images."""
    own = distilled.network
    named = [(text, _specified(text, distilled)) for text in config.network]
    specs = named or [(str(own["name"]), own)]
    if not named and networks.is_user_function(own["name"]):
        raise UserError(
            f"{config.file} was distilled for the network of the function {own['name']}, which is "
            f"not called because a file says so; add --network {own['name']}, or another network"
        )
    try:
        for _, spec in specs:
            networks.check_runs(spec)
    except ValueError as error:
        raise UserError(str(error)) from error
    return specs


def _specified(text: str, distilled: Artifact) -> dict[str, Any]:
    _, channels, size, _ = distilled.images.shape
    try:
        return networks.specify(text, channels, distilled.num_classes, size)
    except ValueError as error:
        raise UserError(f"--network {text}: {error}") from error


def source_dataset(distilled: Artifact, file: Path, data: str | None) -> Dataset:
    """The data set that was distilled, from where it was given or where its name leads.

    Args:
        distilled: The distilled set.
        file: Where it was read from, for messages.
        data: Where the data set is; None: it is looked for by its name.

    Returns:
        The data set.

    Raises:
        UserError: It is not found, or is another one.
    """
    name = distilled.dataset_name
    uri = data or resolve_uri(name)
    if uri is None:
        raise UserError(
            f"{file} was distilled from the data set {name!r}, which is neither shipped nor in a "
            f"folder that {SEARCH_VARIABLE} lists ({searched_folders()}); say where it is with "
            "--data"
        )
    dataset = load_dataset(uri)
    known = {
        "name": name,
        "fingerprint": distilled.dataset_fingerprint,
        "class_names": list(distilled.class_names),
        "shape": list(distilled.images.shape[1:]),
    }
    check_same_data(
        f"{file} was distilled from", known, describe_dataset(dataset), given_address=uri
    )
    return dataset
