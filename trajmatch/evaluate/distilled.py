"""Evaluation of a distilled file beside real images, with all that it says about itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trajmatch import artifact, networks
from trajmatch.artifact import Artifact
from trajmatch.data import Dataset, load_dataset, resolve_uri
from trajmatch.errors import UserError
from trajmatch.evaluate.baselines import TrainingSets
from trajmatch.evaluate.config import EvalConfig
from trajmatch.evaluate.device import check_device
from trajmatch.evaluate.scores import evaluate_each
from trajmatch.progress import NoProgress, ProgressLike

#: What networks can be trained on, by their names in the result.
SETS = ("distilled", "random_real", "k_center", "whole_real")


def evaluate_artifact(config: EvalConfig, progress: ProgressLike | None = None) -> dict[str, Any]:
    """Trains networks on a distilled set, and as many on real images, and tests all of them.

    Step size, normalisation and augmentation are those in the file, and so is the network unless
    others are asked for. Network ``k`` of a baseline begins with the parameters of network ``k`` of
    the distilled set and trains by the same protocol, learned step size included, with the classes
    of the images as labels: on a random draw of its own of as many images of each class, on those
    that k-center chooses, or on the whole training set. The score of random images hardly depends
    on the step size (one image per class of Fashion-MNIST: 49.6 to 51.6 % from 0.1 down to 0.001).
    One seed gives the same result every time; on a CPU, on the same number of threads.

    Args:
        config: What to evaluate, and how.
        progress: Told how many epochs (steps with ``equal_steps``) of all networks are done.

    Returns:
        As JSON can hold it:

        - ``distilled``, ``random_real``, ``k_center`` and ``whole_real`` (None where not asked
          for): :meth:`trajmatch.evaluate.Score.as_dict`, with ``mean`` and ``std`` (of the
          population) of the test accuracy in percent and ``seeds``, the number of networks;
        - ``protocol``: how the networks were trained;
        - ``networks``: one object for each architecture, in the order asked for, with its
          ``network``, the scores and the ``protocol``; those above are the first's;
        - ``selection``: how the distilled images were chosen among the iterates of their run;
        - ``k_center_features``: what k-center measured distances in, or None;
        - ``dataset``: ``name`` and ``fingerprint``; ``images_per_class``; ``seed``.

    Raises:
        UserError: The file cannot be used, the data set is not found or is another one, or there is
            no such network.
    """
    check_device(config.device)
    distilled = artifact.load(config.file)
    dataset = source_dataset(distilled, config.file, config.data)
    specs = _network_specs(distilled, config)
    test_images = distilled.preprocessing.apply(dataset.test_images)
    progress = progress or NoProgress()
    done = 0

    def on_epoch() -> None:
        nonlocal done
        done += 1
        progress.update(done)

    protocol = config.training_protocol(distilled.lr, distilled.dsa)
    sets = TrainingSets(distilled, dataset, config.seed, config.k_center_store, config.device)
    if config.k_center:
        sets.k_center(0)  # a store that cannot be used is found before anything is trained

    def all_scores(spec: dict[str, Any]) -> dict[str, Any]:
        scores = {
            name: evaluate_each(
                getattr(sets, name),
                spec,
                protocol,
                test_images,
                dataset.test_labels,
                config.seeds,
                config.seed,
                config.device,
                on_epoch,
            )
            for name in config.training_sets
        }
        return {
            **dict.fromkeys(SETS),
            **{name: score.as_dict() for name, score in scores.items()},
            "protocol": scores["distilled"].protocol,
        }

    scores = [{"network": name, **all_scores(spec)} for name, spec in specs]
    return {
        **{key: value for key, value in scores[0].items() if key != "network"},
        "networks": scores,
        "selection": distilled.selection,
        "k_center_features": k_center_features(config.k_center_store) if config.k_center else None,
        "dataset": {"name": dataset.name, "fingerprint": dataset.fingerprint},
        "images_per_class": distilled.ipc,
        "seed": config.seed,
    }


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
            f"{file} was distilled from the data set {name!r}, which is neither shipped nor "
            "found under the folder in TRAJMATCH_DATA; say where it is with --data"
        )
    dataset = load_dataset(uri)
    if dataset.fingerprint != distilled.dataset_fingerprint:
        raise UserError(
            f"{file} was distilled from the data set {name!r} with fingerprint "
            f"{distilled.dataset_fingerprint[:16]}..., but {uri} holds {dataset.name!r} with "
            f"fingerprint {dataset.fingerprint[:16]}...; give the same data with --data"
        )
    return dataset
